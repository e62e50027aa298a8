"""Which form a file of recorded pairs has: by its content; its name decides only where that leaves doubt."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.lines import STDIN, Piece, Span, cut_lines, journal_end, journal_lines, read_lines, segment_lines
from sidecar.pairs.tables.arrow import FEATHER, FEATHER_1, PARQUET, arrow_table
from sidecar.pairs.tables.delimited import delimited
from sidecar.pairs.tables.json_documents import is_document, json_document
from sidecar.pairs.tables.json_lines import journal_table, json_lines
from sidecar.pairs.tables.libvmaf import xml_log
from sidecar.pairs.tables.npz import npz_table
from sidecar.pairs.tables.source import Source, opened
from sidecar.pairs.tables.table import Table

_LINES = (".jsonl", ".ndjson")
_line: msgspec.json.Decoder[object] = msgspec.json.Decoder()


@contextmanager
def open_table(path: str, piece: Piece | None = None) -> Iterator[Table]:
    """The table in a file, on standard input for "-", or in a state directory, as its journal is now.

    piece: one of those that the file can be cut into, for these rows alone.

    Raises RecordedPairsError, also while it is read, if the file cannot be read or is no table.
    """
    with reported(path):
        if os.path.isdir(path):
            directory = Path(path)
            end = journal_end(directory)
            yield journal_table(path, lambda on_run: journal_lines(directory, end, on_run))
            return
        with opened(path) as source, ExitStack() as stack:
            yield _table(source, stack, piece)


@contextmanager
def open_segment(span: Span) -> Iterator[Table]:
    """The table in a segment of a journal.

    Raises RecordedPairsError and JournalError as `open_table`, also while it is read.
    """
    state = str(span.segment.parent.parent)
    with reported(state):
        yield journal_table(state, lambda on_run: segment_lines(*span, on_run))


@contextmanager
def reported(name: str) -> Iterator[None]:
    """Errors of files and of decompression become a RecordedPairsError."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RecordedPairsError(f"{name}: damaged or truncated gzip: {error}") from error
    except OSError as error:
        raise RecordedPairsError(f"{name}: {error.strerror or error}") from error


def is_json_lines(source: Source) -> bool:
    """Whether a file holds lines of JSON: by its name, or as its first line is an object that is not all of it."""
    if source.name == "standard input" or _hint(source.name).endswith(_LINES):
        return True
    top = source.head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not top.startswith(b"{"):
        return False
    line, _, _ = top.partition(b"\n")
    try:
        return not is_document(_line.decode(line))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # bare NaN, or the line is longer than what is known of it; an object over several lines begins with a bare brace
        return not _hint(source.name).endswith(".json") and len(line.strip()) > 1


def _table(source: Source, stack: ExitStack, piece: Piece | None) -> Table:
    head = source.head
    if head.startswith((PARQUET, FEATHER, FEATHER_1)):
        return arrow_table(source, stack, piece)
    if head.startswith(b"PK") or _hint(source.name).endswith(".npz"):
        return npz_table(source, stack)
    if is_json_lines(source):
        some = read_lines(source.stream, source.name, piece) if piece else None
        cut = list if source.compressed else lambda: cut_lines(source.stream)
        return json_lines(source.name, read_lines(source.stream, source.name), some)._replace(cut=cut)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"<":
        return xml_log(source)
    if start == b"{":
        return json_document(source)
    if start == b"[":
        raise RecordedPairsError(f"{source.name}: a JSON array; write one object a line")
    if b"\0" in head:
        raise RecordedPairsError(
            f"{source.name}: no recorded pairs; expected JSON lines, CSV, TSV, parquet, feather, a numpy .npz archive, "
            f"a log of libvmaf, a state directory, or {STDIN} for JSON lines on standard input"
        )
    return delimited(source, piece)


def _hint(name: str) -> str:
    return name.lower().removesuffix(".gz").removesuffix(".zst")
