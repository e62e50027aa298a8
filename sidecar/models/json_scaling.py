"""Scaling from the JSON beside a model."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from onnx_builder.constants import read_bytes
from onnx_builder.network import Array, Elementwise, Float32, Network, NetworkError, apply

_log = logging.getLogger(__name__)
BaseScaler = Literal["none", "json"]
_FORMS = (("feature_mean", "feature_std"), ("input_mean", "input_std"))
_STATISTICS = {"mean", "means", "std", "stds", "stddev", "var", "variance", "scale", "offset", "min", "max"}
_OF_SCORE = {"target", "output", "label", "y"}
_MOST_LISTED = 20
_SAME = 1e-3
"""Numbers of a JSON and of a graph are the same where they differ by less than this share of a deviation."""


class Stated(NamedTuple):
    """The scaling that a JSON states: the names of its two fields, and what is in them."""

    names: tuple[str, str]
    values: tuple[Any, Any]


def stated_scaling(about: Mapping[str, Any]) -> Stated | None:
    """The scaling that the JSON beside a model states, as tools of this field write it; None if it states none."""
    for mean, std in _FORMS:
        if about.get(mean) is not None or about.get(std) is not None:
            return Stated((mean, std), (about.get(mean), about.get(std)))
    nested = about.get("normalization")
    if isinstance(nested, dict) and nested.keys() & {"mean", "std"}:
        return Stated(("normalization.mean", "normalization.std"), (nested.get("mean"), nested.get("std")))
    return None


def unread_scaling(about: Mapping[str, Any], width: int) -> str:
    """The fields of a JSON that look like a scaling, of so many features or of the score, in another form than those that are
    read, in words; empty if there are none."""
    fields = {**about}
    for key, inner in about.items():
        fields |= {f"{key}.{name}": value for name, value in inner.items()} if isinstance(inner, dict) else {}
    found = []
    for key, value in fields.items():
        words = {*re.split("[^a-z]+", key.lower())}
        numbers = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
        of_score = isinstance(value, int | float) and words & _OF_SCORE
        if words & _STATISTICS and all(map(_is_number, numbers)) and (of_score or len(numbers) == width > 1):
            found.append(key)
    return ", ".join(key[:64] for key in found[:_MOST_LISTED])


def json_scaling(model: Path, width: int, graph: Network | None = None) -> tuple[Elementwise, ...]:
    """The scaling that the JSON beside a model states, as Sub and Div, for the first of `width` features.

    Empty where the graph itself begins with it. graph: as it was read; by default it is read here. Raises NetworkError if the
    JSON states none, or if its numbers are not finite, differ in count, or are more than `width`.
    """
    path = model.with_suffix(".json")
    try:
        about = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, NetworkError) else NetworkError(f"{path}: not JSON: {error}") from error
    keys = [*about] if isinstance(about, dict) else []
    if not isinstance(about, dict) or stated_scaling(about) is None:
        found = f"it has {', '.join(key[:64] for key in keys[:_MOST_LISTED])}" if keys else "it has no fields"
        raise NetworkError(f"{path}: no feature_mean and feature_std, input_mean and input_std, or normalization; {found}")
    steps = outside_scaling(path, about, width, graph or _read(model))
    if not steps:
        _log.info("%s: its graph holds the scaling of its JSON, which is not applied a second time", model)
    return steps


def outside_scaling(path: Path, about: Mapping[str, Any], width: int, graph: Network | None) -> tuple[Elementwise, ...]:
    """The scaling that a JSON (at `path`) states and a graph does not hold, as Sub and Div; empty where there is none.

    Raises NetworkError if its numbers are not finite, differ in count, or are more than `width`.
    """
    stated = stated_scaling(about)
    if stated is None or about.get("onnx_has_scaler") is True:
        return ()
    steps = steps_of(path, stated, width)
    return () if graph is not None and begins_with(graph, steps) else steps


def steps_of(path: Path, stated: Stated, width: int) -> tuple[Elementwise, ...]:
    """A scaling that a JSON (at `path`) states, as Sub and Div for the first of `width` features.

    Raises NetworkError if its numbers are not finite, differ in count, or are more than `width`.
    """
    arrays = []
    for key, numbers in zip(stated.names, stated.values, strict=True):
        if not isinstance(numbers, list) or not numbers or not all(_is_number(value) for value in numbers):
            raise NetworkError(f"{path}: {key}: expected a list of finite numbers, got {str(numbers)[:64]}")
        arrays.append(np.array(numbers, dtype=np.float32))
    mean, std = arrays
    if len(mean) != len(std) or len(mean) > width:
        first, second = stated.names
        raise NetworkError(f"{path}: {len(mean)} values in {first} and {len(std)} in {second}, for {width} features")
    if len(mean) < width:
        _log.info("%s: %s scales the first %d of %d features", path, stated.names[0], len(mean), width)
    if not (std > 0).all() or not (np.isfinite(mean) & np.isfinite(std)).all():
        raise NetworkError(f"{path}: {stated.names[1]}: expected numbers above 0 in float32, got {std.min():g}")
    return Elementwise("Sub", mean), Elementwise("Div", std)


def begins_with(graph: Network, scaling: tuple[Elementwise, ...]) -> bool:
    """Whether a graph begins with constants that do the same to its first features as a Sub and a Div."""
    mean, std = (step.value.astype(np.float64) for step in scaling)
    rows = np.array([np.zeros(graph.n_features), np.ones(graph.n_features)], dtype=np.float64)
    for step in graph.steps:
        if not isinstance(step, Elementwise):
            break
        rows = np.asarray(apply(step, rows), dtype=np.float64)
    low, high = rows[:, : len(mean)]
    return bool(
        np.all(np.abs(low + mean / std) < _SAME * (1 + np.abs(mean / std))) and np.allclose(high - low, 1 / std, _SAME, 0)
    )


def scaling_as_json(scaling: tuple[Elementwise, ...]) -> dict[str, Any]:
    """What a checkpoint's JSON says about scaling that is not in its graph, in the fields that tools of this field read."""
    mean, std = ([float(str(number)) for number in step.value] for step in scaling)  # 0.9, not 0.8999999761581421
    return {"feature_mean": mean, "feature_std": std, "normalization": {"mean": mean, "std": std}}


def scaled(features: Array, scaling: tuple[Elementwise, ...]) -> Float32:
    """Features (n, n_features), the leading ones of them scaled."""
    values = np.array(features, dtype=np.float32)
    for step in scaling:
        values[:, : step.value.size] = apply(step, values[:, : step.value.size])
    return values


def padded(step: Elementwise, width: int) -> Elementwise:
    neutral = 1.0 if step.operator == "Div" else 0.0
    return Elementwise(step.operator, np.append(step.value, np.full(width - step.value.size, neutral, dtype=np.float32)))


def _read(model: Path) -> Network | None:
    """A graph, None where it is none that can be trained: then nothing is known of how it begins."""
    from onnx_builder import read  # onnx takes longer to load than a command to say its help

    try:
        return read.read(model)
    except NetworkError:
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e38 and math.isfinite(value)
