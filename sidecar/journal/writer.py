"""The writing end of the journal: each pair is in the journal before it is answered."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sidecar.files import make_directories, sync_directory
from sidecar.journal.blocks import RUN, encode_block, encode_blocks
from sidecar.journal.segments import JournalError, journal_segments

SEGMENT_BYTES = 64 << 20
"""A segment larger than this is closed."""
UNSYNCED_BYTES = 64 << 20
"""What is not surely on disk is kept in memory, up to so much. When there is more, pairs are refused as retryable."""
SYNC_BYTES = 8 << 20
"""An fsync is wanted once so much is not surely on disk, whatever the setting."""
_TRIAL_BYTES = 4096
_ELSEWHERE = "the state directory was removed or replaced; put it back, or restart"


class End(NamedTuple):
    """Where a journal that is whole ends.

    position: of the next pair. segment: the open one, None if the next pair begins another. size: of its whole blocks, in
    bytes. last_run: the line of the last run record, without its newline; None if there is none in the last segment.
    """

    position: int = 0
    segment: Path | None = None
    size: int = 0
    last_run: bytes | None = None


END_OF_NOTHING = End()


class Journal:
    """The writing end. One process at a time: the caller holds the lock of the state directory.

    state_directory: its journal directory is made if it is missing. end: where the journal ends, see `find_end`. fsync:
    "always": after each append; "everysec": the caller runs a `syncer` every second; "never": when the system decides.
    position: of the next pair. last_run: the line of the last run record, None if there is none yet. error: why nothing can be
    appended at present, else empty; `try_again` tries. errors: writes and fsyncs that failed.

    A write that fails is taken back to the last answered byte. What is not surely on disk is kept in memory: after an fsync
    that failed, whoever called it, it is written again before anything else, because a later fsync would succeed without it
    (the kernel calls a page clean once writing it has failed; Rebello et al.: Can applications recover from fsync failures?,
    2020).

    Raises JournalError if the directory cannot be made, or nothing can be written where nothing is yet.
    """

    def __init__(
        self, state_directory: Path, end: End = END_OF_NOTHING, fsync: Literal["always", "everysec", "never"] = "everysec"
    ) -> None:
        self._state, self._fsync = state_directory, fsync
        self._directory = state_directory / "journal"
        self.position, self.last_run = end.position, end.last_run
        self.error, self.errors = "", 0
        self._descriptor: int | None = None
        self._size = end.size  # of the open segment, up to the last answered byte
        self._unsynced: deque[tuple[int, bytes]] = deque()  # what is not surely on disk, with its offset
        self._unsynced_bytes = 0
        self._written_again = True  # False: what is in memory has to be written again
        self._lock = threading.Lock()
        self._syncs = 0  # that run
        self._failure: OSError | None = None  # of an fsync, until the next append sees to it
        self._path: Path | None = None  # of the open segment
        self._in_place = True
        self._day = 0  # days since the epoch, of the open segment
        try:
            make_directories(self._directory)
            if end.segment is not None:
                self._descriptor = os.open(end.segment, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                self._day = _day(os.fstat(self._descriptor).st_mtime)
                os.ftruncate(self._descriptor, end.size)
                os.fsync(self._descriptor)
                self._path = end.segment
            self._place = os.stat(self._directory)
            self._closed_bytes = 0
            if end == END_OF_NOTHING:
                self._try()
            self.measure()
        except OSError as error:
            raise JournalError(f"{self._directory}: {error.strerror or error}") from error

    @property
    def disk_bytes(self) -> int:
        """Of all segments: closed ones as `measure` last found them."""
        return self._closed_bytes + self._size

    def measure(self) -> None:
        """Look how large the closed segments are, which others compress and delete. Raises OSError."""
        closed = journal_segments(self._state)[: None if self._descriptor is None else -1]
        self._closed_bytes = sum(segment.stat().st_size for segment in closed)

    def append(self, lines: Sequence[bytes], run: dict[str, Any] | None = None) -> None:
        """Write pairs, as they came and without newlines, in one piece.

        run: what these and the pairs after them are trained with, where that is another one. Raises JournalError if it fails.
        Then nothing of it is in the journal.
        """
        record = [] if run is None else [_record(run)]
        self._append([*record, *lines], pairs=len(lines))
        if record:
            (self.last_run,) = record

    def append_run(self, run: dict[str, Any]) -> None:
        """Write what the pairs after this are trained with. Raises JournalError as `append`."""
        before = self.last_run
        self.last_run = _record(run)
        try:
            if self._size:
                self._append([self.last_run], pairs=0)
        except JournalError:
            self.last_run = before
            raise

    @property
    def wants_sync(self) -> bool:
        """So much is not surely on disk that it should not wait for the next second."""
        return self._unsynced_bytes > SYNC_BYTES and not self._syncs

    def syncer(self) -> Callable[[], None] | None:
        """What brings all that was appended so far to disk, to be called once, on any thread; None if it is there.

        It raises OSError. The journal knows of that by itself.
        """
        with self._lock:
            if self._descriptor is None or not self._unsynced:
                return None  # a segment is on disk when it is closed
            descriptor, size = os.dup(self._descriptor), self._size
            self._syncs += 1

        def sync() -> None:
            try:
                os.fsync(descriptor)
            except OSError as error:
                with self._lock:
                    self._failure = error
                raise
            else:
                with self._lock:
                    self._is_on_disk(size)
            finally:
                with self._lock:
                    self._syncs -= 1
                os.close(descriptor)

        return sync

    def check(self) -> OSError | None:
        """The failure of an fsync since the last look, if there was one: then nothing is accepted until it is mended."""
        if self._failure is None:  # as nearly always; reading it needs no lock
            return None
        with self._lock:
            failure, self._failure = self._failure, None
        if failure is not None:
            self._written_again = False
            self._failed(failure)
        return failure

    def check_place(self) -> bool:
        """Whether what it writes is still what stands in the directory. If not, nothing is accepted until it is there again."""
        try:
            if self._path is None:
                there, mine = os.stat(self._directory), self._place
            else:
                assert self._descriptor is not None
                there, mine = os.stat(self._path, follow_symlinks=False), os.fstat(self._descriptor)
            in_place = (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
        except OSError:
            in_place = False
        if not in_place and self._in_place:
            self._failed(OSError(errno.ESTALE, _ELSEWHERE))
        self._in_place = in_place
        return in_place

    def try_again(self) -> bool:
        """Whether pairs can be appended again, if they could not: tries it, and leaves nothing behind."""
        if self.error:
            try:
                if not self.check_place():
                    raise OSError(errno.ESTALE, _ELSEWHERE)
                self._mend()
                self._try()
                self.error = ""
            except OSError as error:
                self.error = _reason(error)
                with contextlib.suppress(OSError):
                    self._take_back()
        return not self.error

    def _try(self) -> None:
        """Write something and take it back. Raises OSError. What a crash would leave of it is what it leaves of any write."""
        if self._descriptor is None:
            self._begin_segment()
        self._write_at(self._size, encode_block(self.position, [bytes(2 * _TRIAL_BYTES)])[:_TRIAL_BYTES])
        self._take_back()

    def roll(self) -> bool:
        """Close the segment, if it holds anything: the next pair begins another. Raises OSError.

        False if that has to wait, because an fsync of it is still running: its failure would come too late.
        """
        self.check()
        if self._descriptor is None or not self._size:
            return True
        with self._lock:
            if self._syncs or not self._written_again:
                return False
        self._sync()
        self._closed_bytes += self._size
        self._path, self._size = None, 0
        self._let_go()
        return True

    def roll_daily(self, now: float) -> None:
        """Close a segment of an earlier day (UTC). now: seconds since the epoch. Raises OSError."""
        if self._descriptor is not None and not self.error and self._day != _day(now):
            self.roll()

    def close(self) -> None:
        """Bring all to disk and let go of the file."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._mend()
                self._sync()
            self._let_go()

    def _let_go(self) -> None:
        """Close the file, which is on disk. A system that says that this has failed has closed it all the same."""
        descriptor, self._descriptor = self._descriptor, None
        assert descriptor is not None
        with contextlib.suppress(OSError):
            os.close(descriptor)

    def _append(self, lines: list[bytes], pairs: int) -> None:
        try:
            self.check()
            if not self._in_place:
                raise OSError(errno.ESTALE, _ELSEWHERE)
            self._mend()
            if self.error:  # what has failed may be there still, and be longer than what comes now
                self._take_back()
            if self._size > SEGMENT_BYTES:
                self.roll()
            if self._descriptor is None:
                self._begin_segment()
            if not self._size and self.last_run is not None and lines != [self.last_run]:
                lines = [self.last_run, *lines]
            data = encode_blocks(self.position, lines)
            self._write_at(self._size, data)
            if self._fsync == "always":
                assert self._descriptor is not None
                os.fsync(self._descriptor)
        except OSError as error:
            self._failed(error)
            with contextlib.suppress(OSError):
                self._take_back()
            raise JournalError(f"journal: {self.error}") from error
        self._size += len(data)
        self.position += pairs
        if self._fsync != "always":
            with self._lock:
                self._unsynced.append((self._size - len(data), data))
                self._unsynced_bytes += len(data)
        self.error = ""

    def _write_at(self, offset: int, data: bytes) -> None:
        assert self._descriptor is not None
        written = os.pwrite(self._descriptor, data, offset)
        while written < len(data):
            written += os.pwrite(self._descriptor, data[written:], offset + written)

    def _mend(self) -> None:
        """Write again from memory what an fsync that failed may have lost, and bring it to disk.

        Raises OSError, also while too much is not surely on disk.
        """
        if not self._written_again and self._descriptor is not None:
            if self._syncs:  # its failure would come too late
                raise OSError(errno.EBUSY, "an fsync is still running")
            for offset, data in [*self._unsynced]:
                self._write_at(offset, data)
            os.fsync(self._descriptor)
            self._written_again = True
            with self._lock:
                self._is_on_disk(self._size)
        if self._unsynced_bytes > UNSYNCED_BYTES:
            raise OSError(errno.EAGAIN, f"{self._unsynced_bytes >> 20} MiB are still on their way to the disk")

    def _sync(self) -> None:
        """Bring the open segment to disk. Raises OSError; then all that is in memory has to be written again."""
        assert self._descriptor is not None
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._written_again = False
            self._failed(error)
            raise
        with self._lock:
            self._is_on_disk(self._size)

    def _is_on_disk(self, size: int) -> None:
        """Forget what is surely on disk: all up to a size, unless an fsync has failed since. The caller holds the lock."""
        if self._failure is None and self._written_again:
            while self._unsynced and self._unsynced[0][0] < size:
                self._unsynced_bytes -= len(self._unsynced.popleft()[1])

    def _failed(self, error: OSError) -> None:
        self.error = _reason(error)
        self.errors += 1

    def _take_back(self) -> None:
        """Back to the last answered byte. Raises OSError; what is left there then is no whole block, or is overwritten."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, self._size)
            if self._fsync == "always":
                os.fsync(self._descriptor)

    def _begin_segment(self) -> None:
        path = self._directory / f"{self.position:012d}.jsonl"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            if os.fstat(descriptor).st_size:
                raise OSError(errno.EEXIST, f"{path.name} holds something already")
            sync_directory(self._directory)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor, self._path, self._size, self._day = descriptor, path, 0, _day(time.time())


def _record(run: dict[str, Any]) -> bytes:
    return RUN + json.dumps(run, separators=(",", ":"), sort_keys=True).encode()


def _day(seconds: float) -> int:
    return int(seconds // 86400)


def _reason(error: OSError) -> str:
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]
