"""A sidecar that misbehaves on purpose, for tests of its clients."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from tests.running import PATIENCE_S, wait_until

OK = b'{"ok":true,"step":1,"trained":false}\n'
REFUSED = b'{"ok":false,"error":"features: expected 80 numbers, got 2"}\n'
RETRYABLE = b'{"ok":false,"retryable":true,"error":"journal: no space left on device"}\n'
DUPLICATE = b'{"ok":true,"step":1,"trained":false,"duplicate":true}\n'
SOON = (0.001, 0.004)
LONG = (1000.0, 1000.0)


class Peer:
    """A connection as the sidecar has it; iterating gives the request lines."""

    def __init__(self, connection: socket.socket, received: list[bytes]) -> None:
        self._connection, self._received = connection, received
        self._unread = b""
        connection.settimeout(PATIENCE_S)

    def __iter__(self) -> Iterator[bytes]:
        while (line := self.line()) is not None:
            yield line

    def line(self) -> bytes | None:
        """The next request line, None at the end."""
        while b"\n" not in self._unread:
            try:
                data = self._connection.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._unread += data
        line, self._unread = self._unread.split(b"\n", 1)
        self._received.append(line)
        return line

    def say(self, data: bytes) -> None:
        self._connection.sendall(data)

    def is_quiet(self) -> bool:
        """Nothing comes within 50 ms."""
        return not self._unread and not select.select([self._connection], [], [], 0.05)[0]


Script = Callable[[Peer], object]


class FakeSidecar:
    """Listens at `path` and plays one script for each connection, which it then closes; the last one is for all further ones.

    received: the request lines of each connection.
    """

    def __init__(self, path: Path, *scripts: Script) -> None:
        self.path, self._scripts = path, scripts
        self.received: list[list[bytes]] = []
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []
        self._errors: list[BaseException] = []

    def job_ids(self, connection: int) -> list[str]:
        return [json.loads(line)["job_id"] for line in self.received[connection]]

    def join_connections(self) -> None:
        """Wait until the scripts that began have ended."""
        wait_until(lambda: len(self._threads) > 1)
        for thread in self._threads[1:]:
            thread.join()

    def __enter__(self) -> FakeSidecar:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._start(self._accept)
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self._stopping = True
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(self.path))
        self._threads[0].join()
        for connection in self._connections:
            with suppress(OSError):  # its script has ended
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()
        self.path.unlink()
        if self._errors and kind is None:
            raise self._errors[0]

    _stopping = False

    def _start(self, target: Callable[..., object], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._stopping:
                connection.close()
                return
            script = self._scripts[min(len(self.received), len(self._scripts) - 1)]
            self.received.append([])
            self._connections.append(connection)
            self._start(self._play, script, connection, self.received[-1])

    def _play(self, script: Script, connection: socket.socket, received: list[bytes]) -> None:
        try:
            with connection:
                script(Peer(connection, received))
        except OSError as error:
            if not self._stopping:
                self._errors.append(error)
        except AssertionError as error:
            self._errors.append(error)


def answers(answer: bytes = OK) -> Script:
    """Each line is answered so."""
    return lambda peer: [peer.say(answer) for _ in peer]


def reads(count: int, then: bytes = b"") -> Script:
    """Reads so many lines, says something, and closes."""

    def play(peer: Peer) -> None:
        for _ in range(count):
            assert peer.line() is not None
        peer.say(then)

    return play
