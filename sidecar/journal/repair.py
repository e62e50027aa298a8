"""Repairing a journal: damage costs the pairs that it took, and no more."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from sidecar.files import remove_leftovers, sync_directory, whole_file
from sidecar.journal.blocks import LOST, RUN, Damage, encode_block
from sidecar.journal.segments import first_position, journal_segments, whole_blocks, write_gzipped
from sidecar.journal.writer import End

_log = logging.getLogger(__name__)
KeepAside = Callable[[Path, str], object]
"""Keeps a copy of a damaged file, before it is replaced, with what is wrong with it."""


def find_end(state_directory: Path, keep_aside: KeepAside, known_end: Callable[[], int] = lambda: 0) -> End:
    """Where a journal ends, the last segment repaired if it is damaged. Removes what a crash left. Raises OSError,
    JournalError.

    known_end: gives the position up to which a snapshot holds the pairs, which tells how many a damaged segment had. Where
    there is no room for the repair, another segment begins. The caller holds the lock of the state directory.
    """
    directory = state_directory / "journal"
    remove_leftovers(directory)
    for path in directory.glob("*.jsonl.gz"):
        if path.with_suffix("").exists():  # a crash between the two; the plain one is whole
            path.unlink()
    segments = journal_segments(state_directory)
    if not segments:
        return End()
    last = segments[-1]
    end, is_whole = _end_of(last)
    if is_whole:
        return end
    if try_to_repair(last, None, keep_aside, known := known_end()):
        return find_end(state_directory, keep_aside)
    end = end._replace(position=max(end.position, known))
    another = directory / f"{end.position:012d}.jsonl"
    another.touch()
    sync_directory(directory)
    return end._replace(segment=another)


def _end_of(segment: Path) -> tuple[End, bool]:
    """Where the journal ends if this is its last segment, and whether that is whole; another has to follow one that is not."""
    found: list[Damage] = []
    position, size, last_run = first_position(segment), 0, None
    for block in whole_blocks(segment, None, lambda segment, damage: found.append(damage)):
        position = block.end
        size += len(encode_block(block.position, block.lines))
        last_run = next((line for line in reversed(block.lines) if line.startswith(RUN)), last_run)
    if found:
        return End(max([position, *(damage.end for damage in found)]), None, 0, last_run), False
    return (End(position, None, 0, last_run) if segment.suffix == ".gz" else End(position, segment, size, last_run)), True


def try_to_repair(segment: Path, end: int | None, keep_aside: KeepAside, known_end: int = 0) -> bool:
    """As `repair`. False if there is no room for it: then the segment stays as it is, and readers pass over the damage."""
    try:
        repair(segment, end, keep_aside, known_end)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _log.warning("%s: damaged, and there is no room to write it anew: %s", segment, error.strerror)
        return False
    return True


def repair(segment: Path, end: int | None, keep_aside: KeepAside, known_end: int = 0) -> None:
    """Write a damaged segment anew: its whole blocks, and `#lost` in the place of each pair that is not in one.

    end: the position at which the next segment begins, None for the last one; known_end: up to which it is known to have held
    pairs all the same. A segment of which nothing is whole, and of which
    nobody knows how many pairs it had, is removed. Raises OSError, JournalError.
    """
    reasons: list[Damage] = []
    for _ in whole_blocks(segment, end, lambda segment, damage: reasons.append(damage)):
        pass
    keep_aside(segment, "; ".join(dict.fromkeys(damage.reason for damage in reasons)) or "damaged")
    blocks = [*_whole(segment, end, max([known_end, *(damage.end for damage in reasons)]))]
    if not blocks:
        segment.unlink()
    else:
        replace_segment(segment, iter(blocks))
    sync_directory(segment.parent)


def _whole(segment: Path, end: int | None, known_end: int) -> Iterator[bytes]:
    position = first_position(segment)
    for block in whole_blocks(segment, end, lambda segment, damage: None):
        yield from _lost(position, block.position)
        yield encode_block(block.position, block.lines)
        position = block.end
    yield from _lost(position, known_end if end is None else end)


def _lost(position: int, end: int) -> Iterator[bytes]:
    if position < end:
        yield encode_block(position, [LOST] * (end - position))


def replace_segment(segment: Path, blocks: Iterator[bytes]) -> None:
    """Write a segment anew, whole or not at all, with the times of the old one, by which retention goes. Raises OSError."""
    times = segment.stat()
    with whole_file(segment) as stream:
        if segment.suffix == ".gz":
            write_gzipped(stream, blocks)
        else:
            for block in blocks:
                stream.write(block)
        stream.flush()
        os.utime(stream.fileno(), ns=(times.st_atime_ns, times.st_mtime_ns))
    sync_directory(segment.parent)
