"""What a report says of predictions beside their totals: residuals by group and score, the worst pairs, which features matter.

Residuals are predicted minus true, in score points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Array, Float32
from sidecar.learning.metrics import Metrics, metrics, rmse
from sidecar.learning.recipe import Rows
from sidecar.pairs.recorded import RecordedPairs

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_SCORE_BINS = 10
_WORST = 20
_PERMUTATIONS = 5
_PERMUTED_PREDICTIONS = 1_000_000
"""Predictions that permutation importance takes at most, of so many pairs, evenly spread, as the number of features allows."""


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


def by_group(judged: Judged, most: int) -> tuple[list[dict[str, Any]], int]:
    """Of each group that has pairs, the largest RMSE first, so many at most, and how many there are in all.

    None where the pairs have no groups.
    """
    pairs = judged.pairs
    parts = rows_by_group(None if pairs.group is None else pairs.group[judged.rows])
    mean_squares = [float(np.square(judged.residuals[part]).mean()) for part in parts]
    chosen = sorted(range(len(parts)), key=lambda n: -mean_squares[n])[:most]
    found = [{"group": group_of(pairs, judged.rows[parts[n][0]]), **_summary(judged, parts[n])} for n in chosen]
    return found, len(parts)


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


def worst_of(judged: Judged) -> Rows:
    """Where among what is judged the twenty largest residuals are, the largest first."""
    return np.argsort(-np.abs(judged.residuals), kind="stable")[:_WORST]


def worst(judged: Judged) -> list[dict[str, Any]]:
    """The twenty pairs with the largest residuals. number: of the pair among all that were read, from 1."""
    pairs, residuals = judged.pairs, judged.residuals
    found = []
    for at in worst_of(judged):
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


def importance(judged: Judged) -> tuple[NDArray[np.float64], int]:
    """By how many score points the RMSE grows when one feature's values change places among the pairs: (n_features,).

    And on how many pairs that was measured. The mean of five permutations, of fixed seed; each pair is predicted by its own
    model. Breiman: Random forests (2001), section 10.
    """
    rng = np.random.default_rng(0)
    n_features = judged.pairs.features.shape[1]
    every = math.ceil(len(judged.rows) * n_features * _PERMUTATIONS / _PERMUTED_PREDICTIONS)
    rows = np.concatenate([model.rows for model in judged.models])[::every]
    ends = -(-np.cumsum([0, *(len(model.rows) for model in judged.models)]) // every)
    parts = [(model, slice(*ends[n : n + 2])) for n, model in enumerate(judged.models) if ends[n] < ends[n + 1]]
    features, true = judged.pairs.features[rows], judged.pairs.true_score[rows].astype(np.float64)

    def error() -> float:
        squares = (np.square(model.predict(features[part]) - true[part]).sum() for model, part in parts)
        return math.sqrt(sum(map(float, squares)) / len(rows))

    before, after = error(), np.zeros((n_features, _PERMUTATIONS))
    for feature in range(n_features):
        kept = features[:, feature].copy()
        for n in range(_PERMUTATIONS):
            features[:, feature] = rng.permutation(kept)
            after[feature, n] = error()
        features[:, feature] = kept
    return after.mean(axis=1) - before, len(rows)
