"""Who does the work: processes of this machine, or a Dask cluster that exists. To what asks for it, both are an executor."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import logging
import mmap
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing import connection
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from sidecar import __version__
from sidecar.fleet.shared import SharedArray

_log = logging.getLogger(__name__)
_AHEAD = 2
"""So many calls wait for each worker: it has the next one at once, and few results wait to be taken."""
_LOSSES = 10
"""When workers are lost so many times, and nothing gets done in between, a call may be what kills them."""
_NO_WORKERS_S = 60.0
"""A cluster without a worker is waited for so long."""
_LOOK_S = 1.0

Result = TypeVar("Result")
Piece = TypeVar("Piece")
_Call = tuple[int, tuple[Any, ...]]


class SchedulerError(ValueError):
    """A scheduler that is not used: its address is not allowed, or what talks to it is not installed."""


class LostError(RuntimeError):
    """The workers, or the scheduler, are lost."""


class Pieces(Generic[Piece]):
    """A part of what a call gives, at most one: of processes, each piece is loaded when it is taken, which is done once."""

    def __init__(self, pieces: Iterable[Piece] = ()) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._pieces)

    def __reduce__(self) -> tuple[Any, ...]:
        return Pieces, ([*self],)


class Workers:
    """An executor and its size.

    name: what they are, for people; count: how many, as last seen. start: makes the executor. size: how many calls run at a
    time; it raises BrokenExecutor if all calls are lost, as with the connection to a scheduler, and then there is a new
    executor. lost: what a call raises that is lost. share: what calls are given in the place of the first so many rows of an
    array that all of them need. `start` and `size` raise LostError if there is nobody left.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], Executor],
        size: Callable[[], int],
        lost: tuple[type[BaseException], ...] = (BrokenExecutor, CancelledError),
        share: Callable[[SharedArray, int], Any] = lambda shared, count: shared,
    ) -> None:
        self.name, self.share = name, share
        self._start, self._size, self._lost = start, size, lost
        self.count = 1
        self._executor = start()

    def run(self, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Result]]:
        """Call a function with each of these arguments: the numbers of the calls with what they gave, as they are done.

        calls: the arguments of each; they are taken when there is somebody for them.

        A call that is lost, as with its worker, is made again. Raises what a call raises, and LostError.
        """
        rest = enumerate(calls)
        lost: deque[_Call] = deque()
        running: dict[Future[Result], _Call] = {}
        losses = 0
        while True:
            try:
                self.count = self._size()
            except BrokenExecutor:
                lost.extend(running.values())
                running.clear()
                self.close()
                self._executor = self._start()
                continue
            while len(running) < _AHEAD * self.count:
                call = lost.popleft() if lost else next(rest, None)
                if call is None:
                    break
                running[self._executor.submit(function, *call[1])] = call
            if not running:
                return
            done, _ = wait(running, _LOOK_S, FIRST_COMPLETED)
            before = len(lost)
            while done:
                future = done.pop()
                call = running.pop(future)
                try:
                    result = future.result()
                except self._lost:
                    lost.append(call)
                else:
                    losses = 0
                    yield call[0], result
            losses += len(lost) > before
            if losses == _LOSSES:
                raise LostError(f"{self.name}: workers were lost {_LOSSES} times, and nothing got done in between")

    def close(self) -> None:
        """End the executor; calls that run are not waited for."""
        self._executor.shutdown(wait=False)


@contextlib.contextmanager
def processes(count: int) -> Iterator[Workers]:
    """So many processes of this machine. They end with this process, however that ends."""
    workers = Workers(f"{count} processes" if count > 1 else "1 process", lambda: _Processes(count), lambda: count)
    try:
        yield workers
    finally:
        workers.close()


class _Processes(Executor):
    """Executors of one process each, so that one that dies takes no more with it than what it had.

    Results are in files without a name (memfd_create), and the executors hand on only which: one that dies while it hands on
    megabytes would leave a ProcessPoolExecutor waiting for the rest forever.
    """

    def __init__(self, count: int) -> None:
        self._executors = [self._new() for _ in range(count)]
        self._taken: list[deque[int]] = [deque() for _ in range(count)]  # descriptors of results that are here
        self._unfinished: list[set[Future[Any]]] = [set() for _ in range(count)]

    def submit(self, function: Callable[..., Result], /, *arguments: Any, **named: Any) -> Future[Result]:
        place = min(range(len(self._executors)), key=lambda place: len(self._unfinished[place]))
        call = functools.partial(function, *arguments, **named)
        taken = self._taken[place]
        try:
            answer = self._executors[place].submit(_answer, call, [taken.popleft() for _ in range(len(taken))])
        except BrokenExecutor:
            self._executors[place].shutdown(wait=False)
            self._executors[place], taken = self._new(), deque()
            self._taken[place] = taken
            answer = self._executors[place].submit(_answer, call, [])
        future = _Handed()
        unfinished = self._unfinished[place]
        unfinished.add(future)
        future.add_done_callback(unfinished.discard)
        answer.add_done_callback(lambda answer: _take(answer, future, taken))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        for executor in self._executors:
            executor.shutdown(wait, cancel_futures=cancel_futures)

    @staticmethod
    def _new() -> Executor:
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin)


