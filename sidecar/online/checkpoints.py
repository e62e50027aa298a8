"""Checkpoints while serving: when one is due, what is handed to the worker, and what came of it."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from datetime import datetime
from pathlib import Path
from typing import Any

from sidecar.checkpoints.directory import LATEST, STABLE, linked
from sidecar.checkpoints.gate import Evidence
from sidecar.checkpoints.publishing import Published, Terms, publish_network
from sidecar.files import write_whole
from sidecar.log import event
from sidecar.models.base_model import BaseModel
from sidecar.models.description import DescriptionError, read_description
from sidecar.online.training import OnlineTraining
from sidecar.settings import Settings
from sidecar.state.anchor import read_anchor, write_anchor
from sidecar.state.counters import PUBLISHED, read_trained

_log = logging.getLogger(__name__)
RETRY_S = 60.0
"""After a checkpoint that failed, the next attempt waits so long, or the checkpoint interval where that is shorter."""
_PARITY_PAIRS = 1024


class Checkpointing:
    """Publishes what `online` has learned, on a worker. wake: called on the worker once a job is done."""

    def __init__(
        self, settings: Settings, base: BaseModel | None, online: OnlineTraining, worker: Executor, wake: Callable[[], object]
    ) -> None:
        self._settings, self._online, self._worker, self._wake = settings, online, worker, wake
        self._terms = Terms(
            settings.checkpoint_dir, settings.score_max - settings.score_min, base, settings.export_io if base else "canonical",
            settings.keep_checkpoints, settings.stability_plcc_delta, settings.stability_rmse_ratio,
        )  # fmt: skip
        self._job: Future[Published] | None = None
        self._trained_in_job = 0
        self._trained = read_trained(settings.state)
        self._not_before = time.monotonic() + settings.checkpoint_interval
        self._published: dict[str, int] = {}
        self._failures: dict[str, int] = {}
        self._gate: str | None = None
        self._time = _time_of_latest(settings.checkpoint_dir)
        self._requested = False

    def request(self) -> None:
        """Publish one at the next turn."""
        self._requested = True

    @property
    def new_pairs(self) -> int:
        """Pairs that have trained since the last checkpoint of this state."""
        trained = self._online.learner.trainer.trained
        return trained - self._trained if trained >= self._trained else trained

    @property
    def due_in(self) -> float:
        """Seconds until the next may begin, as far as the clock is concerned."""
        return self._not_before - time.monotonic()

    def turn(self) -> str:
        """Begin a checkpoint where one is due, and see to one that is done; gives the path of one just published, or ""."""
        path = ""
        if self._job is not None and self._job.done():
            path = self._end_job(self._job)
        if self._job is None and self._is_due():
            self._begin_job()
        return path

    def finish(self) -> None:
        """See to the job that runs, and publish what was trained since the last."""
        if self._job is not None:
            self._end_job(self._job)
        if self._can_publish() and self.new_pairs:
            self._begin_job()
            assert self._job is not None
            self._end_job(self._job)

    def as_status(self) -> dict[str, Any]:
        """Its part of a `Status`."""
        latest, stable = (linked(self._settings.checkpoint_dir, link) for link in (LATEST, STABLE))
        return {
            "version": latest.version if latest else None,
            "stable_version": stable.version if stable else None,
            "checkpoint_time": self._time,
            "checkpoint_gate": self._gate,
            "checkpoints": dict(self._published),
            "checkpoint_failures": dict(self._failures),
        }

    def _can_publish(self) -> bool:
        return not self._online.busy and not self._online.failed and self._online.learner.trainer.ema is not None

    def _is_due(self) -> bool:
        if self._requested and not self._can_publish():
            self._requested = False
            _log.warning("a checkpoint was asked for; there is no model to publish yet")
        return self._requested or (self.due_in <= 0 and self._can_publish() and self.new_pairs >= self._settings.min_samples)

    def _begin_job(self) -> None:
        self._requested = False
        self._not_before = time.monotonic() + self._settings.checkpoint_interval
        self._trained_in_job = self._online.learner.trainer.trained
        self._job = self._worker.submit(self._publication())
        self._job.add_done_callback(lambda job: self._wake())

    def _publication(self) -> Callable[[], Published]:
        """What publishes the present EMA weights, from copies, on any thread."""
        learner, trainer, state = self._online.learner, self._online.learner.trainer, self._settings.state
        assert trainer.ema is not None
        network = trainer.network(trainer.ema)
        held_out = learner.held_out.rows()
        real = trainer.replay.rows(newest=_PARITY_PAIRS)[:, : learner.run.n_features]
        description = {
            "step": trainer.step,
            "pairs_seen": trainer.trained,
            "settings": learner.run.as_json()["settings"],
            "journal": {"directory": str(state.resolve()), "first": learner.first, "last": learner.position - 1},
        }

        def publish() -> Published:
            sets = [Evidence("held-out pairs", held_out[:, :-2], held_out[:, -2])]
            anchor = read_anchor(state)  # each time: `promote` may have renewed it
            if anchor is not None and anchor.shape[1] == held_out.shape[1]:
                sets.append(Evidence("anchor", anchor[:, :-2], anchor[:, -2]))
            published = publish_network(network, self._terms, sets, real, description)
            _trim_memory()
            try:
                if published.gate.verdict == "stable":
                    write_anchor(state, held_out)
                write_whole(state / PUBLISHED, f"{description['pairs_seen']}\n".encode())
            except OSError as error:  # the checkpoint stands; the gate goes on with the anchor before
                _log.warning("%s: what belongs to %s was not written: %s", state, published.checkpoint.name, error.strerror)
            return published

        return publish

    def _end_job(self, job: Future[Published]) -> str:
        self._job = None
        error = job.exception()
        if error is not None:
            stage = {"ParityError": "parity", "CheckpointError": "write", "OSError": "write"}.get(type(error).__name__, "build")
            self._failures[stage] = self._failures.get(stage, 0) + 1
            self._not_before = time.monotonic() + min(RETRY_S, self._settings.checkpoint_interval)
            event(_log, "checkpoint not published", logging.ERROR, stage=stage, error=str(error) or type(error).__name__)
            return ""
        published = job.result()
        verdict = published.gate.verdict
        self._trained = self._trained_in_job
        self._published[verdict] = self._published.get(verdict, 0) + 1
        self._gate, self._time = verdict, time.time()
        figures: dict[str, Any] = published.metrics.as_json() if published.metrics else {}
        event(
            _log, "checkpoint published", version=published.checkpoint.name, gate=verdict, reason=published.gate.reason,
            **figures, parity_max_abs_diff=published.parity_max_abs_diff, seconds=round(published.seconds, 4),
        )  # fmt: skip
        return str(published.checkpoint.model)


def _trim_memory() -> None:
    """Give the system back what onnxruntime has freed: the C library would keep it, some megabytes, for this thread."""
    with contextlib.suppress(OSError, AttributeError):  # not all of them can
        ctypes.CDLL(None).malloc_trim(0)


def _time_of_latest(checkpoint_directory: Path) -> float | None:
    latest = linked(checkpoint_directory, LATEST)
    with contextlib.suppress(DescriptionError, KeyError, TypeError, ValueError):
        return datetime.fromisoformat((read_description(latest.model) or {})["created_at"]).timestamp() if latest else None
    return None
