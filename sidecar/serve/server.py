"""`serve`: one thread talks and trains; others write checkpoints and snapshots, fsync the journal, and answer HTTP.

A step costs tens of microseconds, so the thread that talks runs it inline: read what has arrived, journal all whole lines with
one write, train, answer with one write. Here are the start, the signals, what is done now and then, and the end.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from sidecar.checkpoints.directory import CheckpointError, check_writable
from sidecar.journal.retention import compress_closed, prune
from sidecar.journal.segments import JournalError
from sidecar.learning.metrics import plcc, rmse
from sidecar.log import Complaints, event
from sidecar.models.base_model import BaseModel
from sidecar.monitoring.history import History, read_history, write_history
from sidecar.monitoring.status import Phase, Status, one_line
from sidecar.network.connections import MAX_CONNECTIONS, Connections
from sidecar.network.unix_socket import ListenError, identity_of, listen, remove
from sidecar.online.checkpoints import Checkpointing
from sidecar.online.start import where_to_start
from sidecar.online.training import OnlineTraining
from sidecar.pairs.line_protocol import Answer
from sidecar.settings import Settings, SettingsError, env_of
from sidecar.state.directory import StateError

_log = logging.getLogger(__name__)
_TICK_S = 0.2
_SYNC_S = 1.0
_HOUSEKEEPING_S = 60.0
_MOST_KINDS = 16
_KIND_CHARACTERS = 60
_SWITCH_S = 0.0001
"""How long the other threads may hold the interpreter when the one that answers wants it; Python's own 5 ms would show."""


def serve(settings: Settings) -> None:
    """Run the sidecar with its HTTP endpoints, until SIGTERM or SIGINT.

    Raises SettingsError where it cannot begin with these.
    """
    try:
        Server(settings).run()
    except (ListenError, StateError, JournalError, CheckpointError) as error:
        raise SettingsError(str(error)) from error


class _StoppedError(Exception):
    """A signal came before there was anything to serve."""


