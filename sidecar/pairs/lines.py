"""Lines of JSON as they are recorded: in a stream, and in a state directory's journal. They are not interpreted here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from sidecar.journal.blocks import RUN, Damage
from sidecar.journal.segments import first_position, journal_segments, require_blocks, whole_blocks, with_ends
from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.request import MAX_LINE_BYTES

STDIN = "-"
PIECE_BYTES = 64 << 20
_READ_BYTES = 1 << 20

Lines = Iterator[tuple[str, int, bytes]]
"""(name, number from 1, line), without newlines."""


class Piece(NamedTuple):
    """A part of a large file. start, stop: bytes of a text, row groups of parquet; first: the number of its first row."""

    start: int
    stop: int
    first: int


def read_lines(stream: IO[bytes], name: str, piece: Piece | None = None) -> Lines:
    """The lines of a stream, or of a piece of it, the last one with or without a newline.

    Raises RecordedPairsError if there is no newline for so long that these cannot be JSON lines.
    """
    number, rest, left = 0, b"", sys.maxsize
    if piece is not None:
        stream.seek(piece.start)
        number, left = piece.first - 1, piece.stop - piece.start
    while chunk := stream.read(min(_READ_BYTES, left)):
        left -= len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            yield name, number, line
        if len(rest) > MAX_LINE_BYTES:
            raise RecordedPairsError(
                f"{name}: line {number + 1}: longer than {MAX_LINE_BYTES} bytes; are these lines of pairs?"
            )
    if rest:
        yield name, number + 1, rest


def cut_lines(stream: IO[bytes], but: bytes = b"") -> list[Piece]:
    """Pieces of a text, of about 64 MiB each, that end where lines do. None if it has `but` in it, where lines may go on."""
    stream.seek(0)
    pieces: list[Piece] = []
    piece, position, number = Piece(0, 0, 1), 0, 1
    while chunk := stream.read(_READ_BYTES):
        if but and but in chunk:
            return []
        number += chunk.count(b"\n")
        end = position + chunk.rfind(b"\n") + 1
        position += len(chunk)
        if end > position - len(chunk) and end - piece.start >= PIECE_BYTES:
            pieces.append(piece._replace(stop=end))
            piece = Piece(end, end, number)
    return [*pieces, piece._replace(stop=position)] if position > piece.start else pieces


def journal_lines(directory: Path, until: int | None = None, on_run: Callable[[bytes], object] = lambda line: None) -> Lines:
    """The pairs in a state directory's journal, up to a position, each named by its segment and numbered by its position.

    on_run: told of each run record, before the pairs that are trained under it. Raises RecordedPairsError if there is no
    journal, and JournalError if it is damaged.
    """
    segments = journal_segments(directory)
    if not segments:
        raise RecordedPairsError(f"{directory}: a directory without a journal; expected a sidecar's state directory")
    for segment, end in with_ends(segments):
        if until is not None and first_position(segment) >= until:
            return
        yield from segment_lines(segment, end, until, on_run)


def segment_lines(
    segment: Path, end: int | None, until: int | None = None, on_run: Callable[[bytes], object] = lambda line: None
) -> Lines:
    """As `journal_lines`, of one segment. end: the position at which the next one begins, None for the last.

    Raises JournalError if the segment is damaged, SegmentGoneError if it has been deleted.
    """
    name = str(segment)
    for block in whole_blocks(segment, end):
        position = block.position
        for line in block.lines:
            if line.startswith(b"#"):
                if line.startswith(RUN):
                    on_run(line[len(RUN) :])
                    continue
            elif until is None or position < until:
                yield name, position, line
            else:
                return
            position += 1


class Span(NamedTuple):
    """Where a segment is, and which of its pairs to read: up to `until`. end: as in `segment_lines`."""

    segment: Path
    end: int | None
    until: int


def journal_spans(directory: Path) -> list[Span]:
    """The segments of a state directory's journal as it is now.

    Raises JournalError if the last one cannot be read now, or the journal is of the format before the first release.
    """
    require_blocks(directory)
    spans = [Span(segment, end, end or 0) for segment, end in with_ends(journal_segments(directory))]
    if spans:
        last = spans[-1].segment
        until = max((block.end for block in whole_blocks(last, None, _any_damage)), default=first_position(last))
        spans[-1] = Span(last, None, until)
    return spans


def journal_end(directory: Path) -> int:
    """The position after the last pair of a state directory's journal. Raises JournalError as `journal_spans`."""
    spans = journal_spans(directory)
    return spans[-1].until if spans else 0


def _any_damage(segment: Path, damage: Damage) -> None:
    """Whoever reads the pairs meets it, too."""
