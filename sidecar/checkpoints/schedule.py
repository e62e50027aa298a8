"""When a checkpoint is due."""

from __future__ import annotations

import time
from collections.abc import Callable

RETRY_S = 60.0
"""After a checkpoint that failed, the next attempt waits this long, or for the checkpoint interval if that is shorter."""


class CheckpointSchedule:
    """A checkpoint is due once the interval has passed and enough new pairs were trained on, or if one was requested.

    interval_s: minimum seconds between checkpoints; min_pairs: new pairs that a checkpoint needs; clock: monotonic, in seconds.
    """

    def __init__(self, interval_s: float, min_pairs: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s, self._min_pairs, self._clock = interval_s, min_pairs, clock
        self._not_before = clock() + interval_s
        self.requested = False

    def request(self) -> None:
        """Make a checkpoint due now, whatever the interval and the number of pairs."""
        self.requested = True

    def is_due(self, new_pairs: int) -> bool:
        """new_pairs: how many were trained on since the last checkpoint."""
        return self.requested or (self._clock() >= self._not_before and new_pairs >= self._min_pairs)

    def begun(self) -> None:
        """Note that a checkpoint has been started: the interval begins again."""
        self.requested = False
        self._not_before = self._clock() + self._interval_s

    def failed(self) -> None:
        """Note that the last one failed: try again sooner than after a whole interval."""
        self._not_before = self._clock() + min(RETRY_S, self._interval_s)
