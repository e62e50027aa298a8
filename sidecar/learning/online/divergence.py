"""Divergence: live weights that have become useless are noticed, and a lower learning rate keeps it from happening again.

No learning rate that is computed from features alone is safe: pairs that come later may have others. So what the weights are
good for is measured, on pairs as they come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from onnx_builder.network import Array
from sidecar.learning.metrics import mean_absolute_error

WINDOW_GROUPS = 32
"""Groups after which it is looked at."""
JUDGED_PAIRS = 256
"""The newest pairs of the replay buffer, on which weights are compared."""
_SHARE = 0.25
"""Each time, the learning rate is multiplied by this."""
_USELESS = 0.9
"""Weights whose error is this share of a constant's, or more, are no better than it."""
_LOWEST_SHARE = 2.0**-12
_FIRST_PATIENCE, _MOST_PATIENCE = 8, 1024
"""Windows without divergence after which the rate is doubled, until it is what it was; twice as many after each divergence."""
_KEPT_EVERY = 16
"""Windows after which good weights are kept; earlier ones are kept after 1, 2, 4 and 8."""


class Errors(NamedTuple):
    """Mean absolute errors on the same pairs, in score points: of the live weights, of their average, of the weights that were
    kept when they were good, and of the best constant prediction."""

    live: float
    average: float
    kept: float
    constant: float


class Divergence:
    """Decides after each window of groups whether the weights are to be looked at, and what to do.

    share: what the learning rate is multiplied by; count: how often weights went back.
    """

    def __init__(self) -> None:
        self.share, self.count = 1.0, 0
        self._groups = self._windows = self._quiet = 0
        self._patience = _FIRST_PATIENCE
        self._live = self._average = 0.0

    def note(self, live: float, average: float) -> bool:
        """Note the mean squared errors of a group, of the live weights and their average. True if a window is complete."""
        self._live += live
        self._average += average
        self._groups += 1
        return self._groups == WINDOW_GROUPS

    def looks_wrong(self, variance: float) -> bool:
        """End the window. True if errors are so large that the weights have to be compared on the same pairs.

        variance: that of the scores, in the unit of the squared errors.
        """
        live, average = self._live / WINDOW_GROUPS, self._average / WINDOW_GROUPS
        self._groups, self._live, self._average = 0, 0.0, 0.0
        self._windows += 1
        return not (live <= variance / 4 and average <= variance / 4 and live <= 4 * average)

    @property
    def keeps_weights(self) -> bool:
        """After this window, if nothing is wrong, the average is to be kept as good weights."""
        return self._windows % _KEPT_EVERY == 0 or self._windows in (1, 2, 4, 8)

    def judge(self, errors: Errors, negligible: float) -> bool:
        """Whether the live weights have diverged; then the rate is lower from now on.

        They have if their error is more than twice that of their average or of the kept weights, whichever is smaller, or
        nothing better than a constant, which those are. negligible: an error, in score points, that is fine in any case.
        """
        best = min(errors.average, errors.kept)
        no_better = _USELESS * errors.constant
        if errors.live <= max(2 * best, negligible) and (errors.live < no_better or best >= no_better):
            return False
        self.count += 1
        self._quiet = 0
        self._patience = min(2 * self._patience, _MOST_PATIENCE)
        self.share = max(self.share * _SHARE, _LOWEST_SHARE)
        return True

    def stay_quiet(self) -> None:
        """A window has passed without divergence."""
        self._quiet += 1
        if self.share < 1 and self._quiet >= self._patience:
            self.share, self._quiet = min(1.0, 2 * self.share), 0

    def forgive(self) -> None:
        """Other settings: the rate is theirs again."""
        self.share, self._quiet, self._patience = 1.0, 0, _FIRST_PATIENCE

    def state(self) -> dict[str, Array]:
        """Its numbers by name; `from_state` makes an equal object from them."""
        counts = [self.count, self._groups, self._windows, self._quiet, self._patience]
        return {"divergences": np.array(counts), "divergence_sums": np.array([self.share, self._live, self._average])}

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Divergence:
        """What this `state` came from."""
        each = cls()
        each.count, each._groups, each._windows, each._quiet, each._patience = state["divergences"].tolist()
        each.share, each._live, each._average = state["divergence_sums"].tolist()
        return each


def mean_error(predicted: Array, scores: Array) -> float:
    """The mean absolute error of predictions of scores (n,); infinite if one is not finite."""
    error = mean_absolute_error(predicted, scores)
    return error if math.isfinite(error) else math.inf
