"""Verification: whether a model is what it claims to be."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_builder.constants import parse, read_bytes
from onnx_builder.network import Elementwise, Network, NetworkError, first_line
from onnx_builder.parity import parity
from onnx_builder.read import from_bytes
from onnx_builder.runtime import Scorer
from onnx_builder.write import IR_VERSION, OPERATORS, OPSET
from sidecar.checkpoints.description import names_in_model
from sidecar.checkpoints.directory import CheckpointError, checkpoints, read_digest
from sidecar.checkpoints.publishing import PARITY_TOLERANCE
from sidecar.learning.intervals import IntervalError, intervals_of
from sidecar.models.description import DescriptionError, read_description
from sidecar.models.inputs import inputs_of
from sidecar.models.json_scaling import begins_with, stated_scaling, steps_of

_PARITY_ROWS = 1024


@dataclass(frozen=True)
class Verification:
    """The checks of one model file: what is wrong, by check; empty if the check passed."""

    model: Path
    checks: dict[str, str]

    @property
    def ok(self) -> bool:
        return not any(self.checks.values())


def verify(paths: Sequence[Path]) -> list[Verification]:
    """Check models, and all checkpoints in directories: digest, JSON, inputs, graph, operators, parity.

    Raises CheckpointError for a path that does not exist, or a directory without checkpoints.
    """
    models: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = [checkpoint.model for checkpoint in checkpoints(path)]
            if not found:
                raise CheckpointError(f"{path}: no checkpoint (model_vNNNNNN.onnx) in this directory")
            models += found
        else:
            models.append(path)
    return [_verify(model) for model in models]


def _verify(model: Path) -> Verification:
    data = read_bytes(model)
    target = model.resolve()
    unreadable, about = "", None
    try:
        about = read_description(target)
    except DescriptionError as error:
        unreadable = str(error)
    checks = dict(checks_of(target, data, read_digest(target), about))
    return Verification(model, {**checks, **({"description": unreadable} if unreadable else {})})


def checks_of(
    model: Path, data: bytes, digest: str | None, about: Mapping[str, Any] | None, parity_rows: int = _PARITY_ROWS
) -> Iterator[tuple[str, str]]:
    """The checks of a model's bytes, one after the other: the name of each, and what is wrong, empty if nothing is.

    model: its path, for messages. digest: what the file with its digest says, about: its JSON; None where there is none.
    parity_rows: on how many random rows numpy and onnxruntime are compared. onnxruntime comes last: it sees nothing that
    `onnx_builder.read` does not take.
    """
    yield "digest", _check_digest(model, data, digest)
    yield "description", _check_description(model, data, about)
    yield "inputs", _attempt(lambda: _check_inputs(model, parse_model(model, data), about) if about is not None else "")
    yield "graph", _attempt(lambda: _check_graph(model, data))
    yield "operators", _attempt(lambda: _check_operators(parse_model(model, data)))
    yield "parity", _attempt(lambda: _check_parity(data, parity_rows))


def _attempt(check: Callable[[], str]) -> str:
    try:
        return check()
    except (NetworkError, DescriptionError) as error:
        return str(error)


def _check_digest(model: Path, data: bytes, stated: str | None) -> str:
    actual = hashlib.sha256(data).hexdigest()
    if stated is None:
        return f"no {model.name}.sha256 beside the model"
    return "" if stated == actual else f"the file's SHA-256 is {actual}, but {model.name}.sha256 says {stated[:64]}"


def _check_description(model: Path, data: bytes, about: Mapping[str, Any] | None) -> str:
    if about is None:
        return f"no {model.with_suffix('.json').name} beside the model"
    actual = hashlib.sha256(data).hexdigest()
    stated = about.get("sha256", actual)  # a tool that has rewritten the JSON may have left it out
    if stated != actual:
        return f"the file's SHA-256 is {actual}, but its JSON says {str(stated)[:64]}"
    try:
        intervals_of(about)
    except IntervalError as error:
        return str(error)
    return ""


def _check_inputs(model: Path, proto: onnx.ModelProto, about: Mapping[str, Any]) -> str:
    """What the JSON says of inputs and output, as far as it does, against the graph."""
    network = from_bytes(proto.SerializeToString())
    ports = [(port.name, port.width) for port in network.inputs]
    inputs, outputs = [name for name, _ in ports], [network.output.name]
    expected: dict[str, list[Any]] = {
        "opset": [opset_of(proto)],
        "onnx_opset": [opset_of(proto)],
        "n_features": [network.n_features],
        "input_names": [inputs],
        "input_name": inputs,
        "output_names": [outputs],
        "output_name": outputs,
    }
    for key, allowed in expected.items():
        if key in about and about[key] not in allowed:
            return f"its JSON says {key} {str(about[key])[:200]}, the graph {' or '.join(map(str, allowed))}"
    stated = inputs_of(about, ports).names
    held = inputs_of(names_in_model({prop.key: prop.value for prop in proto.metadata_props}), ports).names
    if stated and held and stated != held:
        return f"its JSON names the features {', '.join(stated)}, the model {', '.join(held)}"
    return _check_scaling(model, about, network)


def _check_scaling(model: Path, about: Mapping[str, Any], network: Network) -> str:
    """Whether scaling is said to be outside of the graph where it is, and nowhere else."""
    says, stated = about.get("onnx_has_scaler"), stated_scaling(about)
    if says is False and stated is None:
        return "its JSON says that the graph does not hold the scaling, but not which scaling"
    if stated is None:
        return ""
    steps = steps_of(model.with_suffix(".json"), stated, network.inputs[0].width)
    if begins_with(network, steps) != (says is True):
        held, said = ("holds", "does not") if says is not True else ("does not hold", "does")
        return f"the graph {held} the scaling {' and '.join(stated.names)} of its JSON, which says that it {said}"
    return ""


def _check_graph(model: Path, data: bytes) -> str:
    proto = parse_model(model, data)
    if (proto.ir_version, opset_of(proto)) != (IR_VERSION, OPSET):
        return f"IR version {proto.ir_version} and opset {opset_of(proto)}; a checkpoint has {IR_VERSION} and {OPSET}"
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return f"onnx.checker: {first_line(error)}"
    return ""


def _check_operators(proto: onnx.ModelProto) -> str:
    others = sorted({node.op_type for node in proto.graph.node} - OPERATORS)
    return f"{', '.join(others)}: not allowed in a checkpoint" if others else ""


def _check_parity(data: bytes, rows: int) -> str:
    network = from_bytes(data)
    features = probe_features(network, rows)
    expected = network.forward(features)
    difference, allowed = parity(Scorer(data).predict(features), expected), PARITY_TOLERANCE * max(1.0, float(np.ptp(expected)))
    return "" if difference <= allowed else f"onnxruntime and numpy differ by {difference:g}; at most {allowed:g} is allowed"


def probe_features(network: Network, count: int) -> np.ndarray:
    """Random features (count, n_features), of the scale that the network's own input scaling expects."""
    features = np.random.default_rng(0).normal(size=(count, network.n_features))
    leading = []
    for step in network.steps:
        if not isinstance(step, Elementwise):
            break
        leading.append(step)
    with np.errstate(divide="ignore", invalid="ignore"):
        for step in reversed(leading):
            match step.operator:
                case "Sub":
                    features = features + step.value
                case "Add":
                    features = features - step.value
                case "Mul":
                    features = features / step.value
                case "Div":
                    features = features * step.value
    return np.nan_to_num(features, posinf=0.0, neginf=0.0).astype(np.float32)


def parse_model(model: Path, data: bytes) -> onnx.ModelProto:
    try:
        return parse(data)
    except NetworkError as error:
        raise NetworkError(f"{model}: {error}") from error


def opset_of(proto: onnx.ModelProto) -> int:
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
