"""What the JSON beside a model says of its inputs: which features it takes, in which order, and what its scores are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sidecar.features.encoder_block import EncoderBlock, EncoderBlockError
from sidecar.features.names import canonical
from sidecar.models.description import DescriptionError

NAME_FIELDS = ("feature_order", "features", "feature_names")
"""Where tools of this field write the names of a model's features; the first that is there counts."""
_ABOUT_INPUTS = ("encoder_", "codec_", "preset_", "crf_", "feature_", "input_")
_OURS = {
    *NAME_FIELDS, "feature_mean", "feature_std", "input_mean", "input_std", "input_name", "input_names", "input_shape",
}  # fmt: skip
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class ModelInputs:
    """names: of all features, in the order of the model's inputs, empty if they are not known.

    block: which of them may be given as an encoder, preset and CRF. target: what the scores are, empty if that is not known.
    carried: fields that describe the inputs, for its checkpoints.
    """

    names: tuple[str, ...] = ()
    block: EncoderBlock | None = None
    target: str = ""
    carried: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)


def inputs_of(about: Mapping[str, Any], ports: Sequence[tuple[str, int]]) -> ModelInputs:
    """The inputs of a model, given the JSON beside it and its graph's inputs (name, width).

    Raises DescriptionError if the names are not as many as the graph takes.
    """
    try:
        block = EncoderBlock.of_description(about)
    except EncoderBlockError as error:
        raise DescriptionError(str(error)) from error
    target = about.get("target")
    carried = {key: value for key, value in about.items() if key.startswith(_ABOUT_INPUTS) and key not in _OURS}
    width = sum(each for _, each in ports)
    names = feature_names(about)
    if names and block and len(names) + len(block.names) == width:
        names = _in_order_of_inputs(names, block, ports, about)
    if names and len(names) != width:
        more = f" and {len(block.names)} of the encoder" if block else ""
        raise DescriptionError(f"the JSON names {len(names)} features{more}; the graph takes {width}")
    if block and not {*block.names} <= {*names}:
        block = None  # the graph does not take it
    return ModelInputs(names, block, target if isinstance(target, str) else "", MappingProxyType(carried))


def feature_names(about: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a model's features, without those of an encoder block; empty if the JSON has none."""
    for key in NAME_FIELDS:
        found = about.get(key)
        if isinstance(found, list) and found and all(isinstance(name, str) for name in found):
            return tuple(map(canonical, found))
    return ()


def _in_order_of_inputs(
    names: tuple[str, ...], block: EncoderBlock, ports: Sequence[tuple[str, int]], about: Mapping[str, Any]
) -> tuple[str, ...]:
    """Features and block as the graph's inputs take them; `input_names` lists them in this order."""
    listed = about.get("input_names")
    if len(ports) == 2 and (isinstance(listed, list) and [name for name, _ in ports] == listed[::-1] != listed):
        return (*block.names, *names)
    return (*names, *block.names)
