"""Shifts: when scores come to mean something else, earlier pairs contradict the new ones.

It shows in the errors of predictions, which rise at once and stay high while earlier pairs are trained on again.
"""

from __future__ import annotations

import math

import numpy as np

from onnx_builder.network import Array

HORIZON_PAIRS = 5000
"""The usual error is a moving average over so many pairs."""
LEAST_PAIRS = 1000
"""Nothing is found before the usual error has been measured on so many."""
_TOLERATED, _MOST = 2.0, 10.0
"""An error of so many usual ones is no sign yet; what is above the second does not count."""
_ALARM_PAIRS = 960
"""The sum of what errors are above what is tolerated, in usual errors times pairs. Measured on the recorded pairs: at most 130
in the passes of all of them, 700 where each clip comes with the one before well known, and over 960 within 120 to 650 pairs of
a shift by 3 points of all scores or of one codec's."""


class ShiftDetector:
    """Page's test on the errors of groups of pairs; it starts anew after each shift.

    least: an error up to this is as good as none, in score points.

    Page: Continuous inspection schemes (1954).
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._pairs = self._since = 0
        self._usual = self._sum = 0.0

    def add(self, error: float, pairs: int) -> int:
        """Add the median absolute error of the next pairs. Returns how many pairs ago a shift began; 0 if none is found."""
        if not math.isfinite(error):
            return 0
        self._pairs += pairs
        if self._pairs > LEAST_PAIRS:
            self._since = pairs + (self._since if self._sum else 0)
            ratio = min(error / max(self._usual, self._least), _MOST)
            self._sum = max(0.0, self._sum + pairs * (ratio - _TOLERATED))
        self._usual += max(pairs / self._pairs, pairs / HORIZON_PAIRS) * (error - self._usual)
        if self._sum <= _ALARM_PAIRS:
            return 0
        since = self._since
        self.load(np.zeros(4))
        return since

    def state(self) -> Array:
        """Its numbers; `load` continues from them."""
        return np.array([self._pairs, self._since, self._usual, self._sum])

    def load(self, state: Array) -> None:
        """Continue from a `state`."""
        self._pairs, self._since = int(state[0]), int(state[1])
        self._usual, self._sum = float(state[2]), float(state[3])
