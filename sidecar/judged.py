"""What a report says of predictions beside their totals: residuals by group and score, the worst pairs, which features matter.

Residuals are predicted minus true, in score points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Array, Float32
from sidecar.learning.head import Head
from sidecar.learning.recipe import Rows
from sidecar.recorded import RecordedPairs
from sidecar.scores import Metrics, metrics, rmse

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_SCORE_BINS = 10
_WORST = 20
_PREDICTION_BLOCK = 8192
_PERMUTATIONS = 5
_PERMUTED_PAIRS = 4096
"""Pairs that permutation importance is measured on, of more about so many."""


def predict(head: Head, pairs: RecordedPairs, rows: Rows) -> Float32:
    """Scores (len(rows),) of the chosen pairs, without a copy of all their features."""
    blocks = [rows[start : start + _PREDICTION_BLOCK] for start in range(0, len(rows), _PREDICTION_BLOCK)]
    return np.concatenate([np.empty(0, np.float32), *(head.predict(pairs.features[block]) for block in blocks)])


@dataclass(frozen=True)
class Model:
    """What predicted some of the pairs. predict: (n, n_features), raw, to (n,); rows: of the pairs."""

    predict: Callable[[Array], Array]
    rows: Rows


@dataclass(frozen=True)
class Judged:
    """Predictions and what they are of.

    pairs: read with names; rows: of them; predicted: (len(rows),); models: those that predicted them, whose rows together are
    these; base: (len(rows),), what the base model predicts, where there is one.
    """

    pairs: RecordedPairs
    rows: Rows
    predicted: Float32
    models: Sequence[Model]
    base: Float32 | None = None

    @cached_property
    def true(self) -> Float32:
        return self.pairs.true_score[self.rows]

    @cached_property
    def residuals(self) -> NDArray[np.float64]:
        return self.predicted.astype(np.float64) - self.true

    @property
    def metrics(self) -> Metrics:
        return metrics(self.predicted, self.true)


def rows_by_group(group: NDArray[np.int32] | None) -> list[Rows]:
    """For each index among `group` (n,), in order, where it stands; none where there are no groups."""
    if group is None:
        return []
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def group_of(pairs: RecordedPairs, row: int) -> str:
    """A pair's group, "" where the pairs have none."""
    return "" if pairs.group is None else pairs.group_names[pairs.group[row]]


def by_group(judged: Judged) -> list[dict[str, Any]]:
    """Of each group that has pairs, the largest RMSE first; none where the pairs have no groups."""
    pairs = judged.pairs
    group = None if pairs.group is None else pairs.group[judged.rows]
    parts = rows_by_group(group)
    found = [{"group": group_of(pairs, judged.rows[part[0]]), **_summary(judged, part)} for part in parts]
    return sorted(found, key=lambda each: -each["rmse"])


def by_score(judged: Judged, low: float, high: float) -> list[dict[str, Any]]:
    """Of each tenth of the score range, low to high, that has pairs."""
    edges = np.linspace(low, high, _SCORE_BINS + 1)
    index = np.clip(np.searchsorted(edges, judged.true, side="right") - 1, 0, _SCORE_BINS - 1)
    return [
        {"low": float(edges[n]), "high": float(edges[n + 1]), **_summary(judged, np.flatnonzero(index == n))}
        for n in range(_SCORE_BINS)
        if (index == n).any()
    ]


def _summary(judged: Judged, part: Rows) -> dict[str, Any]:
    residuals = judged.residuals[part]
    base = {} if judged.base is None else {"base_rmse": rmse(judged.base[part], judged.true[part])}
    return {
        **metrics(judged.predicted[part], judged.true[part]).as_json(),
        **base,
        "mean": float(residuals.mean()),
        "quantiles": np.quantile(residuals, QUANTILES).tolist(),
    }


def worst(judged: Judged) -> list[dict[str, Any]]:
    """The twenty pairs with the largest residuals. number: of the pair among all that were read, from 1."""
    pairs, residuals = judged.pairs, judged.residuals
    found = []
    for at in np.argsort(-np.abs(residuals), kind="stable")[:_WORST]:
        row = judged.rows[at]
        found.append(
            {
                "number": int(row) + 1,
                "job_id": pairs.job[row],
                "group": group_of(pairs, row),
                "true": float(judged.true[at]),
                "predicted": float(judged.predicted[at]),
                "residual": float(residuals[at]),
            }
        )
    return found


def importance(judged: Judged) -> NDArray[np.float64]:
    """By how many score points the RMSE grows when one feature's values change places among the pairs: (n_features,).

    The mean of five permutations, of fixed seed; each model's pairs are permuted among themselves. Breiman: Random forests
    (2001), section 10.
    """
    rng = np.random.default_rng(0)
    step = max(1, len(judged.rows) // _PERMUTED_PAIRS)
    n_features = judged.pairs.features.shape[1]
    squares, permuted = 0.0, np.zeros((n_features, _PERMUTATIONS))
    count = 0
    for model in judged.models:
        rows = model.rows[::step]
        features, true = judged.pairs.features[rows], judged.pairs.true_score[rows].astype(np.float64)
        squares += float(np.square(model.predict(features) - true).sum())
        count += len(rows)
        for feature in range(n_features):
            kept = features[:, feature].copy()
            for n in range(_PERMUTATIONS):
                features[:, feature] = rng.permutation(kept)
                permuted[feature, n] += np.square(model.predict(features) - true).sum()
            features[:, feature] = kept
    grown: NDArray[np.float64] = np.sqrt(permuted / count).mean(axis=1) - np.sqrt(squares / count)
    return grown
