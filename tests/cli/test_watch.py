"""`watch` as a process: what it prints, how it ends, and what it leaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess

import pytest

from sidecar.checkpoints.directory import tenant_directory
from tests.conftest import run
from tests.consumer.published import constant, publish_model
from tests.running import PATIENCE_S, gone, start_process, wait_until


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture
def start(tmp_path):
    """Starts the command with a shell script as its program; its copies lie in `tmp`."""

    def start(directory, script, *options):
        place = tmp_path / "tmp"
        place.mkdir(exist_ok=True)
        return start_process(
            *("watch", directory, *options, "--exec", "sh", "-c", script, "{}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(place), "OUT": str(tmp_path / "out")},
        )

    return start


def test_it_follows_the_model_of_a_tenant(directory, start):
    publish_model(directory, constant(20))
    publish_model(tenant_directory(directory, "a"), constant(30))
    publish_model(tenant_directory(directory, "a"), constant(40))
    for tenant, expected in (("a", 2), ("b", 1)):  # b has none of its own
        with start(directory, "true", "--json", "--tenant", tenant) as process:
            said = json.loads(process.stdout.readline())
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=PATIENCE_S)
        assert said["version"] == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_and_the_program_that_runs_and_leaves_no_copy(directory, start, tmp_path, number, code):
    publish_model(directory, constant(20))
    with start(directory, "sleep 1000 & echo $$ $! > $OUT.part; mv $OUT.part $OUT; wait") as process:
        wait_until((tmp_path / "out").exists)
        assert len(os.listdir(tmp_path / "tmp")) == 1
        process.send_signal(number)
        said, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said, errors.strip()) == (code, b"", b"interrupted" if code else b"")
    for pid in (tmp_path / "out").read_text().split():
        wait_until(lambda pid=pid: gone(int(pid)), pid)
    assert os.listdir(tmp_path / "tmp") == []


def test_it_runs_again_for_the_present_model_after_a_restart_and_json_is_a_line_for_each_run(directory, start):
    publish_model(directory, constant(20))
    for _ in range(2):
        with start(directory, 'echo "$0"', "--json") as process:
            said = json.loads(process.stdout.readline())
            process.send_signal(signal.SIGTERM)
            rest, errors = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, rest) == (0, b"")
        assert said.items() >= {"model": "model_v000001", "version": 1, "ok": True, "attempt": 1}.items()
        assert errors.endswith(b"/model_v000001.onnx\n"), "the program's own output is no JSON"


def test_a_signal_ends_it_while_a_server_does_not_answer(start):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        with start(f"http://127.0.0.1:{server.getsockname()[1]}", "exit 0") as process:
            with server.accept()[0]:
                process.send_signal(signal.SIGTERM)
                assert process.communicate(timeout=PATIENCE_S) == (b"", b"")
            assert process.returncode == 0


def test_a_policy_says_which_model(directory, start):
    for score in (20, 30):
        publish_model(directory, constant(score))
    with start(directory, "exit 0", "--policy", "pinned", "--version", "1", "--json") as process:
        assert json.loads(process.stdout.readline())["version"] == 1


def test_without_json_the_program_writes_where_the_command_does(directory, start):
    publish_model(directory, constant(20))
    with start(directory, "echo it; exit 3") as process:
        assert process.stdout.readline() == b"it\n"
        assert process.stdout.readline().startswith(b"model_v000001: exit code 3; again in 1 s (run 1, ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "Missing option '--exec'"),
        (["x", "--exec"], "Missing option '--exec'"),
        (["--exec", "true", "x"], "Missing argument 'DIR|URL'"),
        (["x", "--exec", "/no/such/program"], "/no/such/program: there is no such program"),
        (["ftp://x", "--exec", "true"], "ftp://x: expected http://HOST:PORT"),
        (["x", "--policy", "pinned", "--exec", "true"], "version=None: expected the number of a version"),
        (["x", "--version", "3", "--exec", "true"], "version=3: only with the policy 'pinned'"),
        (["x", "--tenant", "../x", "--exec", "true"], "tenant='../x': expected"),
        (["x", "--timeout", "0", "--exec", "true"], "'0' is not a finite number above 0, in seconds or with a unit"),
        (["x", "--interval", "1w", "--exec", "true"], "'1w' is not a finite number above 0"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_what_is_allowed(arguments, message):
    done = run("watch", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.split())
