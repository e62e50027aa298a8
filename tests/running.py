"""A running `serve` process for tests, and what it leaves on disk."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sidecar.checkpoints.directory import checkpoints
from sidecar.journal.segments import read_journal

PATIENCE_S = 120
"""Nothing here takes so long, however busy the machine is: who waits in vain fails."""


def unhurried(changed: str = "", end_s: float = PATIENCE_S) -> list[str]:
    """The command, as the beginning of a command line, with as long for its end as a busy machine may need.

    changed: Python that changes something of it first.
    """
    time = f"import sidecar.serve.process\nsidecar.serve.process.END_S = {end_s}"
    return [sys.executable, "-c", f"from sidecar.cli.main import main\n{time}\n{changed}\nmain()"]


def start_process(*arguments: object, command: Sequence[str] = (), **options: Any) -> subprocess.Popen[bytes]:
    """Start the command so that SIGINT and SIGHUP reach it.

    For a `with`, at whose end it is gone, whatever it was doing. command: the beginning of the command line, see `unhurried`.
    """
    with signals_are_heard():
        return _Gone([*(command or (sys.executable, "-m", "sidecar")), *map(str, arguments)], **options)


@contextlib.contextmanager
def signals_are_heard() -> Iterator[None]:
    """SIGINT and SIGHUP reach this process, and what is started here, even where it ignores them.

    One in the background ignores SIGINT, one under nohup SIGHUP, and what is ignored is inherited.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Gone(subprocess.Popen[bytes]):
    def __exit__(self, *error: Any) -> None:
        self.kill()
        super().__exit__(*error)


class Sidecar:
    """A running `serve`, and a client of it.

    changed: see `unhurried`; environment: what is added to that of the tests; end_s: how long its end may take.
    """

    def __init__(
        self,
        directory: Path,
        changed: str = "",
        environment: Mapping[str, str] = MappingProxyType({}),
        end_s: float = PATIENCE_S,
        **settings: object,
    ) -> None:
        self.directory, self.socket_path, self.log = directory, directory / "s.sock", directory / "log"
        self.checkpoint_dir = directory / "checkpoints"
        options = {"socket": self.socket_path, "checkpoint_dir": self.checkpoint_dir, "http": "", **settings}
        arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        with self.log.open("ab") as log:
            command = unhurried(changed, end_s)
            self.process = start_process("serve", *arguments, command=command, stderr=log, env={**os.environ, **environment})
        self.client: socket.socket | None = None
        self.unread = b""

    def connect(self) -> Sidecar:
        assert self.accepts(), self.log.read_text()
        return self

    def accepts(self) -> bool:
        """Connect to it. False if it has ended."""
        if self.client is not None:
            self.client.close()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.client = socket.socket(socket.AF_UNIX)
            self.client.settimeout(PATIENCE_S)
            try:
                self.client.connect(str(self.socket_path))
            except OSError:
                self.client.close()
                if self.process.poll() is not None:
                    return False
                assert time.monotonic() < deadline
                time.sleep(0.01)
            else:
                return True

    def send(self, lines: list[bytes]) -> list[dict]:
        """The answers to lines, sent without waiting."""
        self.client.sendall(b"".join(line + b"\n" for line in lines))
        return self.answers(len(lines))

    def answers(self, count: int) -> list[dict]:
        while self.unread.count(b"\n") < count:
            data = self.client.recv(1 << 16)
            assert data, self.log.read_text()
            self.unread += data
        *lines, self.unread = self.unread.split(b"\n")
        assert len(lines) == count
        return [json.loads(line) for line in lines]

    def logged(self, text: str) -> None:
        """Wait until a line of the log has this text: the log is written a little after what it tells of."""
        wait_until(lambda: text in self.log.read_text(), text)

    def end(self) -> None:
        """Leave nothing of it behind, however it stands."""
        if self.client is not None:
            self.client.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.client is not None:
            self.client.close()
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


def journalled(directory):
    return [entry.line for entry in read_journal(directory / "checkpoints" / "state") if entry.run is None]


def published(directory):
    return [checkpoint.model.read_bytes() for checkpoint in checkpoints(directory / "checkpoints")]


_taken: list[socket.socket] = []


def free_address() -> str:
    """An address for HTTP that nobody listens on, and that the system gives to nobody else while this process runs.

    A bound socket keeps the port; a server, which sets SO_REUSEADDR as they all do, may listen there all the same.
    """
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _taken.append(taken)
    return f"127.0.0.1:{taken.getsockname()[1]}"


def metrics(address: str) -> dict[str, float]:
    """What /metrics says, by name and labels: `vmafx_training_pairs_total{result="accepted"}`."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE_S) as response:
        lines = response.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


def wait_until(holds: Callable[[], object], what: str = "") -> None:
    """Look again and again, until it holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process has ended, though nobody may have asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
