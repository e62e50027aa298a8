"""A program that is run for a model: on a private copy, within a time limit, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sidecar.checkpoints.directory import Checkpoint
from sidecar.consumer.verified import VerifiedModel

PLACE = "{}"
"""Stands for the path of the model in the arguments of a program."""
GRACE_S = 2.0
"""Between SIGTERM and SIGKILL."""
_LOOK_S = 0.02


def run_program(
    model: VerifiedModel, command: Sequence[str], timeout_s: float, *, stdout: int | None = None, sleep: Callable[[float], None]
) -> str:
    """Run a program on a copy of a model until it ends; why it failed, empty if it did not.

    The copy has the checkpoint's three files under their own names, read-only, in a directory that nobody else can enter; it is
    removed when the program has ended. command: the program and its arguments. `{}` in an argument stands for the path of the
    model; where it stands in none, the path is the last argument. timeout_s: when it has passed, or `sleep` raises, the whole
    process group of the program gets SIGTERM and then SIGKILL. stdout: a descriptor, None for that of this process.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="vmafx-watch-", ignore_cleanup_errors=True) as directory:
            path = str(_copy(model, Path(directory)))
            arguments = [each.replace(PLACE, path) for each in command[1:]]
            given = [command[0], *arguments, *([] if any(PLACE in each for each in command[1:]) else [path])]
            process = subprocess.Popen(given, stdin=subprocess.DEVNULL, stdout=stdout, start_new_session=True)
            try:
                return _wait(process, timeout_s, sleep)
            finally:
                if process.returncode is None:
                    with contextlib.suppress(PermissionError):  # it has become another user's: nobody can wait for that
                        _kill(process)
    except OSError as error:
        return f"{error.filename or command[0]}: {(error.strerror or str(error)).lower()}"


def _copy(model: VerifiedModel, directory: Path) -> Path:
    copy = Checkpoint(directory, model.version)
    about = json.dumps(dict(model.about), indent=2) + "\n"
    for path, data in (
        (copy.description, about.encode()),
        (copy.digest, f"{model.sha256}\n".encode()),
        (copy.model, model.data),
    ):
        try:
            path.write_bytes(data)
        except OSError as error:
            error.filename = str(path)  # a disk that is full names nothing
            raise
        path.chmod(0o400)
    return copy.model


def _wait(process: subprocess.Popen[bytes], timeout_s: float, sleep: Callable[[float], None]) -> str:
    until = time.monotonic() + timeout_s
    while (code := process.poll()) is None:
        if time.monotonic() > until:
            return f"did not end in {timeout_s:g} s"
        sleep(_LOOK_S)
    if code < 0:
        return f"ended by signal {-code}"
    return f"exit code {code}" if code else ""


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a program and what it has started. Until the last line it is not reaped, so that its number stays its group's."""
    os.killpg(process.pid, signal.SIGTERM)
    until = time.monotonic() + GRACE_S
    while time.monotonic() < until and not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
        time.sleep(_LOOK_S)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
