"""`serve`: one thread talks and trains, one worker exports checkpoints and writes snapshots.

A step costs tens of microseconds, so the event loop runs it inline: read what has arrived, journal all whole lines with one
write, train, answer with one write. Nothing that a client does can hold up the others: reads are bounded, and who does not take
its answers is not read from.
"""

from __future__ import annotations

import contextlib
import logging
import math
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sidecar.anchor import read_anchor, write_anchor
from sidecar.base_model import BaseModel, load_or_fresh
from sidecar.checkpoints import LATEST, STABLE, CheckpointError, check_writable, linked
from sidecar.files import write_whole
from sidecar.gate import Evidence
from sidecar.journal import JournalError, compress_closed, prune
from sidecar.learner import Run
from sidecar.listening import ListenError, identity_of, listen, remove
from sidecar.online import OnlineTraining, StateError, digest_of, last_run, locked
from sidecar.publishing import Published, Terms, publish_network
from sidecar.scores import metrics
from sidecar.settings import Settings, SettingsError, env_of
from sidecar.status import Phase, Status
from sidecar.trainer import TrainingSettings
from sidecar.wire import Answer, LineBuffer, LineTooLongError, encode, refused

_log = logging.getLogger(__name__)
READ_BYTES = 1 << 18
"""Read from one client at a time."""
UNSENT_BYTES = 1 << 20
"""A client that leaves more answers than this is not read from until it takes them."""
MAX_CONNECTIONS = 2048
TICK_S = 0.2
SYNC_S = 1.0
RETRY_S = 60.0
"""After a checkpoint that failed, the next attempt waits so long, or the checkpoint interval where that is shorter."""
DRAIN_S = 1.0
"""At the end, answers are given so long to be taken."""
HOUSEKEEPING_S = 60.0
_PUBLISHED = "published"


def serve(settings: Settings) -> None:
    """Run the sidecar with its HTTP endpoints, until SIGTERM or SIGINT.

    Raises SettingsError where it cannot begin with these.
    """
    try:
        server = Server(settings)
        with contextlib.ExitStack() as stack:
            if settings.http:
                from sidecar.http import start_http  # here, since a sidecar without HTTP need not load it

                try:
                    stack.callback(start_http(settings.http, lambda: server.status).close)
                except (ValueError, OSError) as error:
                    raise SettingsError(f"{env_of('http')}={settings.http!r}: {error}") from error
            server.run()
    except (ListenError, StateError, JournalError, CheckpointError) as error:
        raise SettingsError(str(error)) from error


