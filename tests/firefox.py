"""Firefox without a window, for tests of pages, where it is installed; told what to do by its own WebDriver BiDi."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.running import PATIENCE_S, free_address

COMMANDS = ("firefox", "firefox-esr")


class Firefox:
    """socket: of its session. console: errors and warnings since the page was opened."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.console: list[str] = []
        self._call("session.new", capabilities={})
        self._call("session.subscribe", events=["log.entryAdded"])
        self._context = self._call("browsingContext.getTree")["contexts"][0]["context"]

    def open(self, url: str, width: int = 1400, height: int = 1000) -> None:
        """Open a page at a width in CSS pixels."""
        self._call("browsingContext.setViewport", context=self._context, viewport={"width": width, "height": height})
        self.console.clear()
        self._call("browsingContext.navigate", context=self._context, url=url, wait="complete")

    def ask(self, script: str) -> Any:
        """What an expression of JavaScript is in the page, by way of JSON."""
        found = self._call(
            "script.evaluate", expression=f"JSON.stringify({script})", target={"context": self._context}, awaitPromise=False
        )
        assert found["type"] == "success", found
        return json.loads(found["result"].get("value", "null"))

    def wait(self, script: str) -> Any:
        """The same once it is true."""
        end = time.monotonic() + PATIENCE_S
        while not (found := self.ask(script)):
            assert time.monotonic() < end, f"{script} never became true"
            time.sleep(0.05)
        return found

    def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert message["type"] == "success", message
                return message["result"]
            if message.get("method") == "log.entryAdded" and message["params"]["level"] in ("warn", "error"):
                self.console.append(str(message["params"]["text"]))


@contextlib.contextmanager
def firefox() -> Iterator[Firefox]:
    """Skips the test, with the reason, where there is none."""
    websocket = pytest.importorskip("websocket", reason="no websocket-client; it comes with selenium")
    command = next(filter(None, map(shutil.which, COMMANDS)), None)
    if command is None:
        pytest.skip("no Firefox; Debian's package firefox-esr brings it")
    address = free_address()
    with tempfile.TemporaryDirectory() as profile:
        options = ("--headless", "--no-remote", "--profile", profile, "--remote-debugging-port", address.rpartition(":")[2])
        process = subprocess.Popen([command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with contextlib.closing(_connected(websocket, f"ws://{address}/session", process)) as socket:
                yield Firefox(socket)
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def _connected(websocket: Any, url: str, process: subprocess.Popen[bytes]) -> Any:
    end = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < end:
        try:
            return websocket.create_connection(url, timeout=PATIENCE_S, suppress_origin=True)
        except ConnectionRefusedError:
            time.sleep(0.1)
    pytest.fail(f"Firefox did not start (exit code {process.poll()})")
