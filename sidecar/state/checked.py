"""Checked files: whole files of the state directory, each under a checksum that is compared before a byte is believed.

    #vmafx-sidecar snapshot 1 413220 6f0a…   kind, format, bytes that follow, BLAKE2b-128 of all this
    …

Every reader and writer of such a file is here; the journal, which grows, has blocks of its own (`journal/blocks.py`).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from sidecar.files import read_regular, sync_directory, write_whole

FORMAT = 1
"""It grows when a program that knows only the format before would go wrong."""
MOST_BYTES = 1 << 31
_HEADER = re.compile(rb"#vmafx-sidecar ([a-z-]{1,32}) (\d{1,9}) (\d{1,12}) ([0-9a-f]{32})\n")
_LONGEST_HEADER = 128


class DamagedError(ValueError):
    """A file that is not as it was written; the message says what is wrong with it."""


class NewerFormatError(ValueError):
    """A file that a newer program wrote."""


def write_checked(path: Path, kind: str, payload: bytes | memoryview) -> None:
    """Write a file whole or not at all, and bring it to disk. kind: what it is, in lower case. Raises OSError."""
    header = f"#vmafx-sidecar {kind} {FORMAT} {len(payload)}".encode()
    write_whole(path, b"".join([header, b" ", _digest(header, payload), b"\n", payload]))
    sync_directory(path.parent)


def read_checked(path: Path, kind: str) -> bytes:
    """The payload of a file of this kind.

    Raises DamagedError if it is not as it was written, NewerFormatError if a newer program wrote it, and OSError if it is not
    there or cannot be read now, which is no damage.
    """
    data = read_regular(path, MOST_BYTES)
    match = _HEADER.match(data[:_LONGEST_HEADER])
    if match is None:
        raise DamagedError("it does not begin with a header of this program")
    header, payload = data[: match.start(4) - 1], memoryview(data)[match.end() :]
    if _digest(header, payload) != match[4]:
        raise DamagedError("its bytes do not have the checksum that its header states")
    if int(match[2]) > FORMAT:
        raise NewerFormatError(f"{path}: state of format {int(match[2])}; this program knows up to {FORMAT}: use a newer one")
    if match[1].decode() != kind or int(match[3]) != len(payload):
        raise DamagedError(f"it is {len(payload)} bytes of {match[1].decode()}; expected {int(match[3])} of {kind}")
    return bytes(payload)


def _digest(header: bytes, payload: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(header, digest_size=16)
    digest.update(payload)
    return digest.hexdigest().encode()
