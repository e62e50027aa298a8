"""What the JSON beside a model says of its inputs: which features it takes, in which order, and what its scores are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sidecar.features.encoder_block import EncoderBlock, EncoderBlockError
from sidecar.features.names import canonical, repeated
from sidecar.models.description import DescriptionError

NAME_FIELDS = ("feature_order", "features", "feature_names")
"""Where tools of this field write the names of a model's features; the first that is there counts."""
LAYOUT = "codec_block_layout"
"""The names of what a codec-aware model takes of an encode, besides the features."""
_ABOUT_INPUTS = ("encoder_", "codec_", "preset_", "crf_", "cq_", "feature_", "input_")
_OURS = {
    *NAME_FIELDS, "feature_mean", "feature_std", "input_mean", "input_std", "input_name", "input_names", "input_shape",
    "codec_preset_ordinals",
}  # fmt: skip
_NOTHING: Mapping[str, Any] = MappingProxyType({})
Ports = Sequence[tuple[str, int]]
"""A graph's inputs: name and width of each."""


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

    def as_json(self, ports: Ports) -> dict[str, Any]:
        """As the JSON beside a model with these inputs has it, in the fields that the tools of the VMAF fork read.

        `feature_order` and `features` name what the one input takes, or what the input beside that of the encode takes.
        """
        about: dict[str, Any] = {}
        if self.names:
            layout = self.block.names if self.block else tuple(self.carried.get(LAYOUT, ()))
            measured = [*_beside(self.names, layout, ports)]
            about |= {"feature_order": measured, "features": measured}
        if self.block:
            about |= self.block.as_json()
            if self.block.preset is None:
                about["codec_preset_ordinals"] = self.block.preset_ordinals()
        about |= self.carried
        return about | ({"target": self.target} if self.target else {})


def inputs_of(about: Mapping[str, Any], ports: Ports) -> ModelInputs:
    """The inputs of a model, given the JSON beside it and its graph's inputs.

    Raises DescriptionError if the names are not as many as the graph takes, or one is there twice, in whatever spelling.
    """
    try:
        block = EncoderBlock.of_description(about)
    except EncoderBlockError as error:
        raise DescriptionError(str(error)) from error
    target = about.get("target")
    carried = {key: value for key, value in about.items() if key.startswith(_ABOUT_INPUTS) and key not in _OURS}
    width = sum(each for _, each in ports)
    names = feature_names(about)
    layout = block.names if block else _texts(about.get(LAYOUT))
    if names and layout and len(names) + len(layout) == width:
        names = (*layout, *names) if _is_first(layout, ports, about) else (*names, *layout)
    if names and len(names) != width:
        more = f" and {len(layout)} of the encoder" if layout else ""
        raise DescriptionError(f"the JSON names {len(names)} features{more}; the graph takes {width}")
    if twice := repeated(names):
        raise DescriptionError(f"the JSON names {twice} more than once")
    if block and not {*block.names} <= {*names}:
        block = None  # the graph does not take it
    return ModelInputs(names, block, target if isinstance(target, str) else "", MappingProxyType(carried))


def feature_names(about: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a model's features, without those of an encoder block; empty if the JSON has none."""
    return next((tuple(map(canonical, found)) for key in NAME_FIELDS if (found := _texts(about.get(key)))), ())


def _is_first(layout: tuple[str, ...], ports: Ports, about: Mapping[str, Any]) -> bool:
    """Whether the input that takes the encode comes before the other; `input_names` lists them in the other order."""
    if len(ports) != 2 or ports[0][1] != len(layout):
        return False
    listed = about.get("input_names")
    return ports[1][1] != len(layout) or (isinstance(listed, list) and [name for name, _ in ports] == listed[::-1] != listed)


def _beside(names: tuple[str, ...], layout: tuple[str, ...], ports: Ports) -> tuple[str, ...]:
    """The names without those that an input of its own takes."""
    place = 0
    for _, width in ports if layout else ():
        if len(ports) > 1 and names[place : place + width] == layout:
            return names[:place] + names[place + width :]
        place += width
    return names


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, list) and all(isinstance(each, str) for each in value) else ()
