"""Settings of the process itself: signal handlers, the limit on open files, how often threads take turns."""

from __future__ import annotations

import contextlib
import math
import resource
import signal
import sys
from collections.abc import Iterator

_SWITCH_S = 0.0001
"""How long other threads may hold the interpreter while the answering thread waits. Python's default of 5 ms is too long."""


class Signals:
    """What signals have asked for. stop: set by SIGTERM and SIGINT; publish: set by SIGUSR1, reset by whoever publishes."""

    def __init__(self) -> None:
        self.stop = self.publish = False

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals here; the previous handlers are restored at the end."""
        handlers = {signal.SIGTERM: self._stop, signal.SIGINT: self._stop, signal.SIGUSR1: self._publish}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        self.stop = True

    def _publish(self, number: int, frame: object) -> None:
        self.publish = True


@contextlib.contextmanager
def woken_by_signals(descriptor: int) -> Iterator[None]:
    """Each signal writes a byte to this descriptor, which is non-blocking."""
    signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)


@contextlib.contextmanager
def quick_switches() -> Iterator[None]:
    """Threads take turns after 0.1 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


_KEPT_BACK = 32
"""Open files of the sidecar itself, at most: journal, snapshots, fsync, checkpoints, epoll, wake-ups."""


def places(connections: int, http: int) -> tuple[int, int]:
    """How many connections on the socket and over HTTP there is room for, at most as many as wanted.

    The limit on open files is raised as far as the system permits; the soft limit is often 1024. if the hard limit is low,
    clients get what the sidecar's own files leave, so that clients can never keep it from recording.
    """
    wanted = connections + http + _KEPT_BACK
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = math.inf if soft == resource.RLIM_INFINITY else max(4, soft - _KEPT_BACK)
    if room >= connections + http:
        return connections, http
    for_http = max(2, min(http, int(room) // 8))
    return max(2, int(room) - for_http), for_http
