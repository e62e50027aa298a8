"""Work that is done every now and then: fsync of the journal, snapshots, housekeeping. And what happens when it fails.

Each may have to wait for the disk, so each runs on another thread; nothing here holds up an answer.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from concurrent.futures import Executor, Future
from typing import Any

from sidecar.journal.retention import Retention, compress_closed
from sidecar.journal.writer import SEGMENT_BYTES
from sidecar.log import Complaints, event
from sidecar.monitoring.history import History, write_history
from sidecar.online.training import OnlineTraining
from sidecar.settings import Settings

_log = logging.getLogger(__name__)
SYNC_S = 1.0
HOUSEKEEPING_S = 60.0


class Every:
    """Says at most once in so many seconds that something is due, the first time at once."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._next = seconds, 0.0

    def is_due(self, now: float) -> bool:
        """now: seconds, of a clock that does not go back. A time that is due begins the next wait."""
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


class Maintenance:
    """Looks after the state directory of `online` while it serves.

    worker: writes snapshots, compresses, deletes. syncer: brings the journal to disk, which must not wait for those.
    """

    def __init__(
        self, settings: Settings, online: OnlineTraining, history: History, worker: Executor, syncer: Executor
    ) -> None:
        self._settings, self._online, self._history = settings, online, history
        self._worker, self._syncer = worker, syncer
        self._complaints = Complaints(_log)
        self._syncing: Future[object] | None = None
        self._writing: Future[object] | None = None
        self._each_sync, self._each_housekeeping = Every(SYNC_S), Every(HOUSEKEEPING_S)
        self._each_snapshot = Every(settings.snapshot_interval)
        self._disk_free: int | None = None
        self._retention = Retention(settings.state, settings.journal_retention_days, settings.journal_max_bytes)

    def turn(self, now: float) -> None:
        """Begin what is due, and look after what has ended. now: `time.monotonic()`."""
        if self._each_sync.is_due(now):
            self._look_after_journal()
        if self._online.journal.wants_sync:
            self.sync()
        if self._is_idle() and self._each_snapshot.is_due(now):
            self._snapshot()
        if self._is_idle() and self._each_housekeeping.is_due(now):
            self._writing = self._worker.submit(self._keep_house)
            with contextlib.suppress(OSError):  # the next pair tries again
                self._online.journal.roll_daily(time.time())

    def as_status(self) -> dict[str, Any]:
        """The field of a `Status` that is about the disk."""
        return {"disk_free_bytes": self._disk_free}

    def finish(self) -> None:
        """Write the state and the history, and wait for that."""
        self._wait()
        self._snapshot()
        self._wait()
        try:
            write_history(self._settings.state, self._history)
        except OSError as error:
            _log.warning("%s: the history was not written: %s", self._settings.state, error.strerror)

    def _look_after_journal(self) -> None:
        """See whether an fsync has failed, and begin one. If the journal cannot be written, try whether it can be now."""
        journal = self._online.journal
        if not journal.check_place():
            self._complaints.warn("place", "%s: the state directory was removed or replaced", self._settings.state)
        if (error := journal.check()) is not None:
            event(_log, "the journal could not be brought to disk", logging.ERROR, error=error.strerror or str(error))
        if journal.error:
            if journal.try_again():
                event(_log, "the journal can be written again", position=journal.position)
        elif self._settings.journal_fsync == "everysec":
            self.sync()

    def sync(self) -> None:
        """Begin an fsync of the journal, if none is running. The journal knows by itself if it fails."""
        if self._syncing is None or self._syncing.done():
            try:
                sync = self._online.journal.syncer()
            except OSError as error:  # no file descriptor is left, say
                self._complaints.warn("fsync", "the journal cannot be brought to disk now: %s", error.strerror)
                return
            self._syncing = None if sync is None else self._syncer.submit(sync)

    def _snapshot(self) -> None:
        write = self._online.snapshot()
        if write is not None:
            self._writing = self._worker.submit(write)

    def _keep_house(self) -> None:
        """Delete what retention asks for, then compress: that needs room, and must not stand before what makes room."""
        settings, journal = self._settings, self._online.journal
        self._disk_free = shutil.disk_usage(settings.state).free
        for segment in self._retention.prune(self._online.needed_from(), time.time(), time.monotonic()):
            event(_log, "journal segment deleted by retention", segment=segment.name)
        compress_closed(settings.state, spare_bytes=SEGMENT_BYTES)
        journal.measure()
        write_history(settings.state, self._history)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.exception()
            self._is_idle()

    def _is_idle(self) -> bool:
        """Nothing is being written. What could not be written is logged, and will be written again."""
        if self._writing is None or not self._writing.done():
            return self._writing is None
        if (error := self._writing.exception()) is not None:
            self._complaints.warn("state", "%s: %s", self._settings.state, error)
            self._online.snapshot_failed()
        self._writing = None
        return True
