"""CSV and TSV: comma, semicolon or tab, quoted or not, any order of columns; libvmaf's own CSV is one of these."""

from __future__ import annotations

import csv
from collections.abc import Iterator

import numpy as np

from sidecar.pairs.errors import PairError, RecordedPairsError
from sidecar.pairs.lines import Piece, cut_lines, read_lines
from sidecar.pairs.tables.libvmaf import log_table
from sidecar.pairs.tables.source import Source
from sidecar.pairs.tables.table import BLOCK_ROWS, Block, Labels, Table, Wanted, listed, number_of_text

_DELIMITERS = ",;\t"
_FRAME = "Frame"
"""The first column of libvmaf's CSV, which no other table has."""


def delimited(source: Source, piece: Piece | None = None) -> Table:
    """A table with a header, or a piece of one. Raises RecordedPairsError if there is none, or the file is no text."""
    name = source.name
    lines, before = _texts(source), 1
    top = _header(lines)
    if not top:
        return Table(name, "line", (), lambda wanted: iter(()))
    if piece is not None:
        lines, before = _texts(source, piece), max(1, piece.first - 1)
        if not piece.start:
            _header(lines)
    top = top.lstrip("\ufeff")  # more than one, of files that were put together
    if "\r" in top.rstrip():
        raise RecordedPairsError(f"{name}: lines end with a carriage return alone; expected line feeds")
    try:
        delimiter = _delimiter(top)
        header = [each.strip() for each in next(csv.reader([top], delimiter=delimiter))]
    except csv.Error as error:
        raise RecordedPairsError(f"{name}: not CSV text: in the names of the columns, {error}") from None
    while header and not header[-1]:  # a comma at the end of each line
        header.pop()
    if all(map(_is_number, header)):
        raise RecordedPairsError(f"{name}: no header: the first line has numbers, expected the names of the columns")
    if twice := sorted({each for each in header if each and header.count(each) > 1}):
        raise RecordedPairsError(f"{name}: line 1: two columns of one name: {listed(twice)}")

    def read(wanted: Wanted) -> Iterator[Block]:
        return _blocks(name, lines, before, delimiter, header, wanted)

    columns = tuple(each for each in header if each)
    if header[0] == _FRAME:
        return log_table(name, columns[1:], read, "")._replace(unit="line")
    cut = list if source.compressed else lambda: cut_lines(source.stream, b'"')
    return Table(name, "line", columns, read, cut=cut)


def _header(lines: Iterator[str]) -> str:
    return next((line for line in lines if line.strip()), "")


def _texts(source: Source, piece: Piece | None = None) -> Iterator[str]:
    for name, number, line in read_lines(source.stream, source.name, piece):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise RecordedPairsError(
                f"{name}: line {number}: not CSV text: byte 0x{line[error.start]:02x} is not UTF-8"
            ) from None
        if "\0" in text:
            raise RecordedPairsError(f"{name}: line {number}: not CSV text: it holds a zero byte")
        yield text + "\n"


def _delimiter(line: str) -> str:
    """The one that parts the header, which has no other of them in its names, into most columns."""
    return max(_DELIMITERS, key=lambda each: len(next(csv.reader([line], delimiter=each))))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _blocks(name: str, lines: Iterator[str], before: int, delimiter: str, header: list[str], wanted: Wanted) -> Iterator[Block]:
    places = {column: place for place, column in enumerate(header)}
    columns = (*wanted.features, wanted.target)
    number_places = [(column, places[column]) for column in columns]
    text_places = [places[column] for column in wanted.texts]
    numbers: list[int] = []
    values: list[list[float]] = []
    texts: list[list[str | None]] = []
    wrong: dict[int, str] = {}
    nothing = [np.nan] * len(columns)

    def block() -> Block:
        labels = [Labels.of([row[place] for row in texts]) for place in range(len(text_places))]
        return Block(name, np.array(numbers), np.array(values), labels, wrong)

    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise RecordedPairsError(f"{name}: line {rows.line_num + before}: not CSV text: {error}") from None
        if cells is None:
            break
        if not cells or (len(cells) == 1 and not cells[0].strip()):
            continue
        numbers.append(rows.line_num + before)
        try:
            if len(cells) > len(header) and not any(cells[len(header) :]):
                del cells[len(header) :]
            if len(cells) != len(header):
                raise PairError(f"expected {len(header)} columns, got {len(cells)}")
            values.append([number_of_text(column, cells[place]) for column, place in number_places])
            texts.append([cells[place].strip() or None for place in text_places])
        except PairError as error:
            wrong[len(values)] = str(error)
            values.append(nothing)
            texts.append([None] * len(text_places))
        if len(values) == BLOCK_ROWS:
            yield block()
            numbers, values, texts, wrong = [], [], [], {}
    if values:
        yield block()
