"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from onnx_builder.network import Array


class Sgd:
    """Stochastic gradient descent with momentum μ and L2 weight decay λ: v ← μv + g + λθ, θ ← θ − ηv.

    parameters, gradient: (n,), which it works on; `step` changes the first in place and overwrites the second. operations: the
    calls of a step; rate: 0-d, the learning rate that they take; moments: what they change besides the parameters.

    Polyak: Some methods of speeding up the convergence of iteration methods (1964).
    """

    def __init__(self, parameters: Array, gradient: Array, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        velocity, scratch = np.zeros_like(parameters), np.empty_like(parameters)
        self.velocity, self.moments, self.steps = velocity, (velocity,), 0
        self.rate: Array = np.zeros_like(parameters, shape=())
        decay = [
            partial(np.multiply, parameters, np.array(weight_decay, parameters.dtype), scratch),
            partial(np.add, gradient, scratch, gradient),
        ]
        self.operations = [
            *(decay if weight_decay else []),
            partial(np.multiply, velocity, np.array(momentum, parameters.dtype), velocity),
            partial(np.add, velocity, gradient, velocity),
            partial(np.multiply, velocity, self.rate, scratch),
            partial(np.subtract, parameters, scratch, parameters),
        ]

    def step(self, learning_rate: float) -> None:
        """One step against the current gradient, at learning rate η."""
        self.prepare(learning_rate)
        for operation in self.operations:
            operation()

    def prepare(self, learning_rate: float) -> None:
        """Count a step, and set what the operations need for it."""
        self.steps += 1
        self.rate[()] = learning_rate

    def state(self) -> dict[str, Array]:
        """What the next step depends on besides the parameters, as copies by name."""
        return {"velocity": np.array(self.velocity)}

    def load(self, state: Mapping[str, Array]) -> None:
        """Continue from a `state`."""
        self.velocity[:] = state["velocity"]
