"""The listening Unix socket: who may be replaced, and what is removed at the end."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

_BACKLOG = 128


class ListenError(ValueError):
    """A socket path that cannot be used; the message names it and says why."""


def listen(path: Path, mode: int) -> socket.socket:
    """A listening, non-blocking Unix socket with these permissions from its first moment.

    A stale socket, which nobody answers, is replaced. Raises ListenError where a sidecar answers there, where anything else
    stands there (it is left alone), or the path cannot be bound.
    """
    try:
        _make_room(path)
        return _bound(path, mode)
    except OSError as error:
        raise ListenError(f"socket {path}: {error.strerror or error}") from error


def _bound(path: Path, mode: int) -> socket.socket:
    """Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    before = os.umask(0o777 & ~mode)
    try:
        listener.bind(os.fspath(path))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def remove(path: Path, identity: tuple[int, int] | None) -> None:
    """Remove a path if what stands there is still the socket that was bound, as `identity_of` told it then."""
    with contextlib.suppress(OSError):
        if identity is not None and identity_of(path) == identity:
            path.unlink()


def identity_of(path: Path) -> tuple[int, int] | None:
    """What tells a bound path from one that another process has put there since; None where nothing is."""
    try:
        about = path.lstat()
    except OSError:
        return None
    return about.st_dev, about.st_ino


def _make_room(path: Path) -> None:
    """Raises ListenError and OSError."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        what = "a symbolic link" if stat.S_ISLNK(kind) else "a directory" if stat.S_ISDIR(kind) else "a file"
        raise ListenError(f"socket {path}: {what} stands there; it is left alone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
        try:
            client.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            _remove_stale(path)
            return
        except BlockingIOError:  # so many wait to be accepted there that another would have to wait
            pass
    raise ListenError(f"socket {path}: another sidecar answers there")


def _remove_stale(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # another user's, say, in a sticky /tmp
        raise ListenError(
            f"socket {path}: nobody answers there, and it cannot be removed: {error.strerror or error}"
        ) from error
