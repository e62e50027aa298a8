"""The head: a `Network` laid out for training in numpy.

All trainable numbers are views into one contiguous vector, and so are their gradients: an optimizer, Polyak averaging or
a snapshot is then a few calls on one vector. Inside, activations are stored as (width + 1, batch): one column a pair,
with a last row of ones, so that a bias is the last column of its weight matrix and costs no operation of its own. All
buffers are made once per batch size; a step allocates nothing.

The scaling in front of the first dense layer and the output range behind the last are constants. Pairs are brought into
the units between them once, by `Head.rows`, and the loss is the mean squared error there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_builder.erf import erf
from onnx_builder.network import Activation, Array, Clip, Dense, Elementwise, Network, NetworkError, Step

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
        self.score_offset, self.score_scale = _affine(network.steps[end:])
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
        for operation, *constants in self._scaling:
            operation(scaled, *constants, out=scaled)
        rows[:, -2] = 1
        np.subtract(scores, self.score_offset, out=rows[:, -1])
        np.divide(rows[:, -1], self.score_scale, out=rows[:, -1])
        return rows

    def loss_and_gradient(self, rows: Array) -> float:
        """Mean squared error of rows (n, n_features + 2), in the units of `rows`; its gradient goes to `self.gradient`.

        Multiply by `score_scale ** 2` for score points squared.
        """
        n = len(rows)
        work = self._pass(n)
        inputs = rows[:, :-1].T
        error = work.error
        np.subtract(work.forward(inputs), rows[:, -1], out=error)
        loss = float(error.dot(error)) / n
        np.multiply(error, 2 / n, out=error)
        work.backward(inputs)
        return loss

    def predict(self, features: Array) -> NDArray[np.float32]:
        """Scores (n,) of raw features (n, n_features), in score points, as the exported graph gives them."""
        n = len(features)
        scores = np.empty(n, dtype=np.float32)
        size = n if n <= _CHUNK and n in self._passes else _CHUNK
        rows = np.zeros((size, self.n_features + 2), dtype=self.dtype)
        nothing = np.zeros(size, dtype=self.dtype)
        for start in range(0, n, size):
            count = min(size, n - start)
            self.rows(features[start : start + count], nothing[:count], out=rows[:count])
            result = self._pass(size).forward(rows[:, :-1].T)
            for operation, *constants in self._range:
                operation(result, *constants, out=result)
            scores[start : start + count] = result[:count]
        return scores

    def _pass(self, n: int) -> _Pass:
        work = self._passes.get(n)
        if work is None:
            work = self._passes[n] = _Pass(self._body, self.parameters, self.gradient, n)
        return work


class _Pass:
    """The buffers of one batch size, and the layers bound to them."""

    def __init__(self, body: tuple[Step, ...], parameters: Array, gradient: Array, n: int) -> None:
        self.layers: list[_Dense | _Activation] = []
        previous: _Dense | None = None
        matrices = zip(_matrices(body, parameters), _matrices(body, gradient), strict=True)
        for step in body:
            if isinstance(step, Dense):
                previous = _Dense(*next(matrices), previous, n)
                self.layers.append(previous)
            elif isinstance(step, Activation) and previous is not None:
                self.layers.append(_ACTIVATIONS[step.name](previous.values, previous.deltas, step.slope))
        assert previous is not None
        self.result: Array = previous.values[0]
        self.error: Array = previous.deltas[0]
        self.backward_layers = self.layers[::-1]

    def forward(self, inputs: Array) -> Array:
        """The last layer's values (n,), a buffer."""
        for layer in self.layers:
            layer.forward(inputs)
        return self.result

    def backward(self, inputs: Array) -> None:
        """Fills the gradient; `error` must hold the derivative of the loss by the last layer's values."""
        for layer in self.backward_layers:
            layer.backward(inputs)


class _Dense:
    """values = W · [inputs; 1]; in `backward`, `deltas` is the derivative of the loss by `values`."""

    def __init__(self, weights: Array, gradient: Array, previous: _Dense | None, n: int) -> None:
        n_out = len(weights)
        self.weights, self.gradient = weights, gradient
        self.outputs = np.ones((n_out + 1, n), dtype=weights.dtype)
        self.values = self.outputs[:-1]
        self.deltas = np.empty((n_out, n), dtype=weights.dtype)
        self.inputs = None if previous is None else previous.outputs
        if previous is not None:
            self.inputs_transposed = previous.outputs.T
            self.input_deltas = previous.deltas
            self.input_weights = weights[:, :-1].T

    def forward(self, inputs: Array) -> None:
        # np.dot is the faster of the two on small contiguous arrays; matmul takes the strided batch without a copy.
        if self.inputs is None:
            np.matmul(self.weights, inputs, out=self.values)
        else:
            np.dot(self.weights, self.inputs, out=self.values)

    def backward(self, inputs: Array) -> None:
        if self.inputs is None:
            np.matmul(self.deltas, inputs.T, out=self.gradient)
        else:
            np.dot(self.deltas, self.inputs_transposed, out=self.gradient)
            np.dot(self.input_weights, self.deltas, out=self.input_deltas)


