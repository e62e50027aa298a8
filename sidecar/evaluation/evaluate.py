"""How well a model scores recorded pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onnx_builder.constants import read_bytes
from onnx_builder.network import Array, Float32, NetworkError
from onnx_builder.runtime import Scorer
from sidecar.checkpoints.description import inputs_of_model
from sidecar.evaluation.residuals import rows_by_group
from sidecar.evaluation.trained_on import TrainedOn, trained_on
from sidecar.learning.metrics import Metrics, metrics
from sidecar.models.description import DescriptionError, read_description
from sidecar.models.inputs import ModelInputs
from sidecar.models.json_scaling import BaseScaler, json_scaling, scaled
from sidecar.models.kinds import require_a_model
from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.recorded import RecordedPairs, read_columns
from sidecar.pairs.tables.choice import Columns


@dataclass(frozen=True)
class Evaluation:
    """How a model scores recorded pairs.

    groups: by name, if they were asked for; predicted: (n,); predict: from raw features (n, n_features) to scores (n,).
    trained_on: how many of the pairs the model was trained on, True if that is some of them, 0 if none is known to be.
    not_trained_on: the figures of the other pairs, None if there are none, or it is not known which they are.
    """

    metrics: Metrics
    groups: dict[str, Metrics]
    pairs: RecordedPairs
    predicted: Float32
    predict: Callable[[Array], Float32]
    trained_on: int | bool
    not_trained_on: Metrics | None


def evaluate(
    model: Path,
    paths: Sequence[str | Path],
    *,
    base_scaler: BaseScaler = "none",
    score_min: float = 0.0,
    score_max: float = 100.0,
    skip_bad: bool = False,
    group_by: str | None = None,
    held_out: bool = False,
    for_report: bool = False,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
) -> Evaluation:
    """Score recorded pairs with an ONNX model in onnxruntime, and compare the scores with the true ones.

    base_scaler: "json" first applies `feature_mean` and `feature_std` from the JSON beside the model. group_by: a field to
    group the pairs by. held_out: only the pairs that the model's hold-out kept out of its training, as the JSON beside it
    says. for_report: keep job_ids. columns: what is read as what; by default the features that the JSON beside the model names,
    in its order. Raises NetworkError if the model does not run or takes another number of features,
    RecordedPairsError if the pairs cannot be read, or if `held_out` leaves none.
    """
    require_a_model(model, read_bytes(model))
    scorer = Scorer(model)
    scaling = json_scaling(model, scorer.n_features) if base_scaler == "json" else ()
    inputs = _inputs(model, scorer)
    columns = replace(columns.of_model(inputs.names, inputs.block), label=group_by)
    pairs = read_columns(paths, columns, score_min=score_min, score_max=score_max, skip_bad=skip_bad, names=for_report)
    n_features = pairs.features.shape[1]
    if scorer.n_features != n_features:
        raise NetworkError(f"{model} takes {scorer.n_features} features, but {', '.join(map(str, paths))} have {n_features}")

    known = trained_on(model, paths, pairs)
    if held_out:
        pairs, known = _held_out(model, pairs, known)

    def predict(features: Array) -> Float32:
        return scorer.predict(scaled(features, scaling) if scaling else features)

    scores = predict(pairs.features)
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise NetworkError(f"{model}: {bad} of {len(scores)} scores are not finite")
    groups = {
        name: metrics(scores[rows], pairs.true_score[rows])
        for name, rows in zip(pairs.group_names, rows_by_group(pairs.group), strict=True)
        if group_by is not None
    }
    rest = ~known.rows if known.sure else np.zeros(len(pairs), dtype=np.bool_)
    others = metrics(scores[rest], pairs.true_score[rest]) if rest.any() else None
    return Evaluation(metrics(scores, pairs.true_score), groups, pairs, scores, predict, known.said, others)


def _inputs(model: Path, scorer: Scorer) -> ModelInputs:
    """What a model and its JSON say of its inputs; nothing if that does not fit the graph, which is scored all the same."""
    try:
        return inputs_of_model(scorer, read_description(model) or {})
    except DescriptionError:
        return ModelInputs()


def _held_out(model: Path, pairs: RecordedPairs, known: TrainedOn) -> tuple[RecordedPairs, TrainedOn]:
    """The pairs that the model's hold-out kept out of its training, and that it is not known to have been trained on."""
    if known.holdout is None:
        raise RecordedPairsError(f"{model}: no JSON beside it that says which pairs were kept out of its training")
    rows = np.flatnonzero((pairs.position < known.holdout) & ~known.rows)
    if not len(rows):
        raise RecordedPairsError(f"{model} kept {known.holdout:g} of all pairs out of its training, none of these {len(pairs)}")
    return pairs.only(rows), known._replace(rows=known.rows[rows])
