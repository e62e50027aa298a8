"""Clipping of the gradient's norm."""

from __future__ import annotations

import math

import numpy as np

from onnx_builder.network import Array


def clip_gradient(gradient: Array, max_norm: float) -> float:
    """Scale a gradient in place so that its Euclidean norm is at most `max_norm`; returns the norm before.

    If the norm is not finite, it is returned and the gradient left unchanged: the caller must not step.
    Pascanu, Mikolov, Bengio: On the difficulty of training recurrent neural networks (2013), arXiv:1211.5063.
    """
    norm = math.sqrt(gradient.dot(gradient))
    if max_norm < norm < math.inf:
        np.multiply(gradient, max_norm / (norm + 1e-6), out=gradient)
    return norm
