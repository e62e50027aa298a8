"""What the loop and the protocols agree on: what a protocol has to offer, and which limits it sets."""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any


class Conversation:
    """A protocol on one connection, without I/O: bytes come in, bytes go out. The loop has the socket and the clock.

    waiting: `next` has something to do; nothing is received until it is done. awaits: it can do nothing before this is done,
    on another thread. closing: nothing is received any more, and the connection ends once nothing is waiting and the client has
    taken everything. lingers: the client may still be sending by then. kept: how many bytes are kept for it.
    """

    waiting = closing = lingers = False
    awaits: Future[Any] | None = None
    kept = 0

    def receive(self, data: bytes) -> None:
        """Take what has come; b"" means that nothing more will."""

    def next(self, waiting: int = 1) -> bytes:
        """Do one turn's work; returns what is to be sent. waiting: how many connections have work to do, this one included."""
        return b""

    def turned_away(self, reason: str) -> bytes:
        """The last words to a client for which there is no room, or no longer."""
        return b""


class Farewell(Conversation):
    """After the answer: throws away what the client still sends, until it closes or has sent too much.

    Closing a TCP connection with unread bytes resets it, and an answer that is still on its way is lost.
    """

    def __init__(self, most_bytes: int = 1 << 20) -> None:
        self._left = most_bytes

    def receive(self, data: bytes) -> None:
        self._left -= len(data)
        self.closing = not data or self._left <= 0


@dataclass(frozen=True)
class Bounds:
    """The limits on the connections of one loop, in bytes and seconds.

    connections: how many at a time. patience_s: when there are as many, the one that has been silent longest makes room for the
    next, as soon as it has been silent for this long; until then, the next is turned away.
    one_request: a connection is for one request. Then the one that has been open longest makes room, and the next waits for it;
    and each part of an answer waits until the one before is taken.
    request_s: in which a request must have come, and again for each part of its answer to be taken. awaits_s: in which another
    thread must have made the answer. linger_s: in which the client must close after that.
    kept_bytes: for all connections together; beyond it, the one that needs most is turned away. unsent_bytes: a client that
    leaves more answers untaken is not read from until it takes them.
    spin_s: how long a client in lockstep is waited for without sleeping.
    """

    connections: int
    patience_s: float = 1.0
    one_request: bool = False
    request_s: float = math.inf
    awaits_s: float = math.inf
    linger_s: float = 0.0
    kept_bytes: int = 64 << 20
    unsent_bytes: int = 1 << 20
    spin_s: float = 0.0
