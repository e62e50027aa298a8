"""What the first pairs tell of a base model: whether it was read rightly, and whether it is fed rightly."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx

from onnx_builder.constants import read_bytes
from onnx_builder.network import Array, NetworkError
from sidecar.models.base_model import BaseModel, description_of
from sidecar.models.json_scaling import scaled, stated_scaling

JUDGED_PAIRS = 256
_TOLERANCE = 1e-4
"""The largest difference from onnxruntime, as a share of the score range, or of the scores where these are beyond it."""
_FAR_WORSE, _FEWEST = 2.0, 30
_HALF = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}


def evidence(base: BaseModel, features: Array, scores: Array, score_range: float) -> list[str]:
    """What is to be said of a base model before it is trained on, as `compared` and `judged` say it; nothing if all is well."""
    said = compared(base, features[:JUDGED_PAIRS], score_range), judged(base, features[:JUDGED_PAIRS], scores[:JUDGED_PAIRS])
    return [*filter(None, said)]


def compared(base: BaseModel, features: Array, score_range: float) -> str:
    """In words, how far a graph in half precision is off, or why one cannot be compared; empty if all is well.

    features: (n, n_features), raw, n ≥ 1. Raises NetworkError if onnxruntime computes other scores than the network that was
    read, unless the graph is in half precision.
    """
    if base.declared is None:  # a state-dict: nothing but this program computes it
        return ""
    if hashlib.sha256(read_bytes(base.path)).hexdigest() != base.sha256:
        return f"{base.path} has changed since it was read: it is not compared with onnxruntime"
    from onnx_builder.runtime import Scorer  # imported here: loading onnxruntime takes longer than starting a sidecar

    outside = base.exported_features(features, "base")
    try:
        scores = Scorer(base.path, base.declared.inputs).predict(outside)
    except NetworkError as error:
        return f"{error}: it could not be compared with what was read"
    read = base.declared.forward(outside)
    with np.errstate(invalid="ignore"):
        differences = np.where(scores == read, 0, np.abs(scores.astype(np.float64) - read))
    difference = float(differences[~(np.isnan(scores) & np.isnan(read))].max(initial=0.0))
    what = f"by up to {difference:.3g} score points on the first {len(read)} pairs"
    if _in_half_precision(base.path):
        return f"{base.path} computes in half precision; trained in float32, it differs {what}"
    allowed = _TOLERANCE * max(score_range, float(np.abs(read[np.isfinite(read)]).max(initial=0.0)))
    if not difference <= allowed:
        raise NetworkError(
            f"{base.path}: what was read differs from what onnxruntime computes {what}; {allowed:.3g} is allowed. This is a "
            "mistake of this program: please report it with the model"
        )
    return ""


def _in_half_precision(path: Path) -> bool:
    graph = onnx.load(path, load_external_data=False).graph
    return any(tensor.data_type in _HALF for tensor in graph.initializer) or any(
        attribute.i in _HALF if attribute.name == "to" else attribute.t.data_type in _HALF
        for node in graph.node
        if node.op_type in ("Cast", "Constant")
        for attribute in node.attribute
    )


def _rmse(base: BaseModel, features: Array, scores: Array) -> float:
    return float(np.sqrt(np.mean(np.square(base.network.forward(features) - scores, dtype=np.float64))))


def judged(base: BaseModel, features: Array, scores: Array) -> str:
    """In words, that a base model seems to be fed wrongly; empty if it does not.

    features: (n, n_features), raw, n ≥ 1; scores: (n,). A scaling that is left out is told with the error both ways; else a
    model that scores the pairs far worse than their own mean does.
    """
    return _scaling_left_out(base, features, scores) if base.left_out else _far_off(base, features, scores)


def _scaling_left_out(base: BaseModel, features: Array, scores: Array) -> str:
    stated = stated_scaling(description_of(base.path))
    names = " and ".join(stated.names) if stated else "a scaling"
    without, applied = _rmse(base, features, scores), _rmse(base, scaled(features, base.left_out), scores)
    advice = "set base-scaler json" if applied < without else "they seem to be scaled already"
    return (
        f"{base.path.with_suffix('.json')} has {names}, which its graph does not hold and base-scaler none does not apply: on "
        f"the first {len(scores)} pairs the RMSE of the base model is {without:.3f} as they come and {applied:.3f} with that "
        f"scaling; {advice}"
    )


def _far_off(base: BaseModel, features: Array, scores: Array) -> str:
    rmse, deviation = _rmse(base, features, scores), float(np.std(scores, dtype=np.float64))
    if rmse <= _FAR_WORSE * deviation or len(scores) < _FEWEST:
        return ""
    causes = "a scaling that is applied outside of it, features in another order, or scores of another range"
    if base.declared is None:
        causes += ", or that it is no plain chain of layers: see --base-activation and --base-output of train-offline"
    return (
        f"base model {base.path} is far off: on the first {len(scores)} pairs its RMSE is {rmse:.3f}, and that of their mean "
        f"{deviation:.3f}. Likely causes: {causes}"
    )
