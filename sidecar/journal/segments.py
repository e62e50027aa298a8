"""The journal on disk: segments of accepted pairs, in order, and how they are read.

`STATE/journal/` holds segments named by the position of their first pair, `000000000000.jsonl` and so on. The last one is
written to; closed ones are gzipped. Each is a row of blocks (see `blocks.py`) of lines as they came. Lines that begin with `#`
are the sidecar's own: `#run {…}` says with what the pairs after it are trained, and stands at the beginning of each segment;
`#gone` stands where a pair was forgotten, `#lost` where damage has taken one; both keep its position.

A gzipped segment ends with an empty gzip member whose comment is the SHA-256 of all bytes before it. Programs that unzip ignore
it.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from sidecar.files import open_regular
from sidecar.journal.blocks import GONE, LOST, RUN, Block, Damage, Torn, next_start, read_blocks

READ_BYTES = 1 << 20
_SEGMENT = re.compile(r"(\d{12,})\.jsonl(\.gz)?")
_GZIP_LEVEL = 1  # 131 MB/s, where level 6 makes 24 and full load arrives at 55
_SEAL_BYTES = 10 + 64 + 1 + 2 + 8


class JournalError(ValueError):
    """A journal that cannot be written or read; the message says which file and why."""


class SegmentGoneError(JournalError):
    """A segment is not there any more: retention has deleted it."""


class Entry(NamedTuple):
    """A pair at its position, None if it was forgotten or is lost; or a run record, which has the position of the pair after
    it.
    """

    position: int
    line: bytes | None
    run: dict[str, Any] | None = None


OnDamage = Callable[[Path, Damage], object]
"""Told of what is damaged in a segment, before reading goes on with what is whole."""


def journal_segments(state_directory: Path) -> list[Path]:
    """Segments in the order of their positions, empty if the directory has no journal.

    Of a segment that is there both plain and gzipped (a crash between the two), the plain one, which is whole. Raises OSError.
    """
    directory = state_directory / "journal"
    found: dict[int, Path] = {}
    try:
        names = sorted(path.name for path in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    for name in names:
        match = _SEGMENT.fullmatch(name)
        if match and (int(match[1]) not in found or not match[2]):
            found[int(match[1])] = directory / name
    return [found[position] for position in sorted(found)]


def with_ends(segments: Sequence[Path]) -> list[tuple[Path, int | None]]:
    """Segments with the position at which the next one begins, None for the last."""
    ends = [*map(first_position, segments[1:]), None]
    return [*zip(segments, ends, strict=False)]


def first_position(segment: Path) -> int:
    """The position of a segment's first pair."""
    return int(segment.name.partition(".")[0])


def first_kept(state_directory: Path) -> int:
    """The first position that the journal still holds."""
    segments = journal_segments(state_directory)
    return first_position(segments[0]) if segments else 0


def is_before_blocks(state_directory: Path) -> bool:
    """Whether a journal is of the format before the first release, which had no blocks: a damaged one has some left."""
    segments = journal_segments(state_directory)
    try:
        with _opened(segments[0]) as stream:
            if not stream.readline(READ_BYTES).startswith((RUN, b"{")):
                return False
        return not any(_has_block(segment) for segment in segments)
    except (IndexError, OSError, EOFError, zlib.error):
        return False


def require_blocks(state_directory: Path) -> None:
    """Raises JournalError for a journal of the format before the first release, which nothing is known to be wrong with."""
    if is_before_blocks(state_directory):
        raise JournalError(
            f"{state_directory}: state of a format before the first release; `serve` moves it aside and begins anew"
        )


@contextlib.contextmanager
def _opened(segment: Path) -> Iterator[IO[bytes]]:
    with open_regular(segment) as stream:
        yield stream if segment.suffix != ".gz" else cast(IO[bytes], gzip.GzipFile(fileobj=stream))


def _has_block(segment: Path) -> bool:
    with _opened(segment) as stream:
        return next_start(stream, 0) < stream.tell()


def damaged(segment: Path, damage: Damage) -> object:
    """Raises JournalError: what readers do about damage that are not told otherwise."""
    require_blocks(segment.parent.parent)
    raise JournalError(f"{segment}: damaged from byte {damage.start} to {damage.stop}: {damage.reason}")


