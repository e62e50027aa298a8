"""Taking back: was the stable checkpoint a mistake? Pairs that came after its publication say so."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from onnx_builder.network import Array

MINIMUM_PAIRS, MINIMUM_GROUPS = 200, 30
LEVEL = 0.001
"""How probable it may be at most that a difference is chance. Measured in `benchmarks/rollback.py`."""
_ALIKE = 0.75
"""Differences larger than those of so many groups count as much as they do: a few groups, however far off, decide nothing."""


class Comparison(NamedTuple):
    """Two models on the same pairs.

    error, predecessor_error: the mean of the groups' median absolute errors, in score points, of the model on trial and of its
    predecessor. worse_in: groups in which it exceeds the predecessor's by more than the threshold. chance: the most that the
    probability of such differences, or larger ones, can be if either sign of each is as likely as the other.
    """

    pairs: int
    groups: int
    error: float
    predecessor_error: float
    worse_in: int
    chance: float

    @property
    def worse(self) -> bool:
        """The model on trial is worse by more than the threshold, and not by chance."""
        return self.chance <= LEVEL


def compare(group: Array, true: Array, predicted: Array, before: Array, threshold: float, score_range: float) -> Comparison:
    """Compare the predictions (n,) of a model on trial with those of its predecessor, both of pairs that neither has seen.

    group: what tells the groups apart (n,); true: scores (n,). threshold: share by which the error may be above the
    predecessor's. score_range: no error counts as larger, nor one that is not finite.

    The pairs of one encode go wrong together, so each group counts once, with the difference between its median absolute error
    and the predecessor's times 1 + threshold, and large differences are capped. A single wrong score would hide in a group's
    RMSE which model is better (measured in `benchmarks/rollback.py`). If signs were chance, the sum S of n differences d would
    exceed t·√(Σd²) with a probability of at most exp(−t²/2), whatever their distribution (Efron, Student's t-test under
    symmetry conditions, 1969; Hoeffding 1963). That is exact for any n and needs no random numbers.
    """
    _, place, pairs = np.unique(group, return_inverse=True, return_counts=True)
    first = np.cumsum(pairs) - pairs

    def by_group(scores: Array) -> Array:
        error = np.abs(scores.astype(np.float64) - true)
        error = np.minimum(np.nan_to_num(error, nan=score_range), score_range)
        error = error[np.lexsort((error, place))]
        return np.asarray((error[first + (pairs - 1) // 2] + error[first + pairs // 2]) / 2)

    own, other = by_group(predicted), by_group(before)
    difference = own - (1 + threshold) * other
    cap = np.quantile(np.abs(difference), _ALIKE)
    capped = np.clip(difference, -cap, cap)
    total, size = float(capped.sum()), float(np.sqrt(np.square(capped).sum()))
    chance = math.exp(-((total / size) ** 2) / 2) if total > 0 else 1.0
    return Comparison(len(true), len(pairs), float(own.mean()), float(other.mean()), int((difference > 0).sum()), chance)
