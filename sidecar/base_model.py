"""Base models: where fine-tuning starts from, and the form in which its checkpoints go back to the model's users."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnx_builder import read, torch_state
from onnx_builder.constants import read_bytes
from onnx_builder.network import ActivationName, Array, Elementwise, Float32, Network, NetworkError, apply
from sidecar.checkpoints import read_description

_log = logging.getLogger(__name__)
BaseScaler = Literal["none", "json"]
ExportIo = Literal["canonical", "base"]


@dataclass(frozen=True)
class BaseModel:
    """A base model as it was read.

    network: takes raw features, with one input and one output of the canonical names. declared: as the file has it, with
    its own inputs and output and without the JSON's scaling; None for a state-dict, which declares none. scaling: that of
    the JSON, for the first features; `network` begins with as many steps, for all features.
    """

    path: Path
    sha256: str
    network: Network
    declared: Network | None
    scaling: tuple[Elementwise, ...] = ()

    def exported(self, network: Network, export_io: ExportIo) -> Network:
        """A trained `network` of this architecture as it is published.

        "canonical": as it is. "base": with the base's inputs and output, the JSON's scaling left outside.
        """
        if export_io == "canonical" or self.declared is None:
            return network
        return Network(network.n_features, network.steps[len(self.scaling) :], self.declared.inputs, self.declared.output)

    def exported_features(self, features: Array, export_io: ExportIo) -> Array:
        """What a graph published so takes in place of raw features (n, n_features)."""
        return scaled(features, self.scaling) if export_io == "base" else features

    def as_json(self) -> dict[str, Any]:
        return {"path": str(self.path), "sha256": self.sha256}


def load(
    path: Path, *, scaler: BaseScaler = "none", export_io: ExportIo = "canonical", activation: ActivationName = "relu"
) -> BaseModel:
    """Read an ONNX model or a PyTorch state-dict (told apart by their content).

    scaler: "json" applies `feature_mean` and `feature_std` of the JSON beside the model. activation: of a state-dict, which
    does not say. Raises NetworkError naming the file and the reason.
    """
    data = read_bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    if torch_state.is_state_dict(data):
        declared, network = None, _read_state_dict(path, data, activation)
    else:
        del data  # a large file need not be in memory twice
        declared = read.read(path)
        network = declared.canonical()
    if export_io == "base":
        _require_own_inputs(path, declared)
    steps = json_scaling(path, network.n_features if declared is None else declared.inputs[0].width) if scaler == "json" else ()
    padded = tuple(_padded(step, network.n_features) for step in steps)
    network = Network(network.n_features, (*padded, *network.steps))
    return BaseModel(path, digest, network, declared, steps)


def _read_state_dict(path: Path, data: bytes, activation: ActivationName) -> Network:
    try:
        network = torch_state.from_bytes(data, activation)
    except NetworkError as error:
        raise NetworkError(f"{path}: {error}") from error
    _log.info("%s: a state-dict does not say its activation; %s it is", path, activation)
    return network


def _require_own_inputs(path: Path, declared: Network | None) -> None:
    if declared is None:
        raise NetworkError(f"{path}: a state-dict declares no inputs and outputs; export-io base needs an ONNX base model")
    for port in declared.inputs:
        if port.type != "FLOAT":
            raise NetworkError(
                f"{path}: input {port.name!r} is {port.type}; a checkpoint takes float32: use export-io canonical"
            )


def load_or_fresh(path: Path, **settings: Any) -> BaseModel | None:
    """As `load`, but None with a warning where nothing is at the path: training then starts from a fresh head."""
    if not path.exists() and not path.is_symlink():
        _log.warning("base model %s does not exist; starting from a fresh head", path)
        return None
    return load(path, **settings)


def require_features(base: BaseModel, n_features: int, where: str) -> None:
    """Raises NetworkError where pairs have another number of features than the base model takes."""
    if base.network.n_features != n_features:
        takes = f"{base.network.n_features} features"
        if base.declared is not None:
            inputs = base.declared.inputs
            total = f"{base.network.n_features} = " if len(inputs) > 1 else ""
            takes = total + " + ".join(f"{port.width} features ({port.name})" for port in inputs)
        raise NetworkError(f"base model {base.path} takes {takes}; the pairs of {where} have {n_features}")


def json_scaling(model: Path, width: int) -> tuple[Elementwise, ...]:
    """`feature_mean` and `feature_std` of the JSON beside a model: Sub and Div, for the first of at most `width` features.

    Raises NetworkError where they are missing or are not finite numbers, as many of each.
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
        raise NetworkError(f"{path}: {len(mean)} feature_mean and {len(std)} feature_std for an input of {width} features")
    if not (std > 0).all() or not (np.isfinite(mean) & np.isfinite(std)).all():
        raise NetworkError(f"{path}: feature_std: expected numbers above 0 in float32, got {std.min():g}")
    return Elementwise("Sub", mean), Elementwise("Div", std)


def scaling_as_json(scaling: tuple[Elementwise, ...]) -> dict[str, list[float]]:
    """What a checkpoint's JSON says of scaling that its graph leaves outside."""
    mean, std = scaling
    return {"feature_mean": mean.value.tolist(), "feature_std": std.value.tolist()}


def published_scaling(checkpoint: Path) -> tuple[Elementwise, ...]:
    """The scaling that a checkpoint's graph leaves outside, from its JSON; none where it leaves none."""
    about = read_description(checkpoint) or {}
    return json_scaling(checkpoint, int(about.get("n_features", 0))) if "feature_mean" in about else ()


def scaled(features: Array, scaling: tuple[Elementwise, ...]) -> Float32:
    """Features (n, n_features) with the leading ones of them scaled."""
    values = np.array(features, dtype=np.float32)
    for step in scaling:
        values[:, : step.value.size] = apply(step, values[:, : step.value.size])
    return values


def _padded(step: Elementwise, width: int) -> Elementwise:
    neutral = 1.0 if step.operator == "Div" else 0.0
    return Elementwise(step.operator, np.append(step.value, np.full(width - step.value.size, neutral, dtype=np.float32)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e38 and math.isfinite(value)
