"""Leave-one-group-out validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_builder.network import Float32, Network
from sidecar.learning.head import Head
from sidecar.learning.metrics import Metrics, metrics
from sidecar.learning.recipe import Progress, Recipe, Rows, TrainingError, fit, no_progress
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
    """Leave-one-group-out validation: each group once. predicted: (n,), a score for each pair."""

    folds: list[Fold]
    pooled: Metrics
    predicted: Float32

    @property
    def mean_plcc(self) -> float:
        return float(np.mean([fold.metrics.plcc for fold in self.folds]))

    @property
    def min_plcc(self) -> float:
        return float(np.min([fold.metrics.plcc for fold in self.folds]))

    def as_json(self) -> dict[str, Any]:
        """The figures by name, without those that are undefined."""
        pooled = {f"pooled_{name}": value for name, value in self.pooled.as_json().items()}
        means = {"mean_plcc": self.mean_plcc, "min_plcc": self.min_plcc}
        return {
            **{name: value for name, value in means.items() if np.isfinite(value)},
            **pooled,
            "groups": [{"group": fold.group, **fold.metrics.as_json()} for fold in self.folds],
        }


def leave_one_group_out(
    pairs: RecordedPairs, recipe: Recipe, progress: Progress = no_progress, base: Network | None = None
) -> Validation:
    """Each group of `pairs.group`, predicted by a head that was trained on all others, starting from `base` if there is one.

    Raises TrainingError if there are fewer than two groups.
    """
    if pairs.group is None or len(pairs.group_names) < 2:
        raise TrainingError(f"leaving out one group at a time needs at least two groups, got {pairs.group_names}")
    predicted = np.empty(len(pairs), dtype=np.float32)
    folds = []
    for index, name in enumerate(pairs.group_names):
        held_out = np.flatnonzero(pairs.group == index)
        fitted = fit(pairs.features, pairs.true_score, np.flatnonzero(pairs.group != index), recipe, progress, base)
        predicted[held_out] = predict(fitted.ema, pairs, held_out)
        folds.append(Fold(name, metrics(predicted[held_out], pairs.true_score[held_out]), held_out, fitted.ema))
    return Validation(folds, metrics(predicted, pairs.true_score), predicted)


def predict(head: Head, pairs: RecordedPairs, rows: Rows) -> Float32:
    """Scores (len(rows),) of the chosen pairs, without copying all their features at once."""
    blocks = [rows[start : start + _PREDICTION_BLOCK] for start in range(0, len(rows), _PREDICTION_BLOCK)]
    return np.concatenate([np.empty(0, np.float32), *(head.predict(pairs.features[block]) for block in blocks)])


_PREDICTION_BLOCK = 8192
