"""`serve`: one thread serves the socket and trains; others write checkpoints and snapshots, fsync the journal, and answer HTTP.

A step takes tens of microseconds, so the thread that serves the socket runs it itself: it reads what has arrived, journals all
complete lines with one write, trains, and answers with one write. This file has the start, the main loop and the end.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from sidecar.checkpoints.description import inputs_of_checkpoint
from sidecar.checkpoints.directory import CheckpointError, check_writable
from sidecar.checkpoints.libvmaf import refused_by_libvmaf
from sidecar.journal.segments import JournalError
from sidecar.learning.device.stacked import Device
from sidecar.log import Complaints, event
from sidecar.models.base_model import BaseModel
from sidecar.monitoring.history import read_history
from sidecar.network.lines import BOUNDS, LineConversation
from sidecar.network.loop import Loop
from sidecar.network.unix_socket import ListenError, identity_of, listen, remove
from sidecar.online.publication import about_inputs
from sidecar.online.start import where_to_start
from sidecar.online.training import OnlineTraining
from sidecar.pairs.line_protocol import Answer
from sidecar.serve import process
from sidecar.serve.base.check import BaseCheck
from sidecar.serve.base.watch import BaseWatch
from sidecar.serve.checkpointing import Checkpointing
from sidecar.serve.maintenance import Every, Maintenance
from sidecar.serve.process import Signals, places, quick_switches
from sidecar.serve.refusals import Refusals
from sidecar.serve.status_board import StatusBoard
from sidecar.serve.step_timer import StepTimer
from sidecar.serve.trials import Trials
from sidecar.settings import Settings, SettingsError, env_of
from sidecar.state.directory import StateError

_log = logging.getLogger(__name__)
_TICK_S = 0.2
_LOOK_S = 0.01
"""Looked no more often than this at what is done besides serving; a turn for one line takes less than a tenth of it."""
_TRAINING_SHARE = 0.6
"""Of the time there is after the signal to stop, for pairs that wait to be trained on."""
HTTP_CONNECTIONS = 64


def serve(settings: Settings) -> None:
    """Run the sidecar with its HTTP endpoints, until SIGTERM or SIGINT.

    Raises SettingsError if it cannot start with these settings.
    """
    try:
        Server(settings).run()
    except (ListenError, JournalError, CheckpointError) as error:
        raise SettingsError(str(error)) from error


class _StoppedError(Exception):
    """A signal arrived before the sidecar was serving."""


class Server:
    """The sidecar."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._board, self._signals, self._refusals, self._timer = StatusBoard(settings), Signals(), Refusals(), StepTimer()
        self._complaints = Complaints(_log)
        self._announce = ""  # the path of a checkpoint, to be named in the next answer

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises SettingsError, DeviceError, ListenError, JournalError or CheckpointError if it cannot start.
        """
        settings = self._settings
        event(_log, "starting", **_told(settings))
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._signals.handled())
            stack.enter_context(quick_switches())
            worker = stack.enter_context(ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker"))
            fitter = stack.enter_context(ThreadPoolExecutor(max_workers=1, thread_name_prefix="fit"))
            looker = stack.enter_context(ThreadPoolExecutor(max_workers=1, thread_name_prefix="look"))
            syncer = stack.enter_context(ThreadPoolExecutor(max_workers=1, thread_name_prefix="fsync"))
            try:
                self._start(stack, worker, fitter, looker, syncer)
            except _StoppedError:
                event(_log, "stopped", phase="initializing")
                return
            except OSError as error:  # a directory that cannot be read now, say; it may pass, so nothing is changed
                raise StateError(f"{error.filename or settings.state}: {error.strerror or error}") from error
            gc.freeze()  # what exists now stays; collecting the oldest generation need not look at it again
            self._serve()
            self._finish()

    def _start(
        self, stack: contextlib.ExitStack, worker: Executor, fitter: Executor, looker: Executor, syncer: Executor
    ) -> None:
        """Recover the state and open the socket; `stack` closes what is opened. Raises as `run`, OSError and _StoppedError."""
        settings = self._settings
        _make_directory(settings.checkpoint_dir)
        connections, http_connections = places(BOUNDS.connections, HTTP_CONNECTIONS)
        if settings.http:
            stack.callback(self._start_http(settings.http, http_connections))
        online, base = self._recover(worker, fitter)
        self._online = online
        stack.callback(online.close)
        listener = listen(settings.socket, settings.socket_mode)
        self._bound = identity_of(settings.socket)
        stack.callback(lambda: remove(settings.socket, self._bound))
        bounds = replace(BOUNDS, connections=connections)
        self._loop = loop = Loop(listener, lambda: LineConversation(self._answer, self._refusals.too_long), bounds)
        stack.callback(loop.close)
        self._signals.wake = loop.wake
        self._checkpointing = Checkpointing(settings, base, online, worker, looker, loop.wake)
        self._trials = Trials(settings, online.journal, worker, loop.wake)
        self._base_watch = BaseWatch(settings, online, base, worker, looker, self._follow)
        self._maintenance = Maintenance(settings, online, self._board.history, worker, syncer)

    def _start_http(self, address: str, connections: int) -> Any:
        from sidecar.monitoring.pages import Pages  # imported here, since a sidecar without HTTP does not need them
        from sidecar.monitoring.verdict.rules import limits
        from sidecar.network import http
        from sidecar.network.http_server import start_http

        settings, board = self._settings, self._board
        pages = Pages(
            lambda: board.status, lambda: board.history, settings.checkpoint_dir, _told(settings), settings.http_models,
            limits(settings), settings.tenant_labels,
        )  # fmt: skip
        try:
            return start_http(address, pages.look_up, replace(http.BOUNDS, connections=connections)).close
        except (ValueError, OSError) as error:
            raise SettingsError(f"{env_of('http')}={address!r}: {error}") from error

    def _recover(self, worker: Executor, fitter: Executor) -> tuple[OnlineTraining, BaseModel | None]:
        settings, started = self._settings, time.monotonic()
        device = _device() if settings.cuda else None
        base, begins_with, run, self._failed = where_to_start(settings, device)
        if self._failed:
            event(_log, "phase failed: pairs are recorded but not trained on", logging.ERROR, reason=self._failed)
        else:
            inputs = inputs_of_checkpoint(base, about_inputs(run), run.n_features)
            if refused := refused_by_libvmaf(base, settings.export_io, inputs, run.n_features):
                _log.info("%s", refused)

        def progress(pairs: int) -> None:
            self._board.recovered(pairs)
            if self._signals.stop:
                raise _StoppedError

        fsync, train = settings.journal_fsync, not self._failed
        online = OnlineTraining(settings.state, run, begins_with, fsync, train, fitter, progress, device)
        self._board.history = read_history(settings.state)
        event(
            _log, "recovered", position=online.journal.position, trained_again=online.recovered,
            seconds=round(time.monotonic() - started, 3), step=online.learner.trainer.step,
        )  # fmt: skip
        score_range = settings.score_max - settings.score_min
        self._check_of = partial(BaseCheck, online=online, score_range=score_range, worker=worker)
        self._base_check = self._check_of(base) if base and begins_with else None
        return online, base

    def _serve(self) -> None:
        """The main loop: serve the socket and train; when due, start a checkpoint, maintain the state, update the status."""
        backlog, each_look, each_status, each_second = self._online.backlog, Every(_LOOK_S), Every(_TICK_S), Every(1.0)
        self._signals.doing = "serving"
        self._update_status(accepting=True)
        event(_log, "listening", socket=str(self._settings.socket), phase=self._board.status.phase)
        while not self._signals.stop:
            self._loop.turn(0.0 if backlog.has_work else _TICK_S)
            if backlog.has_work or backlog.busy:
                self._timer.catch_up(self._online)
            now = time.monotonic()
            if not each_look.is_due(now):
                continue
            if self._signals.publish:
                self._signals.publish = False
                self._checkpointing.request()
            if self._settings.follow_base and not self._failed:
                self._base_watch.turn(now)
            self._trials.turn(now)
            if path := self._checkpointing.turn(now):
                self._announce = path
                self._trials.look_again()
            self._maintenance.turn(now)
            if each_second.is_due(now):
                self._look_after_socket()
                if self._base_check is not None:
                    self._base_check.turn()
            if each_status.is_due(now):
                self._timer.catch_up(self._online)  # a group's first pairs, too, so that figures and snapshots have them
                self._update_status(accepting=True)

    def _follow(self, base: BaseModel) -> None:
        """Another base model has taken the place of the one before."""
        self._checkpointing.follow(base)
        self._base_check = self._check_of(base)

    def _look_after_socket(self) -> None:
        """Bind the socket again if its path was removed or replaced by a file that may be replaced."""
        settings = self._settings
        if identity_of(settings.socket) == self._bound:
            return
        try:
            listener = listen(settings.socket, settings.socket_mode)
        except ListenError as error:
            self._complaints.warn("socket", "%s; trying again each second", error)
            return
        self._loop.listen_on(listener)
        self._bound = identity_of(settings.socket)
        event(_log, "the socket was removed or replaced; it is bound again", logging.WARNING, socket=str(settings.socket))

    def _train_the_last_pairs(self) -> None:
        backlog = self._online.backlog
        backlog.wait(_TRAINING_SHARE * process.END_S)
        if backlog.is_behind and not backlog.failed:
            event(_log, "the last pairs are left to the next start, which trains on them", pairs=backlog.waiting)

    def _finish(self) -> None:
        """Answer what was read, publish what was trained on since the last checkpoint, write the state."""
        event(_log, "stopping")
        self._update_status(accepting=False)
        for doing, finish in (
            ("answering", self._loop.finish),
            ("bringing the journal to disk", self._maintenance.sync),
            ("training", self._train_the_last_pairs),
            ("deciding on the stable checkpoint", self._trials.finish),
            ("publishing a checkpoint", self._checkpointing.finish),
            ("writing a snapshot", self._maintenance.finish),
        ):
            self._signals.doing = doing
            finish()
        self._signals.doing = "waiting for the disk"
        self._update_status(accepting=False)
        status = self._board.status
        event(_log, "stopped", position=status.position, step=status.step, **status.pairs)

    def _answer(self, lines: list[bytes]) -> list[Answer]:
        """The answers to request lines, in the same order."""
        rejected = self._online.counts.rejected
        answers = self._online.accept(lines)
        if self._online.counts.rejected > rejected:
            self._refusals.add(answers)
        if self._announce:
            accepted = next((answer for answer in answers if answer.ok is True), None)
            if accepted is not None:
                accepted.checkpoint, self._announce = self._announce, ""
        return answers

    def _update_status(self, accepting: bool) -> None:
        self._board.update(
            self._online,
            accepting=accepting,
            failed=self._failed,
            connections=len(self._loop),
            rejected=self._refusals.counts,
            step_seconds=self._timer.seconds,
            others=self._checkpointing.as_status()
            | self._trials.as_status()
            | self._base_watch.as_status()
            | self._maintenance.as_status(),
        )


def _device() -> Device:
    from sidecar.learning.device.cuda import open_cuda  # imported here, since most sidecars have no GPU

    return open_cuda()


def _make_directory(directory: Path) -> None:
    check_writable(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{directory}: {error.strerror or error}") from error


def _told(settings: Settings) -> dict[str, Any]:
    """The settings, as the log and the page show them."""
    values = {each.name: getattr(settings, each.name) for each in fields(settings)}
    plain = {name: str(value) if isinstance(value, os.PathLike) else value for name, value in values.items()}
    return {**plain, "socket_mode": f"{settings.socket_mode:04o}", "state_dir": str(settings.state)}
