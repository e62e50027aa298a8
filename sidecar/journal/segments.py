"""The journal on disk: segments of accepted pairs, the lines that came, in order; read, compressed, and in time deleted.

`STATE/journal/` holds segments named by the position of their first pair, `000000000000.jsonl` and so on; the last is
written to, closed ones are gzipped. A line is a pair as it came; its position is that of its segment and the number of pairs
before it there. Lines that begin with `#` are the sidecar's own: `#run {…}` says with what the pairs after it are trained, and
stands at the beginning of each segment; `#gone` stands where a pair was forgotten, and keeps its position.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from sidecar.files import sync_directory

_SEGMENT = re.compile(r"(\d{12,})\.jsonl(\.gz)?")
READ_BYTES = 1 << 20
_GZIP_LEVEL = 1  # 131 MB/s, where level 6 makes 24 and full load arrives at 55
RUN, GONE = b"#run ", b"#gone"


class JournalError(ValueError):
    """A journal that cannot be written or read; the message says which file and why."""


class Entry(NamedTuple):
    """A pair at its position, None where it was forgotten; or a run record, which has the position of the pair after it."""

    position: int
    line: bytes | None
    run: dict[str, Any] | None = None


def journal_segments(state_directory: Path) -> list[Path]:
    """Segments in the order of their positions, empty where the directory has no journal.

    Of a segment that stands there both plain and gzipped (a crash between the two), the plain one, which is whole.
    """
    directory = state_directory / "journal"
    found: dict[int, Path] = {}
    if directory.is_dir():
        for path in directory.iterdir():
            match = _SEGMENT.fullmatch(path.name)
            if match and (int(match[1]) not in found or not match[2]):
                found[int(match[1])] = path
    return [found[position] for position in sorted(found)]


def first_position(segment: Path) -> int:
    """The position of a segment's first pair."""
    return int(segment.name.partition(".")[0])


def read_journal(state_directory: Path, start: int = 0) -> Iterator[Entry]:
    """Entries from a position on, and all run records in the segments read for it.

    A last line without its newline was never answered and is passed over. Raises JournalError where a segment is damaged or
    missing, or the journal begins after `start`.
    """
    segments = journal_segments(state_directory)
    if not segments:
        return
    if first_position(segments[0]) > start:
        raise JournalError(
            f"{segments[0]}: the journal begins at position {first_position(segments[0])}; "
            f"pairs from {start} on are needed, and retention has removed them"
        )
    ends = [*map(first_position, segments[1:]), None]
    for segment, end in zip(segments, ends, strict=True):
        if end is not None and end <= start:
            continue
        position = first_position(segment)
        for line in segment_lines(segment):
            run = None
            if line.startswith(b"#"):
                if line.startswith(RUN):
                    run = _run_record(segment, position, line)
                elif line != GONE:
                    raise JournalError(
                        f"{segment}: at position {position}: {line[:40]!r} is no record of a journal; {WHAT_TO_DO}"
                    )
            if run is not None:
                yield Entry(position, None, run)
            else:
                if position >= start:
                    yield Entry(position, None if line == GONE else line)
                position += 1
        if end is not None and position != end:
            raise JournalError(f"{segment}: ends at position {position}, the next segment begins at {end}; {WHAT_TO_DO}")


WHAT_TO_DO = "put back the file from a copy, or move the state directory away to begin anew"


def _run_record(segment: Path, position: int, line: bytes) -> dict[str, Any]:
    try:
        run = json.loads(line[len(RUN) :])
    except ValueError as error:
        raise JournalError(f"{segment}: at position {position}: damaged run record: {error}; {WHAT_TO_DO}") from error
    return cast(dict[str, Any], run)


def segment_lines(segment: Path) -> Iterator[bytes]:
    """Whole lines without their newline; what follows the last newline is left out."""
    rest = b""
    try:
        with cast(IO[bytes], gzip.open(segment) if segment.suffix == ".gz" else segment.open("rb")) as stream:
            while chunk := stream.read(READ_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise JournalError(f"{segment}: damaged: {error}; {WHAT_TO_DO}") from error
    except OSError as error:
        raise JournalError(f"{segment}: {error.strerror or error}") from error
    if rest and segment.suffix == ".gz":
        raise JournalError(f"{segment}: damaged: it ends within a line; {WHAT_TO_DO}")


def write_segment(path: Path, pieces: Iterable[bytes], like: Path) -> None:
    """Write a segment, gzipped where its name says so, whole or not at all. like: whose times it gets, by which retention goes.

    Raises OSError.
    """
    temporary = Path(f"{path}.tmp")
    with temporary.open("wb") as raw:
        with _gzipped(raw) if path.suffix == ".gz" else contextlib.nullcontext(raw) as stream:
            for piece in pieces:
                stream.write(piece)
        raw.flush()
        os.fsync(raw.fileno())
    shutil.copystat(like, temporary)
    os.replace(temporary, path)
    sync_directory(path.parent)


def _gzipped(raw: IO[bytes]) -> gzip.GzipFile:
    return gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=_GZIP_LEVEL, filename="", mtime=0)


def first_kept(state_directory: Path) -> int:
    """The first position that the journal still holds."""
    segments = journal_segments(state_directory)
    return first_position(segments[0]) if segments else 0
