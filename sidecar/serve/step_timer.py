"""How long a gradient step takes, including all work on its pairs."""

from __future__ import annotations

import time

from sidecar.online.training import OnlineTraining


class StepTimer:
    """seconds: mean time of the steps of the last group of new pairs; None before the first."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._steps, self._took = 0, 0.0  # since the last mean

    def catch_up(self, online: OnlineTraining) -> None:
        """Let `online` run a step, or train on some of the waiting pairs, and measure the time."""
        steps, started = online.steps, time.perf_counter()
        online.backlog.catch_up()
        run = online.steps - steps
        if run > 0:
            self._steps += run
            self._took += time.perf_counter() - started
            if not online.learner.trainer.steps_left:
                self.seconds = self._took / self._steps
                self._steps, self._took = 0, 0.0
