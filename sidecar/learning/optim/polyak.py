"""Polyak averaging: the exponential moving average of the parameters, which is what gets published."""

from __future__ import annotations

from functools import partial

import numpy as np

from onnx_builder.network import Array


class PolyakAverage:
    """θ_ema ← β_t θ_ema + (1 − β_t) θ after each step t = 1, 2, ….

    parameters: (n,), which it averages; the average begins as a copy. operations: the calls of an update; weight: 0-d, 1 − β_t,
    which they take. With `warmup`, β_t = min(β, (1 + t) / (10 + t)): a plain
    β = 0.999 still weights the starting point by 0.94 after 62 steps, so an average from random weights would be useless
    for thousands of them. Without it, β_t = β.

    Polyak, Juditsky: Acceleration of stochastic approximation by averaging (1992).
    """

    def __init__(self, parameters: Array, decay: float = 0.999, warmup: bool = True) -> None:
        self.decay, self.warmup = decay, warmup
        self.parameters = parameters.copy()
        self.steps = 0
        self.weight: Array = np.zeros_like(parameters, shape=())
        scratch = np.empty_like(parameters)
        self.operations = [
            partial(np.subtract, parameters, self.parameters, scratch),
            partial(np.multiply, scratch, self.weight, scratch),
            partial(np.add, self.parameters, scratch, self.parameters),
        ]

    def update(self) -> None:
        """Include the parameters that a step has just produced."""
        self.prepare()
        for operation in self.operations:
            operation()

    def prepare(self) -> None:
        """Count a step, and set the weight 1 − β that its parameters get."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.warmup else self.decay
        self.weight[()] = 1 - decay
