"""Base models: what fine-tuning starts from, and the form in which its checkpoints go back to the model's users."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from onnx_builder import read
from onnx_builder.constants import read_bytes
from onnx_builder.network import Array, Elementwise, Network, NetworkError
from sidecar.models.description import DescriptionError, read_description
from sidecar.models.inputs import ModelInputs, inputs_of
from sidecar.models.json_scaling import (
    BaseScaler,
    json_scaling,
    outside_scaling,
    padded,
    scaled,
    stated_scaling,
    unread_scaling,
)
from sidecar.models.kinds import require_a_model
from sidecar.models.pytorch import state_dict

_log = logging.getLogger(__name__)
ExportIo = Literal["canonical", "base"]


@dataclass(frozen=True)
class BaseModel:
    """A base model as it was read.

    network: takes raw features, with one input and one output that have the canonical names. declared: as in the file, with
    its own inputs and output and without the JSON's scaling; None for a state-dict, which declares none. scaling: that of
    the JSON, for the first features; `network` begins with the same steps, extended to all features. left_out: scaling that
    the JSON states, and that neither the graph nor `network` holds. inputs: what the JSON says of the inputs.
    """

    path: Path
    sha256: str
    network: Network
    declared: Network | None
    scaling: tuple[Elementwise, ...] = ()
    left_out: tuple[Elementwise, ...] = ()
    inputs: ModelInputs = field(default_factory=ModelInputs)

    def exported(self, network: Network, export_io: ExportIo) -> Network:
        """A trained `network` of this architecture, in the form in which it is published.

        "canonical": unchanged. "base": with the base model's inputs and output, and without the JSON's scaling.
        """
        if export_io == "canonical" or self.declared is None:
            return network
        return Network(network.n_features, network.steps[len(self.scaling) :], self.declared.inputs, self.declared.output)

    def exported_features(self, features: Array, export_io: ExportIo) -> Array:
        """What a graph in this form takes instead of raw features (n, n_features)."""
        return scaled(features, self.scaling) if export_io == "base" else features

    def as_json(self) -> dict[str, Any]:
        return {"path": str(self.path), "sha256": self.sha256}


def load(
    path: Path,
    *,
    scaler: BaseScaler = "none",
    export_io: ExportIo = "canonical",
    choices: state_dict.Choices = state_dict.Choices(),  # noqa: B008 (immutable)
) -> BaseModel:
    """Read an ONNX model or a PyTorch state-dict (told apart by their content).

    scaler: "json" applies `feature_mean` and `feature_std` from the JSON beside the model. choices: what a state-dict does not
    say. Raises NetworkError naming the file and the reason.
    """
    data = read_bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    require_a_model(path, data)
    if state_dict.is_state_dict(data):
        declared, network = None, _read_state_dict(path, data, choices)
    elif choices.given:
        raise NetworkError(f"{path}: an ONNX model; base-activation, base-output and base-key are for PyTorch files")
    else:
        del data  # a large file need not be in memory twice
        declared = read.read(path)
        network = declared.canonical()
    if export_io == "base":
        _require_own_inputs(path, declared)
    ports = [(port.name, port.width) for port in (declared or network).inputs]
    about = description_of(path)
    try:
        inputs = inputs_of(about, ports)
    except DescriptionError as error:
        raise NetworkError(f"{path.with_suffix('.json')}: {error}") from error
    steps = json_scaling(path, ports[0][1], network) if scaler == "json" else ()
    if steps and export_io == "base":
        _log.warning(
            "%s: export-io base leaves the scaling of its JSON outside of its checkpoints too: whoever feeds them has to apply "
            "the feature_mean and feature_std of their JSON first, as libvmaf of the VMAF fork does",
            path,
        )
    left_out = _left_out(path, about, ports[0][1], network) if scaler == "none" else ()
    begins_scaled = isinstance(next(iter(network.steps), None), Elementwise)
    if not begins_scaled and stated_scaling(about) is None and (unread := unread_scaling(about, ports[0][1])):
        _log.warning(
            "%s: %s may be a scaling, which is not applied; only feature_mean and feature_std, input_mean and input_std, or "
            "normalization with mean and std are read",
            path.with_suffix(".json"),
            unread,
        )
    scaling = tuple(padded(step, network.n_features) for step in steps)
    network = Network(network.n_features, (*scaling, *network.steps))
    return BaseModel(path, digest, network, declared, steps, left_out, inputs)


def description_of(path: Path) -> Mapping[str, Any]:
    """The JSON beside a model, empty if there is none, or none that can be read: a base model may do without."""
    try:
        return read_description(path) or {}
    except DescriptionError as error:
        _log.warning("%s", error)
        return {}


def _left_out(path: Path, about: Mapping[str, Any], width: int, network: Network) -> tuple[Elementwise, ...]:
    try:
        return outside_scaling(path.with_suffix(".json"), about, width, network)
    except NetworkError as error:
        _log.warning("%s", error)
        return ()


def _read_state_dict(path: Path, data: bytes, choices: state_dict.Choices) -> Network:
    try:
        read = state_dict.from_bytes(data, choices)
    except NetworkError as error:
        raise NetworkError(f"{path}: {error}") from error
    _log.info("%s: %s", path, read.read_as)
    return read.network


def _require_own_inputs(path: Path, declared: Network | None) -> None:
    if declared is None:
        raise NetworkError(f"{path}: a state-dict declares no inputs and outputs; export-io base needs an ONNX base model")
    for port in declared.inputs:
        if port.type != "FLOAT":
            raise NetworkError(
                f"{path}: input {port.name!r} is {port.type}; a checkpoint takes float32: use export-io canonical"
            )


def load_or_fresh(path: Path, **settings: Any) -> BaseModel | None:
    """Like `load`, but None with a warning if the file does not exist: training then starts from a new model."""
    if not path.exists() and not path.is_symlink():
        _log.warning("base model %s does not exist; training starts from a new model", path)
        return None
    return load(path, **settings)


def require_features(base: BaseModel, n_features: int, where: str) -> None:
    """Raises NetworkError if pairs have another number of features than the base model takes."""
    if base.network.n_features != n_features:
        takes = f"{base.network.n_features} features"
        if base.declared is not None:
            inputs = base.declared.inputs
            total = f"{base.network.n_features} = " if len(inputs) > 1 else ""
            takes = total + " + ".join(f"{port.width} features ({port.name})" for port in inputs)
        raise NetworkError(f"base model {base.path} takes {takes}, but the pairs in {where} have {n_features}")
