"""The loop that serves all connections of a listening socket in one thread, and in which no client can hold up another.

It has the sockets, the clock, the turns and the limits. What is said on a connection is up to a `Conversation`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from selectors import EVENT_READ, EVENT_WRITE

from sidecar.log import Complaints
from sidecar.network.conversation import Bounds, Conversation, Farewell

_log = logging.getLogger(__name__)
READ_BYTES = 1 << 18
"""Read from one client at a time. When many wait they share, so that little has to be kept for them."""
_FEWEST_BYTES = 1 << 14
TURN_S = 0.05
"""After this long, signals, timers and the status have their turn; the clients that are left come after that.

A client that had nothing left to be read or answered comes before those that had, and of these the one whose last read was
smallest: one that sends now and then does not wait for a round of all that send without end. Those have the second half of
each turn.
"""
_PROMPT_TIMES = 32
"""A client that has sent its next line right after its answer this many times in a row is waited for without sleeping, because
waking up takes longer than answering. Once a line is late, the next waits sleep."""
_ACCEPT_AGAIN_S = 0.1
"""After an accept that failed, most likely because there are no file descriptors left."""
_DRAIN_S = 1.0
"""How long clients have at the end to take their answers."""
_ACCEPTED_AT_ONCE = 64


class Loop:
    """Serves a listening socket. converse: makes the conversation of a new connection."""

    def __init__(self, listener: socket.socket, converse: Callable[[], Conversation], bounds: Bounds) -> None:
        self._listener, self._converse, self._bounds = listener, converse, bounds
        self._complaints = Complaints(_log)
        self._connections: dict[_Connection, None] = {}  # the oldest first
        self._queue: dict[_Connection, int] = {}  # those whose turn is to come, with the events that they are ready for
        self._due: dict[_Connection | socket.socket, float] = {}  # when they are dropped, or the listener is watched again
        self._made: deque[_Connection] = deque()  # those that await nothing any more
        self._kept = 0
        self._room = memoryview(bytearray(READ_BYTES))
        self._prompt = 0  # waits in a row that were shorter than spin_s
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for each in (self._wake, self._woken, listener):
            each.setblocking(False)
        for each in (self._woken, listener):
            self._selector.register(each, EVENT_READ)

    def __len__(self) -> int:
        """Open connections."""
        return len(self._connections)

    def wake(self) -> None:
        """End a `turn` that waits, from any thread."""
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")

    def turn(self, timeout_s: float) -> None:
        """Take what has arrived and answer it; if nothing has, wait for it, at most timeout_s."""
        left = dict.fromkeys(self._queue)
        for key, events in self._wait(0.0 if left else self._seconds_to_wait(timeout_s)):
            if key.data in self._connections:
                self._queue[key.data] = self._queue.get(key.data, 0) | events
            elif key.fileobj is self._listener:
                for _ in range(_ACCEPTED_AT_ONCE):
                    if not self._accept():
                        break
            elif key.fileobj is self._woken:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(4096)
        while self._made:
            if (connection := self._made.popleft()) in self._connections:
                self._queue[connection] = self._queue.get(connection, 0)
        begun = time.monotonic()
        fresh = sorted((each for each in self._queue if each not in left), key=lambda connection: connection.last_read)
        self._serve_each(fresh, begun + (TURN_S / 2 if left else TURN_S))
        self._serve_each([*left], begun + TURN_S)
        if self._kept > self._bounds.kept_bytes:
            fullest = max(self._connections, key=lambda connection: connection.kept)
            self._turn_away(fullest, f"over {self._bounds.kept_bytes} bytes are kept for all, most of them for this one")
        if self._due:
            self._look_at_the_clock()

    def listen_on(self, listener: socket.socket) -> None:
        """Accept from another listener from now on. The one before is closed."""
        if self._listener not in self._due:
            self._selector.unregister(self._listener)
        self._due.pop(self._listener, None)
        self._listener.close()
        self._listener = listener
        listener.setblocking(False)
        self._selector.register(listener, EVENT_READ)

    def finish(self) -> None:
        """Accept no more clients, answer what has arrived, wait a second for the answers to be taken, and hang up."""
        if self._listener not in self._due:
            self._selector.unregister(self._listener)
        self._queue = dict.fromkeys(self._connections, EVENT_READ)
        until = time.monotonic() + _DRAIN_S
        while self._queue:
            connection = next(iter(self._queue))
            events = self._queue.pop(connection)
            self._serve(connection, events if time.monotonic() < until else 0)  # what is not read by now is not answered
        until = time.monotonic() + _DRAIN_S
        while any(connection.unsent for connection in self._connections) and time.monotonic() < until:
            for connection in list(self._connections):
                self._serve(connection, EVENT_WRITE)
            time.sleep(0.001)
        self._drop_all()

    def close(self) -> None:
        """Drop all connections and close the listener."""
        self._drop_all()
        for end in (self._wake, self._woken, self._listener):
            end.close()
        self._selector.close()

    def _drop_all(self) -> None:
        for connection in list(self._connections):
            self._drop(connection)

    # Waiting.

    def _wait(self, timeout_s: float) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready. If nothing is, wait for it; first without sleeping, if that has been worth it."""
        spin_s = self._bounds.spin_s
        if not (timeout_s and spin_s):
            return self._selector.select(timeout_s)
        ready = self._selector.select(0)
        if ready:
            return ready
        begun = time.perf_counter()
        if self._prompt >= _PROMPT_TIMES:
            while not ready and time.perf_counter() - begun < spin_s:
                ready = self._selector.select(0)
            if ready:
                return ready
            self._prompt = 0
        ready = self._selector.select(timeout_s)
        self._prompt = self._prompt + 1 if time.perf_counter() - begun < spin_s else 0
        return ready

    def _seconds_to_wait(self, timeout_s: float) -> float:
        return max(0.0, min(timeout_s, min(self._due.values()) - time.monotonic())) if self._due else timeout_s

    def _look_at_the_clock(self) -> None:
        """Drop connections whose time is up, except those whose turn is still to come; watch the listener again."""
        now = time.monotonic()
        for each in [each for each, moment in self._due.items() if moment <= now and each not in self._queue]:
            if isinstance(each, _Connection):
                self._drop(each)
            else:
                del self._due[each]
                self._selector.register(each, EVENT_READ)

    # A connection, from its beginning to its end.

    def _accept(self) -> bool:
        """Take the next client that waits to be accepted; False where nobody does, or it has to wait."""
        bounds, now = self._bounds, time.monotonic()
        first, may_go = None, False
        if len(self._connections) == bounds.connections:
            first = min(self._connections, key=lambda connection: connection.since)
            may_go = now >= first.since + bounds.patience_s and (bounds.one_request or not first.has_work)
            if bounds.one_request and not may_go:
                self._accept_later(first.since + bounds.patience_s)
                return False
        try:
            accepted, _ = self._listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            self._complaints.warn("accept", "a connection could not be accepted: %s", error.strerror or error)
            self._accept_later(now + _ACCEPT_AGAIN_S)
            return False
        connection = _Connection(accepted, self._converse(), now)
        self._connections[connection] = None
        if first is not None and may_go:
            self._drop(first)
        elif first is not None:
            self._turn_away(connection, f"there are {bounds.connections} already")
            return True
        self._allow(connection, bounds.request_s)
        self._queue[connection] = EVENT_READ  # most clients have sent something by now
        return True

    def _accept_later(self, moment: float) -> None:
        """Do not watch the listener, which stays readable, until then or until a connection is dropped: this would spin."""
        self._selector.unregister(self._listener)
        self._due[self._listener] = moment

    def _allow(self, connection: _Connection, seconds: float) -> None:
        """Drop it unless it has reached its next stage by then."""
        if seconds < math.inf:
            self._due[connection] = time.monotonic() + seconds

    def _serve_each(self, connections: list[_Connection], until: float) -> None:
        """Give connections their turns, the first at least, others until then. Those that have gone meanwhile have none."""
        for connection in connections:
            if (events := self._queue.pop(connection, None)) is not None:
                self._serve(connection, events)
                if time.monotonic() >= until:
                    break

    def _serve(self, connection: _Connection, events: int) -> None:
        """A connection's turn: take what has come, send what there is to say, and decide what comes next."""
        talk, bounds = connection.talk, self._bounds
        waiting, has_more, answers = len(self._queue) + 1, False, b""
        try:
            if events & EVENT_READ and not (talk.waiting or talk.closing):
                # Into memory allocated once: `recv` allocates as much each time, which takes ten times as long as a line does.
                most = max(_FEWEST_BYTES, READ_BYTES // waiting)
                connection.last_read = size = connection.socket.recv_into(self._room, most)
                has_more = size == most
                talk.receive(bytes(self._room[:size]))
                if not bounds.one_request:
                    connection.since = time.monotonic()
            has_taken = not (bounds.one_request and connection.unsent)
            if talk.waiting and has_taken and (talk.awaits is None or talk.awaits.done()):
                answers = talk.next(waiting)
                if talk.awaits is not None:
                    talk.awaits.add_done_callback(lambda made: self._resume(connection))
                if talk.closing:
                    self._allow(connection, bounds.request_s if talk.awaits is None else bounds.awaits_s)
            connection.send(answers)
            if connection.is_over:
                if not talk.lingers:
                    self._drop(connection)
                    return
                connection.socket.shutdown(socket.SHUT_WR)
                connection.talk = talk = Farewell()
                self._allow(connection, bounds.linger_s)
        except BlockingIOError:  # nothing has come
            pass
        except OSError:  # a client that goes away is no error
            self._drop(connection)
            return
        unsent = len(connection.unsent)
        is_read = not (talk.waiting or talk.closing or unsent > bounds.unsent_bytes)
        if talk.waiting and talk.awaits is None and not (bounds.one_request and unsent):
            self._queue[connection] = 0
        elif has_more and is_read:
            self._queue[connection] = EVENT_READ
        self._kept += talk.kept + unsent - connection.kept
        connection.kept = talk.kept + unsent
        wanted = (EVENT_WRITE if unsent else 0) | (EVENT_READ if is_read else 0)
        if wanted != connection.watched:
            self._watch(connection, wanted)

    def _resume(self, connection: _Connection) -> None:
        """Give it a turn, from any thread."""
        self._made.append(connection)
        self.wake()

    def _watch(self, connection: _Connection, events: int) -> None:
        """Epoll reports the end of a connection even to those who want no events: those are unregistered."""
        if not events:
            self._selector.unregister(connection.socket)
        elif not connection.watched:
            self._selector.register(connection.socket, events, connection)
        else:
            self._selector.modify(connection.socket, events, connection)
        connection.watched = events

    def _turn_away(self, connection: _Connection, reason: str) -> None:
        self._complaints.warn("turned away", "a connection was closed: connections: %s", reason)
        with contextlib.suppress(OSError):
            connection.socket.send(connection.talk.turned_away(reason))
        self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        if connection.watched:
            self._watch(connection, 0)
        del self._connections[connection]
        self._queue.pop(connection, None)
        self._due.pop(connection, None)
        self._kept -= connection.kept
        connection.socket.close()
        if self._listener in self._due:
            self._due[self._listener] = 0.0


class _Connection:
    """A socket with its conversation, and what the client has not taken yet.

    since: when it was accepted, or has last sent something if it is for more than one request. watched: for which events.
    kept: the bytes kept for it, as counted in the loop's total. last_read: how many bytes were last read from it.
    """

    def __init__(self, accepted: socket.socket, talk: Conversation, since: float) -> None:
        accepted.setblocking(False)
        self.socket, self.talk, self.since = accepted, talk, since
        self.unsent = bytearray()
        self.watched = self.kept = self.last_read = 0

    @property
    def has_work(self) -> bool:
        """Something is to be answered, or to be taken."""
        return self.talk.waiting or bool(self.unsent)

    @property
    def is_over(self) -> bool:
        """Everything is said, and taken."""
        return self.talk.closing and not self.talk.waiting and not self.unsent

    def send(self, answers: bytes) -> None:
        """Send what the client takes now: of what is left, otherwise of the answers. Raises OSError if it is gone."""
        sent = 0
        with contextlib.suppress(BlockingIOError):
            if self.unsent:
                del self.unsent[: self.socket.send(self.unsent)]
            elif answers:
                sent = self.socket.send(answers)
        if sent < len(answers):
            self.unsent += memoryview(answers)[sent:]
