"""Tensors by name as the steps of a network: which layers they are, in which order, and where the activations lie.

A state-dict names neither its activations nor what joins its layers. Numbers tell where there is room for an activation: in a
Sequential, `0`, `1`, `3` are two layers without one between, and a third after one. Where more than one reading is possible,
the file is refused.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_builder.elementwise import Function, Node
from onnx_builder.network import Array, Dense, Elementwise, Float32, LayerNormalization, NetworkError, Step
from sidecar.models.pytorch.archive import MAX_VALUES
from sidecar.models.pytorch.checkpoint import joins, words_of
from sidecar.models.pytorch.unpickle import BFLOAT16, quote

_EPSILON = 1e-5
"""That of torch's BatchNorm and LayerNorm; a state-dict does not hold it."""
_COUNTERS = {"num_batches_tracked", "n_averaged", "num_updates", "step", "initted"}
_NO_LAYERS = {"embed", "embedding", "embeddings", "lora"}
_MOST_UNNUMBERED, _MOST_LAYERS = 7, 500
_EXPORT = "export the model to ONNX instead"


@dataclass(frozen=True)
class Layer:
    """A layer and the steps that it stands for. key: that of its weight; what: what it is, in torch's words."""

    name: str
    key: str
    what: str
    steps: tuple[Step, ...]

    @property
    def widths(self) -> tuple[int, int]:
        """Of its output and its input, for a Linear."""
        assert isinstance(self.steps[0], Dense)
        n_out, n_in = self.steps[0].weight.shape
        return n_out, n_in


def layers_in(state: Mapping[str, Array]) -> list[Layer]:
    """The layers whose tensors these are, in the order of the dict.

    Raises NetworkError if a tensor belongs to no layer that can be read: the scores would depend on it.
    """
    if sum(array.size for array in state.values() if _is_float(array)) > MAX_VALUES:
        raise NetworkError(f"more than {MAX_VALUES:,} values")
    modules: dict[str, dict[str, tuple[str, Array]]] = {}
    for key, array in state.items():
        plain = re.sub(r"parametrizations\.weight\.original([01])$", lambda match: "weight_" + "gv"[int(match[1])], key)
        name, _, part = plain.rpartition(".")
        if part in _COUNTERS and array.size == 1:
            continue
        if not _is_float(array) and part not in ("weight", "bias"):
            why = "an order, a mask or a range of features would change the scores: " + _EXPORT
            raise NetworkError(f"{quote(key)} holds {array.dtype.name}, which is no part of a layer; {why}")
        modules.setdefault(name, {})[part] = key, array
    if len(modules) > _MOST_LAYERS:
        raise NetworkError(f"{len(modules)} layers; a regressor has at most {_MOST_LAYERS}")
    layers = [_layer(name, parts) for name, parts in modules.items()]
    if not any(layer.what == "Linear" for layer in layers):
        raise NetworkError("no weight of a Linear layer")
    return layers


