"""Settings of the process itself: signal handlers, the limit on open files, how often threads take turns."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

from sidecar import log
from sidecar.log import event

_log = logging.getLogger(__name__)
END_S = 3.5
"""After SIGTERM or SIGINT, whatever has not ended by then is left. With the log's second, the process is gone within five."""

_SWITCH_S = 0.0001
"""How long other threads may hold the interpreter while the answering thread waits. Python's default of 5 ms is too long."""


class Signals:
    """What signals have asked for. stop: set by SIGTERM and SIGINT; publish: set by SIGUSR1, reset by whoever publishes.

    A thread of its own takes them, so that they are heard while the main thread waits for a disk that never answers. wake: what
    the thread calls after each. doing: what the main thread is doing, for the log.
    """

    def __init__(self) -> None:
        self.stop = self.publish = False
        self.wake: Callable[[], object] = lambda: None
        self.doing = "starting"
        self._ended = threading.Event()

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals here; the previous handlers are restored at the end.

        If that is not reached in END_S after the signal to stop, the process exits with code 1: Python would wait for its
        threads, and they may wait for a disk. What was answered is in the journal, as far as the disk has taken it.
        """
        heard, told = socket.socketpair()
        told.setblocking(False)
        thread = threading.Thread(target=self._hear, args=(heard,), name="signals", daemon=True)
        thread.start()
        # The interpreter writes a signal's number to the descriptor at once, but runs a handler only between two instructions.
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, lambda number, frame: None) for number in numbers}
        try:
            yield
        finally:
            self._ended.set()
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(-1)
            told.close()
            thread.join()
            heard.close()

    def _hear(self, heard: socket.socket) -> None:
        while not self.stop and (numbers := heard.recv(64)):
            self.publish = self.publish or signal.SIGUSR1 in numbers
            self.stop = signal.SIGTERM in numbers or signal.SIGINT in numbers
            self.wake()
        if self.stop and not self._ended.wait(END_S):
            event(_log, "ended without having finished", logging.ERROR, seconds=END_S, doing=self.doing)
            log.drain()
            os._exit(1)


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
