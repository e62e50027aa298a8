"""Scaling from the JSON beside a model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

import numpy as np

from onnx_builder.constants import read_bytes
from onnx_builder.network import Array, Elementwise, Float32, NetworkError, apply

BaseScaler = Literal["none", "json"]


def json_scaling(model: Path, width: int) -> tuple[Elementwise, ...]:
    """`feature_mean` and `feature_std` from the JSON beside a model, as Sub and Div, for the first of `width` features.

    Raises NetworkError if they are missing, are not finite numbers, differ in length, or are more than `width`.
    """
    path = model.with_suffix(".json")
    try:
        about = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, NetworkError) else NetworkError(f"{path}: not JSON: {error}") from error
    arrays = []
    for key in ("feature_mean", "feature_std"):
        numbers = about.get(key) if isinstance(about, dict) else None
        if not isinstance(numbers, list) or not numbers or not all(_is_number(value) for value in numbers):
            raise NetworkError(f"{path}: {key}: expected a list of finite numbers")
        arrays.append(np.array(numbers, dtype=np.float32))
    mean, std = arrays
    if len(mean) != len(std) or len(mean) > width:
        raise NetworkError(f"{path}: {len(mean)} values in feature_mean and {len(std)} in feature_std, for {width} features")
    if not (std > 0).all() or not (np.isfinite(mean) & np.isfinite(std)).all():
        raise NetworkError(f"{path}: feature_std: expected numbers above 0 in float32, got {std.min():g}")
    return Elementwise("Sub", mean), Elementwise("Div", std)


def scaling_as_json(scaling: tuple[Elementwise, ...]) -> dict[str, list[float]]:
    """What a checkpoint's JSON says about scaling that is not in its graph."""
    mean, std = scaling
    return {"feature_mean": mean.value.tolist(), "feature_std": std.value.tolist()}


def scaled(features: Array, scaling: tuple[Elementwise, ...]) -> Float32:
    """Features (n, n_features), the leading ones of them scaled."""
    values = np.array(features, dtype=np.float32)
    for step in scaling:
        values[:, : step.value.size] = apply(step, values[:, : step.value.size])
    return values


def padded(step: Elementwise, width: int) -> Elementwise:
    neutral = 1.0 if step.operator == "Div" else 0.0
    return Elementwise(step.operator, np.append(step.value, np.full(width - step.value.size, neutral, dtype=np.float32)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e38 and math.isfinite(value)