class Server:
    """The sidecar. `run` serves until SIGTERM or SIGINT.

    Raises SettingsError, ListenError, StateError, JournalError or CheckpointError before it serves, where it cannot.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        check_writable(settings.checkpoint_dir)
        try:
            settings.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{settings.checkpoint_dir}: {error.strerror or error}") from error
        self.status = Status(phase="initializing", progress=time.monotonic())
        self._failed = ""
        self._base, run, network = self._start_from()
        started = time.monotonic()
        self._online = OnlineTraining(settings.state, run, network, settings.journal_fsync, train=not self._failed)
        online, seconds = self._online, time.monotonic() - started
        _log.info(
            "recovered: position %d, %d pairs trained again in %.2f s", online.journal.position, online.recovered, seconds
        )
        self._publishing = _Publishing(settings, self._base)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="export")
        self._selector = selectors.DefaultSelector()
        self._clients: dict[int, _Client] = {}
        self._wake, self._woken = socket.socketpair()
        self._export: Future[Published] | None = None
        self._writing: Future[object] | None = None
        self._stopping = self._publish_now = False
        self._paused = ""
        self._announce = ""
        self._last_loss: float | None = None
        self._step_seconds: float | None = None
        self._published_at = time.monotonic()
        self._trained_at_publish = _read_trained(settings.state)
        self._accepted_at_publish = 0
        self._next_sync = self._next_snapshot = self._next_housekeeping = self._next_told = 0.0

    def run(self, ready: Callable[[], object] = lambda: None) -> None:
        """Serve. ready: called once the socket accepts."""
        settings = self._settings
        listener = listen(settings.socket, settings.socket_mode)
        identity = identity_of(settings.socket)
        self._listener = listener
        for descriptor in (self._wake, self._woken):
            descriptor.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._woken, selectors.EVENT_READ, self._drain_wakeups)
        before = self._catch_signals()
        try:
            self._tell(accepting=True)
            _log.info("listening on %s", settings.socket)
            ready()
            while not self._stopping:
                for key, events in self._selector.select(TICK_S):
                    key.data(events)
                self._turn()
            self._finish()
        finally:
            remove(settings.socket, listener, identity)
            self._worker.shutdown(wait=True)
            self._online.close()
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(-1)
            for descriptor in (self._wake, self._woken):
                descriptor.close()
            self._selector.close()

    # Where training starts from.

    def _start_from(self) -> tuple[BaseModel | None, Run, Any]:
        """The base model, the run that pairs are trained under from now on, and the network that it begins with."""
        settings, last = self._settings, last_run(self._settings.state)
        base: BaseModel | None = None
        own = settings.base_model.resolve().parent == settings.checkpoint_dir.resolve()
        goes_on = last is not None and (own or not settings.base_model.exists())
        if not goes_on:
            try:
                base = load_or_fresh(
                    settings.base_model,
                    scaler=settings.base_scaler,
                    export_io=settings.export_io,
                    activation=settings.activation,
                )
            except ValueError as error:
                self._failed = str(error)
        n_features = settings.n_features or (last.n_features if last else None)
        n_features = n_features or (base.network.n_features if base else 80)
        if base is not None and base.network.n_features != n_features:
            self._failed = f"base model {base.path} takes {base.network.n_features} features, not {n_features}"
            base = None
        if last is not None and last.n_features != n_features:
            self._move_aside(last.n_features, n_features)
            last, goes_on = None, False
        digest = digest_of(base.network) if base else (last.base if last and goes_on else None)
        run = Run(n_features, _training_settings(settings), settings.holdout_fraction, digest, _kernel())
        if self._failed:
            _log.error("phase failed: %s; pairs are recorded, none trains", self._failed)
        return base, run, base.network if base else None

    def _move_aside(self, old: int, new: int) -> None:
        state = self._settings.state
        aside = state.with_name(f"{state.name}.{old}-features-{time.strftime('%Y%m%dT%H%M%S')}")
        try:
            with locked(state):  # never that of a sidecar that runs
                state.rename(aside)
        except OSError as error:
            raise StateError(f"{state}: cannot be moved aside: {error.strerror or error}") from error
        _log.warning("the state had %d features, %d are set now: moved aside to %s", old, new, aside)

    # The event loop.

    def _catch_signals(self) -> dict[int, Any]:
        def stop(number: int, frame: object) -> None:
            self._stopping = True

        def publish(number: int, frame: object) -> None:
            self._publish_now = True

        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGUSR1: publish}
        return {number: signal.signal(number, handler) for number, handler in handlers.items()}

    def _drain_wakeups(self, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass

    def _accept(self, events: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            _log.warning("a connection could not be accepted: %s", error)
            return
        if len(self._clients) >= MAX_CONNECTIONS:
            _log.warning("more than %d connections: one was turned away", MAX_CONNECTIONS)
            connection.close()
            return
        connection.setblocking(False)
        client = _Client(connection)
        self._clients[connection.fileno()] = client
        self._selector.register(connection, selectors.EVENT_READ, lambda events: self._serve(client, events))

    def _serve(self, client: _Client, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                self._read(client)
            client.send()
        except OSError:
            client.gone = True
        if client.gone or (client.closing and not client.unsent):
            self._drop(client)
            return
        wanted = 0 if client.closing or client.unsent_bytes > UNSENT_BYTES else selectors.EVENT_READ
        wanted |= selectors.EVENT_WRITE if client.unsent else 0
        if wanted != client.wanted:
            client.wanted = wanted
            key = self._selector.get_key(client.connection)
            self._selector.modify(client.connection, wanted, key.data)

    def _read(self, client: _Client) -> None:
        data = client.connection.recv(READ_BYTES)
        if not data:
            client.closing = True
            return
        try:
            answers = self._answers(client.lines.feed(data))
        except LineTooLongError as error:
            answers = [*self._answers(error.lines), refused(str(error))]
            client.closing = True
        client.put(encode(answers))

    def _answers(self, lines: list[bytes]) -> list[Answer]:
        if not lines:
            return []
        errors, steps, started = self._online.counts.journal_errors, self._online.learner.trainer.step, time.perf_counter()
        answers = self._online.accept(lines)
        steps = self._online.learner.trainer.step - steps
        if steps > 0:
            self._step_seconds = (time.perf_counter() - started) / steps
        self._paused = ""
        if self._online.counts.journal_errors > errors:
            self._paused = next(str(answer.error) for answer in answers if answer.retryable is True)
        for answer in reversed(answers):
            if answer.trained is True and isinstance(answer.loss, float):
                self._last_loss = answer.loss
                break
        accepted = next((answer for answer in answers if answer.ok is True), None)
        if self._announce and accepted is not None:
            accepted.checkpoint, self._announce = self._announce, ""
        return answers

    def _drop(self, client: _Client) -> None:
        self._selector.unregister(client.connection)
        del self._clients[client.connection.fileno()]
        client.connection.close()

    # What is done now and then.

    def _turn(self) -> None:
        now = time.monotonic()
        if now >= self._next_sync:
            self._next_sync = now + SYNC_S
            try:
                self._online.journal.sync()
            except JournalError as error:
                self._online.counts.journal_errors += 1
                _log.error("%s", error)
        if self._export is not None and self._export.done():
            self._exported(self._export)
            self._export = None
        if now >= self._next_snapshot and self._idle(self._writing):
            self._next_snapshot = now + self._settings.snapshot_interval
            self._snapshot()
        if self._export is None and self._is_time_to_publish(now):
            self._begin_export(now)
        if now >= self._next_housekeeping and self._idle(self._writing):
            self._next_housekeeping = now + HOUSEKEEPING_S
            self._writing = self._worker.submit(self._keep_house)
        if now >= self._next_told:
            self._next_told = now + TICK_S
            self._tell(accepting=True)

    def _idle(self, future: Future[object] | None) -> bool:
        if future is None or not future.done():
            return future is None
        error = future.exception()
        if error is not None:
            _log.error("state: %s", error)
        return True

    def _snapshot(self) -> None:
        write = None if self._failed else self._online.snapshot()
        if write is not None:
            self._writing = self._worker.submit(write)

    def _keep_house(self) -> None:
        settings = self._settings
        compress_closed(settings.state)
        oldest = time.time() - settings.journal_retention_days * 86400 if settings.journal_retention_days else 0.0
        for segment in prune(settings.state, self._online.needed_from(), oldest, settings.journal_max_bytes):
            _log.info("journal: %s deleted by retention", segment.name)

    def _is_time_to_publish(self, now: float) -> bool:
        trainer = self._online.learner.trainer
        if trainer.ema is None or self._failed:
            self._publish_now = False
            return False
        if self._publish_now:
            return True
        new = self._online.counts.accepted - self._accepted_at_publish
        trained = trainer.trained != self._trained_at_publish
        return trained and new >= self._settings.min_samples and now - self._published_at >= self._settings.checkpoint_interval

    def _begin_export(self, now: float) -> None:
        self._publish_now = False
        self._published_at = now
        self._export = self._worker.submit(self._publishing.job(self._online))
        self._export.add_done_callback(lambda future: self._notify())

    def _notify(self) -> None:
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")

    def _exported(self, export: Future[Published]) -> None:
        error = export.exception()
        if error is not None:
            stage = self._publishing.failed(error)
            _log.error("checkpoint not published (%s): %s", stage, error)
            wait = min(RETRY_S, self._settings.checkpoint_interval)
            self._published_at = time.monotonic() - self._settings.checkpoint_interval + wait
            return
        published = export.result()
        self._trained_at_publish, self._accepted_at_publish = self._publishing.covers
        self._publishing.done(published)
        self._announce = str(published.checkpoint.model)
        figures = published.metrics.as_json() if published.metrics else {}
        _log.info(
            "checkpoint %s: %s (%s) %s", published.checkpoint.name, published.gate.verdict, published.gate.reason, figures
        )

    def _finish(self) -> None:
        """Answer what was read, publish what was trained since the last checkpoint, write the state down."""
        _log.info("stopping")
        self._tell(accepting=False)
        self._selector.unregister(self._listener)
        for client in list(self._clients.values()):
            with contextlib.suppress(OSError):
                self._read(client)
        until = time.monotonic() + DRAIN_S
        while any(client.unsent for client in self._clients.values()) and time.monotonic() < until:
            for client in list(self._clients.values()):
                with contextlib.suppress(OSError):
                    client.send()
            time.sleep(0.001)
        for client in list(self._clients.values()):
            self._drop(client)
        if self._export is not None:
            self._wait(self._export)
            self._exported(self._export)
        trainer = self._online.learner.trainer
        if not self._failed and trainer.ema is not None and trainer.trained != self._trained_at_publish:
            export = self._worker.submit(self._publishing.job(self._online))
            self._wait(export)
            self._exported(export)
        if self._writing is not None:
            self._wait(self._writing)
        self._snapshot()

    def _wait(self, future: Future[Any]) -> None:
        with contextlib.suppress(Exception):
            future.result()

    def _tell(self, accepting: bool) -> None:
        """Make the status that others read."""
        online, trainer = self._online, self._online.learner.trainer
        phase: Phase = "running"
        if self._failed:
            phase = "failed"
        elif self._paused:
            phase = "paused"
        elif trainer.ema is None:
            phase = "initializing"
        counts = online.counts
        recent = trainer.prequential.rows()
        watched = metrics(recent[:, 0], recent[:, 1]) if len(recent) else None
        self.status = replace(
            self.status,
            phase=phase,
            reason=self._failed or self._paused,
            accepting=accepting,
            progress=time.monotonic(),
            n_features=online.learner.run.n_features,
            position=online.journal.position,
            step=trainer.step,
            pairs={
                "accepted": counts.accepted - counts.held_out, "held_out": counts.held_out,
                "duplicate": counts.duplicate, "rejected": counts.rejected,
            },
            loss=self._last_loss,
            prequential_rmse=float(watched.rmse) if watched else None,
            prequential_plcc=float(watched.plcc) if watched and not math.isnan(watched.plcc) else None,
            step_seconds=self._step_seconds,
            replay_size=len(trainer.replay),
            replay_capacity=trainer.replay.capacity,
            replay_evictions=trainer.replay.evictions,
            held_out_size=len(online.learner.held_out),
            connections=len(self._clients),
            journal_bytes=online.journal.bytes,
            journal_errors=counts.journal_errors,
            skipped_steps=trainer.skipped_steps,
            **self._publishing.as_status(),
        )  # fmt: skip


class _Client:
    """One connection: what of a line has come, and which answers it has not taken yet."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.lines = LineBuffer()
        self.unsent: deque[memoryview] = deque()
        self.unsent_bytes = 0
        self.wanted = selectors.EVENT_READ
        self.closing = self.gone = False

    def put(self, data: bytes) -> None:
        if data:
            self.unsent.append(memoryview(data))
            self.unsent_bytes += len(data)

    def send(self) -> None:
        """What the connection takes now. Raises OSError where it is gone."""
        while self.unsent:
            try:
                sent = self.connection.send(self.unsent[0])
            except BlockingIOError:
                return
            self.unsent_bytes -= sent
            if sent == len(self.unsent[0]):
                self.unsent.popleft()
            else:
                self.unsent[0] = self.unsent[0][sent:]


