"""The clients of the listening socket: whole lines go in, their answers come out, and nobody can hold up anybody else.

All bounds are here: how much is read at a time, how many lines are answered before the next client has its turn, what is kept
for a client that does not take its answers or never ends its line, and what is kept for all of them together.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable

from sidecar.log import Complaints
from sidecar.pairs.line_protocol import Answer, LineBuffer, LineTooLongError, encode, refused

_log = logging.getLogger(__name__)
READ_BYTES = 1 << 18
"""Read from one client at a time."""
TURN_LINES = 512
"""Answered for one client at a time: some milliseconds of work."""
TURN_S = 0.05
"""After so long, signals, timers and the status have their turn, and the clients that are left theirs after that."""
UNSENT_BYTES = 1 << 20
"""A client that leaves more answers than this is not read from until it takes them."""
BUFFERED_BYTES = 64 << 20
"""Kept for all clients together; over that, the one for which most is kept is turned away."""
MAX_CONNECTIONS = 2048
_PROMPT_S = 50e-6
_PROMPT_TIMES = 32
"""A client that sends its next line as soon as it has an answer, so many times in a row, is waited for so long without
sleeping: being woken takes longer than an answer does. Once it does not come in time, the next waits sleep."""
_ACCEPT_AGAIN_S = 1.0
"""After an accept that failed, for want of file descriptors most likely."""
_DRAIN_S = 1.0
"""At the end, answers are given so long to be taken."""

AnswerLines = Callable[[list[bytes]], list[Answer]]


class Connections:
    """Serves a listening, non-blocking socket from one thread.

    answer: the answers to request lines, in their order. too_long: lines over the limit so far, which it does not get to see.
    """

    def __init__(self, listener: socket.socket, answer: AnswerLines) -> None:
        self._listener, self._answer = listener, answer
        self._complaints = Complaints(_log)
        self._selector = selectors.DefaultSelector()
        self._clients: set[_Client] = set()
        self._queued: deque[_Client] = deque()  # those whose turn is to come
        self._buffered = self.too_long = 0
        self._received = memoryview(bytearray(READ_BYTES))
        self._accept_again_at = 0.0
        self._prompt = 0  # waits in a row that were shorter than _PROMPT_S
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._selector.register(listener, selectors.EVENT_READ)

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def wake_descriptor(self) -> int:
        """A byte written here ends a `turn` that waits: for signals."""
        return self._wake.fileno()

    def wake(self) -> None:
        """End a `turn` that waits, from any thread."""
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")

    def turn(self, timeout_s: float) -> None:
        """Take what has arrived and answer it; where there is nothing, wait for it, at most timeout_s."""
        if self._accept_again_at and time.monotonic() >= self._accept_again_at:
            self._accept_again_at = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)
        for key, events in self._wait(0.0 if self._queued else timeout_s):
            if isinstance(key.data, _Client):
                self._queue(key.data, events)
            elif key.fileobj is self._listener:
                self._accept()
            else:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(4096)
        until = time.monotonic() + TURN_S
        for _ in range(len(self._queued)):
            self._serve(self._queued.popleft())
            if time.monotonic() >= until:
                break
        if self._buffered > BUFFERED_BYTES:
            self._turn_away_the_fullest()

    def finish(self) -> None:
        """Accept nobody any more, answer what has arrived, give the answers a second to be taken, and hang up."""
        if not self._accept_again_at:
            self._selector.unregister(self._listener)
        for client in self._clients:
            self._queue(client, 0 if client.lines else selectors.EVENT_READ)
        until = time.monotonic() + _DRAIN_S
        while self._queued:
            client = self._queued.popleft()
            if time.monotonic() >= until:
                client.due = 0  # what is not read by now is not answered
            self._serve(client)
        until = time.monotonic() + _DRAIN_S
        while any(client.unsent for client in self._clients) and time.monotonic() < until:
            for client in list(self._clients):
                self._serve(client)
            time.sleep(0.001)

    def close(self) -> None:
        for client in list(self._clients):
            self._drop(client)
        for end in (self._wake, self._woken):
            end.close()
        self._selector.close()

    def _wait(self, timeout_s: float) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready; where nothing is, wait for it, at first without sleeping where that has been worth it."""
        ready = self._selector.select(0)
        if ready or not timeout_s:
            return ready
        begun = time.perf_counter()
        if self._prompt >= _PROMPT_TIMES:
            while not ready and time.perf_counter() - begun < _PROMPT_S:
                ready = self._selector.select(0)
            if ready:
                return ready
            self._prompt = 0
        ready = self._selector.select(timeout_s)
        self._prompt = self._prompt + 1 if time.perf_counter() - begun < _PROMPT_S else 0
        return ready

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            self._complaints.warn("accept", "a connection could not be accepted: %s", error.strerror or error)
            self._selector.unregister(self._listener)  # it stays readable: do not spin
            self._accept_again_at = time.monotonic() + _ACCEPT_AGAIN_S
            return
        connection.setblocking(False)
        client = _Client(connection)
        self._clients.add(client)
        self._selector.register(connection, selectors.EVENT_READ, client)
        if len(self._clients) > MAX_CONNECTIONS:
            self._turn_away(client, f"connections: there are {MAX_CONNECTIONS} already")

    def _queue(self, client: _Client, events: int) -> None:
        """It is served in its turn, for what it has lines waiting for, and is ready for."""
        client.due |= events
        if not client.queued:
            client.queued = True
            self._queued.append(client)

    def _serve(self, client: _Client) -> None:
        if client.gone:  # it was queued, and dropped since
            return
        events, client.due, client.queued = client.due, 0, False
        before = client.buffered
        try:
            if events & selectors.EVENT_READ:
                client.read(self._received)
            if client.lines:
                client.put(self._answer(client.next_lines(TURN_LINES)))
            if client.unsent:
                client.send()
        except OSError:
            client.lines.clear()
            client.closing, client.unsent = True, bytearray()
        self._buffered += client.buffered - before
        if client.lines:
            self._queue(client, 0)
        elif client.closing:
            if client.too_long:
                self.too_long += 1
                self._complaints.warn("too long", "a pair was refused: %s", client.too_long)
                client.put([refused(client.too_long)])
                client.too_long = ""
                with contextlib.suppress(OSError):
                    client.send()
            if not client.unsent:
                self._drop(client)
                return
        wanted = 0 if client.lines or client.closing or len(client.unsent) > UNSENT_BYTES else selectors.EVENT_READ
        wanted |= selectors.EVENT_WRITE if client.unsent else 0
        if wanted != client.wanted:
            self._watch(client, wanted)

    def _watch(self, client: _Client, wanted: int) -> None:
        """Epoll tells of a connection's end even where nothing is wanted: then it is better not asked at all."""
        if not wanted:
            self._selector.unregister(client.connection)
        elif not client.wanted:
            self._selector.register(client.connection, wanted, client)
        else:
            self._selector.modify(client.connection, wanted, client)
        client.wanted = wanted

    def _turn_away_the_fullest(self) -> None:
        fullest = max(self._clients, key=lambda client: client.buffered)
        self._turn_away(fullest, f"connections: over {BUFFERED_BYTES} bytes are kept for all, most of them for this one")

    def _turn_away(self, client: _Client, reason: str) -> None:
        self._complaints.warn("turned away", "a connection was closed: %s", reason)
        with contextlib.suppress(OSError):
            client.connection.send(encode([refused(reason, retryable=True)]))
        self._drop(client)

    def _drop(self, client: _Client) -> None:
        if client.wanted:
            self._selector.unregister(client.connection)
        self._clients.discard(client)
        self._buffered -= client.buffered
        client.gone = True
        client.connection.close()


