"""Retention: closed segments are compressed, and in time deleted."""

from __future__ import annotations

import itertools
from pathlib import Path

from sidecar.journal.segments import READ_BYTES, first_position, journal_segments, write_segment


def compress_closed(state_directory: Path) -> None:
    """Gzip all segments but the last. Takes long; safe beside a `Journal` that is written to. Raises OSError."""
    for segment in journal_segments(state_directory)[:-1]:
        if segment.suffix != ".gz":
            with segment.open("rb") as plain:
                write_segment(Path(f"{segment}.gz"), iter(lambda: plain.read(READ_BYTES), b""), like=segment)
            segment.unlink()


def prune(state_directory: Path, needed_from: int, oldest: float, max_bytes: int) -> list[Path]:
    """Delete the oldest closed segments that are too old or too much; gives those deleted.

    needed_from: no segment that holds this position or one after it is deleted. oldest: seconds since the epoch; a segment
    last written before is too old; 0 keeps all. max_bytes: of all segments together; 0: no limit. Raises OSError.
    """
    segments = journal_segments(state_directory)
    sizes = {segment: segment.stat().st_size for segment in segments}
    total = sum(sizes.values())
    deleted = []
    for segment, following in itertools.pairwise(segments):
        too_old = segment.stat().st_mtime < oldest
        too_much = max_bytes and total > max_bytes
        if first_position(following) > needed_from or not (too_old or too_much):
            break
        segment.unlink()
        total -= sizes[segment]
        deleted.append(segment)
    return deleted
