"""What codec-aware models take of an encode besides its features: which encoder, which preset, which CRF, as numbers.

`fr_regressor_v2` and `_v3` have a second input, whose layout the JSON beside them lists as `codec_block_layout`: a one-hot of
`encoder_vocab`, then `preset_norm` and `crf_norm`, both from 0 to 1. Here these are features like others, with those names. A
pair may give `encoder`, `preset` and `crf` in their place, as far as the JSON says how they become numbers:

    "encoder_vocab": ["libx264", "libx265", "unknown"]
    "preset_norm": 0.5, or {"medium": 0.5, …}, or {"libx264": {"medium": 0.5, …}, …}
    "crf_norm": {"min": 18, "max": 51}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

PRESET, CRF = "preset_norm", "crf_norm"
UNKNOWN = "unknown"


class EncoderBlockError(ValueError):
    """A description of an encoder block, or an encoder, preset or CRF, that cannot be used; the message says why."""


@dataclass(frozen=True)
class EncoderBlock:
    """How an encode becomes numbers. Raises EncoderBlockError if the description is not one.

    names: of the numbers, in the model's order. vocab: the encoders, in the order of their one-hot. preset, crf: as in the JSON
    beside the model; None where it does not say how they become numbers.
    """

    names: tuple[str, ...]
    vocab: tuple[str, ...]
    preset: Any = None
    crf: Any = None

    def __post_init__(self) -> None:
        if missing := [name for name in map(_one_hot, self.vocab) if name not in self.names]:
            raise EncoderBlockError(f"codec_block_layout: {missing[0]} is missing, but encoder_vocab has that encoder")
        if self.crf is not None:
            low, high = (self.crf.get(key, math.nan) if isinstance(self.crf, Mapping) else math.nan for key in ("min", "max"))
            if not _is_number(low) or not _is_number(high) or not low < high:
                raise EncoderBlockError(f'crf_norm: expected {{"min": number, "max": a larger one}}, got {str(self.crf)[:64]}')
        if self.preset is not None and not _is_number(self.preset) and not isinstance(self.preset, Mapping):
            raise EncoderBlockError(f"preset_norm: expected a number, or numbers by preset, got {str(self.preset)[:64]}")

    @classmethod
    def of_description(cls, about: Mapping[str, Any]) -> EncoderBlock | None:
        """The block that the JSON beside a model describes, None if it describes none. Raises EncoderBlockError."""
        vocab, layout = about.get("encoder_vocab"), about.get("codec_block_layout")
        if vocab is None:
            return None
        if not _are_texts(vocab) or not (layout is None or _are_texts(layout)):
            raise EncoderBlockError("encoder_vocab, codec_block_layout: expected lists of names")
        return cls(tuple(layout or [*map(_one_hot, vocab), PRESET, CRF]), tuple(vocab), about.get(PRESET), about.get(CRF))

    def as_json(self) -> dict[str, Any]:
        """As the JSON beside a model has it."""
        about = {"codec_block_layout": [*self.names], "encoder_vocab": [*self.vocab], PRESET: self.preset, CRF: self.crf}
        return {name: value for name, value in about.items() if value is not None}

    def numbers(self, encoder: Any = None, preset: Any = None, crf: Any = None) -> dict[str, float]:
        """The numbers of an encode, by name, as far as it is given and the description says how.

        encoder: the name of one in the vocabulary, or of any if that has `unknown`. preset: text or a number. crf: a number.
        Raises EncoderBlockError, which names the value and what is allowed.
        """
        found: dict[str, float] = {}
        if encoder is not None:
            known = encoder if encoder in self.vocab else UNKNOWN
            if not isinstance(encoder, str) or known not in self.vocab:
                raise EncoderBlockError(f"encoder: expected one of {', '.join(self.vocab)}, got {str(encoder)[:64]!r}")
            found |= {_one_hot(name): float(name == known) for name in self.vocab}
        if PRESET in self.names and (value := self._preset(encoder, preset)) is not None:
            found[PRESET] = value
        if CRF in self.names and crf is not None and self.crf is not None:
            if not _is_number(crf):
                raise EncoderBlockError(f"crf: expected a number, got {str(crf)[:64]!r}")
            found[CRF] = (crf - self.crf["min"]) / (self.crf["max"] - self.crf["min"])
        return found

    def _preset(self, encoder: Any, preset: Any) -> float | None:
        if _is_number(self.preset):
            return float(self.preset) if encoder is not None or preset is not None else None
        if self.preset is None or preset is None:
            return None
        of_encoder = self.preset.get(encoder) if isinstance(encoder, str) else None
        table = of_encoder if isinstance(of_encoder, Mapping) else self.preset
        value = table.get(str(preset))
        if not _is_number(value):
            raise EncoderBlockError(f"preset: expected one of {', '.join(map(str, table))}, got {str(preset)[:64]!r}")
        return float(value)


def _one_hot(encoder: str) -> str:
    return f"encoder_onehot[{encoder}]"


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
