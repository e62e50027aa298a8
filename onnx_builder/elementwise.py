"""Functions that are applied to each value alone, as nodes of ONNX operators: SiLU, ELU, a leaky ReLU by comparison, ….

Whatever an exporter spells them as, they are evaluated, trained through and written node by node. The operators are those that
both ONNX (opset 17) and libvmaf's loader have; what other operators are made of is in `terms.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Float32 = NDArray[np.float32]


class Node(NamedTuple):
    """An operator on earlier results.

    operands: 0 is the function's argument; then come the function's constants, then its nodes, in order. numbers: those of
    the operator's ATTRIBUTES, or the bounds of Clip.
    """

    operator: str
    operands: tuple[int, ...]
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Function:
    """A function of each of a row's values; the last node is its result.

    constants: each of shape () or (width,), float32, and used once. The slopes of PRelu are trained, the others are not.
    """

    constants: tuple[Float32, ...]
    nodes: tuple[Node, ...]

    @property
    def slopes(self) -> list[int]:
        """The places of the constants that are trained."""
        return sorted(node.operands[1] - 1 for node in self.nodes if node.operator == "PRelu")


ATTRIBUTES: Mapping[str, Mapping[str, float]] = {
    "LeakyRelu": {"alpha": 0.01},
    "Elu": {"alpha": 1.0},
    "Selu": {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
}
"""The attributes of operators that have any, with the values that they have where they are absent."""


def evaluate(function: Function, x: Array) -> Array:
    """A function's values at rows x (n, width), in their type."""
    results: list[Array] = [x, *(constant.astype(x.dtype) for constant in function.constants)]
    scratch = np.empty_like(x)
    with np.errstate(all="ignore"):
        for node in function.nodes:
            results.append(np.empty_like(x))
            OPERATORS[node.operator](results[-1], scratch, *(results[place] for place in node.operands), *node.numbers)
    return results[-1]


# Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 7.1.26: absolute error at most 1.5e-7, to which
# float32 arithmetic adds its rounding.
_P = 0.3275911
_A = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_SATURATED = 10.0
_exact = np.vectorize(math.erf, otypes=[np.float64])


def erf(x: Array, out: Array | None = None, scratch: Array | None = None) -> Array:
    """The error function, which numpy does not have.

    x: any shape. For float32 it is a polynomial with absolute error under 6e-7 that allocates nothing if `out` and
    `scratch` (both shaped like x, distinct from it and from each other) are given; float64 is exact and slow, for checks.
    """
    out = np.empty_like(x) if out is None else out
    if x.dtype == np.float64:
        out[...] = _exact(x)
        return out
    t = np.empty_like(x) if scratch is None else scratch
    np.abs(x, out=t)
    np.multiply(t, _P, out=t)
    np.add(t, 1, out=t)
    np.reciprocal(t, out=t)
    np.multiply(t, _A[0], out=out)
    for coefficient in _A[1:]:
        np.add(out, coefficient, out=out)
        np.multiply(out, t, out=out)
    np.minimum(x, _SATURATED, out=t)
    np.maximum(t, -_SATURATED, out=t)  # the square of this does not overflow
    np.multiply(t, t, out=t)
    np.negative(t, out=t)
    np.exp(t, out=t)
    np.multiply(out, t, out=out)
    np.subtract(1, out, out=out)
    np.copysign(out, x, out=out)
    return out


def sigmoid(out: Array, scratch: Array, x: Array) -> None:
    """1 / (1 + exp(-x)): exact where it is small, too, so that its logarithm is."""
    np.negative(x, out=out)
    np.exp(out, out=out)
    np.add(out, 1, out=out)
    np.reciprocal(out, out=out)


def _hard_sigmoid(out: Array, scratch: Array, x: Array, alpha: float, beta: float) -> None:
    np.multiply(x, alpha, out=out)
    np.add(out, beta, out=out)
    np.maximum(out, 0, out=out)
    np.minimum(out, 1, out=out)


def _clip(out: Array, scratch: Array, x: Array, low: float, high: float) -> None:
    np.maximum(x, low, out=out)
    np.minimum(out, high, out=out)


def _leaky_relu(out: Array, scratch: Array, x: Array, slope: Array | float) -> None:
    np.minimum(x, 0, out=out)
    np.multiply(out, slope, out=out)
    np.maximum(x, 0, out=scratch)
    np.add(out, scratch, out=out)


def _elu(out: Array, scratch: Array, x: Array, alpha: float, gamma: float = 1.0) -> None:
    np.minimum(x, 0, out=out)
    np.expm1(out, out=out)
    np.multiply(out, alpha, out=out)
    np.maximum(x, 0, out=scratch)
    np.add(out, scratch, out=out)
    np.multiply(out, gamma, out=out)


def _of(ufunc: np.ufunc) -> Callable[..., Any]:
    return lambda out, scratch, *operands: ufunc(*operands, out=out)


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Neg": _of(np.negative),
    "Abs": _of(np.absolute),
    "Exp": _of(np.exp),
    "Log": _of(np.log),
    "Sqrt": _of(np.sqrt),
    "Add": _of(np.add),
    "Sub": _of(np.subtract),
    "Mul": _of(np.multiply),
    "Div": _of(np.divide),
    "Pow": _of(np.power),
    "Max": _of(np.maximum),
    "Min": _of(np.minimum),
    "Tanh": _of(np.tanh),
    "Relu": lambda out, scratch, x: np.maximum(x, 0, out=out),
    "Softplus": lambda out, scratch, x: np.logaddexp(x, 0, out=out),
    "Erf": lambda out, scratch, x: erf(x, out, scratch),
    "Sigmoid": sigmoid,
    "HardSigmoid": _hard_sigmoid,
    "Clip": _clip,
    "LeakyRelu": _leaky_relu,
    "PRelu": _leaky_relu,
    "Elu": _elu,
    "Selu": _elu,
    "ReduceMean": lambda out, scratch, x: np.copyto(out, x.mean(axis=-1, keepdims=True)),
}
"""What each operator does: from operands that broadcast to the shape of `out` and `scratch`, and its numbers, to `out`.
ReduceMean, the mean of a row, is only for recognising a layer normalisation."""
