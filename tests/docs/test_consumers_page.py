"""The programs on the page about using the models do what the page says of them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time

import pytest

from sidecar.checkpoints.directory import promote
from sidecar.cli.running import watch_command
from sidecar.consumer.follower import Follower
from sidecar.watch import program, runs
from tests.conftest import ROOT
from tests.consumer.published import ModelServer, constant, point_stable_at, publish_model, served
from tests.running import PATIENCE_S, signals_are_heard, wait_until

PAGE = (ROOT / "docs" / "consumers.md").read_text()
PROGRAMS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
WIDTH = 80


def program_with(text: str) -> str:
    (found,) = (code for _, code in PROGRAMS if text in code)
    return found


def test_these_are_the_programs():
    assert [language for language, _ in PROGRAMS] == ["sh", "sh", "sh", "python", "go"]
    for name in ("# Puts a model", "# follow-directory ", "# follow-http ", "LiveModel(", "func main()"):
        assert program_with(name)


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "checkpoints"


def digest_of(checkpoint):
    return hashlib.sha256(checkpoint.model.read_bytes()).hexdigest()


@contextlib.contextmanager
def source_of(kind, directory):
    """Where a loop looks: a directory, a server that gives out what is in it, or the sidecar's own, which looks at it first."""
    if kind == "directory":
        yield directory, []
    elif kind == "sidecar":
        with served(directory) as address:
            yield f"http://{address}", []
    else:
        with ModelServer(directory).running() as server:
            yield server.url, server.asked


@pytest.mark.parametrize("kind", ["directory", "server", "sidecar"])
def test_a_shell_loop_runs_its_program_with_each_model_that_is_whole(kind, directory, tmp_path):
    name = "follow-directory" if kind == "directory" else "follow-http"
    if name == "follow-http" and shutil.which("curl") is None:
        pytest.skip("no curl")
    loop, node, seen, copies = (tmp_path / each for each in ("loop", "node", "seen", "copies"))
    copies.mkdir()
    loop.write_text(program_with(f"# {name} ").replace("sleep 1", "sleep 0.05"))
    # The first time that it sees a model it fails.
    node.write_text(
        f'#!/bin/sh\nsum=$(sha256sum < "$1")\necho "${{sum%% *}}" >> {seen}\n[ $(grep -c "${{sum%% *}}" {seen}) -gt 1 ]\n'
    )
    node.chmod(0o755)

    complaint = b": 503\n" if kind == "sidecar" else b" say\n"

    def told():
        return seen.read_text().split() if seen.exists() else []

    with source_of(kind, directory) as (source, asked), (tmp_path / "errors").open("wb") as errors:
        looks = subprocess.Popen(["sh", loop, source, node], stderr=errors, env={**os.environ, "TMPDIR": str(copies)})
        try:
            first = publish_model(directory, constant(20))
            expected = [digest_of(first)] * 2
            wait_until(lambda: told() == expected, "the first")
            second = publish_model(directory, constant(30))
            expected += [digest_of(second)] * 2
            wait_until(lambda: told() == expected, "the second")
            if kind == "server":
                wait_until(lambda: ("/models/stable.onnx", 304) in asked, "nothing new")
            for damage in (
                lambda checkpoint: checkpoint.model.write_bytes(checkpoint.model.read_bytes()[:-20]),
                lambda checkpoint: checkpoint.description.write_text(json.dumps({"sha256": "0" * 64})),
            ):
                checkpoint = publish_model(directory, constant(40), stable=False)
                damage(checkpoint)
                before = (tmp_path / "errors").stat().st_size
                point_stable_at(directory, checkpoint.version)
                wait_until(lambda before=before: complaint in (tmp_path / "errors").read_bytes()[before:], "the damaged one")
            assert told() == expected
            promote(directory, 1)
            wait_until(lambda: len(told()) == 5, "the first again")
            assert told() == [*expected, digest_of(first)]
        finally:
            looks.terminate()
            looks.wait(PATIENCE_S)
    assert list(copies.iterdir()) == []
    assert "/models/stable.json" not in dict(asked)


def test_the_script_for_watch_puts_the_model_in_place_and_tells_the_node(directory, tmp_path):
    place, reload = tmp_path / "node", tmp_path / "reload.sh"
    place.mkdir()
    script = program_with("# Puts a model").replace("/srv/node", str(place)).replace("/run/node.pid", str(place / "pid"))
    reload.write_text(script)
    reload.chmod(0o755)
    loop = f"trap 'echo reloads' HUP; echo $$ > {place}/pid; echo; while :; do sleep 0.02; done"
    with signals_are_heard():
        node = subprocess.Popen(["sh", "-c", loop], stdout=subprocess.PIPE)
    try:
        node.stdout.readline()
        model = publish_model(directory, constant(20))
        assert program.run_program(Follower(directory).news(), [str(reload)], PATIENCE_S, sleep=time.sleep) == ""
        assert node.stdout.readline() == b"reloads\n"
        assert (place / "model.onnx").read_bytes() == model.model.read_bytes()
    finally:
        node.send_signal(signal.SIGKILL)
        node.communicate()


def test_the_commands_are_understood():
    commands = [shlex.split(line) for line in re.findall(r"^    vmafx-sidecar watch (.*)$", PAGE, flags=re.MULTILINE)]
    assert len(commands) == 2
    for arguments in commands:
        with watch_command.make_context("watch", arguments) as context:
            assert context.params["command"] == tuple(arguments[arguments.index("--exec") + 1 :])


def test_the_times_and_the_lines_of_json_are_the_programs():
    assert f"after {runs.FIRST_RETRY_S:g} second, then after 2, 4 and so on up to {runs.LAST_RETRY_S:g}" in PAGE
    timeout = next(option.default for option in watch_command.params if option.name == "timeout")
    assert f"After `--timeout` ({timeout.replace('s', ' s')})" in PAGE
    assert program.GRACE_S == 2
    lines = [json.loads(line) for line in re.findall(r"^    (\{.*\})$", PAGE, flags=re.MULTILINE)]
    model = type("", (), {"name": "model_v000042", "version": 42, "sha256": "9f2c…"})
    assert lines[:2] == [
        runs.Ran(model, 1, 0.021, "exit code 3", 1.0).as_json(),
        runs.Ran(model, 2, 0.019, "", 0.0).as_json(),
    ]
    assert lines[2] == runs.Refused(lines[2]["refused"]).as_json()


def test_the_python_example_predicts_over_http(directory):
    publish_model(directory, constant(50, WIDTH))
    with ModelServer(directory).running() as server, contextlib.redirect_stdout(io.StringIO()) as said:
        exec(program_with("LiveModel(").replace("http://127.0.0.1:9091", server.url), {})
    assert said.getvalue() == "model_v000001 [50.4]\n"


def test_the_part_in_go_is_that_of_the_example():
    assert program_with("func main()") in (ROOT / "examples" / "go" / "main.go").read_text()
