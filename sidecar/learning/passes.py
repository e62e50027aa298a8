"""Forward and backward passes of each kind of step, as lists of numpy calls on buffers made once.

The buffers are made like the parameters: in numpy, or on a device, where the same calls are recorded (`device/stacked.py`).

Values are stored as (width + 1, batch): one column per pair, with a last row of ones, so that a bias is the last column of its
weight matrix and costs no operation of its own. Scalars are 0-dimensional arrays, which numpy takes faster than Python numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeGuard

import numpy as np

from onnx_builder.elementwise import Function, erf
from onnx_builder.network import Activation, Array, Clip, Dense, Elementwise, LayerNormalization, Step
from sidecar.learning.derivatives import function_passes

Operation = Callable[[], Any]
Operations = Sequence[Operation]
Passes = tuple[Operations, Operations]
Trained = Dense | Function | LayerNormalization


class Pass:
    """The forward and backward passes for batches of n: buffers, and the numpy calls on them in order.

    `forward` computes `result` (n,) from `batch` (n, n_features + 2). `forward_to_error` also computes the errors in `error`
    (n,), and `backward` the gradient from these: that of the mean squared error, or of Huber's loss.

    body: the steps from the first trained one on; parameters, gradient: those of each trained step, as `parameter_views` gives
    them; bounds: (2,), the range that scores are clipped to, in the units of the loss, None for no range. limits: (2,), between
    which an error counts as it is, and beyond which it counts as much as they do; None for no limits. weights: (n,), what each
    error is multiplied by instead of 2/n.

    Huber: Robust estimation of a location parameter (1964).
    """

    def __init__(
        self,
        body: Sequence[Step],
        n_features: int,
        parameters: list[Array],
        gradient: list[Array],
        bounds: Array | None,
        limits: Array | None,
        n: int,
        weights: Array | None = None,
    ) -> None:
        like = parameters[0]
        self.batch = np.zeros_like(like, shape=(n, n_features + 2))
        rows = self.batch[:, :-1]
        deltas: Array | None = None  # the derivative by the inputs of the first step is not needed
        inputs, self.forward = _transposed(rows)
        self.backward: list[Operation] = []
        trained = zip(parameters, gradient, strict=True)
        before: Step | None = None
        for step in body:
            if isinstance(step, Activation) and not isinstance(before, Activation | Function | None):
                assert deltas is not None
                forward, backward = _ACTIVATIONS[step.name](inputs[:-1], deltas, step.slope)
            else:
                width = len(step.weight) if isinstance(step, Dense) else len(inputs) - 1
                outputs = np.ones_like(like, shape=(width + 1, n))
                output_deltas = np.zeros_like(like, shape=(width, n))
                match step:
                    case Dense():
                        forward, backward = _dense(*next(trained), inputs, deltas, outputs[:-1], output_deltas, rows)
                    case LayerNormalization():
                        forward, backward = _layer_normalization(
                            *next(trained), inputs[:-1], deltas, outputs[:-1], output_deltas, step.epsilon
                        )
                    case Function():
                        assert deltas is not None
                        slopes = next(trained) if is_trained(step) else (outputs, outputs)
                        forward, backward = function_passes(step, *slopes, inputs[:-1], deltas, outputs[:-1], output_deltas)
                    case _:
                        assert deltas is not None
                        forward, backward = _constant(step, inputs[:-1], deltas, outputs[:-1], output_deltas)
                inputs, deltas = outputs, output_deltas
            self.forward += forward
            self.backward[:0] = backward
            before = step
        assert deltas is not None
        self.result: Array = inputs[0]
        self.error: Array = deltas[0]
        target = self.batch[:, -1]
        self.forward_to_error: list[Operation] = [*self.forward, partial(np.subtract, self.result, target, self.error)]
        if bounds is not None:
            clipped, right = np.empty_like(self.result), np.empty_like(self.result, dtype=bool)
            low, high = (_as_whole(bounds[at : at + 1].reshape(()), self.result) for at in (0, 1))
            self.forward_to_error += [
                partial(np.maximum, self.result, low, out=clipped),
                partial(np.minimum, clipped, high, out=clipped),
                partial(np.equal, clipped, target, right),
                partial(np.putmask, self.error, right, np.zeros((), dtype=like.dtype)),
            ]
        to_deltas: list[Operation] = []
        if limits is not None:
            low, high = limits[:1].reshape(()), limits[1:].reshape(())
            to_deltas = [
                partial(np.maximum, self.error, low, out=self.error),
                partial(np.minimum, self.error, high, out=self.error),
            ]
        scale = np.array(2 / n, dtype=like.dtype) if weights is None else weights
        self.backward[:0] = [*to_deltas, partial(np.multiply, self.error, scale, self.error)]


def _transposed(rows: Array) -> tuple[Array, list[Operation]]:
    """The columns of pairs that the first step takes, and what fills them."""
    if not isinstance(rows, np.ndarray):  # a device multiplies by transposed matrices just as fast
        return rows.T, []
    columns = np.empty_like(rows, shape=rows.shape[::-1])
    return columns, [partial(np.copyto, columns, rows.T)]


def _as_whole(number: Array, like: Array) -> Array:
    """A number that does not change as an array: with arrays of one shape numpy takes half the time. A device needs none."""
    return np.full_like(like, number) if isinstance(number, np.ndarray) else number


def is_trained(step: Step) -> TypeGuard[Trained]:
    """Whether a step has parameters, if it comes after the first layer: what is before that is constant."""
    return isinstance(step, Dense | LayerNormalization) or (isinstance(step, Function) and bool(step.slopes))


def parameter_views(body: Sequence[Step], vector: Array) -> list[Array]:
    """Views of a flat vector, one for each trained step.

    For a dense layer it is (n_out, n_in + 1), the last column its bias; for a layer normalisation (2, width), scale and bias;
    for a function (1, size), its slopes.
    """
    views, start = [], 0
    for step in body:
        if not is_trained(step):
            continue
        shape = parameters_of(step).shape
        views.append(vector[start : start + shape[0] * shape[1]].reshape(shape))
        start += shape[0] * shape[1]
    return views


def parameters_of(step: Trained) -> Array:
    """The parameters of a trained step, in the shape of its view."""
    if isinstance(step, Function):
        return np.concatenate([step.constants[place].reshape(1, -1) for place in step.slopes], axis=1)
    return np.column_stack([step.weight, step.bias]) if isinstance(step, Dense) else np.stack([step.scale, step.bias])


def with_parameters(step: Trained, view: Array, shared: bool = False) -> Trained:
    """The step with other parameters, copied and as float32; shared: it takes its numbers from the view itself, at any time."""
    take = np.asarray if shared else partial(np.array, dtype=np.float32, order="C")
    if isinstance(step, Function):
        constants, start = list(step.constants), 0
        for place in step.slopes:
            end = start + constants[place].size
            constants[place], start = take(view[0, start:end]).reshape(constants[place].shape), end
        return Function(tuple(constants), step.nodes)
    if isinstance(step, Dense):
        return Dense(take(view[:, :-1]), take(view[:, -1]))
    return LayerNormalization(take(view[0]), take(view[1]), step.epsilon)


def _dense(
    weights: Array, gradient: Array, inputs: Array, input_deltas: Array | None, values: Array, deltas: Array, rows: Array
) -> Passes:
    # ndarray.dot is faster than np.matmul on small contiguous arrays, but copies others.
    forward = [partial(weights.dot, inputs, values)]
    if input_deltas is None:  # the inputs are the batch transposed; with the batch itself, this product takes half as long
        return forward, [partial(np.matmul, deltas, rows, gradient)]
    return forward, [partial(deltas.dot, inputs.T, gradient), partial(weights[:, :-1].T.dot, deltas, input_deltas)]


def _layer_normalization(
    parameters: Array, gradient: Array, inputs: Array, input_deltas: Array | None, values: Array, deltas: Array, epsilon: float
) -> Passes:
    """Ba, Kiros, Hinton: Layer normalization (2016), arXiv:1607.06450."""
    scale, bias = parameters[0][:, None], parameters[1][:, None]
    normalised, scratch = np.empty_like(values), np.empty_like(values)
    mean, factor = np.empty_like(values[:1]), np.empty_like(values[:1])
    forward = [
        partial(np.mean, inputs, axis=0, keepdims=True, out=mean),
        partial(np.subtract, inputs, mean, normalised),
        partial(np.multiply, normalised, normalised, scratch),
        partial(np.mean, scratch, axis=0, keepdims=True, out=factor),
        partial(np.add, factor, epsilon, factor),
        partial(np.sqrt, factor, factor),
        partial(np.reciprocal, factor, factor),
        partial(np.multiply, normalised, factor, normalised),
        partial(np.multiply, normalised, scale, values),
        partial(np.add, values, bias, values),
    ]
    backward = [
        partial(np.multiply, deltas, normalised, scratch),
        partial(np.sum, scratch, axis=1, out=gradient[0]),
        partial(np.sum, deltas, axis=1, out=gradient[1]),
    ]
    if input_deltas is not None:
        backward += [
            partial(np.multiply, deltas, scale, deltas),
            partial(np.multiply, deltas, normalised, scratch),
            partial(np.mean, scratch, axis=0, keepdims=True, out=mean),
            partial(np.multiply, normalised, mean, scratch),
            partial(np.mean, deltas, axis=0, keepdims=True, out=mean),
            partial(np.subtract, deltas, mean, deltas),
            partial(np.subtract, deltas, scratch, deltas),
            partial(np.multiply, deltas, factor, input_deltas),
        ]
    return forward, backward


def _constant(step: Step, inputs: Array, input_deltas: Array, values: Array, deltas: Array) -> Passes:
    """A step without parameters between trained ones."""
    if isinstance(step, Elementwise):
        # As a whole array: with arrays of the same shape numpy takes a third of the time that broadcasting takes.
        value = np.broadcast_to(step.value.astype(values.dtype).reshape(-1, 1), values.shape).copy()
        forward = [partial(_UFUNCS[step.operator], inputs, value, values)]
        if step.operator in ("Mul", "Div"):
            return forward, [partial(_UFUNCS[step.operator], deltas, value, input_deltas)]
        return forward, [partial(np.copyto, input_deltas, deltas)]
    if isinstance(step, Clip):
        low, high = (np.array(bound, dtype=values.dtype) for bound in (step.low, step.high))
        inside = np.empty_like(values, dtype=bool)
        return [
            partial(np.maximum, inputs, low, out=values),
            partial(np.minimum, values, high, out=values),
            partial(np.equal, inputs, values, inside),
        ], [partial(np.multiply, deltas, inside, input_deltas)]
    assert isinstance(step, Activation)  # after another: those work in place, so this one on a copy
    forward_in_place, backward = _ACTIVATIONS[step.name](values, deltas, step.slope)
    return [partial(np.copyto, values, inputs), *forward_in_place], [*backward, partial(np.copyto, input_deltas, deltas)]


_UFUNCS = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}


# Each activation works in place on values (width, n), and its backward pass in place on the derivatives of the loss by them.


def _relu(values: Array, deltas: Array, slope: float) -> Passes:
    # The maximum with a whole array takes half the time of one with a single number, and the bits as integers take a third of
    # the time of a float's sign. For v >= 0, -v shifted right is all ones where v > 0 and all zeros elsewhere.
    integer = np.dtype(f"i{values.itemsize}")
    bits, delta_bits, mask = values.view(integer), deltas.view(integer), np.empty_like(values, dtype=integer)
    forward = [partial(np.maximum, values, np.full_like(values, 0), out=values)]
    backward = [
        partial(np.negative, bits, mask),
        partial(np.right_shift, mask, np.array(8 * values.itemsize - 1, dtype=integer), mask),
        partial(np.bitwise_and, delta_bits, mask, delta_bits),
    ]
    return forward, backward


def _leaky_relu(values: Array, deltas: Array, slope: float) -> Passes:
    negative = np.empty_like(values, dtype=bool)
    forward = [partial(np.less, values, 0, out=negative), partial(np.multiply, values, slope, out=values, where=negative)]
    backward = [partial(np.multiply, deltas, slope, out=deltas, where=negative)]
    return forward, backward


def _tanh(values: Array, deltas: Array, slope: float) -> Passes:
    derivative = np.empty_like(values)
    forward = [partial(np.tanh, values, out=values)]
    backward = [
        partial(np.multiply, values, values, out=derivative),
        partial(np.subtract, 1, derivative, out=derivative),
        partial(np.multiply, deltas, derivative, deltas),
    ]
    return forward, backward


def _sigmoid(values: Array, deltas: Array, slope: float) -> Passes:
    """Through tanh, which does not overflow."""
    derivative = np.empty_like(values)
    forward = [
        partial(np.multiply, values, 0.5, out=values),
        partial(np.tanh, values, out=values),
        partial(np.add, values, 1, out=values),
        partial(np.multiply, values, 0.5, out=values),
    ]
    backward = [
        partial(np.subtract, 1, values, out=derivative),
        partial(np.multiply, derivative, values, out=derivative),
        partial(np.multiply, deltas, derivative, deltas),
    ]
    return forward, backward


def _gelu(values: Array, deltas: Array, slope: float) -> Passes:
    """x · Φ(x) with the normal distribution's Φ, exact (Hendrycks and Gimpel, 2016, arXiv:1606.08415)."""
    x, cdf, scratch = np.empty_like(values), np.empty_like(values), np.empty_like(values)
    forward = [
        partial(np.copyto, x, values),
        partial(np.multiply, x, 0.5**0.5, out=values),
        partial(erf, values, out=cdf, scratch=scratch),
        partial(np.add, cdf, 1, out=cdf),
        partial(np.multiply, cdf, 0.5, out=cdf),
        partial(np.multiply, x, cdf, out=values),
    ]
    backward = [
        partial(np.multiply, x, x, out=scratch),
        partial(np.multiply, scratch, -0.5, out=scratch),
        partial(np.exp, scratch, out=scratch),
        partial(np.multiply, scratch, (2 * np.pi) ** -0.5, out=scratch),
        partial(np.multiply, scratch, x, out=scratch),
        partial(np.add, scratch, cdf, out=scratch),
        partial(np.multiply, deltas, scratch, out=deltas),
    ]
    return forward, backward


_ACTIVATIONS: dict[str, Callable[[Array, Array, float], Passes]] = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "tanh": _tanh,
    "gelu": _gelu,
    "sigmoid": _sigmoid,
}
