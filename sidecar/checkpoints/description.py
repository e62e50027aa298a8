"""What a checkpoint says of how it is fed: in the JSON beside it, and of names in the ONNX file too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onnx_builder.network import Network, NetworkError
from onnx_builder.write import OPSET
from sidecar.features.encoder_block import EncoderBlock
from sidecar.models.base_model import BaseModel, ExportIo
from sidecar.models.inputs import LAYOUT, ModelInputs, feature_names, inputs_of
from sidecar.models.json_scaling import scaling_as_json

if TYPE_CHECKING:  # it loads onnxruntime
    from onnx_builder.runtime import Scorer

_IN_MODEL = ("feature_order", LAYOUT)


def inputs_of_checkpoint(base: BaseModel | None, description: Mapping[str, Any], n_features: int) -> ModelInputs:
    """What a checkpoint's inputs are: as its description says, else as the base model's JSON does.

    description: `feature_order` has the names of all features, in order; with `encoder_vocab` and what belongs to it, and
    `target`, each where it is known. Raises NetworkError if the names are not as many as the features, or not the base's in
    their order.
    """
    of_base = base.inputs if base else ModelInputs()
    names = tuple(description.get("feature_order") or of_base.names)
    if len(names) not in (0, n_features):
        raise NetworkError(f"{len(names)} names for {n_features} features: {', '.join(names)[:256]}")
    if base and of_base.names and names != of_base.names:
        takes = f"the base model {base.path} takes {', '.join(of_base.names)}"
        raise NetworkError(f"the features are {', '.join(names)}, but {takes}, in this order")
    block = of_base.block or EncoderBlock.of_description(description)
    return ModelInputs(names, block, description.get("target") or of_base.target, of_base.carried)


def description_of_inputs(
    published: Network, inputs: ModelInputs, base: BaseModel | None, export_io: ExportIo
) -> dict[str, Any]:
    """How a published graph is fed, in the fields that the tools of the VMAF fork read."""
    outside = base.scaling if base and export_io == "base" else ()
    return {
        "kind": "fr",
        "opset": OPSET,
        "onnx_opset": OPSET,
        "input_name": published.inputs[0].name,
        "input_names": [port.name for port in published.inputs],
        "output_name": published.output.name,
        "output_names": [published.output.name],
        "n_features": published.n_features,
        "onnx_has_scaler": not outside,
        **inputs.as_json([(port.name, port.width) for port in published.inputs]),
        **(scaling_as_json(outside) if outside else {}),
    }


def metadata_of(about: Mapping[str, Any]) -> dict[str, str]:
    """What of a checkpoint's JSON is in the ONNX file too: its names, as JSON lists."""
    return {key: json.dumps(about[key]) for key in _IN_MODEL if key in about and "feature_order" in about}


def inputs_of_model(scorer: Scorer, about: Mapping[str, Any]) -> ModelInputs:
    """The inputs of a model, given what the JSON beside it says. Names that its JSON has not, its metadata may have.

    Raises DescriptionError as `inputs_of`.
    """
    held = {} if feature_names(about) else names_in_model(scorer.metadata)
    return inputs_of({**about, **held}, [(each.name, each.width) for each in scorer.inputs])


def names_in_model(metadata: Mapping[str, str]) -> dict[str, list[str]]:
    """The fields of a JSON that are in a model's metadata; those that are not what they should be are left out."""
    found: dict[str, list[str]] = {}
    for key in _IN_MODEL:
        try:
            names = json.loads(metadata.get(key, ""))
        except (ValueError, RecursionError):
            continue
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            found[key] = names
    return found