def _layer(name: str, parts: Mapping[str, tuple[str, Array]]) -> Layer:
    key, first = parts.get("weight") or next(iter(parts.values()))
    if joins(name) or words_of(name) & _NO_LAYERS:
        raise NetworkError(f"{quote(key)}: by its name not a part of a plain chain of layers: {_EXPORT}")
    named = {part: _float32(key, array) for part, (key, array) in parts.items()}
    keys = {part: key for part, (key, _) in parts.items()}
    weight, bias = named.get("weight"), named.get("bias")
    match sorted(named.keys() - {"bias"}):
        case ["weight_g", "weight_v"] if named["weight_v"].ndim == 2:
            g, v = named["weight_g"].astype(np.float64), named["weight_v"].astype(np.float64)
            axes = tuple(axis for axis in range(v.ndim) if g.ndim < 2 or g.shape[axis] == 1)
            norm = np.sqrt((v * v).sum(axis=axes, keepdims=True))
            if g.size != norm.size or not norm.all():
                raise NetworkError(f"{quote(keys['weight_g'])} has shape {g.shape}; expected one value a row of {v.shape}")
            weight = (g.reshape(norm.shape) * v / norm).astype(np.float32)
            key = keys["weight_v"]
        case ["running_mean", "running_var"] | ["running_mean", "running_var", "weight"]:
            mean, variance = named["running_mean"].astype(np.float64), named["running_var"].astype(np.float64)
            one = np.ones_like(mean)
            if {array.shape for array in named.values()} != {mean.shape} or mean.ndim != 1 or (variance < 0).any():
                raise NetworkError(f"{quote(key)}: the tensors of a BatchNorm do not fit together")
            scale = (one if weight is None else weight) / np.sqrt(variance + _EPSILON)
            shift = (0 * one if bias is None else bias) - mean * scale
            steps = (Elementwise("Mul", scale.astype(np.float32)), Elementwise("Add", shift.astype(np.float32)))
            return Layer(name, key, "BatchNorm", steps)
        case ["weight"] if weight is not None and weight.ndim == 1 and bias is None and weight.size == 1:
            return Layer(name, key, "PReLU", (Function((weight.reshape(()),), (Node("PRelu", (0, 1)),)),))
        case ["weight"] if weight is not None and weight.ndim == 1 and bias is not None and bias.shape == weight.shape:
            return Layer(name, key, "LayerNorm", (LayerNormalization(weight, bias, _EPSILON),))
        case ["weight"] if weight is not None and weight.ndim < 2:
            raise NetworkError(f"{quote(key)} of shape {first.shape} may be of a PReLU or of a normalisation: {_EXPORT}")
        case ["weight"] if weight is not None and weight.ndim > 2:
            raise NetworkError(f"{quote(key)} has shape {first.shape}: Conv is not part of an MLP regressor")
        case ["weight"]:
            pass
        case _:
            other = next((part for part in named if part not in ("weight", "bias")), "bias")
            raise NetworkError(
                f"{quote(keys[other])} of shape {named[other].shape} belongs to no Linear, BatchNorm or LayerNorm: {_EXPORT}"
            )
    assert weight is not None
    if bias is None:
        bias = np.zeros(len(weight), dtype=np.float32)
    if bias.shape != weight.shape[:1]:
        raise NetworkError(f"{quote(keys['bias'])} has shape {bias.shape}; expected {weight.shape[:1]}")
    return Layer(name, key, "Linear", (Dense(weight, bias),))


def in_order_of_use(layers: list[Layer], in_order: bool) -> list[Layer]:
    """The layers in the order in which they run.

    That is the order of their numbers if the names differ in nothing else (`net.2` before `net.10`), else, or if only that
    fits, the order of definition. in_order: they are given in that one; safetensors sorts by name, so there the widths decide.
    Raises NetworkError if the widths do not fit together in that order, or fit in several.
    """
    numbered = sorted(layers, key=lambda layer: _numbers(layer.name))
    if len({_unnumbered(layer.name) for layer in layers}) == 1 and (not in_order or not _misfit(numbered) or _misfit(layers)):
        layers = numbered
    elif not in_order:
        layers = _order_by_widths(layers)
    if why := _misfit(layers):
        raise NetworkError(why)
    return layers


def _misfit(layers: Sequence[Layer]) -> str:
    """Why the widths do not fit together in this order; empty if they do."""
    linear = [layer for layer in layers if layer.what == "Linear"]
    for one, following in itertools.pairwise(linear):
        if one.widths[0] != following.widths[1]:
            gives = f"{quote(one.key)} gives {one.widths[0]} values"
            return f"{gives}, but {quote(following.key)}, the next, takes {following.widths[1]}"
    n_out = linear[-1].widths[0]
    return "" if n_out == 1 else f"{quote(linear[-1].key)}, the last, gives {n_out} values per row; expected one, the score"


