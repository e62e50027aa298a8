"""What codec-aware models take of an encode besides its features: its encoder, preset and CRF, as numbers.

`fr_regressor_v2` and `_v3` have a second input, whose layout the JSON beside them lists as `codec_block_layout`: a one-hot of
`encoder_vocab`, then `preset_norm` and `crf_norm`. Here these are features like others, with those names. The numbers are those
that libvmaf of the VMAF fork computes for `--tiny-codec`, `--tiny-preset` and `--tiny-crf`, with the same defaults:

    "codec_preset_norm": "ordinal" (default): a preset's place from fast to slow, 0 to 9, divided by 9; where an encoder has no
                         such order, or no preset is given, 5/9. "constant": `codec_preset_value`, whatever the preset
    "codec_crf_norm":    "div63" (default): the CRF divided by 63. "minmax": (CRF − `codec_crf_min`) / (`codec_crf_max` −
                         `codec_crf_min`), also outside of 0 to 1
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

PRESET, CRF = "preset_norm", "crf_norm"
_UNKNOWN = "unknown"
_MOST_ORDINAL, _MOST_CRF, _MEDIUM = 9, 63, 5
_ALIASES = {
    "h264": "libx264", "x264": "libx264", "avc": "libx264", "hevc": "libx265", "x265": "libx265", "h265": "libx265",
    "av1": "libsvtav1", "vp9": "libvpx-vp9", "vvc": "libvvenc", "h266": "libvvenc",
}  # fmt: skip
_X264 = {
    name: place
    for place, name in enumerate(
        ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")
    )
}
_NVENC = {"p1": 0, "p2": 2, "p3": 3, "p4": 5, "p5": 6, "p6": 7, "p7": 9}
_QSV = {name: place for name, place in _X264.items() if 2 <= place <= 8}
_ORDINALS: dict[str, dict[str, int]] = {
    "libx264": _X264,
    "libx265": _X264,
    "libsvtav1": {str(preset): min(preset, _MOST_ORDINAL) for preset in range(14)},
    "libvvenc": {"faster": 1, "fast": 3, "medium": 5, "slow": 7, "slower": 8},
    "libvpx-vp9": {"realtime": 0, "good": 5, "best": 9},
    **dict.fromkeys(("h264_nvenc", "hevc_nvenc", "av1_nvenc"), _NVENC),
    **dict.fromkeys(("h264_qsv", "hevc_qsv", "av1_qsv"), _QSV),
}


class EncoderBlockError(ValueError):
    """A description of an encoder block, or an encoder, preset or CRF, that cannot be used; the message says why."""


@dataclass(frozen=True)
class EncoderBlock:
    """How an encode becomes numbers.

    names: of the numbers, in the model's order. vocab: the encoders, in the order of their one-hot. preset: the number of every
    preset; None for their ordinals. crf: the CRFs that become 0 and 1; None for the CRF divided by 63.
    """

    names: tuple[str, ...]
    vocab: tuple[str, ...]
    preset: float | None = None
    crf: tuple[float, float] | None = None

    @classmethod
    def of_description(cls, about: Mapping[str, Any]) -> EncoderBlock | None:
        """The block that the JSON beside a model describes, None if it describes none, or one with other numbers.

        Raises EncoderBlockError where a field is not what it should be.
        """
        vocab, layout = about.get("encoder_vocab"), about.get("codec_block_layout")
        if vocab is None:
            return None
        if not _are_texts(vocab) or not (layout is None or _are_texts(layout)):
            raise EncoderBlockError("encoder_vocab, codec_block_layout: expected lists of names")
        known = [*map(_one_hot, vocab), PRESET, CRF]
        if layout is not None and not {*known[:-2]} <= {*layout} <= {*known}:
            return None
        return cls(tuple(layout or known), tuple(vocab), _preset_of(about), _crf_of(about))

    def as_json(self) -> dict[str, Any]:
        """As the JSON beside a model has it."""
        about: dict[str, Any] = {"encoder_vocab": [*self.vocab], "codec_block_layout": [*self.names]}
        if self.preset is None:
            about |= {"codec_preset_norm": "ordinal"}
        else:
            about |= {"codec_preset_norm": "constant", "codec_preset_value": self.preset}
        if self.crf is None:
            return about | {"codec_crf_norm": "div63"}
        return about | {"codec_crf_norm": "minmax", "codec_crf_min": self.crf[0], "codec_crf_max": self.crf[1]}

    def preset_ordinals(self) -> dict[str, dict[str, int]]:
        """Of the encoders in the vocabulary that have an order of presets, the place of each, 0 to 9."""
        return {encoder: dict(_ORDINALS[encoder]) for encoder in self.vocab if encoder in _ORDINALS}

    def numbers(self, encoder: Any = None, preset: Any = None, crf: Any = None) -> dict[str, float]:
        """The numbers of what is given of an encode, by name; None is not given.

        encoder: the name of one in the vocabulary, or of any if that has `unknown`. preset: text, or a number. crf: a number.
        Raises EncoderBlockError, which names the field, the value and what is allowed.
        """
        found: dict[str, float] = {}
        name = encoder
        if encoder is not None:
            name = encoder.strip().lower() if isinstance(encoder, str) else ""
            name = _ALIASES.get(name, name)
            place = name if name in self.vocab else _UNKNOWN
            if not name or place not in self.vocab:
                raise EncoderBlockError(f"encoder: expected one of {', '.join(self.vocab)}, got {str(encoder)[:64]!r}")
            found |= {_one_hot(each): float(each == place) for each in self.vocab}
        if PRESET in self.names and (encoder is not None or preset is not None):
            found[PRESET] = self._preset(name, preset)
        if CRF in self.names and crf is not None:
            found[CRF] = self._crf(crf)
        return found

    def _preset(self, encoder: str | None, preset: Any) -> float:
        if self.preset is not None:
            return self.preset
        ordinals = _ORDINALS.get(encoder or "", {})
        key = str(int(preset) if isinstance(preset, float) and preset.is_integer() else preset).strip().lower()
        if preset is None or not ordinals or key == "":
            return _MEDIUM / _MOST_ORDINAL
        if key not in ordinals:
            raise EncoderBlockError(f"preset: expected one of {', '.join(ordinals)} for {encoder}, got {str(preset)[:64]!r}")
        return ordinals[key] / _MOST_ORDINAL

    def _crf(self, crf: Any) -> float:
        low, high = self.crf or (0.0, float(_MOST_CRF))
        allowed = "a number" if self.crf else f"a number from 0 to {_MOST_CRF}"
        if not _is_number(crf) or not (self.crf or low <= crf <= high):
            raise EncoderBlockError(f"crf: expected {allowed}, got {str(crf)[:64]!r}")
        return (float(crf) - low) / (high - low)


def _preset_of(about: Mapping[str, Any]) -> float | None:
    kind, value = about.get("codec_preset_norm", "ordinal"), about.get("codec_preset_value")
    if kind == "constant":
        if not _is_number(value):
            raise EncoderBlockError(f"codec_preset_value: expected a number, got {str(value)[:64]}")
        return float(value)
    if kind != "ordinal":
        raise EncoderBlockError(f"codec_preset_norm: expected ordinal or constant, got {str(kind)[:64]!r}")
    return None


def _crf_of(about: Mapping[str, Any]) -> tuple[float, float] | None:
    kind = about.get("codec_crf_norm", "div63")
    if kind == "minmax":
        low, high = about.get("codec_crf_min"), about.get("codec_crf_max")
        if not _is_number(low) or not _is_number(high) or not low < high:
            raise EncoderBlockError(
                f"codec_crf_min, codec_crf_max: expected two numbers, the second larger, got {str([low, high])[:64]}"
            )
        return float(low), float(high)
    if kind != "div63":
        raise EncoderBlockError(f"codec_crf_norm: expected div63 or minmax, got {str(kind)[:64]!r}")
    return None


def _one_hot(encoder: str) -> str:
    return f"encoder_onehot[{encoder}]"


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
