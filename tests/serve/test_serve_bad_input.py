"""What must not be taken, over a real socket: each line gets its one answer, and nothing of it is left behind."""

from __future__ import annotations

import json
import signal
import socket

import pytest
from prometheus_client import CollectorRegistry

from onnx_builder.write import to_bytes
from sidecar.client.feedback_client import FeedbackClient
from sidecar.monitoring.fetch import fetch_status
from sidecar.pairs.request import MAX_LINE_BYTES
from tests.bad_lines import N_FEATURES, ODD, REFUSED
from tests.conftest import run, run_process
from tests.running import free_address, journalled, metrics, published, wait_until

ALL_TRAIN = {"holdout_fraction": 0}


@pytest.fixture
def small_base(make_network, tmp_path):
    path = tmp_path / "small.onnx"
    path.write_bytes(to_bytes(make_network([N_FEATURES, 4, 1])))
    return path


@pytest.fixture
def good(random_rows):
    """So many good lines of three features."""
    return lambda count: [json.dumps(row).encode() for row in random_rows(count, N_FEATURES)]


def assert_refused(answer, bad):
    assert answer["ok"] is False
    assert bad.says in answer["error"]
    assert answer.get("job_id") == bad.job_id
    assert set(answer) <= {"ok", "job_id", "error"}