class _Publishing:
    """Checkpoints while serving: the jobs, the anchor, and what came of them."""

    def __init__(self, settings: Settings, base: BaseModel | None) -> None:
        self._terms = Terms(
            settings.checkpoint_dir, settings.score_max - settings.score_min, base, settings.export_io if base else "canonical",
            settings.keep_checkpoints, settings.stability_plcc_delta, settings.stability_rmse_ratio,
        )  # fmt: skip
        self._settings = settings
        self._published: dict[str, int] = {}
        self._failures: dict[str, int] = {}
        self._last: Published | None = None
        self._time: float | None = None
        self.covers = (0, 0)

    def job(self, online: OnlineTraining) -> Callable[[], Published]:
        """What publishes the present EMA weights, from copies, on any thread."""
        learner, trainer = online.learner, online.learner.trainer
        assert trainer.ema is not None
        network = trainer.network(trainer.ema)
        held_out = learner.held_out.rows()
        real = trainer.replay.rows()[-1024:, : learner.run.n_features]
        sets = [Evidence("held-out pairs", held_out[:, :-1], held_out[:, -1])]
        anchor = read_anchor(self._settings.state)  # each time: `promote` may have renewed it
        if anchor is not None and anchor.shape[1] == held_out.shape[1]:
            sets.append(Evidence("anchor", anchor[:, :-1], anchor[:, -1]))
        self.covers = (trainer.trained, online.counts.accepted)
        description = {
            "step": trainer.step,
            "pairs_seen": trainer.trained,
            "settings": learner.run.as_json()["settings"],
            "journal": {"first": 0, "last": learner.position - 1},
        }

        def publish() -> Published:
            published = publish_network(network, self._terms, sets, real, description)
            if published.gate.verdict == "stable":
                write_anchor(self._settings.state, held_out)
            _write_trained(self._settings.state, description["pairs_seen"])
            return published

        return publish

    def done(self, published: Published) -> None:
        verdict = published.gate.verdict
        self._published[verdict] = self._published.get(verdict, 0) + 1
        self._last, self._time = published, time.time()

    def failed(self, error: BaseException) -> str:
        """Count a failure; gives its stage."""
        stage = {"ParityError": "parity", "CheckpointError": "write"}.get(type(error).__name__, "build")
        self._failures[stage] = self._failures.get(stage, 0) + 1
        return stage

    def as_status(self) -> dict[str, Any]:
        latest, stable = (linked(self._settings.checkpoint_dir, link) for link in (LATEST, STABLE))
        return {
            "version": latest.version if latest else None,
            "stable_version": stable.version if stable else None,
            "checkpoint_time": self._time,
            "checkpoint_gate": self._last.gate.verdict if self._last else None,
            "checkpoints": dict(self._published),
            "checkpoint_failures": dict(self._failures),
        }


