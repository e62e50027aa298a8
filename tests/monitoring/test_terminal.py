"""`status`, and `status --watch`: the live page in a terminal."""

from __future__ import annotations

import copy
import dataclasses
import http.server
import json
import os
import pty
import re
import select
import signal
import subprocess
import threading
import time

import pytest

from sidecar.monitoring.fetch import NoSidecarError, fetch_status
from sidecar.monitoring.history import COLUMNS
from sidecar.monitoring.status import Finding
from sidecar.monitoring.status_document import status_document
from sidecar.monitoring.terminal import format_status, sparkline, status_for_people, verdict, watch
from tests.conftest import run
from tests.monitoring.statuses import FULL
from tests.running import PATIENCE_S, free_address, start_process, wait_until


def start_watching(address, **options):
    return start_process("status", "--watch", "--http", address, **options)


NO_SPACE = Finding(
    "VmafxTrainingPaused", "phase", "critical", "pairs are refused, because the journal cannot be written",
    "journal: no space left", "Usually the models volume is full: make room.", 1e9, 1e9 + 60, True,
)  # fmt: skip


def test_status_for_a_person():
    told = status_document(dataclasses.replace(FULL, reason="no space left on device, so nothing is accepted until a restart"))
    lines = status_for_people(told).splitlines()
    assert lines == [
        "running: no space left on device, so nothing is accepted until a restart",
        "",
        "pairs in the journal      123,456",
        "last checkpoint           2025-12-31T23:59:59Z",
        "last model                model_v000042",
        "host                      node-0",
        "running since             2026-01-01T00:00:00Z",
        "reason                    no space left on device, so nothing is accepted until",
        "                          a restart",
        "accepts pairs             yes",
        "damaged files             000001-snapshot_000000000042.npz",
        "refused base model        base.onnx takes 4 features, not 2",
        "latest.onnx is            model_v000043",
        "stable.onnx is            model_v000041",
        "verdict of the gate       unstable",
        "why                       PLCC is low",
        "last taken back           model_v000040: worse",
        "gradient steps            30,000",
        "loss                      3.25 score points squared",
        "RMSE, last 1000 pairs     1.5 score points",
        "same, winsorized          1.25 score points",
        "same, of a constant       20.5 score points",
        "PLCC, last 1000 pairs     0.998",
        "feature drift             0.25 standard deviations",
        "drifting most             adm2",
        "largest shift             0.125 Kolmogorov–Smirnov distance",
        "pairs since the start     accepted 117,000, held out 6,456, duplicate 3,",
        "                          rejected 1",
        "replay buffer             9,000 pairs",
        "room for                  10,000 pairs",
        "replay evictions          7 pairs",
        "held out                  1,000 pairs",
        "room for                  1,000 pairs",
        "checkpoints               stable 40, unstable 2, unverified 0, incompatible 0",
        "failed checkpoints        build 0, parity 1, write 0, lock 0",
        "stable taken back         9 times",
        "journal                   12.35 MB",
        "room on its disk          3200 MB",
        "journal errors            4",
        "connections               2",
        "time per step             29 µs",
        "skipped steps             5",
        "outliers, not trained on  7 pairs",
        "unusual features          adm2",
        "weights diverged          2 times, and went back to earlier ones",
        "scores changed meaning    3 times",
        "learning rate             0.25 of what is set",
        "fits to replayed pairs    adopted 7, rejected 1",
        "log lines dropped         6",
        "directory disappeared     8 times",
        "damage, by kind of file   snapshot 1",
        "features per pair         2",
        "score                     vmaf_v0.6.1",
        "rejected, by reason       features 1",
        "features                  adm2, motion2",
        "heads of tenants          used 2, unused 1",
        "pairs of tenants          head 4,000, over share 30, refused 20",
    ]


