"""The head: a `Network` laid out for training in numpy.

All trainable numbers are views into one contiguous vector, and so are their gradients, so that an optimizer, Polyak averaging
or a snapshot is a few calls on one vector. For each batch size the buffers are made once and the numpy calls on them are
laid out as a list (`passes.py`): a step runs down the list and allocates nothing.

The steps before the first trained layer (scaling) and after the last (output range) are constant. `Head.rows` converts pairs to
the units between them once, and the loss is the mean squared error in these units, or Huber's. If the output range is clipped,
a prediction beyond a bound is right for a score at that bound: a score of 100 means "100 or better" (censored regression;
Tobin: Estimation of relationships for limited dependent variables, 1958), and the graph's Clip does the rest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from onnx_builder.elementwise import Function
from onnx_builder.network import (
    Activation,
    Array,
    Clip,
    Dense,
    Elementwise,
    LayerNormalization,
    Network,
    NetworkError,
    Step,
    apply,
)
from sidecar.learning.passes import Pass, is_trained, parameter_views, parameters_of, with_parameters
from sidecar.learning.tiled import Tiled

_SMALL_CHUNK, _CHUNK = 32, 128
"""Rows that `predict` takes at a time if there are few, and if there are many. Larger buffers come fresh from the system each
time, which costs more than it saves."""


class Head:
    """Forward and backward passes of a network over one flat parameter vector.

    network: its dense layers, layer normalisations and the slopes of PRelu are trained; constants, clips and activations may
    be anywhere.
    dtype: float32 to train, float64 to check gradients.

    Raises NetworkError for a network with nothing to train, or whose scores do not depend on what is trained.
    """

    def __init__(self, network: Network, dtype: type[np.floating[Any]] = np.float32) -> None:
        trained = [position for position, step in enumerate(network.steps) if isinstance(step, Dense | LayerNormalization)]
        if not trained:
            raise NetworkError("a network without a dense layer has nothing to train")
        first = trained[0]
        end = 1 + max(p for p, step in enumerate(network.steps) if p in trained or isinstance(step, Activation | Function))
        self._network = network
        self._first = first
        self._body, tail = network.steps[first:end], network.steps[end:]
        self._scaling = scaling(network.steps[:first], network.n_features, dtype)
        self._range = [_in_place(step, dtype) for step in tail]
        self.score_offset, self.score_scale, *bounds = output_range(tail)
        self._offset, self._scale = (np.array(value, dtype=dtype) for value in (self.score_offset, self.score_scale))
        in_units = np.sort(self._in_units_of_loss(np.array(bounds, dtype=dtype)))
        self._bounds = in_units if np.isfinite(in_units).any() else None
        self.n_features = network.n_features
        self.dtype = dtype
        layers = [parameters_of(step).ravel() for step in self._body if is_trained(step)]
        self.parameters: Array = np.concatenate(layers, dtype=dtype)
        self.gradient: Array = np.zeros_like(self.parameters)
        self.limits: Array | None = None
        self._passes: dict[int, Pass] = {}

    def bound_errors(self, limit: float) -> None:
        """Train with Huber's loss: an error beyond `limit`, in the units of the loss, pulls no harder than one of that size."""
        if self.limits is None:
            self.limits, self._passes = np.zeros_like(self.parameters, shape=(2,)), {}
        self.limits[0], self.limits[1] = -limit, limit

    def at(self, parameters: Array) -> Self:
        """The same head on another parameter vector (n_parameters,), which is shared, not copied."""
        head = object.__new__(type(self))
        head.__dict__.update(self.__dict__)
        head.parameters, head.gradient, head._passes = parameters, np.zeros_like(parameters), {}
        return head

    @property
    def body(self) -> tuple[Step, ...]:
        """The steps from the first trained one on, which `Pass` takes."""
        return self._body

    @property
    def bounds(self) -> Array | None:
        """The range (2,) that scores are clipped to, in the units of the loss; None for no range."""
        return self._bounds

    @property
    def feature_weights(self) -> Array:
        """Weights (n_units, n_features) of the first dense layer: a view of the parameters."""
        dense = [isinstance(step, Dense) for step in self._body if is_trained(step)]
        return self._views(self.parameters)[dense.index(True)][:, :-1]

    def network(self) -> Network:
        """The present parameters as a float32 network."""
        return dataclasses.replace(self._network, steps=self.steps())

    def steps(self, shared: bool = False) -> tuple[Step, ...]:
        """The steps of `network`. shared: they share the memory of the parameters, and are not checked."""
        steps: list[Step] = list(self._network.steps)
        views = iter(self._views(self.parameters))
        for position, step in enumerate(self._body, self._first):
            if is_trained(step):
                steps[position] = with_parameters(step, next(views), shared)
        return tuple(steps)

    def refresh(self) -> None:
        """Bring the shared `steps` up to date, where they cannot share the memory of the parameters."""

    def rows(self, features: Array, scores: Array, out: Array | None = None) -> Array:
        """Training rows (n, n_features + 2) of pairs: scaled features, 1, and the score in the units of the loss.

        features: (n, n_features), raw; scores: (n,), in score points; out: an array to fill instead of a new one. The largest
        float32 features overflow to infinity, which a new model's Clip handles, and of which numpy warns if it may.
        """
        rows = np.empty((len(features), self.n_features + 2), dtype=self.dtype) if out is None else out
        scaled = np.array(features, dtype=self.dtype)
        for operation in self._scaling:
            operation(scaled)
        rows[:, : self.n_features] = scaled
        rows[:, -2] = 1
        rows[:, -1] = scores
        self._in_units_of_loss(rows[:, -1])
        return rows

    def batch(self, n: int) -> Array:
        """The buffer (n, n_features + 2) that `loss_and_gradient` works on; rows written there need no copy."""
        return self._pass(n).batch

    def loss_and_gradient(self, rows: Array) -> float:
        """Mean squared error of rows (n, n_features + 2), in the units of `rows`; the gradient goes to `self.gradient`.

        The gradient is that of the mean squared error, or of Huber's loss after `bound_errors`. Multiply by `score_scale ** 2`
        for score points squared.
        """
        n = len(rows)
        work = self._pass(n)
        if rows is not work.batch:
            np.copyto(work.batch, rows)
        for operation in work.forward_to_error:
            operation()
        loss = float(work.error.dot(work.error)) / n
        for operation in work.backward:
            operation()
        return loss

    def predict(self, features: Array) -> NDArray[np.float32]:
        """Scores (n,) of raw features (n, n_features), in score points, as the exported graph gives them."""
        n = len(features)
        scores = np.zeros(n, dtype=np.float32)
        work = self._pass(_SMALL_CHUNK if n <= _SMALL_CHUNK else _CHUNK)
        size = len(work.batch)
        with np.errstate(over="ignore"):
            for start in range(0, n, size):
                count = min(size, n - start)
                self.rows(features[start : start + count], scores[start : start + count], out=work.batch[:count])
                for operation in work.forward:
                    operation()
                for constant in self._range:
                    constant(work.result)
                scores[start : start + count] = work.result[:count]
        return scores

    def predict_rows(self, rows: Array) -> Array:
        """Scores (n,) of training rows (n, n_features + 2), in score points; valid until the next call."""
        work = self._pass(len(rows))
        np.copyto(work.batch, rows)
        for operation in work.forward:
            operation()
        for constant in self._range:
            constant(work.result)
        return work.result

    def _in_units_of_loss(self, scores: Array) -> Array:
        """Score points to units of the loss, in place; the same float32 operations for scores and bounds."""
        np.subtract(scores, self._offset, scores)
        return np.divide(scores, self._scale, scores)

    def _views(self, vector: Array) -> list[Array]:
        return parameter_views(self._body, vector)

    def _pass(self, n: int) -> Pass:
        work = self._passes.get(n)
        if work is None:
            views = self._views(self.parameters), self._views(self.gradient)
            work = self._passes[n] = Pass(self._body, self.n_features, *views, self._bounds, self.limits, n)
        return work


