"""Training offline on recorded pairs: leave-one-group-out validation, the recipe, and a published checkpoint."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sidecar.checkpoints.directory import Checkpoint, check_writable
from sidecar.checkpoints.heads import publish_heads
from sidecar.checkpoints.judging.gate import Evidence, Gate
from sidecar.checkpoints.publishing import Terms, publish_network
from sidecar.fleet.reading import Read, Sampling
from sidecar.journal.run import kernel
from sidecar.learning.drift.outliers import Outliers
from sidecar.learning.head import Head
from sidecar.learning.intervals import Intervals
from sidecar.learning.metrics import Metrics, metrics, rmse
from sidecar.learning.recipe import Progress, Recipe, Rows, TrainingError, fit, no_progress, schedule
from sidecar.models.base_model import BaseModel, ExportIo, require_features
from sidecar.models.evidence import evidence
from sidecar.models.inputs import ModelInputs
from sidecar.offline.pods import PodFigures, by_pod
from sidecar.offline.seeds import Seeds
from sidecar.offline.tenants import LOOK_EPOCHS, LOOKS, TenantFigures, heads, scores_without_own, tenants_of
from sidecar.offline.validation import Validation, leave_one_group_out, predict
from sidecar.pairs.recorded import RecordedPairs, read_columns, require_target
from sidecar.pairs.tables.choice import Columns

_log = logging.getLogger(__name__)
_PARITY_PAIRS = 4096
_PODS = 1000
"""The JSON of a checkpoint has the figures of at most so many: it is read whole, and may have 1 MiB."""
_CURVE_PAIRS = 8192
"""Each point of the learning curve is measured on all pairs of a set, or on one to two times this many if it is larger."""


class CurvePoint(NamedTuple):
    """RMSE after a number of steps, by ("train" or "held_out", "live" or "ema")."""

    step: int
    rmse: dict[tuple[str, str], float]


@dataclass(frozen=True)
class Result:
    """What `train_offline` did.

    outliers: what of `pairs` was left out of everything; train, held_out: rows of the others; heads: by "base" (if there is
    one), "live" and "ema"; metrics: by ("train" or "held_out", one of these); curve: empty if it was not asked for;
    curve_pairs: how many pairs it was measured on, by "train" and "held_out"; refused: why libvmaf cannot use the checkpoint,
    empty if it can; seeds: the held-out figures of each seed's EMA weights, if there are several; read: what workers read, if
    they did; pods: then the figures of each pod; intervals: the checkpoint's prediction intervals, None if it has none;
    tenants: their heads.
    """

    checkpoint: Checkpoint
    sha256: str
    recipe: Recipe
    pairs: RecordedPairs
    outliers: Outliers
    train: Rows
    held_out: Rows
    heads: dict[str, Head]
    metrics: dict[tuple[str, str], Metrics]
    validation: Validation | None
    gate: Gate
    parity_max_abs_diff: float
    seconds: float
    pairs_per_second: float
    curve: list[CurvePoint]
    curve_pairs: dict[str, int]
    refused: str
    seeds: list[Metrics]
    read: Read | None
    pods: list[PodFigures]
    intervals: Intervals | None
    tenants: list[TenantFigures]


def train_offline(
    paths: Sequence[str | Path],
    output: Path,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    *,
    base: BaseModel | None = None,
    export_io: ExportIo = "canonical",
    holdout: float = 0.1,
    group_by: str | None = None,
    tenant: str | None = None,
    skip_bad: bool = False,
    for_report: bool = False,
    progress: Callable[[int], Progress] = lambda total: no_progress,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    seeds: Seeds = Seeds(),  # noqa: B008 (frozen)
    sampling: Sampling | None = None,
) -> Result:
    """Train a new model, or fine-tune `base`, on recorded pairs and publish the EMA weights as a checkpoint in `output`.

    export_io: "base" publishes with the base's inputs and output. holdout: share of pairs, by whole encodes, that are kept out
    of training and judge the result. columns: what is read as what; by default the base model's features. group_by: first
    validate by leaving out each value of this field once. tenant: publish also a head for each value of this field, which is
    not given together with `group_by`. for_report: keep names, and measure the learning curve. progress:
    takes the number of pairs that will be trained on in all, and returns the function that is told about progress. seeds: how
    often each training is done, and where. sampling: workers read the pairs, and a sample of them is trained on.

    Raises RecordedPairsError, JournalError, TrainingError, NetworkError (parity), CheckpointError or LostError; then nothing is
    published.
    """
    check_writable(output)
    inputs = base.inputs if base else ModelInputs()
    columns = dataclasses.replace(columns.of_model(inputs.names, inputs.block), label=group_by or tenant)
    low, high = recipe.score_min, recipe.score_max
    read: Read | None = None
    if sampling is None:
        pairs = read_columns(paths, columns, score_min=low, score_max=high, skip_bad=skip_bad, names=for_report)
    else:
        read = sampling.read(paths, columns, score_min=low, score_max=high, skip_bad=skip_bad, names=for_report)
        pairs = read.pairs
        seeds = dataclasses.replace(seeds, workers=(sampling.workers, read.features))
    require_target(pairs, inputs.target, columns)
    if tenant:
        tenants_of(pairs)  # to say at once what is wrong
    start = base.network if base else None
    outliers = Outliers(pairs.features.shape[1])
    if start and start.n_features == pairs.features.shape[1]:
        outliers.begin(start)
    usual = outliers.sort_out(pairs.features)
    is_held_out = pairs.position < holdout
    train, held_out = np.flatnonzero(usual & ~is_held_out), np.flatnonzero(usual & is_held_out)
    if not len(train):
        raise TrainingError(f"a holdout of {holdout:g} leaves none of {len(pairs)} pairs to train on; use 0 to train on all")
    if base:
        require_features(base, pairs.features.shape[1], ", ".join(map(str, paths)))
        for words in evidence(base, pairs.features, pairs.true_score, recipe.score_max - recipe.score_min):
            _log.warning("%s", words)
    recipe = dataclasses.replace(recipe, **schedule(recipe, len(train), fresh=base is None)._asdict())
    epochs = recipe.epochs or 0
    validated = (len(pairs.group_names) - 1) * len(pairs) if group_by is not None else 0
    told = progress((validated + len(train)) * epochs * seeds.count)

    validation = leave_one_group_out(pairs, usual, recipe, told, start, seeds) if group_by is not None else None
    sets = {"train": train, "held_out": held_out}
    curve = _Curve(pairs, sets)
    started = time.perf_counter()
    observe = curve.observe if for_report else None
    scores = pairs.true_score
    if tenant:
        few = dataclasses.replace(recipe, epochs=min(LOOK_EPOCHS, epochs))
        for _ in range(LOOKS if start is None else 1):
            look = start or fit(pairs.features, scores, train, few).ema.network()
            scores = scores_without_own(look, pairs, train, recipe)
            if np.array_equal(scores, pairs.true_score):
                break
    (trained,) = seeds.fit(pairs.features, scores, [train], recipe, told, start, observe)
    seconds = time.perf_counter() - started - curve.seconds

    fitted = seeds.result(trained)
    weights = {"live": fitted.live, "ema": fitted.ema}
    if start:
        weights = {"base": Head(start), **weights}
    measured = {
        (place, kind): _figures(head, pairs, rows)
        for place, rows in sets.items()
        for kind, head in weights.items()
        if len(rows)
    }
    description = {
        "step": fitted.steps,
        "pairs_seen": len(train),
        "settings": {
            **dataclasses.asdict(recipe),
            "holdout": holdout,
            "export_io": export_io,
            **({"seeds": seeds.count, "ensemble": seeds.ensemble} if seeds.count > 1 else {}),
        },
        "journal": None,
        "data": [str(path) for path in paths],
        "columns": pairs.chosen,
        "outliers": outliers.count,
        **about_features(pairs, inputs),
    }
    if validation is not None:
        description["loso"] = validation.as_json()
    pods = by_pod(read, fitted.ema, held_out) if read else []
    if sampling and read:
        description["settings"]["sample"], description["settings"]["per_group"] = sampling.limits
        description["sampled"] = {**read.as_json(), "pods": [each.as_json() for each in pods[:_PODS]], "kernel": kernel()}
    terms = Terms(output, recipe.score_max - recipe.score_min, base, export_io)
    judged = Evidence("held-out pairs", pairs.features[held_out], pairs.true_score[held_out], group=pairs.position[held_out])
    left_out = validation.intervals(pairs, group_by) if validation is not None and group_by is not None else None
    published = publish_network(
        fitted.ema.network(), terms, [judged], pairs.features[:_PARITY_PAIRS], description, intervals=left_out
    )
    models = heads(fitted.ema.network(), pairs, train, held_out, recipe) if tenant else []
    published_heads = publish_heads(models, terms, published.gate, pairs.features[:_PARITY_PAIRS], description)
    return Result(
        published.checkpoint,
        published.sha256,
        recipe,
        pairs,
        outliers,
        train,
        held_out,
        weights,
        measured,
        validation,
        published.gate,
        published.parity_max_abs_diff,
        seconds,
        len(train) * epochs * seeds.count / seconds,
        curve.points,
        curve.n_pairs,
        published.refused,
        [_figures(each.ema, pairs, held_out) for each in trained] if seeds.count > 1 and len(held_out) else [],
        read,
        pods,
        published.intervals,
        [TenantFigures.of(*each) for each in zip(models, published_heads, strict=True)],
    )


def _figures(head: Head, pairs: RecordedPairs, rows: Rows) -> Metrics:
    return metrics(predict(head, pairs, rows), pairs.true_score[rows])


def about_features(pairs: RecordedPairs, inputs: ModelInputs) -> dict[str, Any]:
    """What the JSON of a checkpoint says of its features and scores, as far as it is known."""
    named = {"feature_order": [*pairs.feature_names]} if pairs.feature_names else {}
    encoder = inputs.block.as_json() if inputs.block else {}
    target = pairs.target or inputs.target
    return {**named, **encoder, **({"target": target} if target else {})}


class _Curve:
    """The learning curve, measured on pairs that are spread evenly over each set; seconds: how long measuring took."""

    def __init__(self, pairs: RecordedPairs, sets: dict[str, Rows]) -> None:
        self._pairs = pairs
        self._sets = {place: rows[:: max(1, len(rows) // _CURVE_PAIRS)] for place, rows in sets.items() if len(rows)}
        self.n_pairs = {place: len(rows) for place, rows in self._sets.items()}
        self.points: list[CurvePoint] = []
        self.seconds = 0.0

    def observe(self, step: int, live: Head, ema: Head) -> None:
        started = time.perf_counter()
        found = {
            (place, kind): rmse(predict(head, self._pairs, rows), self._pairs.true_score[rows])
            for place, rows in self._sets.items()
            for kind, head in (("live", live), ("ema", ema))
        }
        self.points.append(CurvePoint(step, found))
        self.seconds += time.perf_counter() - started