def _order_by_widths(layers: list[Layer]) -> list[Layer]:
    """The only order in which the widths fit, down to one score; the given one if there is none."""
    if len(layers) > _MOST_UNNUMBERED:
        raise NetworkError(f"safetensors keeps no order, and the names of its {len(layers)} layers do not number them")
    if other := next((layer for layer in layers if layer.what != "Linear"), None):
        raise NetworkError(f"safetensors keeps no order, and {quote(other.key)} fits in several: {_EXPORT}")

    def fits(order: tuple[Layer, ...]) -> bool:
        return not _misfit(order) and not any(
            _unnumbered(a.name) == _unnumbered(b.name) and _numbers(a.name) > _numbers(b.name)
            for a, b in itertools.combinations(order, 2)
        )

    orders = [order for order in itertools.permutations(layers) if fits(order)]
    if len(orders) > 1:
        keys = ", ".join(quote(layer.key) for layer in layers)
        raise NetworkError(f"safetensors keeps no order, and the widths of {keys} fit in {len(orders)}: number them")
    return list(orders[0] if orders else layers)


def chain(layers: Sequence[Layer], activation: Step, modules: Sequence[str] = ()) -> tuple[Step, ...]:
    """The steps of layers in order, with an activation between two Linear layers, where there is room for it.

    modules: names of those without tensors, if they are known. Raises NetworkError if there is room in more than one place.
    """
    places = [place for place, layer in enumerate(layers) if layer.what == "Linear"]
    strange = [layer for layer in layers[: places[0]] if layer.what == "PReLU"] + [*layers[places[-1] + 1 :]]
    if strange:
        raise NetworkError(f"{quote(strange[0].key)}, a {strange[0].what}, is not between two Linear layers: {_EXPORT}")
    own = [[layer for layer in layers[a:b] if layer.what == "PReLU"] for a, b in itertools.pairwise(places)]
    steps: list[Step] = [step for layer in layers[: places[0] + 1] for step in layer.steps]
    for (start, stop), prelus in zip(itertools.pairwise(places), own, strict=True):
        open_gaps = [place for place in range(start, stop) if _has_room(layers, place, modules)]
        between = quote(layers[start].key), quote(layers[stop].key)
        if len(prelus) > 1 or (any(not each for each in own) and any(own)):
            raise NetworkError(f"one PReLU may serve several layers, as it seems between {' and '.join(between)}: {_EXPORT}")
        if stop - start > 1 and not prelus and len(open_gaps) != 1:
            raise NetworkError(
                f"between {' and '.join(between)}, an activation may be before or after {quote(layers[start + 1].key)}; "
                f"{_EXPORT}"
            )
        one_value = layers[start].widths[0] == 1  # the score already; what follows corrects it
        for place in range(start, stop):
            steps += layers[place].steps if place > start else ()
            if place in open_gaps and not prelus and not one_value:
                steps.append(activation)
        steps += layers[stop].steps
    return tuple(steps)


def _has_room(layers: Sequence[Layer], place: int, modules: Sequence[str]) -> bool:
    """Whether something without tensors may run between a layer and the next."""
    one, following = layers[place], layers[place + 1]
    parent = one.name.rpartition(".")[0]
    siblings = [layer for layer in layers if layer.name.rpartition(".")[0] == parent]
    numbers = [layer.name.rpartition(".")[2] for layer in siblings]
    if following not in siblings or not all(number.isdecimal() for number in numbers):
        return True
    steps = {int(b) - int(a) for a, b in itertools.pairwise(numbers)}
    activations = [layer.name for layer in siblings if layer.what == "PReLU"]
    activations += [module for module in modules if module.rpartition(".")[0] == parent]
    if steps == {1} and not activations:  # a ModuleList, whose activations are elsewhere
        return True
    return int(following.name.rpartition(".")[2]) - int(one.name.rpartition(".")[2]) > 1


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.names == BFLOAT16.names


def _float32(key: str, array: Array) -> Float32:
    if not _is_float(array):
        raise NetworkError(f"{quote(key)} holds {array.dtype.name}; a trained layer holds floating-point numbers")
    with np.errstate(all="ignore"):
        if array.dtype.names:
            values = (array["bfloat16"].astype(np.uint32, order="C") << 16).view(np.float32)
        else:
            values = array.astype(np.float32, order="C")
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise NetworkError(f"{quote(key)}: {bad} of {values.size} values are not finite in float32")
    return values


def _unnumbered(key: str) -> str:
    return re.sub("[0-9]+", "#", key)


def _numbers(key: str) -> list[int]:
    return [int(number) for number in re.findall("[0-9]+", key)]
