"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

TEMPORARY = ".tmp-"
"""What the name of a file that is being written begins with; one that is found was left by a crash."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write aside; then it is brought to disk and renamed into place. Raises OSError, having removed it."""
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def try_to_write(path: Path) -> None:
    """Begin to write a file, and leave nothing of it. Raises OSError where that cannot be."""
    temporary = _temporary(path)
    temporary.touch()
    temporary.unlink()


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{path.name}")


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file whole or not at all. Raises OSError."""
    with whole_file(path) as stream:
        stream.write(data)


def sync_directory(directory: Path) -> None:
    """Bring a directory's names to disk. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
