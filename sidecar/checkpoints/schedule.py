"""When a checkpoint is due."""

from __future__ import annotations

import time
from collections.abc import Callable

RETRY_S = 60.0
"""After a checkpoint that failed, the next attempt waits this long, or for the checkpoint interval if that is shorter."""


class CheckpointSchedule:
    """Due once both the interval has passed and enough new pairs have trained, or when one was requested.

    interval_s: seconds between checkpoints, at least; min_pairs: new pairs a checkpoint needs; clock: seconds, monotonic.
    """

    def __init__(self, interval_s: float, min_pairs: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s, self._min_pairs, self._clock = interval_s, min_pairs, clock
        self._not_before = clock() + interval_s
        self.requested = False

    def request(self) -> None:
        """One is due now, whatever the interval and the number of pairs."""
        self.requested = True

    def is_due(self, new_pairs: int) -> bool:
        """new_pairs: that have trained since the last checkpoint."""
        return self.requested or (self._clock() >= self._not_before and new_pairs >= self._min_pairs)

    def begun(self) -> None:
        """A checkpoint is being made: the interval starts again."""
        self.requested = False
        self._not_before = self._clock() + self._interval_s

    def failed(self) -> None:
        """The last one failed: try again sooner than after a whole interval."""
        self._not_before = self._clock() + min(RETRY_S, self._interval_s)
