"""The trials of stable checkpoints while serving: a worker holds them, once enough pairs have come."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from sidecar.journal.writer import Journal
from sidecar.log import Complaints
from sidecar.online.rollback import Trial, hold_trial, last_rollback
from sidecar.serve.checkpointing import LOCK_S
from sidecar.serve.maintenance import Every
from sidecar.settings import Settings

_log = logging.getLogger(__name__)
LOOK_S = 1.0
"""A trial is looked at no more often, and one that could not be held is tried again after so long."""


class Trials:
    """Holds the trials of what this sidecar has published. wake: called on the worker once one is over."""

    def __init__(self, settings: Settings, journal: Journal, worker: Executor, wake: Callable[[], object]) -> None:
        self._settings, self._journal, self._worker, self._wake = settings, journal, worker, wake
        self._again_at: int | None = 0 if settings.rollback_threshold else None
        self._job: Future[Trial] | None = None
        self._each_look, self._complaints = Every(LOOK_S), Complaints(_log)
        self._rollbacks, self._last = 0, last_rollback(settings.checkpoint_dir)

    def look_again(self) -> None:
        """Note that another checkpoint has become stable."""
        if self._settings.rollback_threshold:
            self._again_at = 0

    def turn(self, now: float) -> None:
        """Begin what is due, and look after what has ended. now: `time.monotonic()`."""
        if self._job is not None and self._job.done():
            self._end(self._job)
        if self._job is None and self._is_due and self._each_look.is_due(now):
            self._begin()

    def finish(self) -> None:
        """Wait for the one in progress, and hold the one that is due."""
        if self._job is not None:
            self._end(self._job)
        if self._is_due:
            self._end(self._begin())

    def as_status(self) -> dict[str, Any]:
        """The fields of a `Status` that are about trials."""
        return {"rollbacks": self._rollbacks, "rolled_back": self._last}

    @property
    def _is_due(self) -> bool:
        return self._again_at is not None and self._journal.position >= self._again_at

    def _begin(self) -> Future[Trial]:
        settings, position = self._settings, self._journal.position
        threshold, score_range = settings.rollback_threshold, settings.score_max - settings.score_min
        self._again_at = None
        self._job = self._worker.submit(
            hold_trial, settings.checkpoint_dir, settings.state, position, threshold, score_range, LOCK_S
        )
        self._job.add_done_callback(lambda job: self._wake())
        return self._job

    def _end(self, job: Future[Trial]) -> None:
        self._job = None
        error = job.exception()
        if error is not None:
            self._complaints.warn("trial", "whether the stable checkpoint stays cannot be decided now: %s", error)
            self._again_at = self._journal.position
        else:
            trial = job.result()
            if self._again_at is None:  # else another has become stable meanwhile
                self._again_at = trial.again_at
            if trial.taken_back:
                self._rollbacks, self._last = self._rollbacks + 1, trial.taken_back
