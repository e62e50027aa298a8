"""JSON files that are one object: libvmaf's logs, and the caches of a clip's frames that the VMAF fork's tools keep."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec
import numpy as np

from sidecar.pairs.errors import PairError, RecordedPairsError
from sidecar.pairs.tables.libvmaf import log_table
from sidecar.pairs.tables.source import Source
from sidecar.pairs.tables.table import BLOCK_ROWS, Block, Table, Wanted, number

_MOST_BYTES = 512 << 20
_FRAMES = 512
"""Of a log that are looked at for the names of its metrics: with a subsampled feature, not every frame has them all."""


class _Document(msgspec.Struct):
    frames: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    params: Any = None
    model: Any = None
    features: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    scores: Any = None
    feature_names: Any = None
    per_frame: Any = None
    teacher_per_frame: Any = None


_NAN = re.compile(rb"([\[:,]\s*)-?nan(?=\s*[,\]}])", re.IGNORECASE)
"""A bare NaN, as Python and older versions of libvmaf write a missing value."""
_document = msgspec.json.Decoder(_Document)
_frame: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


def is_document(line: Any) -> bool:
    """Whether the object of a file's first line is all of a file."""
    return isinstance(line, dict) and (
        isinstance(line.get("frames"), list)
        or (isinstance(line.get("features"), dict) and "per_frame" in line["features"])
        or ("per_frame" in line and "feature_names" in line)
    )


def json_document(source: Source) -> Table:
    """The frames of a libvmaf log, or of a cache. Raises RecordedPairsError for another object."""
    name = source.name
    data = source.stream.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise RecordedPairsError(f"{name}: a single JSON object of more than {_MOST_BYTES >> 20} MiB; write one object a line")
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        try:
            document = _document.decode(data)
        except msgspec.DecodeError:
            data = _NAN.sub(rb"\1null", data)
            document = _document.decode(data)
        features = _frame.decode(document.features) if document.features is not msgspec.UNSET else None
    except RecursionError:
        raise RecordedPairsError(f"{name}: nested too deep for a table") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordedPairsError(f"{name}: neither lines of JSON objects nor one object: {error}") from None
    if document.frames is not msgspec.UNSET:
        return _log(name, document, document.frames)
    if isinstance(features, dict):
        scores = document.scores.get("per_frame") if isinstance(document.scores, dict) else None
        return _cache(name, features.get("feature_names"), features.get("per_frame"), scores)
    if document.per_frame is not None:
        return _cache(name, document.feature_names, document.per_frame, document.teacher_per_frame)
    raise RecordedPairsError(f"{name}: a JSON object, but no log of libvmaf and no cache of a clip; write one object a line")


def _log(name: str, document: _Document, frames: list[msgspec.Raw]) -> Table:
    names: dict[str, None] = {}
    for frame in islice(frames, _FRAMES):
        names.update(dict.fromkeys(_metrics(name, frame)[1]))

    def rows(wanted: Wanted) -> Iterator[tuple[int, list[Any]]]:
        for place, frame in enumerate(frames):
            shown, metrics = _metrics(name, frame)
            yield place if shown is None else shown, [metrics.get(key) for key in (*wanted.features, wanted.target)]

    params = document.params if isinstance(document.params, dict) else {}
    model = next((each for each in (document.model, params.get("model")) if isinstance(each, str)), "")
    return log_table(name, tuple(names), lambda wanted: frame_blocks(name, wanted, rows(wanted)), model)


def _metrics(name: str, frame: msgspec.Raw) -> tuple[int | None, dict[str, Any]]:
    try:
        found = _frame.decode(frame)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RecordedPairsError(f"{name}: {error}") from None
    metrics = found.get("metrics") if isinstance(found, dict) else None
    if not isinstance(metrics, dict):
        raise RecordedPairsError(f"{name}: a frame without metrics; is this a log of libvmaf?")
    shown = found.get("frameNum")
    return (shown if isinstance(shown, int) else None), metrics


def _cache(name: str, names: Any, frames: Any, scores: Any) -> Table:
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise RecordedPairsError(f"{name}: a cache of a clip without feature_names, a list of texts")
    if not isinstance(frames, list) or not isinstance(scores, list) or len(frames) != len(scores):
        raise RecordedPairsError(f"{name}: a cache of a clip whose features and scores are not lists of the same length")

    def rows(wanted: Wanted) -> Iterator[tuple[int, list[Any]]]:
        places = [names.index(key) for key in wanted.features]
        for place, (frame, score) in enumerate(zip(frames, scores, strict=True)):
            if not isinstance(frame, list) or len(frame) != len(names):
                raise RecordedPairsError(f"{name}: frame {place}: expected {len(names)} features")
            yield place, [*(frame[each] for each in places), score]

    table = log_table(name, (*names, "vmaf"), lambda wanted: frame_blocks(name, wanted, rows(wanted)), "")
    return table._replace(features=tuple(names))


def frame_blocks(name: str, wanted: Wanted, rows: Iterator[tuple[int, list[Any]]]) -> Iterator[Block]:
    """Blocks of frames: the number of each, and its features and score as JSON has them."""
    while chunk := [*islice(rows, BLOCK_ROWS)]:
        wrong: dict[int, str] = {}
        values = np.full((len(chunk), len(wanted.features) + 1), np.nan)
        for row, (_, found) in enumerate(chunk):
            try:
                values[row] = _numbers((*wanted.features, wanted.target), found)
            except PairError as error:
                wrong[row] = str(error)
        yield Block(name, np.array([place for place, _ in chunk]), values, [], wrong)


def _numbers(names: Sequence[str], values: list[Any]) -> list[float]:
    return [value if type(value) is float else number(key, value) for key, value in zip(names, values, strict=True)]
