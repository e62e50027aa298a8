"""The command as a process: exit codes, what stands on which output, what Ctrl-C leaves."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys

import pytest

from tests.conftest import EXAMPLE, ROOT, run, run_process, tree
from tests.running import PATIENCE_S, start_process


def test_done_is_exit_code_0_and_one_object_on_standard_output(tmp_path):
    done = run_process("train-offline", EXAMPLE, "--epochs", 1, "--output", tmp_path / "c", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["checkpoint"] == str(tmp_path / "c" / "model_v000001.onnx")


def test_a_check_that_says_no_is_exit_code_1_and_still_an_object(tmp_path, base_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(base_path.read_bytes())
    model.with_suffix(".onnx.sha256").write_text("0" * 64 + "\n")
    done = run_process("verify", model, "--json")
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["ok"] is False


def test_bad_input_is_exit_code_2_and_one_line_on_standard_error(tmp_path):
    done = run_process("train-offline", "-", "--output", tmp_path / "c", stdin=b"junk\n")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("Error: standard input: line 1: not JSON")


def test_the_command_in_this_process_says_what_it_says_as_one(tmp_path):
    for arguments in (["--version"], ["evaluate", tmp_path / "none.onnx", EXAMPLE], ["--help"]):
        called, process = run(*arguments), run_process(*arguments)
        assert called.returncode == process.returncode
        assert called.stderr == process.stderr
        assert called.stdout.splitlines()[1:] == process.stdout.splitlines()[1:]  # the first may have the program's name


def interrupt(arguments, cwd):
    """Run on a terminal of its own, Ctrl-C once training shows its bar; exit code and what was seen."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with start_process(
        *arguments, stdin=follower, stdout=subprocess.DEVNULL, stderr=follower, cwd=cwd, env=environment
    ) as process:
        os.close(follower)
        seen = b""
        while seen.count(b"loss") < 5:
            seen += os.read(leader, 4096)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # at the end there is nobody on the other side
            while data := os.read(leader, 4096):
                seen += data
        os.close(leader)
        return process.wait(PATIENCE_S), seen.decode()


@pytest.mark.parametrize("command", [("verify",), ("promote", "1", "--checkpoint-dir"), ("forget", "a", "--state-dir")])
def test_a_name_that_no_file_can_have_is_told_in_a_line(command):
    done = run(*command, "x" * 300)
    assert done.returncode == 2
    assert re.fullmatch("Error: x{300}.*: File name too long\n", done.stderr)


@pytest.mark.parametrize("group_by", [(), ("--group-by", "source")])
def test_ctrl_c_exits_130_and_leaves_the_directory_as_it_was(tmp_path, group_by):
    (tmp_path / "mine.txt").write_text("keep")
    before = tree(tmp_path)
    code, seen = interrupt(["train-offline", EXAMPLE, "--output", tmp_path / "c", "--epochs", 5000, *group_by], tmp_path)
    assert code == 130
    assert "nothing was published" in seen
    assert "interrupted" in seen
    assert "Traceback" not in seen
    assert tree(tmp_path) == before


def test_help_has_an_example_that_names_a_file_that_is_here():
    for command in ("train-offline", "evaluate", "inspect", "verify"):
        text = run(command, "--help").stdout
        assert f"vmafx-sidecar {command}" in text
    assert "examples/recorded-80.jsonl.gz" in run("train-offline", "--help").stdout
    assert EXAMPLE.exists()
    assert run("--version").stdout.startswith("vmafx-sidecar, version ")


def test_help_does_not_load_onnxruntime():
    code = "import sys, sidecar.cli.main; print([m for m in ('onnxruntime', 'onnx') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=True).stdout == b"[]\n"
