"""Adam."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np

from onnx_builder.network import Array


class Adam:
    """Adam with bias correction; weight decay is L2, added to the gradient as in torch.optim.Adam.

    parameters, gradient: (n,), which it works on; `step` changes the first in place and overwrites the second. operations: the
    calls of a step; rate, correction: 0-d, the numbers that they take; moments: what they change besides the parameters.

    Kingma, Ba: Adam: a method for stochastic optimization (2015), arXiv:1412.6980.
    """

    beta1, beta2, epsilon = 0.9, 0.999, 1e-8

    def __init__(self, parameters: Array, gradient: Array, weight_decay: float = 0.0) -> None:
        mean, square, scratch = np.zeros_like(parameters), np.zeros_like(parameters), np.empty_like(parameters)
        self.mean, self.square, self.steps = mean, square, 0
        self.moments = (mean, square)
        self.rate: Array = np.zeros_like(parameters, shape=())
        self.correction: Array = np.zeros_like(parameters, shape=())
        decay = [
            partial(np.multiply, parameters, weight_decay, scratch),
            partial(np.add, gradient, scratch, gradient),
        ]
        self.operations = [
            *(decay if weight_decay else []),
            partial(np.multiply, mean, self.beta1, mean),
            partial(np.multiply, gradient, 1 - self.beta1, scratch),
            partial(np.add, mean, scratch, mean),
            partial(np.multiply, square, self.beta2, square),
            partial(np.multiply, gradient, gradient, gradient),
            partial(np.multiply, gradient, 1 - self.beta2, gradient),
            partial(np.add, square, gradient, square),
            partial(np.sqrt, square, scratch),
            partial(np.multiply, scratch, self.correction, scratch),
            partial(np.add, scratch, self.epsilon, scratch),
            partial(np.divide, mean, scratch, scratch),
            partial(np.multiply, scratch, self.rate, scratch),
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
        self.correction[()] = 1 / math.sqrt(1 - self.beta2**self.steps)
        self.rate[()] = learning_rate / (1 - self.beta1**self.steps)

    def state(self) -> dict[str, Array]:
        """What the next step depends on besides the parameters, as copies by name."""
        return {"mean": np.array(self.mean), "square": np.array(self.square), "adam_steps": np.array(self.steps)}

    def load(self, state: Mapping[str, Array]) -> None:
        """Continue from a `state`."""
        self.mean[:], self.square[:], self.steps = state["mean"], state["square"], int(state["adam_steps"])
