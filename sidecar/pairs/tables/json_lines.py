"""JSON lines: the request lines of the socket, and any flat objects. `features` may be an array or an object."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter, itemgetter
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET

from sidecar.features.names import NamesError, repeated
from sidecar.journal.run import Run
from sidecar.pairs.errors import PairError, RecordedPairsError
from sidecar.pairs.lines import Lines
from sidecar.pairs.named_features import NamedFeatures
from sidecar.pairs.request import MAX_LINE_BYTES, Request, decode_request
from sidecar.pairs.tables.table import Block, Labels, Table, Wanted, number

_BLOCK_ROWS = 2048
_SAMPLE_LINES, _SAMPLE_BYTES = 256, 4 << 20
_anything: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
Line = tuple[str, int, bytes]
Packed = list[bytes]
Texts = list[Sequence[Any]]
Take = Callable[[Iterator[bytes], Packed, Texts], None]
"""Appends each line's packed numbers, features and score, and its texts; raises an error at a line that has not all numbers."""


def json_lines(name: str, lines: Lines, some: Lines | None = None) -> Table:
    """The table of JSON lines. Its columns are those of the first lines. some: those to read, if not all.

    Raises RecordedPairsError if none of these is a JSON object.
    """
    first = _first(lines)
    rows = [row for row in (_decoded(line) for _, _, line in first) if isinstance(row, dict)]
    if first and not rows:
        raise RecordedPairsError(f"{first[0][0]}: line {first[0][1]}: {_why(first[0][2])}")
    columns: dict[str, None] = {}
    inner: dict[str, None] = {}
    width: int | None = None
    for row in rows:
        features = row.get("features")
        columns.update(dict.fromkeys(key for key in row if key != "features"))
        if isinstance(features, list) and not inner:  # the first row says which of the two they are
            width = width or len(features)
        elif isinstance(features, dict) and width is None:
            inner.update(dict.fromkeys(features))
    lines = itertools.chain(first, lines) if some is None else some
    if width is not None:
        return Table(
            name, "line", tuple(columns), lambda wanted: _arrays(lines, wanted, width), width, requests=True, lines=lines
        )
    if first and (twice := _named_twice(first[0][2])):
        raise RecordedPairsError(f"{first[0][0]}: line {first[0][1]}: named more than once: {twice}")
    beside = tuple(column for column in columns if column not in inner)
    return Table(
        name,
        "line",
        (*inner, *beside),
        lambda wanted: _objects(name, lines, wanted, {*inner}),
        requests=bool(inner),
        lines=lines,
    )


def journal_table(name: str, lines: Callable[[Callable[[bytes], object]], Lines]) -> Table:
    """The table of a state directory's journal; each line is read in the order of its own run record.

    lines: gives the journal's, and tells the function that it is given of run records.
    """
    runs: list[Run] = []

    def on_run(line: bytes) -> None:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # whoever trains on another format's says so
            runs.append(Run.from_json(json.loads(line)))

    found = lines(on_run)
    first = [*itertools.islice(found, 1)]
    found = itertools.chain(first, found)
    names = runs[-1].order if runs else ()
    if not names:
        return json_lines(name, found)
    beside = ("true_score", "job_id", "group", "target", "encoder", "preset", "crf")
    return Table(
        name, "line", (*names, *beside), lambda wanted: _recorded(found, wanted, runs), features=names,
        target=runs[-1].target, requests=True, lines=found,
    )  # fmt: skip


def _first(lines: Lines) -> list[Line]:
    found, size = [], 0
    for line in lines:
        if not line[2] or line[2].isspace():
            continue
        found.append(line)
        size += len(line[2])
        if len(found) >= _SAMPLE_LINES or size > _SAMPLE_BYTES:
            break
    return found


def _decoded(line: bytes) -> Any:
    try:
        return _anything.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            found = json.loads(line)
            json.dumps(found, ensure_ascii=False).encode()  # one half of a surrogate pair is no text
            return found
        except (ValueError, RecursionError):
            return None


