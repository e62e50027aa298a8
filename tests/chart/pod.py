"""A pod without Kubernetes: the sidecar as its container was rendered, with directories in place of volumes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sidecar.settings import Settings
from tests.chart.rendering import environment_of
from tests.conftest import ROOT
from tests.running import PATIENCE_S, free_address, unhurried


class Pod:
    """The sidecar of a pod of this name, not started yet.

    container: as it was rendered; volumes: a directory for each of its mountPaths but /tmp; as_user: the beginning of a command
    line that changes the user.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        container: dict[str, Any],
        volumes: Mapping[str, Path],
        as_user: Sequence[str] = (),
    ) -> None:
        self.tmp = directory / name / "tmp"
        self.tmp.mkdir(parents=True)
        self.volumes, self.as_user, self.address = {"/tmp": self.tmp, **volumes}, as_user, free_address()
        assert self.volumes.keys() == {each["mountPath"] for each in container["volumeMounts"]}
        rendered = environment_of(container, name)
        assert "VMAFX_SIDECAR_SOCKET" not in rendered
        self.socket = Path(self.path(str(Settings().socket)))
        self.environment = {
            **{variable: self.path(value) for variable, value in rendered.items()},
            "VMAFX_SIDECAR_SOCKET": str(self.socket),
            "VMAFX_SIDECAR_HTTP": self.address,
        }
        self.state = Path(self.environment["VMAFX_SIDECAR_STATE_DIR"])
        self.arguments, self.probes = container["args"], container
        self.process: subprocess.Popen[bytes] | None = None
        self.log = directory / f"{name}.log"

    def path(self, inside: str) -> str:
        """Where a path of the container is here; any other text as it is."""
        for mount, directory in self.volumes.items():
            if inside.startswith(f"{mount}/"):
                return str(directory / inside.removeprefix(f"{mount}/"))
        return inside

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [*self.as_user, *unhurried(), *self.arguments]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), **self.environment}
            self.process = subprocess.Popen(command, env=environment, cwd=self.tmp, stderr=log)
        until(lambda: self.probe("startupProbe"), self)

    def stop(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def probe(self, name: str) -> bool:
        with contextlib.suppress(OSError):
            return self.get(self.probes[name]["httpGet"]["path"]) != ""
        return False

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=PATIENCE_S) as answer:
            return answer.read().decode()


def until(condition: Callable[[], object], pod: Pod) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert pod.process.poll() is None, pod.log.read_text()
        assert time.monotonic() < deadline, pod.log.read_text()
        time.sleep(0.01)
