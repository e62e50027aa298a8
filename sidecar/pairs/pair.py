"""A pair: a feature vector and the true score. From the bytes of one JSON line to checked float32 numbers.

`msgspec` decodes and checks types in one pass; `struct` turns the numbers into float32 and refuses what does not fit.
"""

from __future__ import annotations

import re
import struct
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType

from onnx_builder.network import Float32
from sidecar.pairs.holdout import holdout_position

MAX_LINE_BYTES = 1 << 20
MAX_NAME_CHARACTERS = 256
MAX_DEPTH = 64
"""Levels of arrays and objects in one another, the line's own included."""

Name = Annotated[str, Meta(max_length=MAX_NAME_CHARACTERS)]


class PairError(ValueError):
    """A pair that is refused; the message names the field, the value and what is allowed."""


class Pair(msgspec.Struct, gc=False):
    """A decoded request line: types are checked, numbers are not yet."""

    features: list[float]
    true_score: float
    job_id: Name | UnsetType = UNSET
    group: Name | UnsetType = UNSET


_decoder = msgspec.json.Decoder(Pair)


def decode_pair(line: bytes, decoder: msgspec.json.Decoder[Any] = _decoder) -> Any:
    """The `Pair` of one JSON line; unknown fields are passed over.

    decoder: one whose type has the fields of `Pair`, and perhaps more. Raises PairError for anything that is not such
    an object: NaN and Infinity, which JSON does not have, booleans and numeric strings, missing fields, other bytes.
    """
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as error:
        raise PairError(_in_plain_words(str(error))) from None
    except UnicodeDecodeError as error:
        raise PairError(_not_utf8(error)) from None
    except RecursionError:
        raise PairError(_TOO_DEEP) from None
    except msgspec.DecodeError as error:
        raise PairError(f"not JSON: {_malformed(str(error), line)}") from None


def check_other_fields(line: bytes) -> None:
    """Raises PairError for what `decode_pair` may pass over in fields that are not a `Pair`'s.

    These are bytes that are not UTF-8, and nesting so deep that the decoder may refuse it elsewhere: where it gives up depends
    on the depth of the calls around it, and what was journalled has to be decoded again wherever the journal is read.
    """
    if not line.isascii():
        try:
            line.decode()
        except UnicodeDecodeError as error:
            raise PairError(_not_utf8(error)) from None
    nested = line.find(b"[", line.find(b"[") + 1) >= 0 or line.find(b"{", line.find(b"{") + 1) >= 0  # seldom, and soon told
    if nested and line.count(b"[") + line.count(b"{") > MAX_DEPTH and _depth(line) > MAX_DEPTH:
        raise PairError(_TOO_DEEP)


class Packer:
    """Checks the numbers of pairs and writes them as float32.

    n_features: what every pair must have; score_min, score_max: the accepted range of `true_score`.
    """

    def __init__(self, n_features: int, score_min: float = 0.0, score_max: float = 100.0) -> None:
        self.n_features = n_features
        self.score_min, self.score_max = score_min, score_max
        self._pack = struct.Struct(f"={n_features}f").pack

    def pack(self, pair: Pair) -> bytes:
        """The features of a pair as float32, native bytes.

        Raises PairError for a wrong number of features, one too large for float32, or a score out of range.
        """
        features = pair.features
        if len(features) != self.n_features:
            raise PairError(f"features: expected {self.n_features} numbers, got {len(features)}")
        check_score(pair.true_score, self.score_min, self.score_max)
        try:
            return self._pack(*features)
        except OverflowError:
            index, value = next((i, v) for i, v in enumerate(features) if not _fits(v))
            raise PairError(f"features[{index}]: {value:g} does not fit float32") from None


class PairRows:
    """Packed pairs, with their scores and where they stand for the hold-out: what a learner takes."""

    def __init__(self, n_features: int) -> None:
        self._n_features = n_features
        self.clear()

    def __len__(self) -> int:
        return len(self.scores)

    def add(self, pair: Pair, packed: bytes) -> None:
        """Take a pair. packed: its float32 features."""
        self._packed.append(packed)
        self.scores.append(pair.true_score)
        self.positions.append(holdout_position(pair.group, pair.job_id, packed))

    def arrays(self) -> tuple[Float32, Float32]:
        """Features (n, n_features) and scores (n,)."""
        features = np.frombuffer(b"".join(self._packed), np.float32).reshape(len(self), self._n_features)
        return features, np.array(self.scores, dtype=np.float32)

    def part(self, start: int, stop: int) -> PairRows:
        """Some of them."""
        rows = PairRows(self._n_features)
        rows._packed, rows.scores, rows.positions = (
            self._packed[start:stop], self.scores[start:stop], self.positions[start:stop]
        )  # fmt: skip
        return rows

    def extend(self, rows: PairRows) -> None:
        """Append those of another."""
        self._packed += rows._packed
        self.scores += rows.scores
        self.positions += rows.positions

    def clear(self) -> None:
        """Begin anew."""
        self._packed: list[bytes] = []
        self.scores: list[float] = []
        self.positions: list[float] = []


def check_score(score: float, low: float, high: float) -> None:
    """Raises PairError for a score that is not a number in [low, high]."""
    if not low <= score <= high:
        raise PairError(f"true_score: {score:g} is outside {low:g} to {high:g}")


_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_LEVELS = np.zeros(256, dtype=np.int8)
_LEVELS[list(b"[{")], _LEVELS[list(b"]}")] = 1, -1


def _depth(line: bytes) -> int:
    """Of a line of JSON."""
    bare = np.frombuffer(_STRING.sub(b"", line), dtype=np.uint8)
    return int(np.cumsum(_LEVELS[bare], dtype=np.int32).max())


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{error.object[error.start]:02x}"


def _fits(value: float) -> bool:
    try:
        struct.pack("=f", value)
    except OverflowError:
        return False
    return True


def _in_plain_words(message: str) -> str:
    """msgspec's message with the field in front: "features[3]: expected a number, got str"."""
    text, _, path = message.partition(" - at `$")
    text = text.replace("`", "").replace("Expected float", "expected a number")
    missing = text.removeprefix("Object missing required field ")
    if missing != text:
        return f"{missing}: missing"
    field = path.rstrip("`").removeprefix(".")
    return f"{field}: {_lower_first(text)}" if field else _lower_first(text)


def _malformed(message: str, line: bytes) -> str:
    """msgspec's message with the text that it stopped at: "invalid character at byte 13: 'NaN, 1]'"."""
    found = re.fullmatch(r"JSON is malformed: (.*) \(byte (\d+)\)", message)
    if not found:
        return _lower_first(message)
    at = int(found[2])
    rest = line[at : at + 12].decode(errors="replace")
    return f"{found[1]} at byte {at}" + (f": {rest!r}" if rest else "")


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


class RecordedPairsError(ValueError):
    """Recorded pairs that cannot be read; the message names the file, the line and the reason."""
