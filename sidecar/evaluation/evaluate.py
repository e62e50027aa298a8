"""How well models score recorded pairs."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onnx_builder.constants import read_bytes
from onnx_builder.network import Array, Float32, NetworkError
from onnx_builder.runtime import Scorer
from sidecar.checkpoints.description import inputs_of_model
from sidecar.checkpoints.judging.compatibility import score_range
from sidecar.evaluation.residuals import rows_by_group
from sidecar.evaluation.trained_on import TrainedOn, trained_on
from sidecar.learning.intervals import Coverage, IntervalError, Intervals, intervals_of
from sidecar.learning.metrics import Metrics, metrics
from sidecar.learning.recipe import Rows
from sidecar.models.description import DescriptionError, read_description
from sidecar.models.inputs import ModelInputs
from sidecar.models.json_scaling import BaseScaler, json_scaling, scaled
from sidecar.models.kinds import require_a_model
from sidecar.models.pytorch.state_dict import is_state_dict
from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.lines import STDIN
from sidecar.pairs.recorded import RecordedPairs, read_columns
from sidecar.pairs.tables.choice import Columns

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """How a model scores recorded pairs.

    groups: by name, if they were asked for; predicted: (n,); predict: from raw features (n, n_features) to scores (n,).
    trained_on: how many of the pairs the model was trained on, True if that is some of them, 0 if none is known to be.
    not_trained_on: the figures of the other pairs, None if there are none, or it is not known which they are. intervals: the
    model's own, None if it has none; coverage: what those of each level cover of the pairs that were not trained on, of all if
    it is not known which they are or there are none.
    """

    model: Path
    metrics: Metrics
    groups: dict[str, Metrics]
    pairs: RecordedPairs
    predicted: Float32
    predict: Callable[[Array], Float32]
    trained_on: int | bool
    not_trained_on: Metrics | None
    intervals: Intervals | None
    coverage: dict[float, Coverage]


def evaluate(
    models: Sequence[Path],
    paths: Sequence[str | Path],
    *,
    base_scaler: BaseScaler = "none",
    score_min: float = 0.0,
    score_max: float = 100.0,
    skip_bad: bool = False,
    group_by: str | None = None,
    held_out: bool = False,
    names: bool = False,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
) -> list[Evaluation]:
    """Score the same recorded pairs with ONNX models in onnxruntime, and compare the scores with the true ones.

    base_scaler: "json" first applies `feature_mean` and `feature_std` from the JSON beside a model. group_by: a field to group
    the pairs by. held_out: only the pairs that every model's hold-out kept out of its training, as the JSON beside it says.
    names: keep those of jobs and encodes. columns: what is read as what; by default the features that a model names, in its
    order. The pairs are read once for all models that take the same.

    Raises NetworkError if a model does not run or takes another number of features, RecordedPairsError if the pairs cannot be
    read, are not the same for all models, or if `held_out` leaves none.
    """
    loaded = {model: _loaded(model, base_scaler) for model in models}
    asked = {}
    for model, (scorer, _) in loaded.items():
        inputs = _inputs(model, scorer)
        asked[model] = replace(columns.of_model(inputs.names, inputs.block), label=group_by)
    if len({*asked.values()}) > 1 and (once := next((path for path in paths if _is_read_once(path)), None)) is not None:
        raise RecordedPairsError(f"{once}: can be read only once, but the models name different features; give a file")
    read = {
        each: read_columns(paths, each, score_min=score_min, score_max=score_max, skip_bad=skip_bad, names=names)
        for each in dict.fromkeys(asked.values())
    }
    pairs = {model: read[each] for model, each in asked.items()}
    for model, (scorer, _) in loaded.items():
        n_features = pairs[model].features.shape[1]
        if scorer.n_features != n_features:
            files = ", ".join(map(str, paths))
            raise NetworkError(f"{model} takes {scorer.n_features} features, but {files} have {n_features}")
        _require_same(models[0], pairs[models[0]], model, pairs[model])

    known = {model: trained_on(model, paths, pairs[model]) for model in models}
    if held_out:
        rows = _held_out(pairs, known)
        pairs = {model: each.only(rows) for model, each in pairs.items()}
        known = {model: each._replace(rows=each.rows[rows]) for model, each in known.items()}
    return [_evaluation(model, loaded[model][1], pairs[model], known[model], group_by is not None) for model in models]


def _loaded(model: Path, base_scaler: BaseScaler) -> tuple[Scorer, Callable[[Array], Float32]]:
    """A model, and what gives its scores (n,) of raw features (n, n_features)."""
    data = read_bytes(model)
    require_a_model(model, data)
    if is_state_dict(data):
        raise NetworkError(f"{model}: a PyTorch file: make it ONNX with train-offline --base-model {model} --epochs 0")
    del data  # a large file need not be in memory twice
    scorer = Scorer(model)
    scaling = json_scaling(model, scorer.n_features) if base_scaler == "json" else ()
    return scorer, lambda features: scorer.predict(scaled(features, scaling) if scaling else features)


def _evaluation(
    model: Path, predict: Callable[[Array], Float32], pairs: RecordedPairs, known: TrainedOn, by_group: bool
) -> Evaluation:
    scores = predict(pairs.features)
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise NetworkError(f"{model}: {bad} of {len(scores)} scores are not finite")
    groups = {
        name: metrics(scores[rows], pairs.true_score[rows])
        for name, rows in zip(pairs.group_names, rows_by_group(pairs.group), strict=True)
        if by_group
    }
    rest = ~known.rows if known.sure else np.zeros(len(pairs), dtype=np.bool_)
    others = metrics(scores[rest], pairs.true_score[rest]) if rest.any() else None
    intervals, in_range = _intervals(model)
    coverage = dict[float, Coverage]()
    if intervals is not None:
        chosen = rest if others else np.ones_like(rest)
        whose = pairs.group if by_group and pairs.group is not None else pairs.position
        for level in intervals.half_widths:
            coverage[level] = intervals.coverage(level, scores[chosen], pairs.true_score[chosen], whose[chosen], in_range)
    measured = metrics(scores, pairs.true_score)
    return Evaluation(model, measured, groups, pairs, scores, predict, known.said, others, intervals, coverage)


def _intervals(model: Path) -> tuple[Intervals | None, tuple[float, float] | None]:
    """The intervals that the JSON beside a model has, if it is this model's, and the range of its scores."""
    path = model.resolve()
    try:
        about = read_description(path) or {}
        if about.get("sha256") != hashlib.sha256(read_bytes(path)).hexdigest():
            return None, None
        return intervals_of(about), score_range(about)
    except (DescriptionError, IntervalError) as error:
        _log.warning("%s: not used: %s", path.with_suffix(".json"), error)
        return None, None