class Server:
    """The sidecar. `status` is what it says of itself, at any moment, to any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.status = Status(phase="initializing", progress=time.monotonic())
        self._stopping = self._publish_now = False
        self._failed = ""
        self._announce = ""
        self._step_seconds: float | None = None
        self._steps_run, self._steps_took = 0, 0.0  # since that was measured
        self._complaints = Complaints(_log)
        self._rejected: dict[str, int] = {}
        self._history = History()
        self._next_sync = self._next_snapshot = self._next_housekeeping = self._next_told = 0.0
        self._syncing: Future[object] | None = None
        self._writing: Future[object] | None = None

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises SettingsError, ListenError, StateError, JournalError or CheckpointError before it serves, where it cannot.
        """
        settings = self._settings
        event(_log, "starting", **_told(settings))
        _make_directory(settings.checkpoint_dir)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._signals())
            stack.enter_context(_quick_switches())
            worker = stack.enter_context(ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker"))
            syncer = stack.enter_context(ThreadPoolExecutor(max_workers=1, thread_name_prefix="fsync"))
            if settings.http:
                stack.callback(self._start_http(settings.http))
            try:
                online, base = self._recover(worker)
            except _StoppedError:
                event(_log, "stopped", phase="initializing")
                return
            self._online, self._worker, self._syncer = online, worker, syncer
            stack.callback(online.close)
            listener = listen(settings.socket, settings.socket_mode)
            stack.callback(remove, settings.socket, listener, identity_of(settings.socket))
            _allow_descriptors(MAX_CONNECTIONS + 64)
            self._connections = connections = Connections(listener, self._answers)
            stack.callback(connections.close)
            signal.set_wakeup_fd(connections.wake_descriptor, warn_on_full_buffer=False)
            stack.callback(signal.set_wakeup_fd, -1)
            self._checkpointing = Checkpointing(settings, base, online, worker, connections.wake)
            gc.freeze()  # what is there now stays: a collection of the oldest generation need not look at it again
            self._tell(accepting=True)
            event(_log, "listening", socket=str(settings.socket), phase=self.status.phase)
            while not self._stopping:
                connections.turn(0.0 if online.has_work else _TICK_S)
                self._turn()
            self._finish()

    # The start.

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: object) -> None:
            self._stopping = True

        def publish(number: int, frame: object) -> None:
            self._publish_now = True

        handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGUSR1: publish}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start_http(self, address: str) -> Any:
        from sidecar.monitoring.pages import Pages
        from sidecar.network.http import start_http  # here, since a sidecar without HTTP need not load it

        settings = self._settings
        pages = Pages(lambda: self.status, lambda: self._history, settings.checkpoint_dir, _told(settings))
        try:
            return start_http(address, pages.look_up).close
        except (ValueError, OSError) as error:
            raise SettingsError(f"{env_of('http')}={address!r}: {error}") from error

    def _recover(self, worker: ThreadPoolExecutor) -> tuple[OnlineTraining, BaseModel | None]:
        settings, started = self._settings, time.monotonic()
        base, begins_with, run, self._failed = where_to_start(settings)
        if self._failed:
            event(_log, "phase failed: pairs are recorded, none trains", logging.ERROR, reason=self._failed)

        def progress(pairs: int) -> None:
            self.status = replace(self.status, progress=time.monotonic(), position=self.status.position + pairs)
            if self._stopping:
                raise _StoppedError

        fsync, train = settings.journal_fsync, not self._failed
        online = OnlineTraining(settings.state, run, begins_with, fsync, train, worker, progress)
        self._history = read_history(settings.state)
        event(
            _log, "recovered", position=online.journal.position, trained_again=online.recovered,
            seconds=round(time.monotonic() - started, 3), step=online.learner.trainer.step,
        )  # fmt: skip
        return online, base

    # Request lines.

    def _answers(self, lines: list[bytes]) -> list[Answer]:
        online = self._online
        rejected = online.counts.rejected
        answers = online.accept(lines)
        if online.counts.rejected > rejected:
            self._complain(answers)
        if self._announce:
            accepted = next((answer for answer in answers if answer.ok is True), None)
            if accepted is not None:
                accepted.checkpoint, self._announce = self._announce, ""
        return answers

    def _complain(self, answers: list[Answer]) -> None:
        for answer in answers:
            if answer.ok is False and answer.retryable is not True:
                kind = str(answer.error).partition(":")[0].partition("[")[0]
                self._complaints.warn(kind, "a pair was refused: %s", answer.error)
                kind = one_line(kind)[:_KIND_CHARACTERS]
                if kind not in self._rejected and len(self._rejected) == _MOST_KINDS:
                    kind = "other"
                self._rejected[kind] = self._rejected.get(kind, 0) + 1

    def _steps(self) -> int:
        return 0 if self._online.busy else self._online.learner.trainer.step

    # What is done now and then.

    def _turn(self) -> None:
        online, now = self._online, time.monotonic()
        if online.has_work or online.busy:
            self._catch_up()
        if self._publish_now:
            self._publish_now = False
            self._checkpointing.request()
        self._announce = self._checkpointing.turn() or self._announce
        if now >= self._next_sync:
            self._next_sync = now + _SYNC_S
            self._sync()
        if now >= self._next_snapshot and self._is_done(self._writing):
            self._next_snapshot = now + self._settings.snapshot_interval
            self._snapshot()
        if now >= self._next_housekeeping and self._is_done(self._writing):
            self._next_housekeeping = now + _HOUSEKEEPING_S
            self._writing = self._worker.submit(self._keep_house)
            with contextlib.suppress(OSError):  # it is tried again with the next pair
                online.journal.roll_daily(time.time())
        if now >= self._next_told:
            self._next_told = now + _TICK_S
            self._tell(accepting=True)

    def _catch_up(self) -> None:
        """Run a step that is left, or some of the pairs that wait; and see how long steps take."""
        steps, started = self._steps(), time.perf_counter()
        self._online.catch_up()
        if (run := self._steps() - steps) > 0:
            self._steps_run += run
            self._steps_took += time.perf_counter() - started
            if not self._online.learner.trainer.steps_left:
                self._step_seconds = self._steps_took / self._steps_run
                self._steps_run, self._steps_took = 0, 0.0

    def _sync(self) -> None:
        """Bring the journal to disk, on a thread of its own; where the journal cannot be written, try whether it can now."""
        journal = self._online.journal
        if self._syncing is not None:
            if not self._syncing.done():
                return
            error, self._syncing = self._syncing.exception(), None
            if isinstance(error, OSError):
                journal.sync_failed(error)
                self._online.counts.journal_errors += 1
                event(_log, "the journal could not be brought to disk", logging.ERROR, error=error.strerror or str(error))
            elif error is not None:
                raise error
        if journal.error:
            if journal.try_again():
                event(_log, "the journal can be written again", position=journal.position)
        elif self._settings.journal_fsync == "everysec" and (sync := journal.syncer()) is not None:
            self._syncing = self._syncer.submit(sync)

    def _is_done(self, future: Future[object] | None) -> bool:
        if future is None or not future.done():
            return future is None
        if (error := future.exception()) is not None:
            self._complaints.warn("state", "%s: %s", self._settings.state, error)
            self._online.snapshot_failed()
        self._writing = None
        return True

    def _snapshot(self) -> None:
        write = self._online.snapshot()
        if write is not None:
            self._writing = self._worker.submit(write)

    def _keep_house(self) -> None:
        settings, journal = self._settings, self._online.journal
        compress_closed(settings.state)
        oldest = time.time() - settings.journal_retention_days * 86400 if settings.journal_retention_days else 0.0
        for segment in prune(settings.state, self._online.needed_from(), oldest, settings.journal_max_bytes):
            event(_log, "journal segment deleted by retention", segment=segment.name)
        journal.measure()
        write_history(settings.state, self._history)

    def _finish(self) -> None:
        """Answer what was read, publish what was trained since the last checkpoint, write the state down."""
        event(_log, "stopping")
        self._tell(accepting=False)
        online = self._online
        self._connections.finish()
        online.wait()
        self._checkpointing.finish()
        if self._writing is not None:
            self._writing.exception()
            self._is_done(self._writing)
        self._snapshot()
        if self._writing is not None:
            self._writing.exception()
            self._is_done(self._writing)
        self._tell(accepting=False)
        try:
            write_history(self._settings.state, self._history)
        except OSError as error:
            _log.warning("%s: the history of the status was not written: %s", self._settings.state, error.strerror)
        event(_log, "stopped", position=online.journal.position, step=self.status.step, **self.status.pairs)

    def _tell(self, accepting: bool) -> None:
        """Make the status that others read."""
        online = self._online
        learner, trainer, counts = online.learner, online.learner.trainer, online.counts
        failed = self._failed or online.failed
        phase: Phase = "running"
        if failed:
            phase = "failed"
        elif online.journal.error:
            phase = "paused"
        elif online.busy or trainer.ema is None:
            phase = "initializing"
        seen = trainer.prequential.rows()
        correlation = plcc(seen[:, 0], seen[:, 1])
        too_long = self._connections.too_long
        self.status = replace(
            self.status,
            phase=phase,
            reason=failed or (f"journal: {online.journal.error}" if online.journal.error else ""),
            accepting=accepting,
            progress=time.monotonic(),
            n_features=learner.run.n_features,
            position=online.journal.position,
            step=self._steps(),
            pairs={
                "accepted": counts.accepted - counts.held_out, "held_out": counts.held_out,
                "duplicate": counts.duplicate, "rejected": counts.rejected + too_long,
            },
            rejected=self._rejected | ({"line too long": too_long} if too_long else {}),
            loss=online.loss,
            prequential_rmse=rmse(seen[:, 0], seen[:, 1]) if len(seen) else None,
            prequential_plcc=None if math.isnan(correlation) else correlation,
            feature_drift=trainer.drift.largest if trainer.drift and trainer.trained else None,
            step_seconds=self._step_seconds,
            replay_size=len(trainer.replay),
            replay_capacity=trainer.replay.capacity,
            replay_evictions=trainer.replay.evictions,
            held_out_size=len(learner.held_out),
            held_out_capacity=learner.held_out.capacity,
            connections=len(self._connections),
            journal_bytes=online.journal.disk_bytes,
            journal_errors=counts.journal_errors,
            skipped_steps=trainer.skipped_steps,
            **self._checkpointing.as_status(),
        )  # fmt: skip
        self._history.tell(self.status, time.monotonic(), time.time())


def _make_directory(directory: Path) -> None:
    check_writable(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{directory}: {error.strerror or error}") from error


@contextlib.contextmanager
def _quick_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _allow_descriptors(count: int) -> None:
    """As many open files as that, where the system lets us: its soft limit is often 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (count if hard == resource.RLIM_INFINITY else min(count, hard), hard))


def _told(settings: Settings) -> dict[str, Any]:
    """The settings, as the log and the page tell them."""
    values = {each.name: getattr(settings, each.name) for each in fields(settings)}
    plain = {name: str(value) if isinstance(value, os.PathLike) else value for name, value in values.items()}
    return {**plain, "socket_mode": f"{settings.socket_mode:04o}", "state_dir": str(settings.state)}