def test_bad_lines_between_good_ones_are_answered_in_order_and_leave_nothing(serve, small_base, good, tmp_path):
    address, pairs = free_address(), good(len(REFUSED))
    sidecar = serve(base_model=small_base, http=address, **ALL_TRAIN).connect()
    blank = [b"", b" \t", b"\r"]
    sent = [line for pair, bad in zip(pairs, REFUSED, strict=True) for line in (*blank, pair, bad.line)]
    sidecar.client.sendall(b"\n".join(sent) + b"\n")
    answers = sidecar.answers(2 * len(REFUSED))
    for place, (answer, refusal, bad) in enumerate(zip(answers[::2], answers[1::2], REFUSED, strict=True)):
        completes = place % 16 == 15
        assert answer.keys() == {"ok", "job_id", "step", "trained", *(["loss"] if completes else [])}
        assert (answer["ok"], answer["job_id"], answer["trained"]) == (True, f"j{place}", completes)
        assert answer["step"] == 4 * ((place + 1) // 16)
        assert_refused(refusal, bad)
    assert None not in [value for answer in answers for value in answer.values()]
    assert sidecar.unread == b""
    assert journalled(tmp_path) == pairs

    wait_until(lambda: fetch_status(address)["current_samples"] == len(pairs))
    assert fetch_status(address)["phase"] == "running"
    seen = metrics(address)
    assert seen['vmafx_training_pairs_total{result="rejected"}'] == len(REFUSED)
    assert seen['vmafx_training_pairs_total{result="accepted"}'] == len(pairs)
    assert seen['vmafx_training_pairs_total{result="duplicate"}'] == 0
    assert seen["vmafx_training_steps_total"] == answers[-2]["step"]
    assert seen["vmafx_training_journal_errors_total"] == 0
    assert seen["vmafx_training_connections"] == 1

    (again,) = sidecar.send([pairs[-1]])  # the connection goes on
    assert again == {
        "ok": True,
        "job_id": f"j{len(pairs) - 1}",
        "step": answers[-2]["step"],
        "trained": False,
        "duplicate": True,
    }
    assert sidecar.stop() == 0
    assert sidecar.log.read_text().count("Traceback") == 0


def test_after_a_kill_all_odd_pairs_are_there_as_they_came_and_nothing_else(serve, small_base, good, tmp_path):
    odd, pairs = [each.line for each in ODD], good(60)
    kept = [*pairs[:20], *odd, *pairs[20:]]
    for name, between in (("whole", []), ("killed", [each.line for each in REFUSED])):
        directory = tmp_path / name
        sidecar = serve(directory, base_model=small_base).connect()
        for lines in (pairs[:20], between, odd, between):
            answers = sidecar.send(lines)
            assert [answer["ok"] for answer in answers] == [lines is not between] * len(lines)
            if lines is odd:
                assert [answer.get("job_id") for answer in answers] == [each.job_id for each in ODD]
        if name == "killed":
            sidecar.stop(signal.SIGKILL)
            sidecar = serve(directory, base_model=small_base).connect()
            sidecar.logged(f"position={20 + len(odd)} ")
            named = [each.line for each in ODD if each.job_id]
            assert [answer["duplicate"] for answer in sidecar.send(named)] == [True] * len(named)
        assert all(answer["ok"] for answer in sidecar.send(pairs[20:]))
        assert sidecar.stop() == 0
        assert journalled(directory) == kept
    assert published(tmp_path / "killed") == published(tmp_path / "whole")
    again = run("train-offline", "--stream", tmp_path / "killed/checkpoints/state", "--output", tmp_path / "again", "--json")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again" / "model_v000001.onnx").read_bytes() == published(tmp_path / "whole")[0]


def test_how_a_line_comes_and_how_it_ends_does_not_matter(serve, small_base, good, tmp_path):
    pairs = good(5)
    sidecar = serve(base_model=small_base).connect()
    for byte in pairs[0] + b"\n":
        sidecar.client.sendall(bytes([byte]))
    sidecar.client.sendall(b"\n\r\n \n" + pairs[1] + b"\r\n" + pairs[2][:40])
    assert [answer["job_id"] for answer in sidecar.answers(2)] == ["j0", "j1"]
    other = socket.socket(socket.AF_UNIX)  # which is nobody's concern
    other.connect(str(sidecar.socket_path))
    other.sendall(b"junk")
    sidecar.client.sendall(pairs[2][40:] + b"\n" + pairs[3] + b"\n" + pairs[4])
    assert [answer["job_id"] for answer in sidecar.answers(2)] == ["j2", "j3"]
    sidecar.client.shutdown(socket.SHUT_WR)  # the last line may lack its newline
    assert [answer["job_id"] for answer in sidecar.answers(1)] == ["j4"]
    assert sidecar.client.recv(1) == b""
    other.close()
    assert sidecar.stop() == 0
    assert journalled(tmp_path) == [pairs[0], pairs[1] + b"\r", *pairs[2:5]]


def test_a_line_may_have_a_mebibyte_and_no_byte_more(serve, small_base, good, tmp_path):
    pairs = good(4)

    def long(pair, size):
        padding = b', "padding": "'
        return pair[:-1] + padding + b"x" * (size - len(pair) - len(padding) - 1) + b'"}'

    longest = long(pairs[0], MAX_LINE_BYTES)
    assert len(longest) == MAX_LINE_BYTES
    sidecar = serve(base_model=small_base).connect()
    assert [answer["ok"] for answer in sidecar.send([longest])] == [True]
    sidecar.client.sendall(pairs[1] + b"\n" + long(pairs[2], MAX_LINE_BYTES + 1) + b"\n")
    answers = sidecar.answers(2)
    assert answers[0]["job_id"] == "j1"
    assert answers[1] == {"ok": False, "error": "line: longer than 1048576 bytes"}
    assert sidecar.client.recv(1) == b""
    assert [answer["ok"] for answer in sidecar.connect().send(pairs[3:])] == [True]
    assert sidecar.stop(signal.SIGKILL) == -signal.SIGKILL
    assert journalled(tmp_path) == [longest, pairs[1], pairs[3]]
    sidecar = serve(base_model=small_base).connect()
    assert sidecar.send(pairs[1:2])[0]["duplicate"] is True
    assert sidecar.stop() == 0


def test_a_name_that_is_much_too_long_does_not_hold_up_the_pairs_behind_it(serve, small_base, tmp_path):
    sidecar = serve(base_model=small_base).connect()
    with FeedbackClient(sidecar.socket_path, retry_s=(0.05, 0.1), registry=CollectorRegistry()) as client:
        assert client.send([1, 2, 3], 50, job_id="x" * 100_000)
        assert client.send([1, 2, 3], 50, job_id="short")
        wait_until(lambda: not client.queued)
        assert (client.delivered, client.refused) == (1, 1)
    assert sidecar.stop() == 0


@pytest.mark.parametrize("option", ["--score-min", "--score-max"])
def test_a_score_range_that_float32_does_not_have_is_a_bad_setting(tmp_path, option):
    value = "1e39" if option == "--score-max" else "-1e39"
    done = run_process("serve", "--socket", tmp_path / "s.sock", "--checkpoint-dir", "/proc/nowhere", option, value)
    assert done.returncode == 2
    assert f"{option}='{value}': expected a finite number" in done.stderr
