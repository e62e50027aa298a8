"""Conditioning: the units in which a model's weights are trained, whatever units they were made in.

Base models are made for raw features or for scaled ones, with scores in points or behind a sigmoid, with layers of any size.
One learning rate works for all of them if every dense layer sees inputs of mean 0 and the same length, however many they are
(√16: if there are 16 inputs, each has deviation 1), and the last layer gives its score in units of twenty points. So the
network is rewritten as the same function: each dense layer is preceded by a shift and a scale, which are measured on real pairs
and constant from then on; the last layer is followed by the unit of the score; and the weights compensate for both. After
training, these constants are folded back into the weights.

Schraudolph (Centering neural network gradient factors, 1998) and LeCun et al. (Efficient BackProp, 1998) recommend this; here
it is done once. `benchmarks/fine_tuning.py` measures what it is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnx_builder.elementwise import Function
from onnx_builder.network import Activation, Array, Clip, Dense, Elementwise, Float32, Network, Step, apply

SCORE_UNITS = 5.0
"""The range of scores is this many units; one unit is 20 points of 100."""
_SQUARED_LENGTH = 16.0
"""Mean squared length of a layer's inputs; its square root bounds the learning rate that the layer can take."""
_NEARLY_CONSTANT = 1e-3
"""A feature whose deviation is below this share of its size (or of 1) hardly varies; it is scaled by that size instead."""
_LARGEST = 1e30
"""No centre and no deviation is larger, so that weights which make up for them stay finite in float32."""


@dataclass(frozen=True)
class Conditioning:
    """The constants of a network's dense layers, by their place among its steps.

    centre, scale: (n_in,), for each layer's inputs; offset, unit: the last dense layer gives offset + unit · its new output.
    """

    inputs: dict[int, tuple[Float32, Float32]]
    last: int
    offset: float
    unit: float

    def apply(self, network: Network) -> Network:
        """The same function with its dense layers in conditioned units; undone by `remove`.

        network: must have the architecture that was measured; its weights may differ.
        """
        steps: list[Step] = []
        for place, step in enumerate(network.steps):
            if isinstance(step, Dense) and place in self.inputs:
                centre, scale = self.inputs[place]
                offset, unit = (self.offset, self.unit) if place == self.last else (0.0, 1.0)
                weight = step.weight.astype(np.float64)
                bias = (step.bias + weight @ centre - offset) / unit
                steps += [Elementwise("Sub", centre), Elementwise("Div", scale), _dense(weight * scale / unit, bias)]
                if place == self.last:
                    steps += [_number("Mul", unit), _number("Add", offset)]
            else:
                steps.append(step)
        return replace(network, steps=tuple(steps))

    def remove(self, network: Network) -> Network:
        """The same function, in the units that the network was made in."""
        steps: list[Step] = []
        rest = iter(network.steps)
        for step in rest:
            place = len(steps)
            if place in self.inputs:
                next(rest)  # the Div after this Sub
                dense = next(rest)
                assert isinstance(dense, Dense)
                centre, scale = self.inputs[place]
                offset, unit = (self.offset, self.unit) if place == self.last else (0.0, 1.0)
                weight = dense.weight.astype(np.float64) * unit / scale
                steps.append(_dense(weight, dense.bias * unit + offset - weight @ centre))
                if place == self.last:
                    next(rest), next(rest)  # Mul, Add
            else:
                steps.append(step)
        return replace(network, steps=tuple(steps))

    def state(self) -> dict[str, Array]:
        """Its numbers by name; `from_state` makes an equal object from them."""
        arrays = {"places": np.array([*self.inputs]), "output": np.array([self.last, self.offset, self.unit])}
        for place, (centre, scale) in self.inputs.items():
            arrays |= {f"centre.{place}": centre, f"scale.{place}": scale}
        return arrays

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Conditioning:
        """The conditioning that this `state` came from."""
        inputs = {int(place): (state[f"centre.{place}"], state[f"scale.{place}"]) for place in state["places"]}
        last, offset, unit = state["output"].tolist()
        return cls(inputs, int(last), offset, unit)


def condition(network: Network, features: Array, score_min: float, score_max: float) -> Conditioning:
    """The conditioning of a network for pairs like these.

    features: (n, n_features), n ≥ 1, raw; score_min, score_max: the range of scores.
    """
    inputs: dict[int, tuple[Float32, Float32]] = {}
    values: Array = np.asarray(features, dtype=np.float32)
    last = max(place for place, step in enumerate(network.steps) if isinstance(step, Dense))
    first = True
    with np.errstate(over="ignore", invalid="ignore"):
        for place, step in enumerate(network.steps):
            if isinstance(step, Dense):
                inputs[place] = _centre_and_scale(values.astype(np.float64), each=first)
                first = False
            values = apply(step, values)
    span = (score_max - score_min) / SCORE_UNITS
    tail = network.steps[last + 1 :]
    if any(isinstance(step, Activation | Function) for step in tail):
        # The loss is in units of what comes after the activation; a unit u of its input makes steps u² times as large.
        return Conditioning(inputs, last, 0.0, max(1.0, _slope(tail) / span))
    slope = _slope(tail)
    middle = score_min + 0.75 * (score_max - score_min)
    return Conditioning(inputs, last, (middle - _at_zero(tail)) / slope, span / slope)


def _centre_and_scale(values: Array, each: bool) -> tuple[Float32, Float32]:
    """Centre and scale of a layer's inputs (n, n_in). each: every input has its own deviation; else they share one."""
    n_in = values.shape[1]
    centre = np.nan_to_num(values.mean(axis=0), posinf=0.0, neginf=0.0).clip(-_LARGEST, _LARGEST)
    deviation = np.nan_to_num(values.std(axis=0), posinf=1.0).clip(max=_LARGEST)
    if each:
        size = np.maximum(np.abs(centre), 1.0)
        scale = np.where(deviation > _NEARLY_CONSTANT * size, deviation, size)
    else:
        scale = np.full(n_in, np.sqrt(np.mean(deviation**2)) or 1.0)
    return centre.astype(np.float32), (scale * np.sqrt(n_in / _SQUARED_LENGTH)).astype(np.float32)


def _slope(tail: tuple[Step, ...]) -> float:
    """The product of the constants after the last layer; 1 if training through it is not possible."""
    slope = 1.0
    for step in tail:
        if isinstance(step, Elementwise) and step.value.size == 1:
            value = float(step.value.reshape(()))
            slope *= value if step.operator == "Mul" else 1 / value if step.operator == "Div" and value else 1.0
    return slope if np.isfinite(slope) and slope else 1.0


def _at_zero(tail: tuple[Step, ...]) -> float:
    """What the constants after the last layer make of 0, without their clips."""
    value = np.zeros((1, 1))
    for step in tail:
        if not isinstance(step, Clip):
            value = apply(step, value)
    return float(value[0, 0])


def _dense(weight: Array, bias: Array) -> Dense:
    return Dense(np.ascontiguousarray(weight, dtype=np.float32), np.asarray(bias, dtype=np.float32))


def _number(operator: str, value: float) -> Elementwise:
    return Elementwise(operator, np.asarray(value, dtype=np.float32))  # type: ignore[arg-type]
