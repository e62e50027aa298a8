"""Checkpoints while serving: a worker makes them when they are due; each success or failure is counted and logged."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from datetime import datetime
from typing import Any

from sidecar.checkpoints.directory import LATEST, STABLE, Checkpoint, checkpoints
from sidecar.checkpoints.publishing import Published, Terms
from sidecar.checkpoints.schedule import CheckpointSchedule
from sidecar.log import event
from sidecar.models.base_model import BaseModel
from sidecar.models.description import DescriptionError, read_description
from sidecar.online.publication import publication
from sidecar.online.training import OnlineTraining
from sidecar.serve.directory_watch import DirectoryWatch
from sidecar.serve.maintenance import Every
from sidecar.settings import Settings
from sidecar.state.published_pairs import read_published_pairs

_log = logging.getLogger(__name__)
LOCK_S = 1.0
"""Another process that holds the lock of the checkpoint directory is waited for this long; a snapshot may have to wait too, and
the end of the process, twice."""
LOOK_S = 0.5
_STAGES = {"ParityError": "parity", "CheckpointError": "write", "OSError": "write", "LockedError": "lock"}


class Checkpointing:
    """Publishes what `online` has learned, on a worker. wake: called on the worker once a checkpoint is done.

    looker: looks after the checkpoint directory, whose disk may be another than that of the state: nobody else waits for it.
    """

    def __init__(
        self,
        settings: Settings,
        base: BaseModel | None,
        online: OnlineTraining,
        worker: Executor,
        looker: Executor,
        wake: Callable[[], object],
    ) -> None:
        self._directory, self._state = settings.checkpoint_dir, settings.state
        self._online, self._worker, self._looker, self._wake = online, worker, looker, wake
        self._export_io = settings.export_io
        self._terms = Terms(
            settings.checkpoint_dir, settings.score_max - settings.score_min, base, settings.export_io if base else "canonical",
            settings.keep_checkpoints, settings.stability_plcc_delta, settings.stability_rmse_ratio, LOCK_S,
            on_trial=settings.rollback_threshold > 0,
        )  # fmt: skip
        self._schedule = CheckpointSchedule(settings.checkpoint_interval, settings.min_samples)
        self._job: Future[Published] | None = None
        self._pairs_in_job = 0
        self._published_pairs = read_published_pairs(settings.state)
        self._published: dict[str, int] = {}
        self._failures: dict[str, int] = {}
        self._gate: str | None = None
        self._reason = ""
        self._warned = ""
        self._last = next(reversed(checkpoints(self._directory)), None)
        self._time = _time_of(self._last)
        self._place = DirectoryWatch(self._directory, settings.state.resolve().is_relative_to(self._directory.resolve()))
        self._each_look, self._looking = Every(LOOK_S), looker.submit(self._place.look)
        self._links = self._looking.result()

    def request(self) -> None:
        """Publish a checkpoint on the next turn."""
        self._schedule.request()

    def follow(self, base: BaseModel) -> None:
        """Compare the checkpoints to come with another base model, and give them its form."""
        self._terms = replace(self._terms, base=base, export_io=self._export_io)
        if self._online.learner.learned < self._published_pairs:  # a new run, which counts anew
            self._published_pairs = self._pairs_in_job = 0

    def turn(self, now: float) -> str:
        """Start a checkpoint if one is due. Returns the path of one that was published since the last turn, or "".

        now: `time.monotonic()`.
        """
        path = ""
        self._look(now)
        if self._job is not None and self._job.done():
            path = self._end(self._job)
        if self._job is None and self._schedule.requested and not self._has_model:
            self._schedule.requested = False
            _log.warning("a checkpoint was requested, but there is no model to publish yet")
        if (
            self._job is None
            and self._has_model
            and not self._online.backlog.is_behind
            and self._schedule.is_due(self._new_pairs)
        ):
            self._job = self._begin()
        return path

    def finish(self) -> None:
        """Wait for the checkpoint in progress, then publish whatever was trained on since."""
        if self._job is not None:
            self._end(self._job)
        if self._has_model and self._new_pairs and not self._online.backlog.busy:
            self._end(self._begin())

    def as_status(self) -> dict[str, Any]:
        """The fields of a `Status` that are about checkpoints."""
        return {
            "version": self._last.version if self._last else None,
            "latest_version": self._links[LATEST],
            "stable_version": self._links[STABLE],
            "checkpoint_directory_lost": self._place.lost,
            "checkpoint_time": self._time,
            "checkpoint_gate": self._gate,
            "checkpoint_reason": self._reason,
            "checkpoints": dict(self._published),
            "checkpoint_failures": dict(self._failures),
        }

    def _look(self, now: float) -> None:
        """Each LOOK_S, take what the last look at the directory has found, and begin another."""
        if self._each_look.is_due(now) and self._looking.done():
            self._links = self._looking.result()
            self._looking = self._looker.submit(self._place.look)

    @property
    def _has_model(self) -> bool:
        """And pairs on which its graph can be checked."""
        trainer = self._online.learner.trainer
        return not self._online.backlog.failed and trainer.ema is not None and len(trainer.replay) > 0

    @property
    def _new_pairs(self) -> int:
        """Pairs trained on since the last checkpoint of this state."""
        learned = self._online.learner.learned
        return learned - self._published_pairs if learned >= self._published_pairs else learned

    def _begin(self) -> Future[Published]:
        self._schedule.begun()
        self._pairs_in_job = self._online.learner.learned
        job = self._worker.submit(publication(self._online.learner, self._terms, self._state))
        job.add_done_callback(lambda job: self._wake())
        return job

    def _end(self, job: Future[Published]) -> str:
        self._job = None
        error = job.exception()
        if error is not None:
            stage = _STAGES.get(type(error).__name__, "build")
            self._failures[stage] = self._failures.get(stage, 0) + 1
            self._schedule.failed()
            event(_log, "checkpoint not published", logging.ERROR, stage=stage, error=str(error) or type(error).__name__)
            return ""
        published = job.result()
        verdict = published.gate.verdict
        self._published_pairs = self._pairs_in_job
        self._published[verdict] = self._published.get(verdict, 0) + 1
        self._last, self._gate, self._reason = published.checkpoint, verdict, published.gate.reason
        self._time = published.created_at.timestamp()
        moved = {"incompatible": [], "stable": [LATEST, STABLE]}.get(verdict, [LATEST])
        self._links = self._links | dict.fromkeys(moved, published.checkpoint.version)
        self._looking = self._looker.submit(self._place.look)  # one that runs may not have seen it
        figures: dict[str, Any] = published.metrics.as_json() if published.metrics else {}
        warn = verdict == "incompatible" and published.gate.reason != self._warned  # once, not with each checkpoint
        self._warned = published.gate.reason if verdict == "incompatible" else ""
        event(
            _log, "checkpoint published", logging.WARNING if warn else logging.INFO,
            version=published.checkpoint.name, gate=verdict, reason=published.gate.reason, **figures,
            parity_max_abs_diff=published.parity_max_abs_diff, seconds=round(published.seconds, 4),
        )  # fmt: skip
        return os.fsencode(published.checkpoint.model).decode(errors="replace")  # in an answer, which is JSON


def _time_of(checkpoint: Checkpoint | None) -> float | None:
    """Seconds since the epoch."""
    with contextlib.suppress(DescriptionError, KeyError, TypeError, ValueError):
        about = read_description(checkpoint.model) if checkpoint else None
        return datetime.fromisoformat(about["created_at"]).timestamp() if about else None
    return None
