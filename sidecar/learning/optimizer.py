"""First-order optimizers on one flat vector, in order of increasing complexity; gradient clipping; learning rates.

An optimizer is bound to a parameter vector and its gradient. It keeps its state in arrays made once and lays its formula
out as a list of numpy calls: a step runs down the list and allocates nothing. Scalars are arrays of no dimension, which
numpy takes faster than Python's. The formulae are those of torch.optim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np

from onnx_builder.network import Array


def scalar(value: float, like: Array) -> Array:
    """A number as an array of no dimension, of the type of another array."""
    return np.array(value, dtype=like.dtype)


def clip_gradient(gradient: Array, max_norm: float) -> float:
    """Scale a gradient in place so that its Euclidean norm is at most `max_norm`; gives the norm before.

    A norm that is not finite is given back and the gradient left as it is: the caller must not step.
    Pascanu, Mikolov, Bengio: On the difficulty of training recurrent neural networks (2013), arXiv:1211.5063.
    """
    norm = math.sqrt(gradient.dot(gradient))
    if max_norm < norm < math.inf:
        np.multiply(gradient, max_norm / (norm + 1e-6), out=gradient)
    return norm


class Sgd:
    """Stochastic gradient descent with momentum μ and L2 weight decay λ: v ← μv + g + λθ, θ ← θ − ηv.

    parameters, gradient: (n,), bound to; `step` changes the first in place and overwrites the second.

    Polyak: Some methods of speeding up the convergence of iteration methods (1964).
    """

    def __init__(self, parameters: Array, gradient: Array, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        velocity, scratch = np.zeros_like(parameters), np.empty_like(parameters)
        self.velocity = velocity
        self._rate = scalar(0.0, parameters)
        decay = [
            partial(np.multiply, parameters, scalar(weight_decay, parameters), scratch),
            partial(np.add, gradient, scratch, gradient),
        ]
        self._operations = [
            *(decay if weight_decay else []),
            partial(np.multiply, velocity, scalar(momentum, parameters), velocity),
            partial(np.add, velocity, gradient, velocity),
            partial(np.multiply, velocity, self._rate, scratch),
            partial(np.subtract, parameters, scratch, parameters),
        ]

    def step(self, learning_rate: float) -> None:
        """One step against the gradient at hand, at learning rate η."""
        self._rate[()] = learning_rate
        for operation in self._operations:
            operation()

    def state(self) -> dict[str, Array]:
        """What a next step depends on, besides the parameters: copies, by name."""
        return {"velocity": self.velocity.copy()}

    def load(self, state: Mapping[str, Array]) -> None:
        """Go on from a `state`."""
        self.velocity[:] = state["velocity"]


class Adam:
    """Adam with bias correction; weight decay is L2, added to the gradient as in torch.optim.Adam.

    parameters, gradient: (n,), bound to; `step` changes the first in place and overwrites the second.

    Kingma, Ba: Adam: a method for stochastic optimization (2015), arXiv:1412.6980.
    """

    beta1, beta2, epsilon = 0.9, 0.999, 1e-8

    def __init__(self, parameters: Array, gradient: Array, weight_decay: float = 0.0) -> None:
        mean, square, scratch = np.zeros_like(parameters), np.zeros_like(parameters), np.empty_like(parameters)
        self.mean, self.square, self.steps = mean, square, 0
        self._rate, self._correction = scalar(0.0, parameters), scalar(0.0, parameters)
        decay = [
            partial(np.multiply, parameters, weight_decay, scratch),
            partial(np.add, gradient, scratch, gradient),
        ]
        self._operations = [
            *(decay if weight_decay else []),
            partial(np.multiply, mean, self.beta1, mean),
            partial(np.multiply, gradient, 1 - self.beta1, scratch),
            partial(np.add, mean, scratch, mean),
            partial(np.multiply, square, self.beta2, square),
            partial(np.multiply, gradient, gradient, gradient),
            partial(np.multiply, gradient, 1 - self.beta2, gradient),
            partial(np.add, square, gradient, square),
            partial(np.sqrt, square, scratch),
            partial(np.multiply, scratch, self._correction, scratch),
            partial(np.add, scratch, self.epsilon, scratch),
            partial(np.divide, mean, scratch, scratch),
            partial(np.multiply, scratch, self._rate, scratch),
            partial(np.subtract, parameters, scratch, parameters),
        ]

    def step(self, learning_rate: float) -> None:
        """One step against the gradient at hand, at learning rate η."""
        self.steps += 1
        self._correction[()] = 1 / math.sqrt(1 - self.beta2**self.steps)
        self._rate[()] = learning_rate / (1 - self.beta1**self.steps)
        for operation in self._operations:
            operation()

    def state(self) -> dict[str, Array]:
        """What a next step depends on, besides the parameters: copies, by name."""
        return {"mean": self.mean.copy(), "square": self.square.copy(), "adam_steps": np.array(self.steps)}

    def load(self, state: Mapping[str, Array]) -> None:
        """Go on from a `state`."""
        self.mean[:], self.square[:], self.steps = state["mean"], state["square"], int(state["adam_steps"])


Optimizer = Sgd | Adam


def warmed_up(peak: float, step: int, warmup_steps: int, start: float = 0.0) -> float:
    """Learning rate of step 0, 1, …: linear from a share of the peak, `start`, to all of it in warmup_steps, then constant."""
    return peak * min(1.0, start + (1 - start) * (step + 1) / warmup_steps) if warmup_steps else peak


def cosine_decay(step: int, total_steps: int) -> float:
    """Factor of the learning rate at step 0, 1, …: half a cosine from 1 to 0 over `total_steps`.

    Loshchilov, Hutter: SGDR (2017), arXiv:1608.03983, without restarts.
    """
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / total_steps)))