def _named_twice(line: bytes) -> str:
    """The names that a line has more than once, itself or in its features; "" if there are none. The last value would count."""
    try:
        found = json.loads(line, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return ""

    def pairs_of(value: Any) -> list[tuple[str, Any]]:
        return [pair for pair in value if isinstance(pair, tuple)] if isinstance(value, list) else []

    objects = [pairs_of(found), *(pairs_of(value) for key, value in pairs_of(found) if key == "features")]
    return next(filter(None, (repeated([key for key, _ in pairs]) for pairs in objects)), "")


def _struct(fields: dict[str, tuple[str, Any, Any]]) -> msgspec.json.Decoder[Any]:
    """A decoder of objects with these fields: attribute → (key, type, default)."""
    kind = msgspec.defstruct(
        "Row",
        [(name, kind) if default is ... else (name, kind, default) for name, (_, kind, default) in fields.items()],
        rename={name: key for name, (key, _, _) in fields.items()},
        gc=False,
        kw_only=True,
    )
    return msgspec.json.Decoder(kind)


def _beside(wanted: Wanted) -> dict[str, tuple[str, Any, Any]]:
    texts = {f"t{place}": (key, Any, UNSET) for place, key in enumerate(wanted.texts) if key != wanted.target}
    return {"target": (wanted.target, float, ...), **texts}


def _texts_of(wanted: Wanted) -> Callable[[Any], Sequence[Any]]:
    return _attributes(["target" if key == wanted.target else f"t{place}" for place, key in enumerate(wanted.texts)])


def _attributes(names: Sequence[str]) -> Callable[[Any], Sequence[Any]]:
    if len(names) > 1:
        return attrgetter(*names)
    return lambda row: [getattr(row, name) for name in names]


def _arrays(lines: Lines, wanted: Wanted, width: int) -> Iterator[Block]:
    """Rows whose features are an array of this many numbers."""
    decode = _struct({"features": ("features", list[float], ...), **_beside(wanted)}).decode
    pack = struct.Struct(f"{width + 1}d").pack

    texts_of = _texts_of(wanted)

    def take(bodies: Iterator[bytes], packed: Packed, texts: Texts) -> None:
        add, add_texts = packed.append, texts.append
        for row in map(decode, bodies):
            add(pack(*row.features, row.target))
            add_texts(texts_of(row))

    def slow(row: dict[str, Any]) -> list[float]:
        features = row.get("features")
        if features is None:
            return [math.nan] * width
        if not isinstance(features, list):
            raise PairError(f"features: expected array, got {type(features).__name__}")
        if len(features) != width:
            raise PairError(f"features: expected {width} numbers, got {len(features)}")
        return [number(f"features[{place}]", value) for place, value in enumerate(features)]

    return _blocks(lines, wanted, width, take, slow)


def _objects(name: str, lines: Lines, wanted: Wanted, inner: set[str]) -> Iterator[Block]:
    """Rows whose features have names. inner: those that are in the object `features`; others are beside it."""
    places = {key: f"f{place}" for place, key in enumerate(wanted.features)}
    nested = {places[key]: (key, float, ...) for key in wanted.features if key in inner}
    flat = {places[key]: (key, float, ...) for key in wanted.features if key not in inner}
    try:
        fields = flat | _beside(wanted) | ({"features": ("features", _struct(nested).type, ...)} if nested else {})
        decode = _struct(fields).decode
    except ValueError as error:
        raise RecordedPairsError(f"{name}: {error}") from None
    pack = struct.Struct(f"{len(wanted.features) + 1}d").pack
    get = attrgetter(*(f"features.{places[key]}" if key in inner else places[key] for key in wanted.features), "target")

    texts_of = _texts_of(wanted)

    def take(bodies: Iterator[bytes], packed: Packed, texts: Texts) -> None:
        for row in map(decode, bodies):
            packed.append(pack(*get(row)))
            texts.append(texts_of(row))

    def slow(row: dict[str, Any]) -> list[float]:
        features = row.get("features") if nested else {}
        if not isinstance(features, dict | None):
            raise PairError(f"features: expected object, got {type(features).__name__}")
        return [number(key, (features or {} if key in inner else row).get(key)) for key in wanted.features]

    return _blocks(lines, wanted, len(wanted.features), take, slow)


def _recorded(lines: Lines, wanted: Wanted, runs: list[Run]) -> Iterator[Block]:
    """Rows of a journal, each under the last of the runs that were told before it."""
    for told, of_run in itertools.groupby(lines, key=lambda line: len(runs)):
        yield from _of_run(of_run, wanted, runs[told - 1])


def _of_run(lines: Lines, wanted: Wanted, run: Run) -> Iterator[Block]:
    pack = struct.Struct(f"{len(wanted.features) + 1}d").pack
    texts_of = _attributes(wanted.texts)

    def take(bodies: Iterator[bytes], packed: Packed, texts: Texts) -> None:
        values = NamedFeatures(run.features, wanted.features, run.encoder).values
        for line in bodies:
            request: Request = decode_request(line)
            packed.append(pack(*values(request), request.true_score))
            texts.append(texts_of(request))

    def slow(row: dict[str, Any]) -> list[float]:
        raise PairError(f"features: expected {len(wanted.features)} numbers")

    return _blocks(lines, wanted, len(wanted.features), take, slow)


def _blocks(
    lines: Lines, wanted: Wanted, width: int, take: Take, slow: Callable[[dict[str, Any]], list[float]]
) -> Iterator[Block]:
    """Blocks of the rows that `take` reads; what it does not read, `slow` does, or says why not."""
    pack = struct.Struct(f"{width + 1}d").pack
    nothing = pack(*[math.nan] * (width + 1))
    for chunk in _chunks(lines):
        packed: Packed = []
        texts: Texts = []
        wrong: dict[int, str] = {}
        bodies = iter([line for _, _, line in chunk])
        while len(packed) < len(chunk):
            try:
                take(bodies, packed, texts)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, struct.error, PairError, NamesError):
                values, beside = nothing, [None] * len(wanted.texts)
                try:
                    found = _object(chunk[len(packed)][2])
                    values = pack(*slow(found), number(wanted.target, found.get(wanted.target)))
                    beside = [found.get(key) for key in wanted.texts]
                except PairError as error:
                    wrong[len(packed)] = str(error)
                packed.append(values)
                texts.append(beside)
        columns = zip(*texts, strict=True) if wanted.texts else ()
        labels = [
            _labels(key, column, {} if key in wanted.optional else wrong)
            for key, column in zip(wanted.texts, columns, strict=True)
        ]
        numbers = np.array([place for _, place, _ in chunk])
        yield Block(chunk[0][0], numbers, np.frombuffer(b"".join(packed)).reshape(len(packed), width + 1), labels, wrong)