def test_the_verdict_is_what_is_wrong_since_when_and_what_to_do(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    pending = NO_SPACE._replace(what="no pairs arrive", detail="0 connections", do="Look.", firing=False)
    wrong = dataclasses.replace(FULL, phase="paused", findings=(NO_SPACE, pending))
    lines = verdict(status_document(wrong), paint=lambda text, how: f"{how}:{text}")
    assert lines == [
        "bad:paused: pairs are refused, because the journal cannot be written: journal: no",
        "bad:space left",
        "  since 2001-09-09 01:46. Usually the models volume is full: make room.",
        "quiet:  no pairs arrive, since 2001-09-09 01:46, alert at 2001-09-09 01:47",
    ]
    waiting = dataclasses.replace(FULL, findings=(pending,))
    assert verdict(status_document(waiting), paint=lambda text, how: f"{how}:{text}") == [
        "good:running, and nothing is wrong",
        "quiet:  no pairs arrive: 0 connections, since 2001-09-09 01:46, alert at 2001-09-09",
        "quiet:  01:47",
    ]
    assert verdict(status_document(FULL), paint=lambda text, how: f"{how}:{text}") == ["good:running, and nothing is wrong"]


def test_what_is_nearly_one_is_not_shown_as_one():
    assert format_status({"disk_free_bytes": 17_762_345_678}) == "room on its disk  17,762 MB"
    assert format_status({"prequential_plcc": 0.99998}) == "PLCC, last 1000 pairs  0.999980"
    assert format_status({"prequential_plcc": 0.9999999}) == "PLCC, last 1000 pairs  0.999999"
    assert format_status({"prequential_plcc": 1.0}) == "PLCC, last 1000 pairs  1"


@pytest.mark.parametrize(
    ("document", "lines"),
    [
        ({}, []),
        ({"host": "\x1b[2Jrun\nning"}, ["host  [2Jrun ning"]),
        ({"host": "", "pairs": {}, "a_new\n_field": None}, ["host                   –"]),
        ({"x" * 100: 1}, ["x" * 24 + "  1"]),
        ({"reason": "x" * 200}, ["reason  " + "x" * 72, "        " + "x" * 72, "        " + "x" * 56]),
    ],
)
def test_statuses_of_another_make_are_told_as_well_as_can_be(document, lines):
    assert format_status(document).splitlines()[: len(lines)] == lines


def test_a_sparkline_is_the_means_between_the_lowest_and_the_highest():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], range(8), 8, 1) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 2, 7, 7], range(4), 2, 1) == "▁█"
    assert sparkline([0.99990, 0.99998], range(2), 2, 1) == "▁▁"
    assert sparkline([5, 5, 5], range(3), 3, 1) == "▁▁▁"
    assert sparkline([1, None, 3], [0, 50, 100], 10, 25) == "▁▁▁      █"


def test_watch_shows_what_the_sidecar_says_then_that_it_is_lost_and_goes_on(live, monkeypatch, serve, base_path):
    sidecar, address = live
    sidecar.process.send_signal(signal.SIGUSR1)
    monkeypatch.setenv("COLUMNS", "80")
    looks = watch(address, sleep=lambda seconds: time.sleep(0.05))
    seen = next(told for told in looks if "model_v000001" in told)
    assert re.match("vmafx-sidecar, [0-9:]{8}: running, and nothing is wrong", seen)
    for part in ("RMSE    ", "PLCC    ", "loss    ", "latest, stable", "pairs in the journal   300", "hold", "base_model="):
        assert part in seen
    assert max(map(len, seen.splitlines())) <= 80
    assert len(seen.partition("settings:")[0].splitlines()) <= 23
    sidecar.process.kill()
    sidecar.process.wait()
    gone = next(looks)
    assert gone.startswith("SIDECAR LOST at ")
    assert "Connection refused" in " ".join(gone.split())
    assert "model_v000001" in gone
    assert next(looks).startswith("SIDECAR LOST")
    serve(base_model=base_path, http=address).connect()
    assert next(told for told in looks if "LOST" not in told)


