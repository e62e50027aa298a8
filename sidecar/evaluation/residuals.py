"""The details in a report: residuals by group and by score, the worst pairs, and how important each feature is.

Residuals are predicted minus true, in score points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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
"""Permutation importance makes at most this many predictions, for as many evenly spread pairs as that allows."""


@dataclass(frozen=True)
class Model:
    """A model that predicted some of the pairs. predict: from raw features (n, n_features) to (n,); rows: of these pairs."""

    predict: Callable[[Array], Array]
    rows: Rows


@dataclass(frozen=True)
class Judged:
    """Predictions, and the pairs that they are for.

    pairs: read with names; rows: the pairs that are judged; predicted: (len(rows),); models: those that made the predictions;
    their rows together are `rows`; base: (len(rows),), the predictions of the base model, if there is one.
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
    """For each group index that occurs in `group` (n,), in order, its rows; empty if there are no groups."""
    if group is None:
        return []
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def group_of(pairs: RecordedPairs, row: int) -> str:
    """A pair's group, or "" if the pairs have none."""
    return "" if pairs.group is None else pairs.group_names[pairs.group[row]]


def by_group(judged: Judged, most: int) -> tuple[list[dict[str, Any]], int]:
    """The figures of at most `most` groups, those with the largest RMSE first, and the number of groups that have pairs.

    Pairs without a group are in none.
    """
    pairs = judged.pairs
    parts = rows_by_group(None if pairs.group is None else pairs.group[judged.rows])
    parts = [part for part in parts if group_of(pairs, judged.rows[part[0]])]
    mean_squares = [float(np.square(judged.residuals[part]).mean()) for part in parts]
    chosen = sorted(range(len(parts)), key=lambda n: -mean_squares[n])[:most]
    found = [{"group": group_of(pairs, judged.rows[parts[n][0]]), **_summary(judged, parts[n])} for n in chosen]
    return found, len(parts)


def by_score(judged: Judged, low: float, high: float) -> list[dict[str, Any]]:
    """The figures of each tenth of the score range, from low to high, that has pairs."""
    return [{"low": start, "high": stop, **_summary(judged, part)} for start, stop, part in bins(judged.true, low, high)]


def bins(scores: Float32, low: float, high: float) -> Iterator[tuple[float, float, Rows]]:
    """Of each tenth of a score range that has any of the scores (n,): its bounds, and the places of these scores."""
    edges = np.linspace(low, high, _SCORE_BINS + 1)
    index = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, _SCORE_BINS - 1)
    for n in np.unique(index).tolist():
        yield float(edges[n]), float(edges[n + 1]), np.flatnonzero(index == n)


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
    """The positions of the twenty largest residuals among the judged pairs, largest first."""
    return np.argsort(-np.abs(judged.residuals), kind="stable")[:_WORST]


def worst(judged: Judged) -> list[dict[str, Any]]:
    """The twenty pairs with the largest residuals. number: the pair's place among all that were read, from 1."""
    pairs, residuals = judged.pairs, judged.residuals
    found = []
    for at in worst_of(judged):
        row = judged.rows[at]
        found.append(
            {
                "number": int(row) + 1,
                "job_id": pairs.job[row] if pairs.job else "",
                "group": group_of(pairs, row),
                "true": float(judged.true[at]),
                "predicted": float(judged.predicted[at]),
                "residual": float(residuals[at]),
            }
        )
    return found


def importance(judged: Judged) -> tuple[NDArray[np.float64], int]:
    """How much the RMSE grows, in score points, when one feature's values are exchanged between pairs: (n_features,).

    Also returns on how many pairs that was measured. It is the mean of five permutations with a fixed seed; each pair is
    predicted by its own model. Breiman: Random forests (2001), section 10.
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