def _chunks(lines: Lines) -> Iterator[list[Line]]:
    """Lines that are not blank, some of one file at a time."""
    for chunk in iter(lambda: [*itertools.islice(lines, _BLOCK_ROWS)], []):
        for _, of_file in itertools.groupby(chunk, key=itemgetter(0)) if chunk[0][0] != chunk[-1][0] else [("", chunk)]:
            if found := [line for line in of_file if line[2] and not line[2].isspace()]:
                yield found


def _object(line: bytes) -> dict[str, Any]:
    """A line that may have NaN in it, as Python and others write it. Raises PairError."""
    row = _decoded(line)
    if not isinstance(row, dict):
        raise PairError(_why(line))
    return row


def _why(line: bytes) -> str:
    """Why a line is no JSON object."""
    if len(line) > MAX_LINE_BYTES:
        return f"longer than {MAX_LINE_BYTES} bytes"
    try:
        return f"expected an object, got {type(decode_request(line, _anything)).__name__}"
    except PairError as error:
        return str(error)


def _labels(key: str, texts: Sequence[Any], wrong: dict[int, str]) -> Labels:
    if {*map(type, texts)} <= {str, int, float}:
        return Labels.of(texts)
    found: list[Any] = []
    for row, text in enumerate(texts):
        if isinstance(text, str | int | float):
            found.append(text)
        else:
            if text is not None and text is not UNSET:
                wrong.setdefault(row, f"{key}: expected text or a number, got {type(text).__name__}")
            found.append(None)
    return Labels.of(found)
