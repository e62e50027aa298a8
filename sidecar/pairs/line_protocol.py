"""The line protocol without I/O: bytes to lines, lines to pairs, answers to bytes. It never sees a socket.

A client sends one JSON object per line and gets one answer line for each, in order.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from sidecar.pairs.errors import PairError
from sidecar.pairs.request import MAX_LINE_BYTES, names_of


class Answer(msgspec.Struct, omit_defaults=True):
    """The answer to a request line. Fields without a value are absent, never null.

    loss: mean squared error of the group that this pair completed, before its first step, in score points squared.
    checkpoint: the path of a checkpoint that was published since the last answer. retryable: the same line may be sent again
    later.
    """

    ok: bool | UnsetType = UNSET
    job_id: str | UnsetType = UNSET
    step: int | UnsetType = UNSET
    trained: bool | UnsetType = UNSET
    loss: float | UnsetType = UNSET
    duplicate: bool | UnsetType = UNSET
    checkpoint: str | UnsetType = UNSET
    retryable: bool | UnsetType = UNSET
    error: str | UnsetType = UNSET


class LineTooLongError(ValueError):
    """A line is over the limit: it is answered with this message, and the connection is closed. lines: those before it."""

    def __init__(self, lines: list[bytes]) -> None:
        super().__init__(f"line: longer than {MAX_LINE_BYTES} bytes")
        self.lines = _not_blank(lines)


class LineBuffer:
    """Turns bytes as they arrive into whole lines, a few at a time. What waits is kept as the bytes that came.

    So it takes as much memory as bytes, however short the lines are. Each byte is searched for a newline once as it comes and
    once when its line is taken, so the work is linear however small the pieces are.
    """

    def __init__(self) -> None:
        self._lines = b""  # as they came, the last one perhaps not complete
        self._rest = bytearray()  # of a line that is not complete, if no line before it waits
        self._may_be_long = False

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return len(self._lines) + len(self._rest)

    @property
    def has_line(self) -> bool:
        """`take` has something to give, or to raise."""
        return bool(self._lines) or len(self._rest) > MAX_LINE_BYTES

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        self._may_be_long = self.size + len(data) > MAX_LINE_BYTES
        if self._lines:
            self._lines += data
        elif b"\n" in data:
            self._lines = bytes(self._rest + data) if self._rest else data
            self._rest.clear()
        else:
            self._rest += data

    def take(self, most: int) -> list[bytes]:
        """The next complete lines, at most so many, without their newlines; blank ones are left out.

        Raises LineTooLongError if a line is over the limit; after that the buffer can no longer be used.
        """
        *lines, self._lines = self._lines.split(b"\n", most)
        if b"\n" not in self._lines:
            self._rest += self._lines
            self._lines = b""
        if len(self._rest) > MAX_LINE_BYTES or (self._may_be_long and any(len(line) > MAX_LINE_BYTES for line in lines)):
            too_long = next((place for place, line in enumerate(lines) if len(line) > MAX_LINE_BYTES), None)
            raise LineTooLongError(lines[:too_long])
        return _not_blank(lines)


def _not_blank(lines: list[bytes]) -> list[bytes]:
    return [line for line in lines if line and not line.isspace()]


def refused(error: str, job_id: str | UnsetType = UNSET, *, retryable: bool = False) -> Answer:
    """The answer to a line that was not accepted."""
    return Answer(ok=False, job_id=job_id, error=error, retryable=True if retryable else UNSET)


def refusal(line: bytes, error: PairError) -> Answer:
    """The answer to a line that is not a pair. A job_id over the limit is not repeated, which bounds the answer."""
    return refused(str(error), names_of(line)[0])


def encode(answers: list[Answer]) -> bytes:
    """Answer lines, each with its newline."""
    return _encoder.encode_lines(answers)


_encoder = msgspec.json.Encoder()
