"""Polyak averaging: the exponential moving average of the parameters, which is what gets published."""

from __future__ import annotations

import numpy as np

from onnx_builder.network import Array


class PolyakAverage:
    """θ_ema ← β_t θ_ema + (1 − β_t) θ after each step t = 1, 2, ….

    With `warmup`, β_t = min(β, (1 + t) / (10 + t)): a plain β = 0.999 still weights the starting point by 0.94 after 62
    steps, so an average from random weights would be useless for thousands of them. Without it, β_t = β.

    Polyak, Juditsky: Acceleration of stochastic approximation by averaging (1992).
    """

    def __init__(self, parameters: Array, decay: float = 0.999, warmup: bool = True) -> None:
        self.decay, self.warmup = decay, warmup
        self.parameters = parameters.copy()
        self.steps = 0
        self._scratch = np.empty_like(parameters)

    def update(self, parameters: Array) -> None:
        """Average in the parameters (n,) that a step has just produced."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.warmup else self.decay
        np.subtract(parameters, self.parameters, out=self._scratch)
        np.multiply(self._scratch, 1 - decay, out=self._scratch)
        np.add(self.parameters, self._scratch, out=self.parameters)