def _answer(call: Callable[[], object], taken: Sequence[int]) -> tuple[int, int]:
    """In the process: make a call; which process and descriptor have the result. taken: descriptors that may be closed."""
    for descriptor in taken:
        os.close(descriptor)
    result = call()
    descriptor = os.memfd_create("result", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as stream:
        pickler = _Pickler(stream, pickle.HIGHEST_PROTOCOL)
        pickler.dump(result)
        for piece in pickler.pieces:
            pickle.dump(piece, stream, pickle.HIGHEST_PROTOCOL)
    return os.getpid(), descriptor


class _Pickler(pickle.Pickler):
    """Leaves out pieces, which are to follow."""

    pieces: Pieces[Any] = Pieces()

    def persistent_id(self, value: object) -> str | None:
        if not isinstance(value, Pieces):
            return None
        self.pieces = value
        return "pieces"


class _Unpickler(pickle.Unpickler):
    def __init__(self, memory: mmap.mmap) -> None:
        super().__init__(memory)
        self._memory = memory

    def persistent_load(self, name: str) -> Pieces[Any]:
        return Pieces(_following(self._memory))


def _following(memory: mmap.mmap) -> Iterator[Any]:
    while memory.tell() < len(memory):
        yield pickle.load(memory)
        memory.madvise(mmap.MADV_DONTNEED)  # or all that was read would count as memory of this process


class _Handed(Future[Any]):
    """A result that is loaded when it is asked for, which is done once: one that waits takes no memory of this process."""

    def result(self, timeout: float | None = None) -> Any:
        return _Unpickler(super().result(timeout)).load()


def _take(answer: Future[tuple[int, int]], future: _Handed, taken: deque[int]) -> None:
    try:
        process, descriptor = answer.result()
        with open(f"/proc/{process}/fd/{descriptor}", "rb") as stream:
            memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:
        future.set_exception(BrokenExecutor("the process died with its result"))
    except BaseException as error:
        future.set_exception(error)
    else:
        taken.append(descriptor)
        future.set_result(memory)


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
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise SchedulerError("--scheduler needs distributed: run pip install 'vmafx-sidecar[fleet]'") from None
    for name in ("distributed", "distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what is lost is told here, in one line
    try:
        security = Security(require_encryption=True) if secure else None
        if security and not security.get_connection_args("client").get("ssl_context"):
            raise SchedulerError(f"--scheduler {address}: no certificates: set DASK_DISTRIBUTED__COMM__TLS__CA_FILE and others")
        client = Client(address, security=security, set_as_default=False)
    except OSError as error:  # of certificates, too
        raise LostError(f"{address}: {error}") from error
    comm: object = None
    seen = time.monotonic()

    def start() -> Executor:
        nonlocal comm
        while client.status == "connecting":
            time.sleep(0.1)
        if client.status != "running":
            raise LostError(f"{address}: the scheduler is lost")
        comm = client.scheduler_comm
        executor: Executor = client.get_executor(pure=False)
        return executor

    def size() -> int:
        nonlocal seen
        if client.scheduler_comm is not comm or client.status != "running":
            raise BrokenExecutor  # and with the connection all calls, of some of which it would never be heard again
        found = sum(int(each["nthreads"]) for each in client.scheduler_info(n_workers=-1)["workers"].values())
        if found:
            seen = time.monotonic()
        elif time.monotonic() > seen + _NO_WORKERS_S:
            raise LostError(f"{address}: no worker for {_NO_WORKERS_S:g} seconds")
        return max(1, found)

    try:
        lost = (BrokenExecutor, CancelledError, KilledWorker)
        workers = Workers(address, start, size, lost, lambda shared, count: client.scatter(shared.array[:count]))
        try:
            versions = client.run(_version)
        except Exception as error:  # whatever it is that they cannot do
            raise LostError(f"{address}: workers that cannot run vmafx-sidecar: {error}") from error
        for version in versions.values():
            if version != __version__:
                raise LostError(f"{address}: a worker has vmafx-sidecar {version}; this is {__version__}")
        yield workers
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
