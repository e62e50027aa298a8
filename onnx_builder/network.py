"""`Network`: a regression network as a chain of steps.

Readers make this value, the writer turns it into a graph, and the trainer starts from it and returns it. Each step is one
element of the graph (a scaling constant, a dense layer, an activation), so that reading and writing lose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnx_builder.elementwise import Function, erf, evaluate

Array = NDArray[Any]
Float32 = NDArray[np.float32]
ActivationName = Literal["relu", "leaky_relu", "tanh", "gelu", "sigmoid"]
LEAKY_RELU_SLOPE = 0.01


class NetworkError(ValueError):
    """A network or model file cannot be used; the message says which part and why."""


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line: its type if it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@dataclass(frozen=True, eq=False)
class Elementwise:
    """`x ∘ value` with a constant that is not trained: input scaling, output range.

    value: float32, shape () or (width,).
    """

    operator: Literal["Add", "Sub", "Mul", "Div"]
    value: Float32


@dataclass(frozen=True, eq=False)
class Clip:
    """`min(max(x, low), high)`, not trained."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Dense:
    """`x @ weight.T + bias`; weight: (n_out, n_in) float32, bias: (n_out,) float32."""

    weight: Float32
    bias: Float32


@dataclass(frozen=True, eq=False)
class Activation:
    """One of the usual nonlinearities; `slope` is that of leaky ReLU for negative input, unused by the others.

    Any other is a `Function`.
    """

    name: ActivationName
    slope: float = LEAKY_RELU_SLOPE


@dataclass(frozen=True, eq=False)
class LayerNormalization:
    """`(x − mean) / √(variance + epsilon) · scale + bias` over a row's values; scale, bias: (width,) float32.

    Ba, Kiros, Hinton: Layer normalization (2016), arXiv:1607.06450.
    """

    scale: Float32
    bias: Float32
    epsilon: float = 1e-5


Step = Elementwise | Clip | Dense | Activation | Function | LayerNormalization


@dataclass(frozen=True)
class Port:
    """An input or the output of a graph, as declared: its name and its shape, with dimensions as numbers or names.

    An input's first dimension is the batch, the product of the others its width. type: that of the numbers in the file that
    was read; written files are always float32.
    """

    name: str
    shape: tuple[int | str, ...]
    type: str = "FLOAT"

    @property
    def width(self) -> int:
        return math.prod(size for size in self.shape[1:] if isinstance(size, int))

    @property
    def fixed_batch(self) -> int | None:
        """The number of rows that the graph takes at a time; None if any number is allowed."""
        return self.shape[0] if self.shape and isinstance(self.shape[0], int) else None


_ELEMENTWISE: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
}
_ACTIVATIONS: dict[str, Callable[[Array, float], Array]] = {
    "relu": lambda x, slope: np.maximum(x, 0),
    "leaky_relu": lambda x, slope: np.where(x < 0, x * slope, x),
    "tanh": lambda x, slope: np.tanh(x),
    "sigmoid": lambda x, slope: 0.5 * (1 + np.tanh(0.5 * x)),
    "gelu": lambda x, slope: 0.5 * x * (1 + erf(x / np.sqrt(2, dtype=x.dtype))),
}


@dataclass(frozen=True, eq=False)
class Network:
    """Takes features (n, n_features) and gives one score per row.

    inputs, output: what its graph declares; by default one input `features` (batch, n_features) and one output `score`
    (batch, 1). Several inputs take the features one after the other, in order.

    Raises NetworkError if the widths of the steps do not fit together, a number is not finite, or the last width is
    not 1.
    """

    n_features: int
    steps: tuple[Step, ...]
    inputs: tuple[Port, ...] = ()
    output: Port = Port("score", ("batch", 1))

    def __post_init__(self) -> None:
        if not self.inputs:
            object.__setattr__(self, "inputs", (Port("features", ("batch", self.n_features)),))
        widths = [port.width for port in self.inputs]
        if sum(widths) != self.n_features:
            raise NetworkError(f"inputs of {' + '.join(map(str, widths))} values do not add up to {self.n_features} features")
        width = self.n_features
        for position, step in enumerate(self.steps):
            where = f"step {position} ({type(step).__name__})"
            match step:
                case Dense(weight, bias):
                    if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
                        raise NetworkError(
                            f"{where}: it gets {width} values; weight {weight.shape} and bias {bias.shape} do not fit"
                        )
                    _require_finite(where, weight, bias)
                    width = len(weight)
                case Clip(low, high):
                    if not low <= high:
                        raise NetworkError(f"{where}: low {low} is above high {high}")
                case Activation(name):
                    if name not in _ACTIVATIONS:
                        raise NetworkError(f"{where}: activation {name!r} is not one of {', '.join(_ACTIVATIONS)}")
                case LayerNormalization(scale, bias):
                    _require_shapes(where, [(width,)], scale, bias)
                case Elementwise(_, value):
                    _require_shapes(where, [(), (width,)], value)
                case Function(constants):
                    _require_shapes(where, [(), (width,)], *constants)
        if width != 1:
            raise NetworkError(f"the last step gives {width} values per row; expected one, the score")

    @property
    def dense_widths(self) -> tuple[int, ...]:
        """Widths from the input through every dense layer, (80, 64, 1) for the default head."""
        return (self.n_features, *(step.weight.shape[0] for step in self.steps if isinstance(step, Dense)))

    def canonical(self) -> Network:
        """The same function with one input `features` and one output `score`."""
        return Network(self.n_features, self.steps)

    def forward(self, features: Array) -> Float32:
        """Scores (n,) of features (n, n_features), computed in float32 like the graph: the plain reference."""
        x: Array = np.asarray(features, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise NetworkError(f"features: expected shape (n, {self.n_features}), got {x.shape}")
        with np.errstate(over="ignore", invalid="ignore"):
            for step in self.steps:
                x = apply(step, x)
        return np.ascontiguousarray(x[:, 0], dtype=np.float32)


def apply(step: Step, x: Array) -> Array:
    """The result of a step for rows x (n, width), in their type."""
    match step:
        case Elementwise():
            return _ELEMENTWISE[step.operator](x, step.value)
        case Clip():
            return np.clip(x, x.dtype.type(step.low), x.dtype.type(step.high))
        case Dense():
            values = np.asarray(x @ step.weight.T)
            values += step.bias
            return values
        case LayerNormalization():
            return layer_normalization(x, step)
        case Activation():
            return activate(step, x)
        case Function():
            return evaluate(step, x)


def activate(step: Activation, x: Array) -> Array:
    """An activation's values at x, of x's shape and type."""
    return _ACTIVATIONS[step.name](x, step.slope)


def layer_normalization(x: Array, step: LayerNormalization) -> Array:
    """The layer normalisation of rows (n, width)."""
    centred = x - x.mean(axis=1, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(axis=1, keepdims=True) + x.dtype.type(step.epsilon))
    return np.asarray(centred / deviation * step.scale + step.bias)


def _require_shapes(where: str, shapes: Sequence[tuple[int, ...]], *arrays: Array) -> None:
    for array in arrays:
        if array.shape not in shapes:
            raise NetworkError(f"{where}: a constant has shape {array.shape}; expected {' or '.join(map(str, shapes))}")
    _require_finite(where, *arrays)


def _require_finite(where: str, *arrays: Array) -> None:
    for array in arrays:
        bad = int(array.size - np.isfinite(array).sum())
        if bad:
            raise NetworkError(f"{where}: {bad} of {array.size} values are not finite")