def read_journal(state_directory: Path, start: int = 0, on_damage: OnDamage = damaged) -> Iterator[Entry]:
    """Entries from a position on, and all run records in the segments read for it.

    on_damage: told of bytes that are not as they were written; then the pairs that were there are given as lost. What a crash
    left of the last write was never answered, and is ignored. Raises JournalError if the journal begins after `start`, or a
    segment cannot be read now.
    """
    segments = journal_segments(state_directory)
    if not segments:
        return
    if first_position(segments[0]) > start:
        raise JournalError(
            f"{segments[0]}: the journal begins at position {first_position(segments[0])}; "
            f"pairs from {start} on are needed, and retention has removed them"
        )
    for segment, end in with_ends(segments):
        if end is not None and end <= start:
            continue
        position = first_position(segment)
        for block in whole_blocks(segment, end, on_damage):
            yield from _lost(position, block.position, start)
            position = block.position
            for line in block.lines:
                if line.startswith(RUN):
                    yield Entry(position, None, _run_record(segment, line))
                else:
                    if position >= start:
                        yield Entry(position, None if line in (GONE, LOST) else line)
                    position += 1
        yield from _lost(position, position if end is None else end, start)


def _lost(position: int, end: int, start: int) -> Iterator[Entry]:
    return (Entry(each, None) for each in range(max(position, start), end))


def whole_blocks(segment: Path, end: int | None = None, on_damage: OnDamage = damaged) -> Iterator[Block]:
    """The blocks of a segment that are whole and in order.

    end: the position at which the next segment begins, None for the last one. Raises JournalError for a segment that cannot be
    read now; that is no damage.
    """
    position = first_position(segment)
    for part in segment_parts(segment):
        if isinstance(part, Torn):
            if end is not None and position < end:
                on_damage(segment, Damage(part.start, part.start, f"ends at position {position}; the next begins at {end}"))
            return
        if isinstance(part, Block) and position <= part.position and (end is None or part.end <= end):
            if part.position > position:
                on_damage(segment, Damage(0, 0, f"pairs {position} to {part.position - 1} are missing"))
            position = part.end
            yield part
        elif isinstance(part, Damage):
            on_damage(segment, part)
        else:
            on_damage(segment, Damage(0, 0, f"pairs {part.position} to {part.end - 1} are out of order"))
    if end is not None and position < end:
        on_damage(segment, Damage(0, 0, f"pairs {position} to {end - 1} are missing"))


def segment_parts(segment: Path) -> Iterator[Block | Damage | Torn]:
    """All that a segment consists of, checked. One that was compressed since it was found is read as it is now.

    Raises JournalError if it cannot be read now, SegmentGoneError if it is not there any more.
    """
    try:
        with contextlib.ExitStack() as stack:
            try:
                stream = stack.enter_context(open_regular(segment))
            except FileNotFoundError:
                segment = segment.with_suffix(".jsonl.gz") if segment.suffix != ".gz" else segment
                stream = stack.enter_context(open_regular(segment))
            if segment.suffix != ".gz":
                yield from read_blocks(stream)
                return
            if (broken := _seal_broken(stream)) is not None:
                yield broken
            stream.seek(0)
            try:
                yield from read_blocks(cast(IO[bytes], gzip.GzipFile(fileobj=stream)))
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                yield Damage(0, stream.tell(), str(error))
    except FileNotFoundError as error:
        raise SegmentGoneError(f"{segment}: {error.strerror or error}") from error
    except OSError as error:
        raise JournalError(f"{segment}: {error.strerror or error}") from error


def _seal_broken(stream: IO[bytes]) -> Damage | None:
    """What is wrong with a gzipped segment's bytes; None if they are as they were written."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    digest, left = hashlib.sha256(), max(0, size - _SEAL_BYTES)
    while left and (chunk := stream.read(min(left, READ_BYTES))):
        digest.update(chunk)
        left -= len(chunk)
    if stream.read(_SEAL_BYTES + 1) != _seal(digest.hexdigest()):
        return Damage(0, size, "its bytes do not have the SHA-256 that it ends with")
    return None


def _seal(digest: str) -> bytes:
    """An empty gzip member with a comment (RFC 1952): flag 16, and an empty final deflate block."""
    return bytes.fromhex("1f8b08100000000000ff") + digest.encode() + b"\0" + bytes.fromhex("0300") + bytes(8)


def write_gzipped(stream: IO[bytes], pieces: Iterable[bytes]) -> None:
    """Write a segment's bytes as a gzipped segment has them. Raises OSError."""
    digest = hashlib.sha256()

    class Sink:
        def write(self, data: bytes) -> int:
            digest.update(data)
            return stream.write(data)

        def flush(self) -> None: ...

    with gzip.GzipFile(fileobj=cast(IO[bytes], Sink()), mode="wb", compresslevel=_GZIP_LEVEL, filename="", mtime=0) as zipped:
        for piece in pieces:
            zipped.write(piece)
    stream.write(_seal(digest.hexdigest()))


def _run_record(segment: Path, line: bytes) -> dict[str, Any]:
    try:
        return cast(dict[str, Any], json.loads(line[len(RUN) :]))
    except ValueError as error:  # whole, and yet no record: a program of another make wrote it
        raise JournalError(f"{segment}: a run record is not JSON: {error}") from error
