"""Retention: closed segments are deleted in time, and those that stay are compressed."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from sidecar.files import sync_directory, whole_file
from sidecar.journal.blocks import encode_block
from sidecar.journal.segments import JournalError, first_position, journal_segments, whole_blocks, write_gzipped

SURE_S = 3600.0
"""A segment is deleted for its age once the clock has called it too old for so long. A clock that jumps deletes nothing."""


class Retention:
    """Deletes the oldest closed segments that are too old or too much.

    days: a segment last written before so many days is too old; 0 keeps all. max_bytes: of all segments; 0: no limit.
    """

    def __init__(self, state_directory: Path, days: float, max_bytes: int) -> None:
        self._state, self._days, self._max_bytes = state_directory, days, max_bytes
        self._too_old_since: dict[str, float] = {}

    def prune(self, needed_from: int, wall: float, clock: float) -> list[Path]:
        """Delete what has to go; gives the segments deleted, oldest first. Raises OSError.

        needed_from: no segment that holds this position or one after it is deleted. wall: seconds since the epoch; clock:
        `time.monotonic()`.
        """
        segments = journal_segments(self._state)
        about = {segment: segment.stat() for segment in segments}
        total = sum(each.st_size for each in about.values())
        too_old = {each.name for each in segments if self._days and about[each].st_mtime < wall - 86400 * self._days}
        self._too_old_since = {name: self._too_old_since.get(name, clock) for name in too_old}
        deleted = []
        for segment, following in itertools.pairwise(segments):
            surely_old = clock - self._too_old_since.get(segment.name, clock) >= SURE_S
            if first_position(following) > needed_from or not (surely_old or (self._max_bytes and total > self._max_bytes)):
                break
            segment.unlink()
            total -= about[segment].st_size
            deleted.append(segment)
        return deleted


def compress_closed(state_directory: Path, spare_bytes: int) -> None:
    """Gzip all segments but the last, as long as that leaves room. Takes long; safe beside a `Journal` that is written to.

    spare_bytes: the free space of the file system that is left to pairs. A segment that is damaged, or for which there is no
    room, stays as it is. Raises OSError, having removed what it wrote.
    """
    segments = journal_segments(state_directory)
    for segment, following in itertools.pairwise(segments):
        if segment.suffix == ".gz":
            continue
        free = os.statvfs(segment.parent)
        about = segment.stat()
        if free.f_bavail * free.f_frsize < about.st_size + spare_bytes:
            return
        path = Path(f"{segment}.gz")
        try:
            with whole_file(path) as stream:
                blocks = whole_blocks(segment, first_position(following))
                write_gzipped(stream, (encode_block(block.position, block.lines) for block in blocks))
                stream.flush()
                os.utime(stream.fileno(), ns=(about.st_atime_ns, about.st_mtime_ns))
        except JournalError:  # it is damaged: whoever reads it repairs it
            continue
        sync_directory(path.parent)
        segment.unlink()
