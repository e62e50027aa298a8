"""The line protocol on one connection, without I/O: request lines come in, and their answers go out, in order."""

from __future__ import annotations

from collections.abc import Callable

from sidecar.network.conversation import Bounds, Conversation
from sidecar.pairs.line_protocol import Answer, LineBuffer, LineTooLongError, encode, refused

BOUNDS = Bounds(connections=2048, patience_s=1.0, kept_bytes=64 << 20, unsent_bytes=1 << 20, spin_s=50e-6)
TURN_LINES = 512
"""Answered for one client at a time: some milliseconds of work. When many wait they share, so that a round stays short."""
_FEWEST_LINES = 8


class LineConversation(Conversation):
    """One client's lines.

    answer: answers request lines, in order. too_long: answers a line over the limit, after the lines before it and instead of
    `answer`; the connection ends with it.
    """

    def __init__(self, answer: Callable[[list[bytes]], list[Answer]], too_long: Callable[[LineTooLongError], Answer]) -> None:
        self._answer, self._too_long = answer, too_long
        self._buffer = LineBuffer()

    def receive(self, data: bytes) -> None:
        """Take what has come. At its end, the client may leave out the last newline."""
        self.closing = not data
        if data or self._buffer.size:
            self._buffer.feed(data or b"\n")
        self.waiting, self.kept = self._buffer.has_line, self._buffer.size

    def next(self, waiting: int = 1) -> bytes:
        """The answers to the next lines: at most TURN_LINES, fewer if many clients wait."""
        try:
            lines, error = self._buffer.take(max(_FEWEST_LINES, TURN_LINES // waiting)), None
        except LineTooLongError as raised:
            lines, error, self.closing = raised.lines, raised, True
            self._buffer = LineBuffer()
        answers = self._answer(lines) if lines else []
        if error is not None:
            answers = [*answers, self._too_long(error)]
        self.waiting, self.kept = self._buffer.has_line, self._buffer.size
        return encode(answers)

    def turned_away(self, reason: str) -> bytes:
        return encode([refused(f"connections: {reason}", retryable=True)])
