"""A request line: from JSON text to fields of the right types, or to plain words that say why the text is refused.

`msgspec` decodes and checks types in one pass. Numbers are checked later: see `pair.py`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType

from sidecar.pairs.errors import PairError

MAX_LINE_BYTES = 1 << 20
MAX_NAME_CHARACTERS = 256
MAX_DEPTH = 64
"""Levels of nested arrays and objects, including the line's own object."""

Name = Annotated[str, Meta(max_length=MAX_NAME_CHARACTERS)]


class Request(msgspec.Struct, gc=False):
    """The fields of a request line that the sidecar reads.

    Types are checked, except those of what the score is, of the tenant and of the encoder's settings, which only some sidecars
    take; numbers are not.
    """

    features: list[float] | dict[str, float]
    true_score: float
    job_id: Name | UnsetType = UNSET
    group: Name | UnsetType = UNSET
    target: Any = UNSET
    tenant: Any = UNSET
    encoder: Any = UNSET
    preset: Any = UNSET
    crf: Any = UNSET


class _Features(msgspec.Struct):
    features: msgspec.Raw


class _Names(msgspec.Struct):
    job_id: Any = UNSET
    group: Any = UNSET
    tenant: Any = UNSET


_decoder = msgspec.json.Decoder(Request)
_names = msgspec.json.Decoder(_Names)
_features = msgspec.json.Decoder(_Features)


def decode_request(line: bytes, decoder: msgspec.json.Decoder[Any] = _decoder) -> Any:
    """The `Request` of one line of JSON; unknown fields are ignored.

    decoder: its type has the fields of `Request`, and perhaps more. Raises PairError for anything that is not such an
    object: NaN and Infinity, which JSON does not have, booleans and numeric strings, missing fields, other bytes.
    """
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as error:
        raise PairError(_in_plain_words(str(error), line)) from None
    except UnicodeDecodeError as error:
        raise PairError(_not_utf8(error)) from None
    except RecursionError:
        raise PairError(_TOO_DEEP) from None
    except msgspec.DecodeError as error:
        raise PairError(f"not JSON: {_malformed(str(error), line)}") from None


def check_other_fields(line: bytes) -> None:
    """Raises PairError for faults that `decode_request` may ignore in fields that are not part of a `Request`.

    These are bytes that are not UTF-8, and nesting so deep that the decoder might refuse it later: the depth at which it gives
    up depends on the calls around it, and a journalled line is decoded again wherever the journal is read.
    """
    if not line.isascii():
        try:
            line.decode()
        except UnicodeDecodeError as error:
            raise PairError(_not_utf8(error)) from None
    nested = line.find(b"[", line.find(b"[") + 1) >= 0 or line.find(b"{", line.find(b"{") + 1) >= 0  # rare, and quickly checked
    if nested and line.count(b"[") + line.count(b"{") > MAX_DEPTH and _depth(line) > MAX_DEPTH:
        raise PairError(_TOO_DEEP)


def check_named_once(line: bytes, features: dict[str, float]) -> None:
    """Raises PairError if a name stands twice in the object of features, of which the decoder has kept the last number."""
    text = bytes(_features.decode(line).features)
    if text.count(b'"') != 2 * len(features) or b"\\" in text:
        pairs = json.loads(text, object_pairs_hook=list)
        names = Counter(name for name, _ in pairs)
        repeated = [name for name, count in names.items() if count > 1]
        if repeated:
            raise PairError(f"features: {repeated[0][:MAX_NAME_CHARACTERS]!r} is named {names[repeated[0]]} times")


def names_of(line: bytes) -> tuple[str | UnsetType, str | UnsetType]:
    """The job_id and the group of a line that need not be a pair; UNSET for one that is missing or not allowed."""
    try:
        found = _names.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return UNSET, UNSET
    return _name(found.job_id), _name(found.group)


def tenant_of(line: bytes) -> str:
    """The tenant that a journalled line names, empty if it names none."""
    try:
        tenant = _names.decode(line).tenant
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return tenant if isinstance(tenant, str) else ""


def _name(value: object) -> str | UnsetType:
    return value if isinstance(value, str) and len(value) <= MAX_NAME_CHARACTERS else UNSET


_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_LEVELS = np.zeros(256, dtype=np.int8)
_LEVELS[list(b"[{")], _LEVELS[list(b"]}")] = 1, -1


def _depth(line: bytes) -> int:
    """The depth of nesting in a line of JSON."""
    bare = np.frombuffer(_STRING.sub(b"", line), dtype=np.uint8)
    return int(np.cumsum(_LEVELS[bare], dtype=np.int32).max())


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{error.object[error.start]:02x}"


def _in_plain_words(message: str, line: bytes) -> str:
    """msgspec's message with the field in front: "features[3]: expected a number, got str"."""
    text, _, path = message.partition(" - at `$")
    text = text.replace("`", "").replace("Expected float", "expected a number").replace("object | array", "array or object")
    if "[...]" in path:
        path = path.replace("[...]", f"[{_first_without_number(line)!r}]")
    missing = text.removeprefix("Object missing required field ")
    if missing != text:
        return f"{missing}: missing"
    field = path.rstrip("`").removeprefix(".")
    return f"{field}: {_lower_first(text)}" if field else _lower_first(text)


def _first_without_number(line: bytes) -> str:
    """The name in the object of features that has no number."""
    try:
        values = json.loads(bytes(_features.decode(line).features))
    except (ValueError, msgspec.DecodeError, RecursionError):  # the rest of the line was not looked at before
        return "…"
    named = values.items() if isinstance(values, dict) else ()  # the line may have features twice
    bad = (name for name, value in named if isinstance(value, bool) or not isinstance(value, int | float))
    return next(bad, "…")[:MAX_NAME_CHARACTERS]


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
