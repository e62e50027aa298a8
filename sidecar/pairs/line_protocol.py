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
    """Turns bytes as they arrive into whole lines. Holds at most one line and the bytes of one read.

    Each byte is searched for a newline once and copied at most twice, so the work is linear however small the pieces are.
    """

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def size(self) -> int:
        """Bytes of the line that is not complete yet."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without their newlines; blank ones are left out.

        Raises LineTooLongError if a line is over the limit; after that the buffer can no longer be used.
        """
        lines: list[bytes] = []
        may_be_too_long = len(self._rest) + len(data) > MAX_LINE_BYTES
        if b"\n" in data:
            *lines, data = data.split(b"\n")
            if self._rest:
                lines[0] = bytes(self._rest + lines[0])
                self._rest.clear()
        self._rest += data
        if may_be_too_long:
            too_long = next((place for place, line in enumerate(lines) if len(line) > MAX_LINE_BYTES), None)
            if too_long is not None or len(self._rest) > MAX_LINE_BYTES:
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
