"""Looking at models: how well one scores, what it is, and whether it is what it claims to be."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_builder import torch_state
from onnx_builder.constants import parse, read_bytes
from onnx_builder.network import Activation, Array, Clip, Dense, Elementwise, Float32, LayerNormalization, Network, NetworkError
from onnx_builder.parity import parity
from onnx_builder.read import from_bytes
from onnx_builder.runtime import Scorer
from onnx_builder.write import IR_VERSION, OPERATORS, OPSET
from sidecar.base_model import BaseScaler, json_scaling, scaled
from sidecar.checkpoints import CheckpointError, checkpoints, read_description, read_digest
from sidecar.judged import rows_by_group
from sidecar.publishing import PARITY_TOLERANCE
from sidecar.recorded import RecordedPairs, read_pairs
from sidecar.scores import Metrics, metrics

_PARITY_ROWS = 1024


@dataclass(frozen=True)
class Evaluation:
    """How a model scores recorded pairs.

    groups: by name, where they were asked for; predicted: (n,); predict: what did, of raw features (n, n_features).
    """

    metrics: Metrics
    groups: dict[str, Metrics]
    pairs: RecordedPairs
    predicted: Float32
    predict: Callable[[Array], Float32]


def evaluate(
    model: Path,
    paths: Sequence[str | Path],
    *,
    base_scaler: BaseScaler = "none",
    score_min: float = 0.0,
    score_max: float = 100.0,
    skip_bad: bool = False,
    group_by: str | None = None,
    for_report: bool = False,
) -> Evaluation:
    """Score recorded pairs with an ONNX model under onnxruntime, and compare with the true scores.

    base_scaler: "json" first applies `feature_mean` and `feature_std` of the JSON beside the model. group_by: a field to group
    the pairs by. for_report: keep job_ids. Raises NetworkError where the model does not run or takes another number of
    features, RecordedPairsError for pairs that cannot be read.
    """
    read_bytes(model)
    scorer = Scorer(model)
    scaling = json_scaling(model, scorer.n_features) if base_scaler == "json" else ()
    pairs = read_pairs(paths, score_min=score_min, score_max=score_max, group_by=group_by, skip_bad=skip_bad, names=for_report)
    n_features = pairs.features.shape[1]
    if scorer.n_features != n_features:
        raise NetworkError(f"{model} takes {scorer.n_features} features; {', '.join(map(str, paths))} have {n_features}")

    def predict(features: Array) -> Float32:
        return scorer.predict(scaled(features, scaling) if scaling else features)

    scores = predict(pairs.features)
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise NetworkError(f"{model}: {bad} of {len(scores)} scores are not finite")
    groups = {
        name: metrics(scores[rows], pairs.true_score[rows])
        for name, rows in zip(pairs.group_names, rows_by_group(pairs.group), strict=True)
    }
    return Evaluation(metrics(scores, pairs.true_score), groups, pairs, scores, predict)


def inspect(model: Path) -> dict[str, Any]:
    """What a model file is: digest, opset, inputs and outputs, operators, architecture, and the JSON beside it.

    Of a PyTorch state-dict: its layers by their keys. Raises NetworkError for a file that is neither, and for a state-dict
    that is no regressor; an ONNX model that is none says why in `not_trainable`.
    """
    data = read_bytes(model)
    about: dict[str, Any] = {"path": str(model), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if torch_state.is_state_dict(data):
        about["format"] = "PyTorch state-dict (its activations are taken to be ReLU)"
        try:
            about["layers"] = [*torch_state.dense_layers(data)]
            network = torch_state.from_bytes(data)
        except NetworkError as error:
            raise NetworkError(f"{model}: {error}") from error
        return {**about, **_shape_of(network)}
    proto = _parse(model, data)
    about |= {
        "format": "ONNX",
        "ir_version": proto.ir_version,
        "opset": _opset(proto),
        "inputs": [_tensor(value) for value in proto.graph.input],
        "outputs": [_tensor(value) for value in proto.graph.output],
        "operators": [node.op_type for node in proto.graph.node],
    }
    try:
        about |= _shape_of(from_bytes(data, model.parent))
    except NetworkError as error:
        about["not_trainable"] = str(error)
    description = read_description(model.resolve())
    if description is not None:
        about["description"] = description
    return about


def _shape_of(network: Network) -> dict[str, Any]:
    trained = [step for step in network.steps if isinstance(step, Dense | LayerNormalization)]
    sizes = (s.weight.size + s.bias.size if isinstance(s, Dense) else s.scale.size + s.bias.size for s in trained)
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
            case LayerNormalization():
                words.append("layer normalisation")
            case Elementwise():
                words.append(step.operator)
            case Clip():
                words.append(f"Clip {step.low:g}…{step.high:g}")
    return " → ".join(words)


@dataclass(frozen=True)
class Verification:
    """The checks of one model file: each with what is wrong, empty where it passed."""

    model: Path
    checks: dict[str, str]

    @property
    def ok(self) -> bool:
        return not any(self.checks.values())


def verify(paths: Sequence[Path]) -> list[Verification]:
    """Check models, each checkpoint of the directories among `paths`: digest, JSON, graph, operators, parity.

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
    checks = {
        "digest": _attempt(lambda: _check_digest(target, data)),
        "description": _attempt(lambda: _check_description(target, data)),
        "graph": _attempt(lambda: _check_graph(model, data)),
        "operators": _attempt(lambda: _check_operators(_parse(model, data))),
        "parity": _attempt(lambda: _check_parity(data)),
    }
    return Verification(model, checks)


