"""The line protocol on one connection, without I/O: request lines come in, and their answers go out, in order."""

from __future__ import annotations

from collections.abc import Callable

from sidecar.network.conversation import Bounds, Conversation
from sidecar.pairs.line_protocol import Answer, LineBuffer, LineTooLongError, encode, refused

BOUNDS = Bounds(connections=2048, kept_bytes=64 << 20, unsent_bytes=1 << 20, spin_s=50e-6)
TURN_LINES = 512
"""Answered for one client at a time: some milliseconds of work."""


class LineConversation(Conversation):
    """One client's lines.

    answer: answers request lines, in order. too_long: answers a line over the limit, after the lines before it and instead of
    `answer`; the connection ends with it.
    """

    def __init__(self, answer: Callable[[list[bytes]], list[Answer]], too_long: Callable[[LineTooLongError], Answer]) -> None:
        self._answer, self._too_long = answer, too_long
        self._buffer = LineBuffer()
        self._lines: list[bytes] = []  # that are to be answered
        self._error: LineTooLongError | None = None

    def receive(self, data: bytes) -> None:
        if not data:
            self.closing = True
            return
        try:
            self._lines = self._buffer.feed(data)
        except LineTooLongError as error:
            self._lines, self._error, self.closing = error.lines, error, True
            self._buffer = LineBuffer()
        self.waiting = bool(self._lines) or self.closing
        self.kept = self._buffer.size + (len(data) if self.waiting else 0)

    def next(self) -> bytes:
        """The answers to the next lines, at most TURN_LINES."""
        lines, self._lines = self._lines[:TURN_LINES], self._lines[TURN_LINES:]
        answers = self._answer(lines) if lines else []
        if not self._lines:
            self.waiting, self.kept = False, self._buffer.size
            if self._error is not None:
                answers = [*answers, self._too_long(self._error)]
        return encode(answers)

    def turned_away(self, reason: str) -> bytes:
        return encode([refused(f"connections: {reason}", retryable=True)])