def _read_trained(state_directory: Path) -> int:
    """How many pairs had trained when this state's last checkpoint was published; 0 before the first."""
    try:
        return int((state_directory / _PUBLISHED).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def _write_trained(state_directory: Path, trained: int) -> None:
    write_whole(state_directory / _PUBLISHED, f"{trained}\n".encode())


def _training_settings(settings: Settings) -> TrainingSettings:
    return TrainingSettings(
        batch_size=settings.batch_size, replay_mix=settings.replay_mix, replay_capacity=settings.replay_capacity,
        learning_rate=settings.learning_rate, optimizer=settings.optimizer, momentum=settings.momentum,
        weight_decay=settings.weight_decay, max_grad_norm=settings.max_grad_norm, warmup_steps=settings.warmup_steps,
        steps_per_batch=settings.steps_per_batch, ema_decay=settings.ema_decay, ema_warmup=settings.ema_warmup,
        hidden=settings.hidden, activation=settings.activation, score_min=settings.score_min, score_max=settings.score_max,
        seed=settings.seed,
    )  # fmt: skip


def _kernel() -> str:
    """What the arithmetic runs on: other wheels or another processor may round otherwise."""
    model = ""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as stream:
        model = next((line.partition(":")[2].strip() for line in stream if line.startswith("model name")), "")
    return f"numpy {np.__version__} {model}".strip()
