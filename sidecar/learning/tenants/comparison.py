"""Whether a tenant's head is used: only while it is better than the shared model on the tenant's own pairs."""

from __future__ import annotations

import math

import numpy as np

from onnx_builder.network import Array

HORIZON_PAIRS, LEAST_PAIRS = 256, 50
"""The pairs over which both are compared, and the least that decide."""
CLEARLY_BETTER = 0.85
"""A head comes into use once its RMSE is this share of the shared model's, and goes out of it once it is no better. Measured in
`benchmarks/tenants.py`: at 0.95 chance decides where tenants differ in their content only."""
_DECAY = 1 - 1 / HORIZON_PAIRS


class Comparison:
    """The errors of the shared model and of a tenant's head on the same pairs, predicted by both before they train.

    pairs: how many there were; used: whether the head is used.
    """

    def __init__(self) -> None:
        self.pairs = 0
        self.used = False
        self._shared = self._own = 0.0  # sums of squares, of which the older ones weigh less

    def add(self, shared: float, own: float) -> None:
        """Take the errors in the next pair, in score points; such as are not finite tell nothing."""
        if not math.isfinite(shared * own):
            return
        self.pairs += 1
        self._shared = _DECAY * self._shared + shared * shared
        self._own = _DECAY * self._own + own * own
        if self.pairs >= LEAST_PAIRS:
            self.used = self._own < (self._shared if self.used else CLEARLY_BETTER**2 * self._shared)

    @property
    def rmse(self) -> tuple[float, float]:
        """RMSE of the shared model and of the head, in score points, of which the newest pairs weigh most; 0 before any."""
        weight = (1 - _DECAY**self.pairs) / (1 - _DECAY) or 1.0
        return math.sqrt(self._shared / weight), math.sqrt(self._own / weight)

    def state(self) -> Array:
        """Its numbers; `load` continues from them."""
        return np.array([self.pairs, self.used, self._shared, self._own])

    def load(self, state: Array) -> None:
        """Continue from a `state`."""
        self.pairs, self.used = int(state[0]), bool(state[1])
        self._shared, self._own = state[2:].tolist()
