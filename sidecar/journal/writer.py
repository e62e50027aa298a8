"""The writing end of the journal: each pair durable before it is answered."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from sidecar.files import sync_directory
from sidecar.journal.segments import READ_BYTES, RUN, JournalError, first_position, journal_segments, segment_lines

_TRIAL_BYTES = 4096
SEGMENT_BYTES = 64 << 20
"""A segment larger than this is closed."""


class Journal:
    """The writing end. One process at a time: the caller holds the lock of the state directory.

    state_directory: made where it is missing. fsync: "always": after each append; "everysec": the caller runs a `syncer` every
    second; "never": left to the system. position: of the next pair. last_run: the line of the last run record, None where there
    is none in the last segment. error: why nothing can be appended at present, else empty.

    A write that fails is taken back to the last answered byte. What a `syncer` could not bring to disk may be lost though a
    later fsync succeeds (the kernel calls a page clean once its writing has failed): it is written again before all else.

    Raises JournalError where the directory cannot be written, or the last segment is damaged.
    """

    def __init__(self, state_directory: Path, fsync: Literal["always", "everysec", "never"] = "everysec") -> None:
        self._state, self._fsync = state_directory, fsync
        self._directory = state_directory / "journal"
        self.last_run: bytes | None = None  # with what pairs are trained: each segment begins with it
        self._descriptor: int | None = None
        self._size = 0  # of the open segment, up to the last answered byte
        self._synced = 0  # how much of it is on disk for sure
        self._begun = 0  # segments, by which a `syncer` knows whether its own is still the open one
        self._day = 0  # days since the epoch, of the open segment
        self._suspect = False  # what is not `_synced` has to be written again
        self._broken = False
        self.error = ""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            segments = journal_segments(state_directory)
            self.position = 0
            if segments:
                self._open_last(segments[-1])
            self.measure()
        except OSError as error:
            raise JournalError(f"{self._directory}: {error.strerror or error}") from error

    def _open_last(self, segment: Path) -> None:
        self.position = first_position(segment)
        for line in segment_lines(segment):
            if line.startswith(RUN):
                self.last_run = line + b"\n"
            else:
                self.position += 1
        if segment.suffix != ".gz":
            self._descriptor = os.open(segment, os.O_RDWR | os.O_CLOEXEC)
            self._day = _day(segment.stat().st_mtime)
            self._cut_torn_line(segment)

    @property
    def disk_bytes(self) -> int:
        """Of all segments: closed ones as `measure` last found them."""
        return self._closed_bytes + self._size

    def measure(self) -> None:
        """Look how large the closed segments are, which others compress and delete. Raises OSError."""
        closed = journal_segments(self._state)[: None if self._descriptor is None else -1]
        self._closed_bytes = sum(segment.stat().st_size for segment in closed)

    def append(self, lines: Sequence[bytes]) -> None:
        """Write pairs, as they came and without newlines, in one piece.

        Raises JournalError where that fails; then nothing of it is in the journal, or, where even that cannot be brought
        about, nothing is accepted until a restart.
        """
        self._write(b"\n".join(lines) + b"\n")
        self.position += len(lines)

    def append_run(self, run: dict[str, Any]) -> None:
        """Write what the pairs after this are trained with. Raises JournalError as `append`."""
        before = self.last_run
        self.last_run = RUN + json.dumps(run, separators=(",", ":"), sort_keys=True).encode() + b"\n"
        try:
            self._write(self.last_run if self._size else b"")
        except JournalError:
            self.last_run = before
            raise

    def syncer(self) -> Callable[[], object] | None:
        """What brings all that was appended so far to disk, to be called once, on any thread; None where it is there.

        It raises OSError; `sync_failed` has to be told of that.
        """
        if self._descriptor is None or self._synced >= self._size:
            return None  # a segment is on disk when it is closed
        descriptor, size, begun = os.dup(self._descriptor), self._size, self._begun

        def sync() -> None:
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if begun == self._begun and not self._suspect:
                self._synced = max(self._synced, min(size, self._size))

        return sync

    def sync_failed(self, error: OSError) -> None:
        """What a `syncer` was to bring to disk may not be there: nothing is accepted until it was written again."""
        self._suspect = True
        self.error = _reason(error)

    def try_again(self) -> bool:
        """Whether pairs can be appended again, where they could not: tries it, and leaves nothing behind."""
        if self.error and not self._broken:
            try:
                self._make_good()
                if self._descriptor is None:
                    self._begin_segment()
                self._write_at_end(bytes(_TRIAL_BYTES))
                self.error = ""
            except OSError as error:
                self.error = _reason(error)
            self._take_back()
        return not self.error

    def roll(self) -> None:
        """Close the segment, where it holds anything: the next pair begins another. Raises OSError."""
        if self._descriptor is not None and self._size:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._closed_bytes += self._size
            self._descriptor, self._size, self._synced = None, 0, 0

    def roll_daily(self, now: float) -> None:
        """Close a segment of an earlier day (UTC). now: seconds since the epoch. Raises OSError."""
        if self._descriptor is not None and not self.error and self._day != _day(now):
            self.roll()

    def close(self) -> None:
        """Bring all to disk and let go of the file."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, data: bytes) -> None:
        if self._broken:
            raise JournalError(f"journal: {self.error}; restart the sidecar")
        try:
            self._make_good()
            if self._size > SEGMENT_BYTES:
                self.roll()
            if self._descriptor is None:
                self._begin_segment()
            if not self._size:
                data = (self.last_run or b"") + data
            self._write_at_end(data)
            if self._fsync == "always":
                self._sync()
        except OSError as error:
            self.error = _reason(error)
            self._take_back()
            raise JournalError(f"journal: {self.error}") from error
        self._size += len(data)
        if self._fsync == "always":
            self._synced = self._size
        self.error = ""

    def _write_at_end(self, data: bytes) -> None:
        self._write_at(self._size, data)

    def _write_at(self, offset: int, data: bytes) -> None:
        assert self._descriptor is not None
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._descriptor, rest, offset)
            rest, offset = rest[written:], offset + written

    def _sync(self) -> None:
        assert self._descriptor is not None
        os.fsync(self._descriptor)

    def _make_good(self) -> None:
        """Write again what may not be on disk."""
        if self._suspect:
            assert self._descriptor is not None
            self._write_at(self._synced, os.pread(self._descriptor, self._size - self._synced, self._synced))
            self._sync()
            self._synced, self._suspect = self._size, False

    def _take_back(self) -> None:
        """Back to the last answered byte."""
        if self._descriptor is None:
            return
        try:
            os.ftruncate(self._descriptor, self._size)
            if self._fsync == "always":
                self._sync()
        except OSError as error:
            self._broken = True
            self.error = f"what could not be written could not be taken back either: {_reason(error)}"

    def _begin_segment(self) -> None:
        path = self._directory / f"{self.position:012d}.jsonl"
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._begun += 1
        self._size, self._synced, self._day = os.fstat(self._descriptor).st_size, 0, _day(time.time())
        sync_directory(self._directory)

    def _cut_torn_line(self, segment: Path) -> None:
        """Cut off what a crash left after the last newline: it was never answered."""
        assert self._descriptor is not None
        size = segment.stat().st_size
        with segment.open("rb") as stream:
            keep = size
            while keep:
                start = max(0, keep - READ_BYTES)
                stream.seek(start)
                newline = stream.read(keep - start).rfind(b"\n")
                if newline >= 0:
                    keep = start + newline + 1
                    break
                keep = start
        if keep < size:
            os.ftruncate(self._descriptor, keep)
            os.fsync(self._descriptor)
        self._size = keep  # of which nobody knows how much is on disk: the next sync brings it there

    def _remove_leftovers(self) -> None:
        """What a crash left of compressing: a half-made file, or both forms of a segment, of which the plain one is whole."""
        for path in self._directory.iterdir():
            if path.suffix == ".tmp" or (path.suffix == ".gz" and path.with_suffix("").exists()):
                path.unlink()


def _day(seconds: float) -> int:
    return int(seconds // 86400)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