class _Activation:
    """Works in place on the values of a dense layer, and in `backward` on the derivatives of the loss by them."""

    def __init__(self, values: Array, deltas: Array, slope: float) -> None:
        self.values, self.deltas, self.slope = values, deltas, slope
        self.scratch = np.empty_like(values)

    def forward(self, inputs: Array) -> None:
        raise NotImplementedError

    def backward(self, inputs: Array) -> None:
        raise NotImplementedError


class _Relu(_Activation):
    def forward(self, inputs: Array) -> None:
        np.maximum(self.values, 0, out=self.values)

    def backward(self, inputs: Array) -> None:
        np.sign(self.values, out=self.scratch)
        np.multiply(self.deltas, self.scratch, out=self.deltas)


class _LeakyRelu(_Activation):
    def __init__(self, values: Array, deltas: Array, slope: float) -> None:
        super().__init__(values, deltas, slope)
        self.negative = np.empty(values.shape, dtype=bool)

    def forward(self, inputs: Array) -> None:
        np.less(self.values, 0, out=self.negative)
        np.multiply(self.values, self.slope, out=self.values, where=self.negative)

    def backward(self, inputs: Array) -> None:
        np.multiply(self.deltas, self.slope, out=self.deltas, where=self.negative)


class _Tanh(_Activation):
    def forward(self, inputs: Array) -> None:
        np.tanh(self.values, out=self.values)

    def backward(self, inputs: Array) -> None:
        np.multiply(self.values, self.values, out=self.scratch)
        np.subtract(1, self.scratch, out=self.scratch)
        np.multiply(self.deltas, self.scratch, out=self.deltas)


class _Sigmoid(_Activation):
    def forward(self, inputs: Array) -> None:
        np.multiply(self.values, 0.5, out=self.values)
        np.tanh(self.values, out=self.values)
        np.add(self.values, 1, out=self.values)
        np.multiply(self.values, 0.5, out=self.values)

    def backward(self, inputs: Array) -> None:
        np.subtract(1, self.values, out=self.scratch)
        np.multiply(self.scratch, self.values, out=self.scratch)
        np.multiply(self.deltas, self.scratch, out=self.deltas)


class _Gelu(_Activation):
    """x · Φ(x) with the normal distribution's Φ, exact (Hendrycks and Gimpel, 2016, arXiv:1606.08415)."""

    def __init__(self, values: Array, deltas: Array, slope: float) -> None:
        super().__init__(values, deltas, slope)
        self.x, self.cdf = np.empty_like(values), np.empty_like(values)

    def forward(self, inputs: Array) -> None:
        np.copyto(self.x, self.values)
        np.multiply(self.x, 0.5**0.5, out=self.values)
        erf(self.values, out=self.cdf, scratch=self.scratch)
        np.add(self.cdf, 1, out=self.cdf)
        np.multiply(self.cdf, 0.5, out=self.cdf)
        np.multiply(self.x, self.cdf, out=self.values)

    def backward(self, inputs: Array) -> None:
        np.multiply(self.x, self.x, out=self.scratch)
        np.multiply(self.scratch, -0.5, out=self.scratch)
        np.exp(self.scratch, out=self.scratch)
        np.multiply(self.scratch, (2 * np.pi) ** -0.5, out=self.scratch)
        np.multiply(self.scratch, self.x, out=self.scratch)
        np.add(self.scratch, self.cdf, out=self.scratch)
        np.multiply(self.deltas, self.scratch, out=self.deltas)


_ACTIVATIONS: dict[str, type[_Activation]] = {
    "relu": _Relu,
    "leaky_relu": _LeakyRelu,
    "tanh": _Tanh,
    "gelu": _Gelu,
    "sigmoid": _Sigmoid,
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


def _affine(steps: tuple[Step, ...]) -> tuple[float, float]:
    """Offset and scale such that constants behind the last layer compute offset + scale · x, their clips aside."""
    offset, scale = 0.0, 1.0
    for step in steps:
        if isinstance(step, Elementwise):
            if step.value.size != 1:
                raise NetworkError("a constant behind the last layer must be one number")
            value = float(step.value.reshape(()))
            match step.operator:
                case "Add":
                    offset += value
                case "Sub":
                    offset -= value
                case "Mul":
                    offset, scale = offset * value, scale * value
                case "Div":
                    offset, scale = offset / value, scale / value
    if scale == 0 or not np.isfinite(scale):
        raise NetworkError(f"the constants behind the last layer scale by {scale}; nothing can be trained through them")
    return offset, scale