def _inputs(model: Path, scorer: Scorer) -> ModelInputs:
    """What a model and its JSON say of its inputs; nothing if that does not fit the graph, which is scored all the same."""
    try:
        return inputs_of_model(scorer, read_description(model) or {})
    except DescriptionError:
        return ModelInputs()


def _is_read_once(path: str | Path) -> bool:
    return str(path) == STDIN or (os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path))


def _require_same(first: Path, pairs: RecordedPairs, model: Path, others: RecordedPairs) -> None:
    """Raises RecordedPairsError if other rows were skipped for one model than for the other."""
    if not np.array_equal(pairs.true_score, others.true_score):
        counts = f"{len(pairs):,} pairs can be used with {first}, {len(others):,} with {model}"
        raise RecordedPairsError(f"{counts}: other rows lack a feature; models are compared on the same pairs")


def _held_out(pairs: dict[Path, RecordedPairs], known: dict[Path, TrainedOn]) -> Rows:
    """The pairs that each model's hold-out kept out of its training, and that none is known to have been trained on."""
    kept = np.ones(len(next(iter(pairs.values()))), dtype=np.bool_)
    for model, about in known.items():
        if about.holdout is None:
            raise RecordedPairsError(f"{model}: no JSON beside it that says which pairs were kept out of its training")
        kept &= (pairs[model].position < about.holdout) & ~about.rows
    if not kept.any():
        if len(known) > 1:
            raise RecordedPairsError(f"none of these {len(kept)} pairs was kept out of the training of every model")
        raise RecordedPairsError(f"{model} kept {about.holdout:g} of all pairs out of its training, none of these {len(kept)}")
    return np.flatnonzero(kept)
