"""The lock of a state directory: one process at a time."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from sidecar.journal.segments import JournalError


def locked(state_directory: Path) -> IO[bytes]:
    """The lock file of a state directory, which is made where it is missing; the lock is held until it is closed.

    Raises StateError where another process holds it, or the directory cannot be made.
    """
    try:
        state_directory.mkdir(parents=True, exist_ok=True)
        lock = (state_directory / ".lock").open("ab")
    except OSError as error:
        raise StateError(f"{state_directory}: {error.strerror or error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise StateError(f"{state_directory}: another sidecar holds this state directory") from None
    return lock


class StateError(JournalError):
    """A state directory that cannot be used; the message names it and says why."""
