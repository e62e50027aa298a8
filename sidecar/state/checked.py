"""Checked files: whole files of the state directory, each under a checksum that is compared before a byte is believed.

    #vmafx-sidecar snapshot 1 000000413220 6f0a…   kind, format, bytes that follow; BLAKE2b-128 of those and then of this
    …

Every reader and writer of such a file is here; the journal, which grows, has blocks of its own (`journal/blocks.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sidecar.files import open_regular, sync_directory, whole_file

FORMAT = 1
"""It grows when a program that knows only the format before would go wrong."""
_HEADER = re.compile(rb"#vmafx-sidecar ([a-z-]{1,32}) (\d{1,9}) (\d{12}) ([0-9a-f]{32})\n")
_LONGEST_HEADER = 128


class DamagedError(ValueError):
    """A file that is not as it was written; the message says what is wrong with it."""


class NewerFormatError(ValueError):
    """A file that a newer program wrote."""


class Payload:
    """What follows the header of a checked file that is being written. It takes bytes as a file does, and keeps none."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._digest = hashlib.blake2b(digest_size=16)
        self._size = 0

    def write(self, data: bytes | memoryview) -> int:
        """Raises OSError."""
        self._digest.update(data)
        self._size += len(data)
        return self._stream.write(data)

    def flush(self) -> None:
        """For who asks: it is brought to disk at the end."""

    def header(self, kind: str) -> bytes:
        """The header of what was written so far; it is always as long."""
        stated = f"#vmafx-sidecar {kind} {FORMAT} {self._size:012d}".encode()
        digest = self._digest.copy()
        digest.update(stated)
        return b"%b %b\n" % (stated, digest.hexdigest().encode())


@contextlib.contextmanager
def checked_file(path: Path, kind: str) -> Iterator[Payload]:
    """A file to write, which is there whole or not at all, and on disk, at the end. kind: what it is, in lower case.

    Raises OSError.
    """
    with whole_file(path) as stream:
        payload = Payload(stream)
        stream.write(payload.header(kind))
        yield payload
        stream.seek(0)
        stream.write(payload.header(kind))
    sync_directory(path.parent)


def write_checked(path: Path, kind: str, data: bytes | memoryview) -> None:
    """Write a checked file at once. Raises OSError."""
    with checked_file(path, kind) as payload:
        payload.write(data)


def read_checked(path: Path, kind: str) -> bytes:
    """The payload of a file of this kind.

    Raises DamagedError if it is not as it was written, NewerFormatError if a newer program wrote it, and OSError if it is not
    there or cannot be read now, which is no damage.
    """
    with open_regular(path) as stream:
        header = stream.readline(_LONGEST_HEADER)
        match = _HEADER.fullmatch(header)
        if match is None:
            raise DamagedError("it does not begin with a header of this program")
        stated, following = int(match[3]), os.fstat(stream.fileno()).st_size - len(header)
        if following != stated:
            raise DamagedError(f"{following} bytes follow its header, which states {stated}")
        payload = stream.read(stated)
    digest = hashlib.blake2b(payload, digest_size=16)
    digest.update(header[: match.start(4) - 1])
    if digest.hexdigest().encode() != match[4]:
        raise DamagedError("its bytes do not have the checksum that its header states")
    if int(match[2]) > FORMAT:
        raise NewerFormatError(f"{path}: state of format {int(match[2])}; this program knows up to {FORMAT}: use a newer one")
    if match[1].decode() != kind:
        raise DamagedError(f"it is of kind {match[1].decode()}; expected {kind}")
    return payload