def scaling(steps: Sequence[Step], n_features: int, dtype: type[np.floating[Any]] = np.float32) -> list[Callable[[Array], Any]]:
    """The steps before the first trained layer, as functions that change rows (n, n_features) in place.

    A chain of constants and clips (a base model's scaling, a new model's clip, the units of conditioning) is always
    clip((x − centre) · factor, low, high): two or four passes over the rows instead of one for each step.
    """
    centre, factor = np.zeros(n_features), np.ones(n_features)
    low, high = np.full(n_features, -np.inf), np.full(n_features, np.inf)
    with np.errstate(all="ignore"):
        for step in steps:
            if isinstance(step, Clip):
                low, high = (np.clip(bound, step.low, step.high) for bound in (low, high))
            elif isinstance(step, Elementwise):
                function, value = _UFUNCS[step.operator], step.value.astype(np.float64)
                if step.operator in ("Mul", "Div"):
                    factor = function(factor, value)
                else:
                    centre = centre + (value if step.operator == "Sub" else -value) / factor
                low, high = function(low, value), function(high, value)
        chain = [array.astype(dtype) for array in (centre, factor)]
    regular = np.isfinite(chain).all() and (chain[1] > 0).all() and not np.isnan([low, high]).any()
    if not steps or not regular or any(isinstance(step, Activation | Function) for step in steps):
        return [_in_place(step, dtype) for step in steps]
    operations = [(np.subtract, centre), (np.multiply, factor)]
    operations += [(f, bound) for f, bound in ((np.maximum, low), (np.minimum, high)) if np.isfinite(bound).any()]
    return [_with_row(function, Tiled(value.astype(dtype))) for function, value in operations]


