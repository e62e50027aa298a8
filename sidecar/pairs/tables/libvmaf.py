"""libvmaf's logs: a frame a row, the file is one encode. Here is what all of their forms share, and the XML form."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any
from xml.parsers import expat

import numpy as np

from sidecar.features.names import canonical
from sidecar.pairs.errors import PairError, RecordedPairsError
from sidecar.pairs.tables.source import Source
from sidecar.pairs.tables.table import BLOCK_ROWS, Block, Table, Wanted, number_of_text

_READ_BYTES = 1 << 16
_MOST_BETWEEN_FRAMES = 16 << 20
_NEG = re.compile(r"^(?:adm|vif).*_egl_1(?:_|$)")


def log_table(name: str, columns: tuple[str, ...], read: Callable[[Wanted], Iterator[Block]], model: str) -> Table:
    """The table of a clip's frames. model: as the log names it, "" if it does not."""
    return Table(name, "frame", columns, read, group=encode_of(name), target=model_name(model) or _model_of(columns))


def encode_of(name: str) -> str:
    """The group of a file's frames: its name and its folder's, however the path is written."""
    return "/".join(os.path.abspath(name).split(os.sep)[-2:])


def model_name(said: str) -> str:
    """The name of a model, given its path or libvmaf's option.

    >>> model_name("version=vmaf_v0.6.1"), model_name("/usr/share/model/vmaf_4k_v0.6.1.json"), model_name("unknown")
    ('vmaf_v0.6.1', 'vmaf_4k_v0.6.1', '')
    """
    found = re.search(r"vmaf_[A-Za-z0-9._-]*?v\d+(?:\.\d+)*[A-Za-z0-9_-]*|vmaf_float_[A-Za-z0-9._-]+", said)
    return found[0].removesuffix(".json").removesuffix(".pkl") if found else ""


def _model_of(columns: tuple[str, ...]) -> str:
    """NEG, if the features of the model were computed with its gain limit alone."""
    names = [canonical(column) for column in columns]
    return "vmaf_v0.6.1neg" if any(map(_NEG.match, names)) and not {"adm2", "vif_scale0"} & {*names} else ""


def xml_log(source: Source) -> Table:
    """libvmaf's XML, as a stream. Raises RecordedPairsError for other XML, and for any with a document type."""
    name = source.name
    frames = _frames(source)
    model = next(frames)
    first = next(frames, None)
    if first is None:
        return log_table(name, (), lambda wanted: iter(()), "")

    def rows() -> Iterator[dict[str, str]]:
        yield first
        yield from frames

    columns = tuple(key for key in first if key != "frameNum")
    return log_table(name, columns, lambda wanted: _blocks(name, wanted, rows()), model.get("model", ""))


def _frames(source: Source) -> Iterator[dict[str, str]]:
    """The attributes of `params`, or nothing, then those of each frame."""
    name = source.name
    found: list[dict[str, str]] = []
    params: dict[str, str] = {}
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth == 1 and tag != "VMAF":
            raise RecordedPairsError(f"{name}: XML, but no log of libvmaf: it begins with <{tag[:40]}>, expected <VMAF>")
        if depth > 16:
            raise RecordedPairsError(f"{name}: nested too deep for a log of libvmaf")
        if tag == "frame":
            found.append(attributes)
        elif tag == "params":
            params.update(attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1

    def refuse(*_: Any) -> None:
        raise RecordedPairsError(f"{name}: XML with a document type, which no log of libvmaf has: refused, not expanded")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    since = 0
    told = False
    try:
        while data := source.stream.read(_READ_BYTES):
            parser.Parse(data, False)
            since = 0 if found else since + len(data)
            if since > _MOST_BETWEEN_FRAMES:
                raise RecordedPairsError(f"{name}: {since >> 20} MiB of XML without a frame; is this a log of libvmaf?")
            if found and not told:
                told = True
                yield params
            yield from found
            found.clear()
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise RecordedPairsError(f"{name}: damaged or truncated XML: {error}") from None
    if not told:
        yield params


def _blocks(name: str, wanted: Wanted, rows: Iterator[dict[str, str]]) -> Iterator[Block]:
    keys = (*wanted.features, wanted.target)
    numbers: list[int] = []
    values: list[list[float]] = []
    wrong: dict[int, str] = {}
    for place, row in enumerate(rows):
        shown = row.get("frameNum", "")
        numbers.append(int(shown) if shown.isdecimal() and len(shown) < 19 else place)
        try:
            values.append([number_of_text(key, row.get(key, "")) for key in keys])
        except PairError as error:
            wrong[len(values)] = str(error)
            values.append([np.nan] * len(keys))
        if len(values) == BLOCK_ROWS:
            yield Block(name, np.array(numbers), np.array(values), [], wrong)
            numbers, values, wrong = [], [], {}
    if values:
        yield Block(name, np.array(numbers), np.array(values), [], wrong)
