"""Files that are there whole or not at all, and that nobody can plant a trap in.

Nothing here follows a symbolic link in the last part of a path, waits for the other end of a FIFO, or writes into a file that
stood there before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

TEMPORARY = ".tmp-"
"""The name of a file that is being written begins with this. One that is found was left by a crash."""


def open_regular(path: Path) -> IO[bytes]:
    """A regular file to read. Raises OSError, for anything that is not a regular file too."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(descriptor, "rb")


def read_regular(path: Path, most: int) -> bytes:
    """All bytes of a regular file of at most so many. Raises OSError, for a larger one too."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"larger than {most:,} bytes", str(path))
        return stream.read(size)  # without a size that is right, it would take memory for `most`


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write aside. It is then brought to disk and renamed into place. Raises OSError, having removed it."""
    temporary = _temporary(path)
    try:
        with create(temporary) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def create(path: Path) -> IO[bytes]:
    """A new file to write, in the place of whatever name stands there. Raises OSError."""
    path.unlink(missing_ok=True)
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644), "wb")


def try_to_write(path: Path) -> None:
    """Begin to write a file, and leave nothing of it. Raises OSError if that cannot be done."""
    temporary = _temporary(path)
    create(temporary).close()
    temporary.unlink()


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{path.name}")


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file whole or not at all. Raises OSError."""
    with whole_file(path) as stream:
        stream.write(data)


def remove_leftovers(directory: Path) -> None:
    """Remove the files that a crash left while they were being written. Raises OSError."""
    for name in os.listdir(directory) if directory.is_dir() else []:
        if name.startswith(TEMPORARY):
            with contextlib.suppress(IsADirectoryError):  # somebody else's
                (directory / name).unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Bring a directory's names to disk. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(directory: Path) -> None:
    """Make a directory and its parents, and bring each new name to disk. Raises OSError."""
    missing = []
    existing = directory.absolute()
    while not existing.exists():
        missing.append(existing)
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):
            each.mkdir()
        sync_directory(each.parent)
