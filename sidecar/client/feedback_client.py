"""The client's side of the socket, for Python programs that produce pairs. They never wait for the sidecar or fail with it.

`send` puts a pair in a bounded queue; a daemon thread delivers it through a `Pipeline`, reconnects, and sends again.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec

from sidecar.client.pipeline import LONGEST_WAIT_S, Pipeline
from sidecar.log import Complaints
from sidecar.pairs.line_protocol import Answer
from sidecar.pairs.request import MAX_LINE_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from prometheus_client import CollectorRegistry, Counter

_GLANCE_S = 0.1  # how soon a close is noticed while waiting for an answer
_NO_REASON = "no reason given"

_logger = logging.getLogger(__name__)


class FeedbackClient:
    """Delivers pairs to a sidecar from a background thread. `send` may be called by any number of threads.

    >>> with FeedbackClient("/tmp/vmafx-sidecar.sock") as client:
    ...     client.send([0.97, 0.81, 31.2], true_score=42.7, job_id="a1", group="clip-7-crf-23")
    True

    socket_path: the sidecar's Unix socket; it need not exist yet. capacity: the largest number of pairs held, including those
    in flight. in_flight: the largest number of pairs sent but not yet answered. retry_s: the first and the longest pause, in
    seconds, before connecting again, or sending again what was answered as retryable; the pause doubles each time, until a
    pair is delivered or refused. registry: where the Prometheus counters are registered, by default the global registry;
    clients with the same registry share the counters.

    Every pair given to `send` is counted in exactly one of `delivered`, `dropped` and `queued`:

    delivered: it is in the sidecar's journal, or is a duplicate of one that is.
    dropped: it will never be there: the queue was full, the pair was refused, or the client was closed before it was delivered.
    refused: how many of the dropped were refused by the sidecar for good, or could not be made into a request line.

    If the connection is lost before a pair was answered, the pair is sent again. The sidecar may then receive it twice; if it
    has a `job_id`, the duplicate is recognised. A pair that is sent again may arrive after later ones.

    Close the client: pairs that are still queued when the process ends are lost. A client can be used on both sides of a fork.
    In the child it starts empty, with its own connection and counts; queued pairs stay with the parent.
    """

    def __init__(
        self,
        socket_path: str | Path,
        *,
        capacity: int = 1000,
        in_flight: int = 256,
        retry_s: tuple[float, float] = (2.0, 120.0),
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._path = os.fspath(socket_path)
        self._capacity, self._window, self._retry_s = capacity, in_flight, retry_s
        self._delivered_metric, self._dropped_metric = _metrics(registry)
        self._closed, self._close_at = False, math.inf
        self._begin()
        _clients.add(self)

    def _begin(self) -> None:
        # Written by producers, under the lock.
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self._taken = self._turned_away = self._unsendable = 0
        self._thread: threading.Thread | None = None
        # The thread sleeps on this when it expects no answer. It is an event, because setting one does not hand over the
        # interpreter's lock. Writing to a socket does, and then one send in a hundred took 2 ms. Pairs set it if `_listening`.
        self._news = threading.Event()
        self._listening = False
        # Written by the thread. `_again` is sent again, before `_waiting`; nothing is sent until `_hold_until`.
        self._pipeline: Pipeline[bytes] | None = None
        self._again: deque[bytes] = deque()
        self._delivered = self._refused = self._left = 0
        self._pause_s = self._retry_s[0]
        self._hold_until = -math.inf
        self._hurried = False
        self._complaints = Complaints(_logger)

    def send(
        self,
        features: Sequence[float] | Mapping[str, float] | NDArray[Any],
        true_score: float,
        job_id: str | None = None,
        group: str | None = None,
        **extra: Any,
    ) -> bool:
        """Queue one pair; returns False if it was dropped, and counts it. Never waits for the sidecar, and never raises.

        features: numbers in the model's order, or by name, copied before this returns; true_score: in score points; job_id:
        text, at most 256 characters, by which the sidecar recognises a pair that arrives twice; group: the same text for all
        pairs of one encode; extra: other fields for the journal. Values that are no numbers or out of range, such as NaN, are
        left to the sidecar to refuse.
        """
        named = {"job_id": job_id, "group": group}
        pair = {name: value for name, value in named.items() if value is not None}
        try:
            line = _encoder.encode({**pair, "features": features, "true_score": true_score, **extra})
        except Exception as error:  # whatever the caller's objects raise
            return self._not_taken("refused", "it cannot be written as JSON: %s", error, refused=1)
        if len(line) > MAX_LINE_BYTES:
            return self._not_taken("refused", "%d bytes of JSON; at most %d are allowed", len(line), MAX_LINE_BYTES, refused=1)
        try:
            self._enqueue(line)
        except (RuntimeError, OSError) as error:
            return self._not_taken("dropped", "%s", error)
        return True

    def close(self, timeout_s: float = 5.0) -> bool:
        """Accept no more pairs and deliver those queued, in at most timeout_s; True if none is left. Pauses are cut short."""
        self._close_at = time.monotonic() + timeout_s
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            self._news.set()
            thread.join(timeout_s + 1.0)
        return not self.queued and not self._left

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def delivered(self) -> int:
        return self._delivered

    @property
    def dropped(self) -> int:
        return self._turned_away + self._refused + self._left

    @property
    def refused(self) -> int:
        return self._unsendable + self._refused

    @property
    def queued(self) -> int:
        settled = self._delivered + self._refused + self._left
        return self._taken - settled

    def _enqueue(self, line: bytes) -> None:
        """Raises RuntimeError or OSError, with the reason, if the line cannot be queued."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the client is closed")
            if self.queued >= self._capacity:
                raise RuntimeError(f"the queue is full ({self._capacity} pairs)")
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="vmafx-feedback", daemon=True)
                thread.start()
                self._thread = thread
            self._waiting.append(line)
            self._taken += 1
        if self._listening:
            self._news.set()

    def _not_taken(self, kind: str, text: str, *arguments: object, refused: int = 0) -> Literal[False]:
        with self._lock:
            self._turned_away += 1
            self._unsendable += refused
        self._dropped_metric.inc()
        self._complaints.warn(kind, f"%s: a pair was {kind}: {text}", self._path, *arguments)
        return False

    def _run(self) -> None:
        try:
            while not (self._closed and (not self.queued or time.monotonic() >= self._close_at)):
                try:
                    self._turn()
                except Exception as error:  # whatever it is, the program goes on, and its pairs are kept
                    self._disconnected(error)
        finally:
            self._give_up()

    def _turn(self) -> None:
        """Send what may be sent now and take answers; wait for an answer or for pairs.

        While answers are expected, new pairs wait for the next answer and are sent together.
        """
        if self._closed and not self._hurried:
            self._hurried, self._hold_until, self._pause_s = True, -math.inf, self._retry_s[0]
        now = time.monotonic()
        may_send = now >= self._hold_until
        if may_send and (self._again or self._waiting):
            self._pipeline = self._pipeline or Pipeline(self._path, self._window)
            self._fill(self._pipeline)
        if self._pipeline is not None and self._pipeline.unanswered:
            for line, answer in self._pipeline.exchange(_GLANCE_S):
                self._settle(line, answer)
        else:
            self._sleep(may_send, (math.inf if may_send else self._hold_until) - now)

    def _sleep(self, for_pairs: bool, timeout_s: float) -> None:
        self._listening = for_pairs
        if not (for_pairs and self._waiting):
            self._news.wait(min(timeout_s, self._close_at - time.monotonic(), LONGEST_WAIT_S))
        self._listening = False
        self._news.clear()

    def _fill(self, pipeline: Pipeline[bytes]) -> None:
        while pipeline.has_room() and (source := self._again or self._waiting):
            pipeline.add(source[0], source[0])
            source.popleft()

    def _settle(self, line: bytes, answer: Answer) -> None:
        if not answer.ok and answer.retryable:
            self._again.append(line)
            pause_s = self._hold()
            self._complaints.warn(
                "retryable", "%s: %s; sending again in %.3g s", self._path, answer.error or _NO_REASON, pause_s
            )
            return
        self._pause_s = self._retry_s[0]
        if answer.ok:
            self._delivered += 1
            self._delivered_metric.inc()
        else:
            self._refused += 1
            self._dropped_metric.inc()
            self._complaints.warn("refused", "%s: a pair was refused: %s", self._path, answer.error or _NO_REASON)

    def _disconnected(self, error: Exception) -> None:
        if self._pipeline is not None:
            self._again.extendleft(reversed(self._pipeline.unanswered))
            self._hang_up()
        pause_s = self._hold()
        reason = (error.strerror or error) if isinstance(error, OSError) else repr(error)
        text = "%s: %s; queued pairs: %d; connecting again in %.3g s"
        self._complaints.warn("disconnected", text, self._path, reason, self.queued, pause_s)

    def _hold(self) -> float:
        """Begin a pause in sending, unless there is one already; returns the seconds left of it."""
        now = time.monotonic()
        if now >= self._hold_until:
            self._hold_until, self._pause_s = now + self._pause_s, min(2.0 * self._pause_s, self._retry_s[1])
        return self._hold_until - now

    def _give_up(self) -> None:
        with self._lock:
            self._closed = True
            self._left = self.queued
        self._hang_up()
        if self._left:
            self._dropped_metric.inc(self._left)
            self._complaints.warn("left", "%s: closed with %d pairs undelivered", self._path, self._left)

    def _hang_up(self) -> None:
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None

    def _after_fork(self) -> None:
        self._hang_up()
        self._begin()


def _jsonable(value: Any) -> Any:
    """Convert what msgspec does not know: arrays and scalars of numpy and similar libraries."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _metrics(registry: CollectorRegistry | None) -> tuple[Counter, Counter]:
    """The counters (delivered, dropped) of a registry, made when they are first needed."""
    from prometheus_client import REGISTRY, Counter  # imported here: it takes 60 ms, and not every user of this module needs it

    registry = REGISTRY if registry is None else registry
    with _registering:
        if registry not in _registered:
            _registered[registry] = (
                Counter("vmafx_training_feedback_delivered", "Pairs that the sidecar has accepted.", registry=registry),
                Counter("vmafx_training_feedback_dropped", "Pairs that were dropped or refused.", registry=registry),
            )
        return _registered[registry]


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client._after_fork()


_encoder = msgspec.json.Encoder(enc_hook=_jsonable)
_registered: weakref.WeakKeyDictionary[CollectorRegistry, tuple[Counter, Counter]] = weakref.WeakKeyDictionary()
_registering = threading.Lock()
_clients: weakref.WeakSet[FeedbackClient] = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork_in_child)
