"""Who does the work: processes of this machine, or a Dask cluster that exists. To what asks for it, both are an executor."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing import connection
from typing import Any, TypeVar
from urllib.parse import urlsplit

from sidecar import __version__

_log = logging.getLogger(__name__)
_AHEAD = 2
"""So many calls wait for each worker: it has the next one at once, and few results wait to be taken."""
_DEATHS = 10
"""Workers that die so many times, and nothing gets done in between, are not replaced any more."""
_NO_WORKERS_S = 60.0
"""A cluster without a worker is waited for so long."""
_LOOK_S = 1.0

Result = TypeVar("Result")


class SchedulerError(ValueError):
    """A scheduler that is not used: its address is not allowed, or what talks to it is not installed."""


class LostError(RuntimeError):
    """The workers, or the scheduler, are lost."""


class Workers:
    """An executor and its size.

    name: what they are, for people. start: makes the executor; it is made anew when a process of it has died. size: how many
    calls run at a time; it raises LostError if there is nobody left.
    """

    def __init__(self, name: str, start: Callable[[], Executor], size: Callable[[], int]) -> None:
        self.name, self._start, self.size = name, start, size
        self._executor = start()

    def run(self, function: Callable[..., Result], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Result]]:
        """Call a function with each of these arguments: the numbers of the calls with what they gave, as they are done.

        A call whose worker died is made again. Raises what a call raises, and LostError.
        """
        waiting = deque(range(len(calls)))
        running: dict[Future[Result], int] = {}
        deaths = 0
        while waiting or running:
            try:
                while waiting and len(running) < _AHEAD * self.size():
                    future = self._executor.submit(function, *calls[waiting[0]])
                    running[future] = waiting.popleft()
            except BrokenExecutor:
                pass  # as do those that run, below
            done, _ = wait(running, _LOOK_S, FIRST_COMPLETED)
            if not done:
                self.size()
            broken = not running
            while done:
                future = done.pop()
                number = running.pop(future)
                try:
                    result = future.result()
                except (BrokenExecutor, CancelledError):
                    waiting.appendleft(number)
                    broken = True
                else:
                    deaths = 0
                    yield number, result
            if broken:
                deaths += 1
                if deaths == _DEATHS:
                    raise LostError(f"{self.name}: workers died {deaths} times, and nothing got done in between")
                waiting.extendleft(running.values())
                running.clear()
                self._executor.shutdown(wait=False)
                self._executor = self._start()

    def close(self) -> None:
        """End the executor; calls that run are not waited for."""
        self._executor.shutdown(wait=False)


@contextlib.contextmanager
def processes(count: int) -> Iterator[Workers]:
    """So many processes of this machine. They end with this process, however that ends."""
    context = multiprocessing.get_context("spawn")

    def start() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(count, context, _begin)

    workers = Workers(f"{count} processes" if count > 1 else "1 process", start, lambda: count)
    try:
        yield workers
    finally:
        workers.close()


def _begin() -> None:
    """In a new process: Ctrl-C is its parent's to answer, and when that is gone it goes, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Workers]:
    """The workers of a Dask scheduler. Certificates are those of Dask's own configuration.

    Raises SchedulerError if the address is neither `tls://` nor on loopback, or `distributed` is not installed, and LostError
    if the scheduler does not answer, has no workers, or one of them runs another version.
    """
    secure = _check_address(address)
    try:
        from distributed import Client, Security
    except ImportError:
        raise SchedulerError("--scheduler needs distributed: run pip install 'vmafx-sidecar[fleet]'") from None
    security = Security(require_encryption=True) if secure else None
    try:
        client = Client(address, security=security, set_as_default=False)
    except (OSError, TypeError, ValueError) as error:  # a certificate that is missing or not good is any of these
        raise LostError(f"{address}: {error}") from error
    seen = time.monotonic()

    def size() -> int:
        nonlocal seen
        if client.status not in ("running", "connecting"):
            raise LostError(f"{address}: the scheduler is lost")
        found = sum(int(each["nthreads"]) for each in client.scheduler_info(n_workers=-1)["workers"].values())
        if found:
            seen = time.monotonic()
        elif time.monotonic() > seen + _NO_WORKERS_S:
            raise LostError(f"{address}: no worker for {_NO_WORKERS_S:g} seconds")
        return max(1, found)

    try:
        workers = Workers(address, lambda: client.get_executor(pure=False), size)
        for version in client.run(_version).values():
            if version != __version__:
                raise LostError(f"{address}: a worker has vmafx-sidecar {version}; this is {__version__}")
        yield workers
        workers.close()
    finally:
        client.close()


def _version() -> str:
    return __version__


def _check_address(address: str) -> bool:
    """Whether it is secure. Raises SchedulerError if it is not, and goes over a network."""
    parts = urlsplit(address)
    try:
        known = parts.scheme in ("tcp", "tls") and parts.hostname and parts.port
    except ValueError:
        known = False
    if not known:
        raise SchedulerError(f"--scheduler {address}: expected tls://HOST:PORT, or tcp://127.0.0.1:PORT")
    if parts.scheme == "tls":
        return True
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(parts.hostname or "").is_loopback:
            return False
    raise SchedulerError(
        f"--scheduler {address}: without TLS only on loopback (127.0.0.1 or ::1): workers run whatever they are sent"
    )
