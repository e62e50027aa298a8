"""The description of a model file that `inspect` prints."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import onnx

from onnx_builder.constants import read_bytes
from onnx_builder.elementwise import Function
from onnx_builder.network import Activation, Clip, Dense, Elementwise, LayerNormalization, Network, NetworkError
from onnx_builder.read import from_bytes
from sidecar.checkpoints.description import names_in_model
from sidecar.checkpoints.rollbacks import read_rollbacks
from sidecar.checkpoints.verify import opset_of, parse_model
from sidecar.learning.passes import is_trained, parameters_of
from sidecar.models.description import read_description
from sidecar.models.kinds import require_a_model
from sidecar.models.pytorch import state_dict


def inspect(model: Path) -> dict[str, Any]:
    """Describe a model file: digest, opset, inputs and outputs, operators, architecture, names, the JSON beside it, and
    why it was taken back, if it was.

    For a PyTorch state-dict, its layers by their keys. Raises NetworkError for a file that is neither, and for a state-dict
    that is not a regressor. For an ONNX model that is not a regressor, `not_trainable` says why.
    """
    data = read_bytes(model)
    about: dict[str, Any] = {"path": str(model), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    require_a_model(model, data)
    if state_dict.is_state_dict(data):
        try:
            read = state_dict.from_bytes(data)
        except NetworkError as error:
            raise NetworkError(f"{model}: {error}") from error
        about |= {"format": f"PyTorch state-dict ({read.read_as})", "layers": [*read.keys]}
        return {**about, **_shape_of(read.network)}
    proto = parse_model(model, data)
    about |= {
        "format": "ONNX",
        "ir_version": proto.ir_version,
        "opset": opset_of(proto),
        "inputs": [_tensor(value) for value in proto.graph.input],
        "outputs": [_tensor(value) for value in proto.graph.output],
        "operators": [node.op_type for node in proto.graph.node],
    }
    about |= names_in_model({prop.key: prop.value for prop in proto.metadata_props})
    try:
        about |= _shape_of(from_bytes(data, model))
    except NetworkError as error:
        about["not_trainable"] = str(error)
    resolved = model.resolve()
    with contextlib.suppress(OSError):
        if resolved.stem in (rolled_back := read_rollbacks(resolved.parent).rolled_back):
            about["rolled_back"] = rolled_back[resolved.stem]
    description = read_description(resolved)
    if description is not None:
        about["description"] = description
    return about


def _shape_of(network: Network) -> dict[str, Any]:
    sizes = (parameters_of(step).size for step in network.steps if is_trained(step))
    return {"architecture": architecture(network), "parameters": sum(sizes)}


def architecture(network: Network) -> str:
    """One line, such as "80 features → Sub → Mul → dense 64 → relu → dense 1 → Mul → Add → Clip"."""
    words = [f"{network.n_features} features"]
    for step in network.steps:
        match step:
            case Dense():
                words.append(f"dense {len(step.weight)}")
            case Activation():
                words.append(step.name)
            case Function():
                words.append(" ".join(node.operator for node in step.nodes))
            case LayerNormalization():
                words.append("layer normalisation")
            case Elementwise():
                words.append(step.operator)
            case Clip():
                words.append(f"Clip {step.low:g}…{step.high:g}")
    return " → ".join(words)


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    dims = value.type.tensor_type.shape.dim
    shape = [dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else None) for dim in dims]
    return {"name": value.name, "type": onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type), "shape": shape}
