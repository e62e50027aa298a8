"""Whether libvmaf of the VMAF fork (`vmaf --tiny-model`) can use a checkpoint, by the limits of its loader."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_builder.network import Port
from sidecar.features.names import STATISTICS, is_feature
from sidecar.models.base_model import BaseModel, ExportIo
from sidecar.models.inputs import ModelInputs

MOST_FEATURES = MOST_ENCODERS = 32
_UNNAMED = 6
"""So many features without names are taken to be those of vmaf_v0.6.1's fixed-point model, in its order."""


def refused_by_libvmaf(base: BaseModel | None, export_io: ExportIo, inputs: ModelInputs, n_features: int) -> str:
    """In words, why libvmaf's loader refuses checkpoints with these inputs, and its limit; empty if it takes them."""
    ports: Sequence[Port] = (Port("features", ("batch", n_features)),)
    if base is not None:
        ports = base.exported(base.network, export_io).inputs
    why = _why(ports, inputs)
    if why and inputs.block and len(ports) == 1 and base and _is_taken(base, inputs):
        why += "; with export-io base they keep the two inputs that it takes"
    return f"libvmaf of the VMAF fork (vmaf --tiny-model) cannot use these checkpoints: {why}" if why else ""


def _is_taken(base: BaseModel, inputs: ModelInputs) -> bool:
    return base.declared is not None and not _why(base.declared.inputs, inputs)


def _why(ports: Sequence[Port], inputs: ModelInputs) -> str:
    first, *more = ports
    for port in ports:
        if len(port.shape) != 2:
            return f"input {port.name} has {len(port.shape)} dimensions, it takes 2"
        if port.fixed_batch not in (None, 1):
            return f"they take {port.fixed_batch} rows at a time, it gives 1"
    if first.width > MOST_FEATURES:
        return f"they take {first.width} features, it gives {MOST_FEATURES} at most"
    about = inputs.as_json([(port.name, port.width) for port in ports])
    names = about.get("feature_order", [])
    vocab = about.get("encoder_vocab", [])
    if not names and first.width != _UNNAMED:
        return f"their {first.width} features have no names; without, it gives 6"
    if len(names) not in (0, first.width):
        return f"{len(names)} names for an input of {first.width}"
    if unknown := [name for name in names if not is_feature(name) or name.endswith(tuple(f"_{each}" for each in STATISTICS))]:
        return (
            f"it does not measure {', '.join(unknown[:3])}{' …' if len(unknown) > 3 else ''}; it gives what it has of a frame"
        )
    if len(more) > 1 or (more and (not vocab or more[0].width != len(vocab) + 2)):
        return f"of inputs besides {first.name} it knows only one of an encoder_vocab and two numbers"
    if len(vocab) > MOST_ENCODERS:
        return f"their encoder_vocab has {len(vocab)} encoders, it reads {MOST_ENCODERS} at most"
    return ""
