"""One connection to a sidecar, from the client's side: lines go out, answers come back in the same order."""

from __future__ import annotations

import math
import os
import select
import socket
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from sidecar.pairs.line_protocol import Answer

MAX_ANSWER_BYTES = 1 << 16
LONGEST_WAIT_S = 3600.0
"""poll and Event.wait do not accept arbitrarily long timeouts."""
_CHUNK_BYTES = 1 << 16

Tag = TypeVar("Tag")


class AnswerError(ConnectionError):
    """What was received does not follow the sidecar's protocol; the connection is of no further use."""


_answer_decoder = msgspec.json.Decoder(Answer)


class Pipeline(Generic[Tag]):
    """One connection to a sidecar: request lines go out without waiting for answers, which come back in the same order.

    window: the largest number of lines in flight. `unanswered` holds their tags, oldest first. For use by one thread.
    """

    def __init__(self, socket_path: str | Path, window: int) -> None:
        """Raises OSError if nothing listens, or if more clients wait to be accepted than the listener allows."""
        self.unanswered: deque[Tag] = deque()
        self._window = window
        self._outgoing = bytearray()
        self._incoming = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            self._socket.connect(os.fspath(socket_path))
        except BaseException:
            self._socket.close()
            raise

    def has_room(self) -> bool:
        return len(self.unanswered) < self._window and len(self._outgoing) < _CHUNK_BYTES

    def add(self, line: bytes, tag: Tag) -> None:
        """Take one request line, without its newline; `exchange` sends it."""
        self._outgoing += line
        self._outgoing += b"\n"
        self.unanswered.append(tag)

    def exchange(self, timeout_s: float) -> Iterator[tuple[Tag, Answer]]:
        """Write what the socket takes, and yield the answers that have arrived, with the tags of their lines.

        If nothing can be written or read, waits until it can, at most timeout_s or an hour. Must be iterated to the end.
        Raises OSError, after the last good answer, if the connection is lost or bytes are not an answer.
        """
        if self._write():
            timeout_s = 0.0
        poll = select.poll()  # select.select fails in a process with more than 1024 open files
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        for _, events in poll.poll(math.ceil(1000.0 * min(max(timeout_s, 0.0), LONGEST_WAIT_S))):
            if events != select.POLLOUT:
                yield from self._read()

    def close(self) -> None:
        self._socket.close()

    def _write(self) -> int:
        """Bytes written."""
        if not self._outgoing:
            return 0
        try:
            written = self._socket.send(self._outgoing)
        except BlockingIOError:
            return 0
        except ConnectionError:
            # What the sidecar answered before it closed can still be read, and after that the end of the stream.
            self._outgoing.clear()
            return 0
        del self._outgoing[:written]
        return written

    def _read(self) -> Iterator[tuple[Tag, Answer]]:
        try:
            received = self._socket.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        if not received:
            raise ConnectionResetError("the sidecar closed the connection")
        *lines, self._incoming = (self._incoming + received).split(b"\n")
        for line in lines:
            answer = _decode_answer(line)
            if not self.unanswered:
                raise AnswerError(f"an answer without a request: {line[:80]!r}")
            yield self.unanswered.popleft(), answer
        _check_length(self._incoming)


def _decode_answer(line: bytes) -> Answer:
    _check_length(line)
    try:
        answer = _answer_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AnswerError(f"not an answer: {line[:80]!r} ({error})") from None
    if answer.ok is msgspec.UNSET:
        raise AnswerError(f"not an answer: {line[:80]!r} (ok: missing)")
    return answer


def _check_length(line: bytes) -> None:
    if len(line) > MAX_ANSWER_BYTES:
        raise AnswerError(f"an answer of more than {MAX_ANSWER_BYTES} bytes: {line[:80]!r}…")
