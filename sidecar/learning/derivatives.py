"""Forward and backward passes of elementwise functions, node by node.

Each derivative is a function of a buffer to fill, a scratch buffer, the operator's result, its operands and its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from onnx_builder.elementwise import OPERATORS, Function, sigmoid
from onnx_builder.network import Array

Operations = list[Callable[[], Any]]
_STEEPEST = 1e30
"""A HardSigmoid that is steeper stands for a comparison, whose derivative is 0."""


def function_passes(
    step: Function, slopes: Array, gradient: Array, inputs: Array, input_deltas: Array, values: Array, deltas: Array
) -> tuple[Operations, Operations]:
    """The calls that compute `values` from `inputs`, and the derivatives of the loss by `inputs` and `slopes` from `deltas`.

    inputs, input_deltas, values, deltas: (width, n). slopes, gradient: (1, size) of all trained constants, one after the other.
    """
    results, gradients, start = [inputs], dict[int, Array](), 0
    for place, constant in enumerate(step.constants):
        if place in step.slopes:
            end = start + constant.size
            shape = (-1, 1) if constant.ndim else ()
            results.append(slopes[0, start:end].reshape(shape))
            gradients[1 + place], start = gradient[0, start:end].reshape(shape), end
        else:  # as a whole array, like other constants
            results.append(np.broadcast_to(constant.astype(values.dtype).reshape(-1, 1), values.shape).copy())
    deltas_of = {0: input_deltas}
    scratch, local = np.empty_like(values), np.empty_like(values)
    forward: Operations = []
    for node in step.nodes:
        is_last = node is step.nodes[-1]
        deltas_of[len(results)] = deltas if is_last else np.empty_like(values)
        results.append(values if is_last else np.empty_like(values))
        operands = [results[place] for place in node.operands]
        forward.append(partial(OPERATORS[node.operator], results[-1], scratch, *operands, *node.numbers))
    backward: Operations = []
    begun = set()
    for result, node in reversed([*enumerate(step.nodes, 1 + len(step.constants))]):
        operands = [results[place] for place in node.operands]
        for place, derivative in zip(node.operands, DERIVATIVES[node.operator], strict=False):
            if place not in deltas_of and place not in gradients:
                continue
            first = place in deltas_of and place not in begun
            begun.add(place)
            to = deltas_of[place] if first else local
            backward += [
                partial(derivative, to, scratch, results[result], *operands, *node.numbers),
                partial(np.multiply, to, deltas_of[result], to),
            ]
            if place in gradients:
                axis = 1 if gradients[place].ndim else None
                backward.append(partial(np.sum, to, axis=axis, keepdims=axis is not None, out=gradients[place]))
            elif not first:
                backward.append(partial(np.add, deltas_of[place], to, deltas_of[place]))
    return [partial(_quietly, forward)], [partial(_quietly, backward)]


def _quietly(operations: Sequence[Callable[[], Any]]) -> None:
    """Run calls that may overflow where that is right, as 1 / (1 + exp(-x)) does. A step that is not finite is not taken."""
    with np.errstate(all="ignore"):
        for operation in operations:
            operation()


def _erf(to: Array, scratch: Array, v: Array, x: Array) -> None:
    np.multiply(x, x, out=to)
    np.negative(to, out=to)
    np.exp(to, out=to)
    np.multiply(to, 2 * np.pi**-0.5, out=to)


def _hard_sigmoid(to: Array, scratch: Array, v: Array, x: Array, alpha: float, beta: float) -> None:
    np.sign(v, out=to)
    np.subtract(1, v, out=scratch)
    np.sign(scratch, out=scratch)
    np.multiply(to, scratch, out=to)
    np.multiply(to, alpha if abs(alpha) < _STEEPEST else 0.0, out=to)


def _leaky_relu(to: Array, scratch: Array, v: Array, x: Array, slope: Array | float) -> None:
    np.heaviside(x, 0, out=to)
    np.subtract(1, slope, out=scratch)
    np.multiply(to, scratch, out=to)
    np.add(to, slope, out=to)


def _elu(to: Array, scratch: Array, v: Array, x: Array, alpha: float, gamma: float = 1.0) -> None:
    np.minimum(x, 0, out=to)
    np.exp(to, out=to)
    np.multiply(to, alpha, out=to)  # for x > 0 this is alpha, which the next lines make 1
    np.heaviside(x, 0, out=scratch)
    np.multiply(scratch, 1 - alpha, out=scratch)
    np.add(to, scratch, out=to)
    np.multiply(to, gamma, out=to)


def _is_larger(to: Array, scratch: Array, v: Array, a: Array, b: Array) -> None:
    np.subtract(a, b, out=to)
    np.heaviside(to, 0.5, out=to)


def _is_smaller(to: Array, scratch: Array, v: Array, a: Array, b: Array) -> None:
    _is_larger(to, scratch, v, b, a)


def _power(to: Array, scratch: Array, v: Array, base: Array, exponent: Array) -> None:
    np.subtract(exponent, 1, out=scratch)
    np.power(base, scratch, out=to)
    np.multiply(to, exponent, out=to)


def _exponential(to: Array, scratch: Array, v: Array, base: Array, exponent: Array) -> None:
    np.log(base, out=to)
    np.multiply(to, v, out=to)


def _filled(value: float) -> Callable[..., None]:
    return lambda to, *_: to.fill(value)


DERIVATIVES: Mapping[str, tuple[Callable[..., Any], ...]] = {
    "Neg": (_filled(-1),),
    "Abs": (lambda to, scratch, v, x: np.sign(x, out=to),),
    "Exp": (lambda to, scratch, v, x: np.copyto(to, v),),
    "Log": (lambda to, scratch, v, x: np.reciprocal(x, out=to),),
    "Sqrt": (lambda to, scratch, v, x: np.divide(0.5, v, out=to),),
    "Add": (_filled(1), _filled(1)),
    "Sub": (_filled(1), _filled(-1)),
    "Mul": (lambda to, scratch, v, a, b: np.copyto(to, b), lambda to, scratch, v, a, b: np.copyto(to, a)),
    "Div": (
        lambda to, scratch, v, a, b: np.reciprocal(b, out=to),
        lambda to, scratch, v, a, b: np.negative(np.divide(v, b, out=to), out=to),
    ),
    "Pow": (_power, _exponential),
    "Max": (_is_larger, _is_smaller),
    "Min": (_is_smaller, _is_larger),
    "Tanh": (lambda to, scratch, v, x: np.subtract(1, np.multiply(v, v, out=to), out=to),),
    "Relu": (lambda to, scratch, v, x: np.heaviside(x, 0, out=to),),
    "Softplus": (lambda to, scratch, v, x: sigmoid(to, scratch, x),),
    "Erf": (_erf,),
    "Sigmoid": (lambda to, scratch, v, x: np.multiply(np.subtract(1, v, out=to), v, out=to),),
    "HardSigmoid": (_hard_sigmoid,),
    "Clip": (lambda to, scratch, v, x, low, high: np.equal(x, v, out=to),),
    "LeakyRelu": (_leaky_relu,),
    "PRelu": (_leaky_relu, lambda to, scratch, v, x, slope: np.minimum(x, 0, out=to)),
    "Elu": (_elu,),
    "Selu": (_elu,),
}
"""The derivatives of each operator by its operands, in their order."""
