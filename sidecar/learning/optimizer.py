"""First-order optimizers on one flat vector, in order of increasing complexity; gradient clipping; learning rates.

Each keeps its state in arrays made once, so that a step allocates nothing. The formulae are those of torch.optim.
"""

from __future__ import annotations

import math

import numpy as np

from onnx_builder.network import Array


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

    Polyak: Some methods of speeding up the convergence of iteration methods (1964).
    """

    def __init__(self, parameters: Array, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay
        self.velocity = np.zeros_like(parameters)
        self._scratch = np.empty_like(parameters)

    def step(self, parameters: Array, gradient: Array, learning_rate: float) -> None:
        """Move `parameters` (n,) in place against `gradient` (n,), which is overwritten."""
        if self.weight_decay:
            np.multiply(parameters, self.weight_decay, out=self._scratch)
            np.add(gradient, self._scratch, out=gradient)
        np.multiply(self.velocity, self.momentum, out=self.velocity)
        np.add(self.velocity, gradient, out=self.velocity)
        np.multiply(self.velocity, learning_rate, out=self._scratch)
        np.subtract(parameters, self._scratch, out=parameters)


class Adam:
    """Adam with bias correction; weight decay is L2, added to the gradient as in torch.optim.Adam.

    Kingma, Ba: Adam: a method for stochastic optimization (2015), arXiv:1412.6980.
    """

    def __init__(
        self,
        parameters: Array,
        weight_decay: float = 0.0,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        self.weight_decay, self.beta1, self.beta2, self.epsilon = weight_decay, beta1, beta2, epsilon
        self.steps = 0
        self.mean = np.zeros_like(parameters)
        self.square = np.zeros_like(parameters)
        self._scratch = np.empty_like(parameters)

    def step(self, parameters: Array, gradient: Array, learning_rate: float) -> None:
        """Move `parameters` (n,) in place against `gradient` (n,), which is overwritten."""
        scratch = self._scratch
        self.steps += 1
        if self.weight_decay:
            np.multiply(parameters, self.weight_decay, out=scratch)
            np.add(gradient, scratch, out=gradient)
        np.multiply(self.mean, self.beta1, out=self.mean)
        np.multiply(gradient, 1 - self.beta1, out=scratch)
        np.add(self.mean, scratch, out=self.mean)
        np.multiply(self.square, self.beta2, out=self.square)
        np.multiply(gradient, gradient, out=gradient)
        np.multiply(gradient, 1 - self.beta2, out=gradient)
        np.add(self.square, gradient, out=self.square)
        np.sqrt(self.square, out=scratch)
        np.multiply(scratch, 1 / math.sqrt(1 - self.beta2**self.steps), out=scratch)
        np.add(scratch, self.epsilon, out=scratch)
        np.divide(self.mean, scratch, out=scratch)
        np.multiply(scratch, learning_rate / (1 - self.beta1**self.steps), out=scratch)
        np.subtract(parameters, scratch, out=parameters)


Optimizer = Sgd | Adam


def warmed_up(peak: float, step: int, warmup_steps: int) -> float:
    """Learning rate of step 0, 1, …: linear from peak / warmup_steps to `peak`, then constant."""
    return peak * min(1.0, (step + 1) / warmup_steps) if warmup_steps else peak


def cosine_decay(step: int, total_steps: int) -> float:
    """Factor of the learning rate at step 0, 1, …: half a cosine from 1 to 0 over `total_steps`.

    Loshchilov, Hutter: SGDR (2017), arXiv:1608.03983, without restarts.
    """
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / total_steps)))