def _attempt(check: Any) -> str:
    try:
        return str(check() or "")
    except (NetworkError, CheckpointError) as error:
        return str(error)


def _check_digest(model: Path, data: bytes) -> str:
    stated, actual = read_digest(model), hashlib.sha256(data).hexdigest()
    if stated is None:
        return f"no {model.name}.sha256 beside the model"
    return "" if stated == actual else f"the file's SHA-256 is {actual}, {model.name}.sha256 says {stated[:64]}"


def _check_description(model: Path, data: bytes) -> str:
    about = read_description(model)
    if about is None:
        return f"no {model.with_suffix('.json').name} beside the model"
    stated, actual = about.get("sha256"), hashlib.sha256(data).hexdigest()
    return "" if stated == actual else f"the file's SHA-256 is {actual}, its JSON says {stated}"


def _check_graph(model: Path, data: bytes) -> str:
    proto = _parse(model, data)
    if (proto.ir_version, _opset(proto)) != (IR_VERSION, OPSET):
        return f"IR version {proto.ir_version} and opset {_opset(proto)}; a checkpoint has {IR_VERSION} and {OPSET}"
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return f"onnx.checker: {str(error).strip().splitlines()[0]}"
    return ""


def _check_operators(proto: onnx.ModelProto) -> str:
    others = sorted({node.op_type for node in proto.graph.node} - OPERATORS)
    return f"{', '.join(others)}: not among a checkpoint's operators" if others else ""


def _check_parity(data: bytes) -> str:
    network = from_bytes(data)
    features = probe_features(network, _PARITY_ROWS)
    expected = network.forward(features)
    difference, allowed = parity(Scorer(data).predict(features), expected), PARITY_TOLERANCE * max(1.0, float(np.ptp(expected)))
    return "" if difference <= allowed else f"onnxruntime and numpy differ by {difference:g}; allowed {allowed:g}"


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


def _parse(model: Path, data: bytes) -> onnx.ModelProto:
    try:
        return parse(data)
    except NetworkError as error:
        raise NetworkError(f"{model}: {error}") from error


def _opset(proto: onnx.ModelProto) -> int:
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    dims = value.type.tensor_type.shape.dim
    shape = [dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else None) for dim in dims]
    return {"name": value.name, "type": onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type), "shape": shape}