class _Client:
    """One connection: what of a line has come, which lines wait for their turn, and which answers it has not taken yet.

    due: the events that it is to be served for; queued: its turn is to come. closing: nothing more is read, and it is closed
    once it has its answers; too_long: what a line over the limit is answered with, after those.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.lines: list[bytes] = []
        self.unsent = bytearray()
        self.wanted = selectors.EVENT_READ
        self.due = 0
        self.queued = self.closing = self.gone = False
        self.too_long = ""
        self._buffer = LineBuffer()
        self._waiting_bytes = 0

    @property
    def buffered(self) -> int:
        """Bytes that are kept for it."""
        return self._buffer.size + self._waiting_bytes + len(self.unsent)

    def read(self, room: memoryview) -> None:
        """Take what has come, at most as much as there is room for. Raises OSError where the connection is gone.

        Into room made once: `recv` would make as much anew each time, which takes ten times as long as a line does.
        """
        data = bytes(room[: self.connection.recv_into(room)])
        if not data:
            self.closing = True
            return
        try:
            self.lines = self._buffer.feed(data)
        except LineTooLongError as error:
            self.lines, self.closing, self.too_long = error.lines, True, str(error)
            self._buffer = LineBuffer()
        self._waiting_bytes = len(data)

    def next_lines(self, most: int) -> list[bytes]:
        lines = self.lines
        if len(lines) > most:
            self.lines = lines[most:]
            return lines[:most]
        self.lines, self._waiting_bytes = [], 0
        return lines

    def put(self, answers: list[Answer]) -> None:
        self.unsent += encode(answers)

    def send(self) -> None:
        """What the connection takes now. Raises OSError where it is gone."""
        with contextlib.suppress(BlockingIOError):
            del self.unsent[: self.connection.send(self.unsent)]
