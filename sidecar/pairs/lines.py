"""Lines of JSON as they are recorded: in a stream, and in a state directory's journal. They are not interpreted here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from sidecar.journal.blocks import RUN
from sidecar.journal.segments import first_position, journal_segments, whole_blocks, with_ends
from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.request import MAX_LINE_BYTES

STDIN = "-"
_READ_BYTES = 1 << 20

Lines = Iterator[tuple[str, int, bytes]]
"""(name, number from 1, line), without newlines."""


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
            raise RecordedPairsError(
                f"{name}: line {number + 1}: longer than {MAX_LINE_BYTES} bytes; are these lines of pairs?"
            )
    if rest:
        yield name, number + 1, rest


def journal_lines(directory: Path, until: int | None = None, on_run: Callable[[bytes], object] = lambda line: None) -> Lines:
    """The pairs in a state directory's journal, up to a position, each named by its segment and numbered by its position.

    on_run: told of each run record, before the pairs that are trained under it. Raises RecordedPairsError if there is no
    journal, and JournalError if it is damaged.
    """
    segments = journal_segments(directory)
    if not segments:
        raise RecordedPairsError(f"{directory}: a directory without a journal; expected a sidecar's state directory")
    for segment, end in with_ends(segments):
        for block in whole_blocks(segment, end):
            position = block.position
            for line in block.lines:
                if line.startswith(RUN):
                    on_run(line[len(RUN) :])
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