def _with_row(function: np.ufunc, value: Tiled) -> Callable[[Array], Any]:
    return lambda rows: function(rows, value.like(rows), out=rows)


def _with_constant(function: np.ufunc, value: Array) -> Callable[[Array], Any]:
    return lambda x: function(x, value, out=x)


def _in_place(step: Step, dtype: type[np.floating[Any]]) -> Callable[[Array], Any]:
    """A step without parameters as a function that changes an array in place."""
    if isinstance(step, Elementwise):
        return _with_constant(_UFUNCS[step.operator], step.value.astype(dtype))
    if isinstance(step, Clip):
        low, high = (np.array(bound, dtype=dtype) for bound in (step.low, step.high))
        return lambda x: np.minimum(np.maximum(x, low, out=x), high, out=x)
    assert isinstance(step, Activation | Function)
    return lambda x: np.copyto(x, apply(step, x))


_UFUNCS = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}


def output_range(steps: Sequence[Step]) -> tuple[float, float, float, float]:
    """Offset, scale, low and high: the constants after the last layer compute offset + scale · x, within low to high."""
    offset, scale, low, high = 0.0, 1.0, -math.inf, math.inf
    for step in steps:
        if isinstance(step, Clip):
            low, high = (min(max(bound, step.low), step.high) for bound in (low, high))
        elif isinstance(step, Elementwise):
            if step.value.size != 1:
                raise NetworkError("a constant after the last layer must be one number")
            add, multiply = _as_affine(step.operator, float(step.value.reshape(())))
            offset, scale = multiply * offset + add, multiply * scale
            low, high = sorted(multiply * bound + add for bound in (low, high))
    if scale == 0 or not np.isfinite(scale):
        raise NetworkError(f"the constants after the last layer scale by {scale}; nothing can be trained through them")
    return offset, scale, low, high


def _as_affine(operator: str, value: float) -> tuple[float, float]:
    """The summand and the factor of an elementwise operator with one number."""
    match operator:
        case "Add":
            return value, 1.0
        case "Sub":
            return -value, 1.0
        case "Mul":
            return 0.0, value
        case _:
            return 0.0, 1 / value if value else math.inf
