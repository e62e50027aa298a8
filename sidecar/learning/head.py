"""The head: a `Network` laid out for training in numpy.

All trainable numbers are views into one contiguous vector, and so are their gradients: an optimizer, Polyak averaging or
a snapshot is then a few calls on one vector. Inside, activations are stored as (width + 1, batch): one column a pair,
with a last row of ones, so that a bias is the last column of its weight matrix and costs no operation of its own. For
each batch size the buffers are made once and the numpy calls on them are laid out as a list: a step runs down the list and
allocates nothing.

The scaling in front of the first dense layer and the output range behind the last are constants. Pairs are brought into
the units between them once, by `Head.rows`, and the loss is the mean squared error there. Where the output range is clipped,
a prediction beyond a bound is right for a score at that bound: a score of 100 says "100 or better" (censored regression;
Tobin: Estimation of relationships for limited dependent variables, 1958), and the graph's Clip takes the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_builder.erf import erf
from onnx_builder.network import Activation, Array, Clip, Dense, Elementwise, Network, NetworkError, Step

Operation = Callable[[], Any]

_CHUNK = 512
"""Rows that `predict` takes at a time."""


class Head:
    """Forward and backward passes of a network over one flat parameter vector.

    network: its steps must be constants (`Elementwise`, `Clip`), then dense layers with activations, then constants.
    dtype: float32 to train, float64 to check gradients.

    Raises NetworkError for a network with no dense layer or with a constant between two of them.
    """

    def __init__(self, network: Network, dtype: type[np.floating[Any]] = np.float32) -> None:
        dense = [position for position, step in enumerate(network.steps) if isinstance(step, Dense)]
        if not dense:
            raise NetworkError("a network without a dense layer has nothing to train")
        first, last = dense[0], dense[-1]
        end = last + 1
        while end < len(network.steps) and isinstance(network.steps[end], Activation):
            end += 1
        self._network = network
        self._body = network.steps[first:end]
        for step in self._body:
            if not isinstance(step, Dense | Activation):
                raise NetworkError(f"a {type(step).__name__} step between dense layers cannot be trained through")
        self._scaling = [_constant(step, dtype) for step in network.steps[:first]]
        self._range = [_constant(step, dtype) for step in network.steps[end:]]
        self.score_offset, self.score_scale, *bounds = _output_range(network.steps[end:])
        self._bounds = np.sort(self._in_units_of_loss(np.array(bounds, dtype=dtype)))
        self.n_features = network.n_features
        self.dtype = dtype
        layers = [step for step in self._body if isinstance(step, Dense)]
        self.parameters: Array = np.concatenate(
            [np.column_stack([layer.weight, layer.bias]).ravel() for layer in layers], dtype=dtype
        )
        self.gradient: Array = np.zeros_like(self.parameters)
        self._passes: dict[int, _Pass] = {}

    def at(self, parameters: Array) -> Head:
        """The same head on another parameter vector (n_parameters,), which is shared, not copied."""
        head = object.__new__(Head)
        head.__dict__.update(self.__dict__)
        head.parameters, head.gradient, head._passes = parameters, np.zeros_like(parameters), {}
        return head

    @property
    def feature_weights(self) -> Array:
        """Weights (n_units, n_features) of the first layer: a view of the parameters."""
        return _matrices(self._body, self.parameters)[0][:, :-1]

    def network(self) -> Network:
        """The present parameters as a float32 network."""
        steps: list[Step] = list(self._network.steps)
        weights = iter(_matrices(self._body, self.parameters))
        for position, step in enumerate(steps):
            if isinstance(step, Dense):
                weight = next(weights).astype(np.float32)
                steps[position] = Dense(weight[:, :-1].copy(), weight[:, -1].copy())
        return Network(self.n_features, tuple(steps), self._network.input_name, self._network.output_name)

    def rows(self, features: Array, scores: Array, out: Array | None = None) -> Array:
        """Training rows (n, n_features + 2) of pairs: scaled features, 1, and the score in the units of the loss.

        features: (n, n_features), raw; scores: (n,), in score points; out: an array to fill instead of a new one.
        """
        rows = np.empty((len(features), self.n_features + 2), dtype=self.dtype) if out is None else out
        scaled = rows[:, : self.n_features]
        scaled[...] = features
        with np.errstate(over="ignore"):  # the largest float32 features give infinity, which a fresh head's Clip takes
            for constant, *arguments in self._scaling:
                constant(scaled, *arguments, out=scaled)
        rows[:, -2] = 1
        rows[:, -1] = scores
        self._in_units_of_loss(rows[:, -1])
        return rows

    def loss_and_gradient(self, rows: Array) -> float:
        """Mean squared error of rows (n, n_features + 2), in the units of `rows`; its gradient goes to `self.gradient`.

        Multiply by `score_scale ** 2` for score points squared.
        """
        n = len(rows)
        work = self._pass(n)
        np.copyto(work.batch, rows)
        for operation in work.forward_to_error:
            operation()
        loss = float(work.error.dot(work.error)) * n / 4
        for operation in work.backward:
            operation()
        return loss

    def predict(self, features: Array) -> NDArray[np.float32]:
        """Scores (n,) of raw features (n, n_features), in score points, as the exported graph gives them."""
        n = len(features)
        scores = np.zeros(n, dtype=np.float32)
        work = self._pass(n if n in self._passes else _CHUNK)
        size = len(work.batch)
        for start in range(0, n, size):
            count = min(size, n - start)
            self.rows(features[start : start + count], scores[start : start + count], out=work.batch[:count])
            for operation in work.forward:
                operation()
            for constant, *arguments in self._range:
                constant(work.result, *arguments, out=work.result)
            scores[start : start + count] = work.result[:count]
        return scores

    def _in_units_of_loss(self, scores: Array) -> Array:
        """Score points to units of the loss, in place; the same float32 operations for scores and bounds."""
        np.subtract(scores, self.score_offset, out=scores)
        return np.divide(scores, self.score_scale, out=scores)

    def _pass(self, n: int) -> _Pass:
        work = self._passes.get(n)
        if work is None:
            work = self._passes[n] = _Pass(self._body, self.n_features, self.parameters, self.gradient, self._bounds, n)
        return work


class _Pass:
    """The forward and backward passes for batches of n: buffers, and the numpy calls on them in order.

    `forward` takes `batch` (n, n_features + 2) to `result` (n,); `forward_to_error` on to the derivative of the mean squared
    error by it, in `error` (n,): 2/n times the error; `backward` takes that to the gradient.
    """

    def __init__(
        self, body: tuple[Step, ...], n_features: int, parameters: Array, gradient: Array, bounds: Array, n: int
    ) -> None:
        self.forward: list[Operation] = []
        self.backward: list[Operation] = []
        self.batch = np.zeros((n, n_features + 2), dtype=parameters.dtype)
        inputs: Array = np.empty((n_features + 1, n), dtype=parameters.dtype)
        deltas: Array | None = None
        values = inputs
        forward: Sequence[Operation]
        backward: Sequence[Operation]
        matrices = zip(_matrices(body, parameters), _matrices(body, gradient), strict=True)
        for step in body:
            if isinstance(step, Dense):
                weights, weight_gradient = next(matrices)
                outputs = np.ones((len(weights) + 1, n), dtype=parameters.dtype)
                values = outputs[:-1]
                output_deltas = np.zeros_like(values)
                # A product with the batch transposed takes twice as long as copying it first. ndarray.dot is faster than
                # np.matmul on small contiguous arrays, but copies others.
                if deltas is None:
                    rows = self.batch[:, :-1]
                    forward = [partial(np.copyto, inputs, rows.T), partial(weights.dot, inputs, values)]
                    backward = [partial(np.matmul, output_deltas, rows, weight_gradient)]
                else:
                    forward = [partial(weights.dot, inputs, values)]
                    backward = [
                        partial(output_deltas.dot, inputs.T, weight_gradient),
                        partial(weights[:, :-1].T.dot, output_deltas, deltas),
                    ]
                inputs, deltas = outputs, output_deltas
            elif isinstance(step, Activation) and deltas is not None:
                forward, backward = _ACTIVATIONS[step.name](values, deltas, step.slope)
            self.forward += forward
            self.backward[:0] = backward
        assert deltas is not None
        self.result: Array = values[0]
        self.error: Array = deltas[0]
        target, clipped, right = self.batch[:, -1], np.empty_like(self.result), np.empty(n, dtype=bool)
        low, high = bounds[:1].reshape(()), bounds[1:].reshape(())
        within_bounds = [
            partial(np.maximum, self.result, low, out=clipped),
            partial(np.minimum, clipped, high, out=clipped),
            partial(np.equal, clipped, target, right),
            partial(np.putmask, self.error, right, np.zeros((), dtype=parameters.dtype)),
        ]
        self.forward_to_error: list[Operation] = [
            *self.forward,
            partial(np.subtract, self.result, target, self.error),
            *(within_bounds if np.isfinite(bounds).any() else []),
            partial(np.multiply, self.error, np.array(2 / n, dtype=parameters.dtype), self.error),
        ]


# Each activation gives its two passes: in place on the values of a dense layer, and in place on the derivatives of the
# loss by them. Scalars are arrays of no dimension, which numpy takes faster than Python's.

Passes = tuple[Sequence[Operation], Sequence[Operation]]


def _relu(values: Array, deltas: Array, slope: float) -> Passes:
    # On whole arrays and on the bits as integers, as here, numpy takes half and a third of the time that a maximum with one
    # number and the sign of a float take. For v >= 0, -v shifted right is all ones where v > 0 and all zeros elsewhere.
    integer = np.dtype(f"i{values.itemsize}")
    bits, delta_bits, mask = values.view(integer), deltas.view(integer), np.empty(values.shape, dtype=integer)
    forward = [partial(np.maximum, values, np.zeros_like(values), out=values)]
    backward = [
        partial(np.negative, bits, mask),
        partial(np.right_shift, mask, np.array(8 * values.itemsize - 1, dtype=integer), mask),
        partial(np.bitwise_and, delta_bits, mask, delta_bits),
    ]
    return forward, backward


def _leaky_relu(values: Array, deltas: Array, slope: float) -> Passes:
    negative = np.empty(values.shape, dtype=bool)
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
_UFUNCS = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}


def _matrices(body: tuple[Step, ...], vector: Array) -> list[Array]:
    """Views (n_out, n_in + 1) of a flat vector, one a dense layer; the last column is the bias."""
    views, start = [], 0
    for step in body:
        if isinstance(step, Dense):
            shape = (step.weight.shape[0], step.weight.shape[1] + 1)
            views.append(vector[start : start + shape[0] * shape[1]].reshape(shape))
            start += shape[0] * shape[1]
    return views


def _constant(step: Step, dtype: type[np.floating[Any]]) -> tuple[Any, ...]:
    """A constant step as a numpy function and its further arguments."""
    match step:
        case Elementwise():
            return _UFUNCS[step.operator], step.value.astype(dtype)
        case Clip():
            return np.clip, dtype(step.low), dtype(step.high)
        case _:
            raise NetworkError(f"a {type(step).__name__} step cannot stand in front of the first dense layer")


def _output_range(steps: tuple[Step, ...]) -> tuple[float, float, float, float]:
    """Offset, scale, low and high such that constants behind the last layer compute offset + scale · x, within low to high."""
    offset, scale, low, high = 0.0, 1.0, -math.inf, math.inf
    for step in steps:
        if isinstance(step, Clip):
            low, high = (min(max(bound, step.low), step.high) for bound in (low, high))
        elif isinstance(step, Elementwise):
            if step.value.size != 1:
                raise NetworkError("a constant behind the last layer must be one number")
            add, multiply = _as_affine(step.operator, float(step.value.reshape(())))
            offset, scale = multiply * offset + add, multiply * scale
            low, high = sorted(multiply * bound + add for bound in (low, high))
    if scale == 0 or not np.isfinite(scale):
        raise NetworkError(f"the constants behind the last layer scale by {scale}; nothing can be trained through them")
    return offset, scale, low, high


def _as_affine(operator: str, value: float) -> tuple[float, float]:
    """What is added and what is multiplied by, for an elementwise operator with one number."""
    match operator:
        case "Add":
            return value, 1.0
        case "Sub":
            return -value, 1.0
        case "Mul":
            return 0.0, value
        case _:
            return 0.0, 1 / value if value else math.inf
