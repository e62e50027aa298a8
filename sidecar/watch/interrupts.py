"""Signals that end a command, but never in the middle of something."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType


class Interrupts:
    """Signals that end a wait, the one that they come in or the next, and nothing between two waits.

    SIGINT raises KeyboardInterrupt, SIGTERM and SIGHUP SystemExit with code 0. What was ignored stays so. For the main thread.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._waits = False

    @contextlib.contextmanager
    def handled(self) -> Iterator[Interrupts]:
        """Handle the signals here; the previous handlers are restored at the end."""
        heard = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: handler for number in heard if (handler := signal.getsignal(number)) != signal.SIG_IGN}
        for number in before:
            signal.signal(number, self._hear)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What is done here may be broken off."""
        self._waits = True
        try:
            self._end()
            yield
        finally:
            self._waits = False

    def sleep(self, seconds: float) -> None:
        with self.waiting():
            time.sleep(seconds)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        first, self._number = self._number is None, self._number or number
        if first and self._waits:
            self._end()

    def _end(self) -> None:
        if self._number is not None:
            raise KeyboardInterrupt if self._number == signal.SIGINT else SystemExit(0)
