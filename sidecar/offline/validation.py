"""Leave-one-group-out validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Float32, Network
from sidecar.learning.head import Head
from sidecar.learning.intervals import Intervals, calibrate
from sidecar.learning.metrics import Metrics, metrics
from sidecar.learning.recipe import Progress, Recipe, Rows, TrainingError, no_progress
from sidecar.offline.seeds import Seeds
from sidecar.pairs.recorded import RecordedPairs


@dataclass(frozen=True)
class Fold:
    """One group of leave-one-group-out validation: its rows, and the EMA head that was trained on all others."""

    group: str
    metrics: Metrics
    rows: Rows
    head: Head


@dataclass(frozen=True)
class Validation:
    """Leave-one-group-out validation: each group once. predicted: (n,), a score for each pair, NaN for what is left out.

    seeds: the pooled figures of each seed alone, if there are several.
    """

    folds: list[Fold]
    pooled: Metrics
    predicted: Float32
    seeds: list[Metrics]

    @property
    def mean_plcc(self) -> float:
        return float(np.mean([fold.metrics.plcc for fold in self.folds]))

    @property
    def min_plcc(self) -> float:
        return float(np.min([fold.metrics.plcc for fold in self.folds]))

    def intervals(self, pairs: RecordedPairs, by: str) -> Intervals | None:
        """Prediction intervals from the residuals of the groups, which are the values of the field `by`."""
        assert pairs.group is not None
        rows = np.flatnonzero(~np.isnan(self.predicted))
        return calibrate(self.predicted[rows], pairs.true_score[rows], pairs.group[rows], "left-out", by)

    def as_json(self) -> dict[str, Any]:
        """The figures by name, without those that are undefined."""
        pooled = {f"pooled_{name}": value for name, value in self.pooled.as_json().items()}
        means = {"mean_plcc": self.mean_plcc, "min_plcc": self.min_plcc}
        return {
            **{name: value for name, value in means.items() if np.isfinite(value)},
            **pooled,
            "groups": [{"group": fold.group, **fold.metrics.as_json()} for fold in self.folds],
            **({"seeds": [measured.as_json() for measured in self.seeds]} if self.seeds else {}),
        }


def leave_one_group_out(
    pairs: RecordedPairs,
    usual: NDArray[np.bool_],
    recipe: Recipe,
    progress: Progress = no_progress,
    base: Network | None = None,
    seeds: Seeds = Seeds(),  # noqa: B008 (frozen)
) -> Validation:
    """Each group of `pairs.group`, predicted by a head that was trained on all others, starting from `base` if there is one.

    usual: (n,), which pairs are trained on and judged by.

    Raises TrainingError if there are fewer than two groups.
    """
    if pairs.group is None or len(pairs.group_names) < 2:
        raise TrainingError(f"leaving out one group at a time needs at least two groups, got {pairs.group_names}")
    parts = (np.flatnonzero((pairs.group != index) & usual) for index in range(len(pairs.group_names)))
    trained = seeds.fit(pairs.features, pairs.true_score, parts, recipe, progress, base)
    predicted = np.full(len(pairs), np.nan, dtype=np.float32)
    by_seed = np.empty((seeds.count, len(pairs)), dtype=np.float32)
    folds = []
    for index, (name, with_each_seed) in enumerate(zip(pairs.group_names, trained, strict=True)):
        held_out = np.flatnonzero((pairs.group == index) & usual)
        head = seeds.result(with_each_seed).ema
        predicted[held_out] = predict(head, pairs, held_out)
        folds.append(Fold(name, metrics(predicted[held_out], pairs.true_score[held_out]), held_out, head))
        if seeds.count > 1:
            for scores, fitted in zip(by_seed, with_each_seed, strict=True):
                scores[held_out] = predict(fitted.ema, pairs, held_out)
    true = pairs.true_score[usual]
    each = [metrics(scores[usual], true) for scores in by_seed] if seeds.count > 1 else []
    return Validation(folds, metrics(predicted[usual], true), predicted, each)


def predict(head: Head, pairs: RecordedPairs, rows: Rows) -> Float32:
    """Scores (len(rows),) of the chosen pairs, without copying all their features at once."""
    blocks = [rows[start : start + _PREDICTION_BLOCK] for start in range(0, len(rows), _PREDICTION_BLOCK)]
    return np.concatenate([np.empty(0, np.float32), *(head.predict(pairs.features[block]) for block in blocks)])


_PREDICTION_BLOCK = 8192
