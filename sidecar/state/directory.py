"""A state directory: its lock, which one process at a time holds."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from sidecar.files import make_directories
from sidecar.journal.segments import JournalError


class StateError(JournalError):
    """A state directory that cannot be used; the message names it and says why."""


def locked(state_directory: Path) -> IO[bytes]:
    """The lock file of a state directory, which is made if it is missing; the lock is held until it is closed.

    Raises StateError if another process holds it, or the directory cannot be made or locked.
    """
    try:
        make_directories(state_directory)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        lock = os.fdopen(os.open(state_directory / ".lock", flags, 0o644), "rb")
    except OSError as error:
        raise StateError(f"{state_directory}: {error.strerror or error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        held = isinstance(error, BlockingIOError)
        why = "another sidecar holds this state directory" if held else f"it cannot be locked: {error.strerror or error}"
        raise StateError(f"{state_directory}: {why}") from None
    return lock