def test_watch_without_a_sidecar_says_so_and_without_a_terminal_prints_a_block_a_look():
    with start_watching(free_address(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watching:
        assert watching.stdout.readline().startswith(b"NO SIDECAR at ")
        watching.send_signal(signal.SIGINT)
        out, errors = watching.communicate(timeout=PATIENCE_S)
    assert (watching.returncode, errors) == (130, b"\ninterrupted\n")
    assert b"\x1b" not in out


def test_watch_redraws_in_place_in_a_terminal(served):
    _, address = served
    controller, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "LINES": "24"}
    with start_watching(address, stdout=terminal, stderr=subprocess.DEVNULL, env=environment) as watching:
        os.close(terminal)
        drawn = b""
        while drawn.count(b"\x1b[H") < 2:
            assert select.select([controller], [], [], PATIENCE_S)[0]
            drawn += os.read(controller, 65536)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(PATIENCE_S) == 130
    os.close(controller)
    first = drawn.split(b"\x1b[H")[1]
    assert first.count(b"\x1b[K\r\n") == first.count(b"\n") <= 23
    assert first.endswith(b"\x1b[J")


@pytest.mark.parametrize("arguments", [("--watch", "--json"), ("--watch", "--http", "nowhere")])
def test_watch_with_what_it_cannot_do(arguments):
    done = run("status", *arguments)
    assert done.returncode == 2
    assert "--watch" in done.stderr or "nowhere" in done.stderr


# What a sidecar says at /api/history, as far as `watch` needs it, and at /api/checkpoints.
HISTORY_TOLD = {
    "now": {
        "phase": "running", "current_samples": 3, "time": 1030.5, "making_progress": True, "replay_size": 3,
        "replay_capacity": 9, "held_out_size": 0, "held_out_capacity": 9, "pairs": {"accepted": 3}, "rejected": {},
        "prequential_rmse": 1.5,
    },
    "settings": {"seed": 3}, "every_seconds": 10, "columns": list(COLUMNS),
    "rows": [[1000, *[None] * 7, 0], [1010, 0.3, 2.5, 2, 20, 0.9, 7, 0.1, 300]],
}  # fmt: skip
CHECKPOINTS_TOLD = {"latest": None, "stable": None, "checkpoints": [{"name": "model_v000001", "version": 1}]}


def changed(told, **values):
    """A document with a part of `now` or of itself replaced; None takes it away."""
    told = copy.deepcopy(told)
    for name, value in values.items():
        place = told["now"] if name in told.get("now", {}) else told
        place[name] = value
        if value is None:
            del place[name]
    return told


@pytest.fixture
def impostor():
    """A server whose answers, by path, are JSON documents or bytes: a dictionary to change, and its address."""
    answers = {"/api/history": HISTORY_TOLD, "/api/checkpoints": CHECKPOINTS_TOLD}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = answers[self.path]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        yield answers, f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_watch_needs_no_more_than_this(impostor):
    seen = next(watch(impostor[1]))
    for part in (": running, and nothing is wrong", "RMSE ", "model_v000001", "seed=3"):
        assert part in seen


HUGE = b"1" + b"0" * 400
WRONG = {
    "answered 200 with b'<!doctype html>'": b"<!doctype html>",
    "answered 200 with b'[1]'": b"[1]",
    "answered 200 with b'\\x00\\xff'": b"\x00\xff",
    "answered 200 with b'": b"[" * 100_000,
    "answered 200 with b'{\"now\": NaN}'": b'{"now": NaN}',
    "object missing required field `now`": {"hello": "world"},
    "expected `object`, got `array` - at `$.now`": {**HISTORY_TOLD, "now": []},
    "object missing required field `phase` - at `$.now`": changed(HISTORY_TOLD, phase=None),
    "expected `str`, got `int` - at `$.now.phase`": changed(HISTORY_TOLD, phase=3),
    "expected `float` <= 100000000000.0 - at `$.now.time`": changed(HISTORY_TOLD, time=1e12),
    "expected `int`, got `str` - at `$.now.replay_size`": changed(HISTORY_TOLD, replay_size="many"),
    "expected `int`, got `array` - at `$.now.pairs[...]`": changed(HISTORY_TOLD, pairs={"accepted": []}),
    "expected `array`, got `object` - at `$.rows`": changed(HISTORY_TOLD, rows={}),
    "expected `float | null`, got `str` - at `$.rows[0][0]`": changed(HISTORY_TOLD, rows=[["x"] * len(COLUMNS)]),
    "expected rows as long as `columns`, with `time` first": changed(HISTORY_TOLD, rows=[[1000]]),
    "expected `float`, got `null` - at `$[0]`": changed(HISTORY_TOLD, rows=[[None] * len(COLUMNS)]),
    "number out of range": json.dumps(changed(HISTORY_TOLD, time=17)).encode().replace(b"17", HUGE),
}


@pytest.mark.parametrize("message", WRONG)
def test_watch_ends_with_one_line_where_something_else_answers(impostor, message):
    answers, address = impostor
    answers["/api/history"] = WRONG[message]
    with pytest.raises(NoSidecarError) as refused:
        next(watch(address))
    assert str(refused.value).startswith(f"{address}: /api/history is not from a sidecar: {message}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["latest", "checkpoints"])
def test_watch_looks_at_the_checkpoints_document_too(impostor, name):
    answers, address = impostor
    answers["/api/checkpoints"] = changed(CHECKPOINTS_TOLD, **{name: 3})
    with pytest.raises(
        NoSidecarError, match=f"/api/checkpoints is not from a sidecar: expected `.*, got `int` - at `.*{name}`"
    ):
        next(watch(address))


@pytest.mark.parametrize(
    "told",
    [
        changed(HISTORY_TOLD, rows=[]),
        changed(HISTORY_TOLD, rows=[[1000, *[None] * 8]], prequential_rmse=None),
        changed(HISTORY_TOLD, rows=[[5000, *[1] * 8], [10, *[1e100] * 8], [1020, *[-1e100] * 8]]),
        changed(HISTORY_TOLD, columns=["time", "another"], rows=[[1000, 3]]),
        changed(HISTORY_TOLD, settings={"\x1b[31m": "\x1b[32m\n" * 500}, phase="\x1b[2J" * 100, every_seconds=-1),
    ],
)
@pytest.mark.parametrize("columns", ["1", "80", "500"])
def test_watch_shows_what_is_odd_as_well_as_can_be(impostor, monkeypatch, told, columns):
    monkeypatch.setenv("COLUMNS", columns)
    answers, address = impostor
    answers["/api/history"] = told
    seen = next(watch(address))
    assert "\x1b" not in seen
    assert max(map(len, seen.splitlines())) <= max(40, int(columns)) or columns == "1"


def test_something_else_in_the_place_of_a_sidecar_is_its_loss_and_watch_goes_on(impostor):
    answers, address = impostor
    looks = watch(address, sleep=lambda seconds: None)
    assert ": running" in next(looks)
    answers["/api/history"] = {"hello": "world"}
    lost = next(looks)
    assert lost.startswith("SIDECAR LOST at ")
    assert "/api/history is not from a sidecar: object missing required field `now`" in " ".join(lost.split())
    assert ": running" in lost
    answers["/api/history"] = HISTORY_TOLD
    assert ": running" in next(looks)


@pytest.mark.parametrize("arguments", [[], ["--watch"], ["--json"]])
def test_the_command_says_in_one_line_that_something_else_answers(impostor, arguments):
    answers, address = impostor
    answers["/status"] = answers["/api/history"] = {"hello": "world"}
    done = run("status", "--http", address, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {address}: /")
    assert " is not from a sidecar: object missing required field `" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("told", [{"phase": 3, "current_samples": 3}, {"phase": "running", "current_samples": 3.5}])
def test_a_status_has_what_every_reader_relies_on(impostor, told):
    answers, address = impostor
    answers["/status"] = told
    with pytest.raises(NoSidecarError, match="/status is not from a sidecar: expected "):
        fetch_status(address)


def test_a_closed_pipe_ends_watch_quietly(impostor, tmp_path):
    _, address = impostor
    with (
        (tmp_path / "errors").open("wb") as errors,
        start_watching(address, stdout=subprocess.PIPE, stderr=errors) as watching,
    ):
        assert watching.stdout.readline().startswith(b"vmafx-sidecar, ")
        watching.stdout.close()
        assert watching.wait(PATIENCE_S) == 1
    assert (tmp_path / "errors").read_bytes() == b""


def test_watch_into_a_file_is_plain_lines_and_ctrl_c_ends_it(impostor, tmp_path):
    _, address = impostor
    with (tmp_path / "seen").open("wb") as seen, start_watching(address, stdout=seen, stderr=subprocess.PIPE) as watching:
        wait_until(lambda: (tmp_path / "seen").read_bytes().count(b"vmafx-sidecar, ") == 2)
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=PATIENCE_S)
    assert (watching.returncode, errors) == (130, b"\ninterrupted\n")
    text = (tmp_path / "seen").read_text()
    assert all(line.isprintable() for line in text.splitlines())
    first, second = text.split("vmafx-sidecar, ")[1:]
    assert first == second
    assert first.endswith("\n\n")
