"""The formats of recorded pairs: JSON lines, gzipped or not, numpy archives, CSV, standard input, a state directory.

`read_form` tells formats apart by the file's name, opens files, and reports what is wrong with them in one way. It does not
interpret rows.
"""

from __future__ import annotations

import csv
import gzip
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar, cast

from sidecar.journal.blocks import RUN
from sidecar.journal.segments import first_position, journal_segments, whole_blocks, with_ends
from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.npz import Archive, opened
from sidecar.pairs.request import MAX_LINE_BYTES

STDIN = "-"
_READ_BYTES = 1 << 20

T = TypeVar("T")
Lines = Iterator[tuple[str, int, bytes]]
"""(name, number from 1, line), without newlines."""
CsvRows = Iterator[tuple[int, list[str]]]
"""(line number, cells) of the rows that are not empty."""


def read_form(
    name: str,
    *,
    json_lines: Callable[[Lines], Iterator[T]],
    archive: Callable[[Archive], Iterator[T]],
    table: Callable[[list[str], CsvRows], Iterator[T]],
    journal: Callable[[Path], Lines] | None = None,
) -> Iterator[T]:
    """What the function for a file's format makes of the file.

    name: a path, or "-" for JSON lines on standard input; table: gets the header, whose last column is true_score, and rows;
    journal: gives the lines of a state directory, by default all of them.

    Raises RecordedPairsError if the file cannot be read, or does not have the format that its name says.
    """
    try:
        if name == STDIN:
            yield from json_lines(read_lines(sys.stdin.buffer, "standard input"))
        elif os.path.isdir(name):
            yield from json_lines((journal or journal_lines)(Path(name)))
        elif name.endswith((".jsonl", ".jsonl.gz")):
            with open_lines(name) as stream:
                yield from json_lines(read_lines(stream, name))
        elif name.endswith(".npz"):
            with opened(name) as archive_file:
                yield from archive(archive_file)
        elif name.endswith(".csv"):
            yield from _read_table(name, table)
        elif not os.path.exists(name):
            raise RecordedPairsError(f"{name}: no such file or directory")
        else:
            raise RecordedPairsError(
                f"{name}: expected .jsonl, .jsonl.gz, .npz, .csv, a state directory, or - for JSON lines on standard input"
            )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RecordedPairsError(f"{name}: damaged or truncated gzip: {error}") from error
    except OSError as error:
        raise RecordedPairsError(f"{name}: {error.strerror or error}") from error


def open_lines(name: str | Path) -> IO[bytes]:
    """A file's bytes, unzipped if its name ends in .gz. Raises OSError; reading may also raise EOFError and zlib.error."""
    return cast(IO[bytes], gzip.open(name)) if str(name).endswith(".gz") else open(name, "rb")


def read_lines(stream: IO[bytes], name: str) -> Lines:
    """The lines of a stream, the last one with or without a newline.

    Raises RecordedPairsError if there is no newline for so long that these cannot be JSON lines.
    """
    number, rest = 0, b""
    while chunk := stream.read(_READ_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            yield name, number, line
        if len(rest) > MAX_LINE_BYTES:
            raise RecordedPairsError(f"{name}: line {number + 1}: longer than {MAX_LINE_BYTES} bytes; is this JSON lines?")
    if rest:
        yield name, number + 1, rest


def journal_lines(directory: Path, until: int | None = None) -> Lines:
    """The pairs in a state directory's journal, up to a position, each named by its segment and numbered by its position.

    Raises RecordedPairsError if there is no journal, and JournalError if it is damaged.
    """
    segments = journal_segments(directory)
    if not segments:
        raise RecordedPairsError(f"{directory}: a directory without a journal; expected a sidecar's state directory")
    for segment, end in with_ends(segments):
        for block in whole_blocks(segment, end):
            position = block.position
            for line in block.lines:
                if line.startswith(RUN):
                    continue
                if until is not None and position >= until:
                    return
                if not line.startswith(b"#"):
                    yield str(segment), position, line
                position += 1


def journal_end(directory: Path) -> int:
    """The position after the last pair of a state directory's journal. Raises JournalError if it is damaged."""
    end = 0
    for segment in journal_segments(directory)[-1:]:
        end = first_position(segment)
        for block in whole_blocks(segment):
            end = block.end
    return end


def _read_table(name: str, table: Callable[[list[str], CsvRows], Iterator[T]]) -> Iterator[T]:
    with open(name, newline="", encoding="utf-8-sig") as stream:
        rows = csv.reader(stream, strict=True)
        try:
            header = next(rows, [])
            if not header or header[-1].strip() != "true_score":
                found = repr(header[-1][:40]) if header else "nothing"
                raise RecordedPairsError(f"{name}: line 1: expected a header whose last column is true_score, got {found}")
            yield from table(header, ((rows.line_num, row) for row in rows if row))
        except (csv.Error, UnicodeDecodeError) as error:
            raise RecordedPairsError(f"{name}: line {rows.line_num + 1}: not CSV text: {error}") from error
