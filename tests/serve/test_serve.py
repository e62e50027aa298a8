"""The sidecar as a process: what it answers, what outlives it, and what it refuses to start on."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import itertools
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec import UNSET

from sidecar.checkpoints.directory import STABLE, checkpoints, linked
from sidecar.journal.segments import read_journal
from sidecar.pairs.holdout import holdout_position
from sidecar.settings import Settings
from tests.conftest import EXAMPLE, run, run_process
from tests.monitoring.live import told_of_one_checkpoint
from tests.running import PATIENCE_S, free_address, journalled, wait_until


def test_it_answers_trains_and_publishes_at_shutdown(serve, base_path, lines, tmp_path):
    sidecar = serve(base_model=base_path).connect()
    answers = sidecar.send([*lines[:300], b"junk", lines[0]])
    assert [answer["ok"] for answer in answers] == [True] * 300 + [False, True]
    assert answers[301]["duplicate"] is True
    assert any(answer["trained"] for answer in answers[:300])
    assert sidecar.stop() == 0
    assert sidecar.log.read_text().count("the model was fitted again to its replay buffer") == 1
    assert not sidecar.socket_path.exists()
    assert journalled(tmp_path) == lines[:300]
    assert run("verify", tmp_path / "checkpoints").returncode == 0
    about = json.loads((tmp_path / "checkpoints" / "model_v000001.json").read_text())
    assert about["journal"] == {"directory": str(tmp_path / "checkpoints" / "state"), "first": 0, "last": 299}
    assert about["base_model"]["path"] == str(base_path)
    train = sum(holdout_position(f"g{i // 12}", UNSET, b"") >= Settings().holdout_fraction for i in range(300))
    assert about["step"] == train // 16 * 4
    assert answers[-1]["step"] in (about["step"], 256 // 16 * 4)  # those after the fit to 256 pairs may wait for it


def test_nothing_new_is_published_where_nothing_trained(serve, base_path, lines, tmp_path):
    sidecar = serve(base_model=base_path).connect()
    sidecar.send(lines[:200])
    assert sidecar.stop() == 0
    sidecar = serve(base_model=base_path).connect()
    assert sidecar.stop(signal.SIGINT) == 0
    assert len(checkpoints(tmp_path / "checkpoints")) == 1


@pytest.mark.parametrize("name", [b"checkpoints", b"checkpoints-\xff"])
def test_sigusr1_publishes_now_and_the_next_answer_says_so(serve, base_path, lines, tmp_path, name):
    directory = tmp_path / os.fsdecode(name)
    sidecar = serve(base_model=base_path, holdout_fraction=0.2, checkpoint_dir=directory).connect()
    sidecar.send(lines[:400])
    sidecar.process.send_signal(signal.SIGUSR1)
    more, answers = itertools.cycle(lines[400:]), [{}]
    wait_until(lambda: "checkpoint" in answers[-1] or answers.extend(sidecar.send([next(more)])))
    model = directory / "model_v000001.onnx"
    assert answers[-1]["checkpoint"] == os.fsencode(model).decode(errors="replace")
    assert "checkpoint" not in sidecar.send([lines[-1]])[0]
    assert linked(directory, STABLE).model == model
    assert sidecar.stop() == 0


@pytest.mark.parametrize("content", ["junk", None])
def test_a_base_model_that_cannot_be_used_leaves_it_up_and_recording(serve, base_path, lines, tmp_path, content):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"junk" if content else base_path.read_bytes())
    settings = {} if content else {"n_features": 81}
    sidecar = serve(base_model=bad, **settings).connect()
    sent = lines[:100] if content else [line.replace(b'"features": [', b'"features": [0.5, ') for line in lines[:100]]
    answers = sidecar.send(sent)
    assert [(answer["ok"], answer["trained"], answer["step"]) for answer in answers] == [(True, False, 0)] * 100
    assert sidecar.stop() == 0
    sidecar.logged("phase failed")
    assert journalled(tmp_path) == sent
    assert checkpoints(tmp_path / "checkpoints") == []
    if content:
        sidecar = serve(base_model=base_path).connect()
        sidecar.logged("trained_again=100 ")
        assert sidecar.send([lines[100]])[0]["step"] > 0
        assert sidecar.stop() == 0
        assert len(checkpoints(tmp_path / "checkpoints")) == 1


def test_another_number_of_features_moves_the_old_state_aside(serve, base_path, lines, tmp_path, random_rows):
    sidecar = serve(base_model=base_path).connect()
    sidecar.send(lines[:50])
    assert sidecar.stop() == 0
    other = [json.dumps(row).encode() for row in random_rows(20, n_features=5)]
    sidecar = serve(base_model=tmp_path / "none.onnx", n_features=5).connect()
    assert all(answer["ok"] for answer in sidecar.send(other))
    assert sidecar.stop() == 0
    sidecar.logged("moved aside to")
    (aside,) = (tmp_path / "checkpoints").glob("state.80-features-*")
    assert len([entry for entry in read_journal(aside) if entry.run is None]) == 50


@pytest.mark.parametrize("gone", ["missing", "own checkpoint"])
def test_the_state_goes_on_where_the_base_is_gone_or_is_a_checkpoint_of_its_own(serve, base_path, lines, tmp_path, gone):
    sidecar = serve(base_model=base_path).connect()
    sidecar.send(lines[:200])
    assert sidecar.stop() == 0
    after = tmp_path / "none.onnx" if gone == "missing" else tmp_path / "checkpoints" / "latest.onnx"
    sidecar = serve(base_model=after).connect()
    step = sidecar.send([lines[200]])[0]["step"]
    assert step >= 40
    assert sidecar.stop() == 0


def test_an_endless_line_is_answered_and_the_connection_closed(serve, base_path):
    sidecar = serve(base_model=base_path).connect()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sidecar.client.sendall(b"x" * (3 << 20))
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sidecar.client.recv(1 << 16):
            answer += data
    assert json.loads(answer) == {"ok": False, "error": "line: longer than 1048576 bytes"}
    assert sidecar.connect().send([b"{}"])[0]["ok"] is False
    assert sidecar.stop() == 0


def test_a_client_that_takes_no_answers_holds_up_nobody(serve, base_path, lines):
    sidecar = serve(base_model=base_path).connect()
    deaf = socket.socket(socket.AF_UNIX)
    deaf.connect(str(sidecar.socket_path))
    deaf.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < 200 << 20:
            sent += deaf.send(b'{"job_id": "' + b"y" * 200 + b'"}\n' * 200)
    for _ in range(200):
        with contextlib.suppress(BlockingIOError):
            sent += deaf.send(b'{"job_id": "deaf"}\n' * 200)
        assert sidecar.send([b"{}"])[0]["ok"] is False
    assert sent < 100 << 20
    assert all(answer["ok"] for answer in sidecar.send(lines[:50]))
    resident = int(
        next(x for x in Path(f"/proc/{sidecar.process.pid}/status").read_text().splitlines() if "VmRSS" in x).split()[1]
    )
    assert resident < 200_000
    deaf.close()
    assert sidecar.stop() == 0


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(serve, base_path, lines, tmp_path):
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "s.sock"))
    stale.close()
    sidecar = serve(base_model=base_path).connect()
    assert oct((tmp_path / "s.sock").stat().st_mode & 0o777) == "0o600"
    second = run_process("serve", "--socket", tmp_path / "s.sock", "--checkpoint-dir", tmp_path / "other", "--http", "")
    assert second.returncode == 2
    assert f"socket {tmp_path / 's.sock'}: another sidecar answers there" in second.stderr
    third = run_process("serve", "--socket", tmp_path / "t.sock", "--checkpoint-dir", tmp_path / "checkpoints", "--http", "")
    assert third.returncode == 2
    assert "another sidecar holds this state directory" in third.stderr
    sidecar.send(lines[:5])
    elsewhere = ("--socket", tmp_path / "t.sock", "--checkpoint-dir", tmp_path / "checkpoints", "--http", "")
    fourth = run_process("serve", *elsewhere, "--n-features", 5, "--base-model", tmp_path / "none.onnx")
    assert fourth.returncode == 2
    assert "another sidecar holds this state directory" in fourth.stderr
    assert journalled(tmp_path) == lines[:5]
    assert sidecar.send([b"{}"])[0]["ok"] is False
    assert sidecar.stop() == 0


@pytest.mark.parametrize("what", ["a file", "a directory", "a symbolic link"])
def test_anything_else_at_the_socket_path_is_left_alone(tmp_path, what):
    path = tmp_path / "s.sock"
    {"a file": path.touch, "a directory": path.mkdir, "a symbolic link": lambda: path.symlink_to("/nowhere")}[what]()
    done = run_process("serve", "--socket", path, "--checkpoint-dir", tmp_path / "c", "--http", "")
    assert done.returncode == 2
    assert f"socket {path}: {what} stands there; it is left alone" in done.stderr
    assert os.path.lexists(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "--batch-size='0': expected a whole number from 1"),
        (["--http", "nonsense"], "VMAFX_SIDECAR_HTTP='nonsense'"),
        (["--checkpoint-dir", "/proc/nowhere"], "/proc"),
    ],
)
def test_bad_settings_stop_the_start_with_one_line(tmp_path, options, message):
    done = run_process("serve", "--socket", tmp_path / "s.sock", "--checkpoint-dir", tmp_path / "c", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("call", "unreadable"), [("listdir", "state/journal"), ("scandir", ""), ("stat", "")])
def test_a_directory_that_cannot_be_read_now_stops_the_start_with_one_line(serve, lines, tmp_path, call, unreadable):
    assert serve().connect().stop() == 0
    path = str(tmp_path / "checkpoints" / unreadable).rstrip("/")
    changed = f"""
import errno, os
usual = os.{call}
def stale(path, *arguments, **options):
    if str(path) == {path!r}:
        raise OSError(errno.ESTALE, "Stale file handle", path)
    return usual(path, *arguments, **options)
os.{call} = stale
"""
    again = serve(changed=changed)
    assert not again.accepts()
    assert again.process.wait() == 2
    log = again.log.read_text()
    assert [line for line in log.splitlines() if line.startswith("Error:")] == [f"Error: {path}: Stale file handle"]
    assert "Traceback" not in log
    assert "Traceback" not in again.log.read_text()


def test_a_bad_environment_variable_is_named(tmp_path):
    environment = {**os.environ, "VMAFX_SIDECAR_LR": "fast"}
    done = run_process("serve", "--socket", tmp_path / "s.sock", "--checkpoint-dir", tmp_path / "c", env=environment)
    assert done.returncode == 2
    assert "VMAFX_SIDECAR_LR='fast': expected a finite number above 0" in done.stderr


def test_onnxruntime_is_not_loaded_before_the_first_checkpoint(tmp_path):
    code = "import sys, sidecar.serve.server; print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_status_and_probe_look_at_a_running_sidecar(serve, base_path, lines, tmp_path):
    address = free_address()
    assert run("probe", "--http", address).returncode == 1
    sidecar = serve(base_model=base_path, http=address).connect()
    sidecar.send(lines[:100])
    wait_until(lambda: json.loads(run("status", "--http", address, "--json").stdout)["current_samples"] == 100)
    document = json.loads(run("status", "--http", address, "--json").stdout)
    assert document["phase"] == "running"
    assert 0 < document["prequential_rmse"] < 50
    assert "last_checkpoint_time" not in document
    assert run("probe", "--http", address).returncode == 0
    assert "running" in run("status", "--http", address).stdout
    assert sidecar.stop() == 0


def test_pairs_that_complete_no_group_are_in_the_figures_soon(serve, base_path, lines):
    address = free_address()
    sidecar = serve(base_model=base_path, http=address, holdout_fraction=0.99).connect()
    assert not any(answer["trained"] for answer in sidecar.send(lines[:3]))
    wait_until(lambda: json.loads(get(address, "/status")[1])["held_out_size"] == 3)
    assert sidecar.stop() == 0


def test_noise_does_not_move_stable_and_promote_does(serve, base_path, lines, tmp_path):
    settings = {"base_model": base_path, "holdout_fraction": 0.2}
    sidecar = serve(**settings).connect()
    sidecar.send(lines[:1500])
    assert sidecar.stop() == 0
    checkpoint_dir = tmp_path / "checkpoints"
    assert linked(checkpoint_dir, STABLE).version == 1

    chance = random.Random(3)
    noise = [
        json.dumps({**json.loads(line), "job_id": f"n{i}", "true_score": chance.uniform(0, 100)})
        for i, line in enumerate(lines)
    ]
    for _ in range(2):  # the held-out ring itself is full of noise by then
        sidecar = serve(**settings).connect()
        sidecar.send([line.encode() for line in noise[:1200]])
        noise = noise[1200:]
        assert sidecar.stop() == 0
    verdicts = [json.loads(each.description.read_text())["gate"] for each in checkpoints(checkpoint_dir)]
    assert [gate["verdict"] for gate in verdicts] == ["stable", "unstable", "unstable"]
    assert linked(checkpoint_dir, STABLE).version == 1

    done = run("promote", 3, "--checkpoint-dir", checkpoint_dir)
    assert done.returncode == 0, done.stderr
    assert linked(checkpoint_dir, STABLE).version == 3
    done = run("promote", 1, "--checkpoint-dir", checkpoint_dir, "--json")
    assert json.loads(done.stdout) == {"version": 1, "stable": str(checkpoint_dir / "model_v000001.onnx")}
    missing = run("promote", 9, "--checkpoint-dir", checkpoint_dir)
    assert missing.returncode == 2
    assert "no checkpoint 9; available: 1, 2, 3" in missing.stderr
    (checkpoint_dir / "model_v000002.onnx").write_bytes(b"junk")
    damaged = run("promote", 2, "--checkpoint-dir", checkpoint_dir)
    assert damaged.returncode == 2
    assert "was not promoted: digest" in damaged.stderr
    assert linked(checkpoint_dir, STABLE).version == 1


def events(sidecar, message=None):
    """Lines of a JSON log."""
    lines = [json.loads(line) for line in sidecar.log.read_text().splitlines()]
    return [line for line in lines if message in (None, line["message"])]


def test_the_log_has_a_line_an_event_with_its_figures(serve, base_path, lines, tmp_path):
    sidecar = serve(base_model=base_path, log_format="json", holdout_fraction=0.2).connect()
    sidecar.send([*lines[:600], *[b"junk"] * 50, b'{"features": [1], "true_score": 1}', *[b'{"features": []}'] * 5])
    assert sidecar.stop() == 0
    (starting,) = events(sidecar, "starting")
    assert starting["level"] == "info"
    assert starting["base_model"] == str(base_path)
    assert starting["learning_rate"] == 1e-4
    assert len(starting) == 3 + len(dataclasses.fields(Settings))
    (recovered,) = events(sidecar, "recovered")
    assert (recovered["position"], recovered["trained_again"]) == (0, 0)
    (published,) = events(sidecar, "checkpoint published")
    assert published["version"] == "model_v000001"
    assert published["gate"] == "stable"
    assert published["pairs"] > 30
    assert published["rmse"] > 0
    (stopped,) = events(sidecar, "stopped")
    assert (stopped["position"], stopped["accepted"] + stopped["held_out"], stopped["rejected"]) == (600, 600, 56)
    refused = [line["message"] for line in events(sidecar) if line["message"].startswith("a pair was refused")]
    assert refused == [  # each kind once, however often it comes
        "a pair was refused: not JSON: invalid character at byte 0: 'junk'",
        "a pair was refused: features: expected 80 numbers, got 1",
        "a pair was refused: true_score: missing",
    ]


def test_what_was_refused_as_text_in_the_log_stays_on_its_line(serve, base_path):
    sidecar = serve(base_model=base_path).connect()
    sidecar.send([b'{"features": ["\\n2026 ERROR forged \\u001b[31m"], "true_score": 1}', b"\x1b[31m\rforged"])
    assert sidecar.stop() == 0
    assert "\x1b" not in sidecar.log.read_text()
    assert not any(line.startswith("2026 ERROR") for line in sidecar.log.read_text().splitlines())


def get(address, path):
    """Code and body, None where nothing listens yet."""
    connection = http.client.HTTPConnection(address, timeout=PATIENCE_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except ConnectionError:
        return None
    finally:
        connection.close()


RECOVERING = """
import pathlib, time
import sidecar.online.training as training

rebuild, done = training.rebuild, 0

def in_steps(*arguments, progress, **options):
    def step(pairs):
        global done
        done += pairs
        progress(pairs)
        while done >= int(pathlib.Path({path!r}).read_text()):
            time.sleep(0.01)
    return rebuild(*arguments, progress=step, **options)

training.rebuild = in_steps
"""
"""A sidecar that recovers no more pairs than a file says."""


@pytest.fixture
def recovering(serve, base_path, lines, tmp_path):
    """A sidecar that has 2,496 pairs to train on again, as a kill leaves it when no snapshot was written.

    With its address, and what lets it train on so many of them and no more: on 256 until that is told.
    """
    sidecar = serve(base_model=base_path, snapshot_interval=3600).connect()
    sidecar.send(lines)
    sidecar.stop(signal.SIGKILL)
    for snapshot in (tmp_path / "checkpoints" / "state").glob("snapshot*"):  # of its first turn, if that had pairs already
        snapshot.unlink()
    sidecar.log.unlink()
    limit, address = tmp_path / "limit", free_address()

    def let_it_train(pairs):
        (tmp_path / "new").write_text(str(pairs))
        (tmp_path / "new").rename(limit)

    let_it_train(256)
    again = serve(base_model=base_path, http=address, changed=RECOVERING.format(path=str(limit)))
    wait_until(lambda: get(address, "/readyz") is not None)
    return again, address, let_it_train


def test_while_it_recovers_it_is_alive_and_not_ready(recovering):
    sidecar, address, let_it_train = recovering

    def status():
        return json.loads(get(address, "/status")[1])

    for pairs in (256, 512, 1280):
        let_it_train(pairs)
        wait_until(lambda pairs=pairs: status()["current_samples"] == pairs)
        assert status()["phase"] == "initializing"
        assert (get(address, "/healthz")[0], get(address, "/readyz")[0]) == (200, 503)
    let_it_train(1_000_000)
    sidecar.connect()
    wait_until(lambda: get(address, "/readyz")[0] == 200)
    assert sidecar.stop() == 0


def test_stopped_while_it_recovers_it_ends_at_once_and_loses_nothing(recovering, lines, tmp_path):
    sidecar, _, let_it_train = recovering
    sidecar.process.send_signal(signal.SIGTERM)
    let_it_train(1_000_000)
    assert sidecar.process.wait(PATIENCE_S) == 0
    assert "listening" not in sidecar.log.read_text()
    assert journalled(tmp_path) == lines
    assert not list((tmp_path / "checkpoints" / "state").glob("snapshot*"))


def test_drift_and_steps_are_exported(serve, base_path, lines, tmp_path):
    address = free_address()
    sidecar = serve(base_model=base_path, http=address).connect()
    order = np.random.default_rng(0).permutation(80)

    def shuffled(line):
        pair = json.loads(line)
        return json.dumps({**pair, "job_id": "s" + pair["job_id"], "features": [pair["features"][i] for i in order]}).encode()

    def drift():
        found = re.search(r"^vmafx_training_feature_drift (\S+)$", get(address, "/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else math.nan

    sidecar.send(lines[:1000])
    wait_until(lambda: drift() < 2)
    sidecar.send([shuffled(line) for line in lines[:1000]])
    wait_until(lambda: drift() > 3)
    assert sidecar.stop() == 0


def test_a_thousand_idle_connections_and_one_byte_a_time_hold_up_nobody(serve, base_path, lines):
    sidecar = serve(base_model=base_path).connect()
    idle = [socket.socket(socket.AF_UNIX) for _ in range(1000)]
    for client in idle:
        client.connect(str(sidecar.socket_path))
        client.send(b'{"job_id": ')
    for byte in lines[0][:50]:
        idle[0].send(bytes([byte]))
        assert all(answer["ok"] or answer["duplicate"] for answer in sidecar.send(lines[:3]))
    for client in idle:
        client.close()
    assert sidecar.stop() == 0


def test_checkpoints_are_told_after_a_restart_and_count_their_pairs_across_it(serve, base_path, lines, tmp_path):
    settings = {"base_model": base_path, "checkpoint_interval": 0, "min_samples": 300}
    sidecar = serve(**settings).connect()
    sidecar.send(lines[:200])
    sidecar.stop(signal.SIGKILL)
    address = free_address()
    sidecar = serve(**settings, http=address).connect()
    assert "last_checkpoint_time" not in json.loads(get(address, "/status")[1])
    sidecar.send(lines[200:400])  # 200 before the kill and these make 300 new ones
    wait_until(lambda: checkpoints(tmp_path / "checkpoints"))
    assert sidecar.stop() == 0
    sidecar = serve(**settings, http=address).connect()
    wait_until(lambda: get(address, "/readyz")[0] == 200)  # which it says just after the socket accepts
    told = json.loads(get(address, "/status")[1])
    newest = checkpoints(tmp_path / "checkpoints")[-1]
    created = json.loads(newest.description.read_text())["created_at"]
    assert told["last_checkpoint_time"] == created.replace("+00:00", "Z")
    assert told["model_version"] == newest.name
    assert sidecar.stop() == 0


def test_export_io_base_without_a_base_is_told_and_recorded(serve, lines, tmp_path):
    sidecar = serve(base_model=tmp_path / "none.onnx", export_io="base").connect()
    assert [answer["trained"] for answer in sidecar.send(lines[:300])] == [False] * 300
    assert sidecar.stop() == 0
    sidecar.logged("VMAFX_SIDECAR_EXPORT_IO=base: needs an ONNX base model; there is none at")
    assert checkpoints(tmp_path / "checkpoints") == []


def noisy(lines, chance):
    """The same pairs under new names, their scores noise."""
    return [
        json.dumps({**json.loads(line), "job_id": f"n{chance.random()}", "true_score": chance.uniform(0, 100)}).encode()
        for line in lines
    ]


def test_stable_stays_on_the_last_good_one_for_as_long_as_the_noise_lasts(serve, base_path, lines, tmp_path):
    checkpoint_dir, chance = tmp_path / "checkpoints", random.Random(4)
    sidecar = serve(base_model=base_path, holdout_fraction=0.2, min_samples=1, checkpoint_interval=3600).connect()

    def publish():
        before = sidecar.log.read_text().count("checkpoint published")  # said when the links have moved, too
        sidecar.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: sidecar.log.read_text().count("checkpoint published") > before)
        return json.loads(checkpoints(checkpoint_dir)[-1].description.read_text())["gate"]

    for at in range(0, 2000, 1000):  # a clean stream moves it
        sidecar.send(lines[at : at + 1000])
        assert publish()["verdict"] == "stable"
        assert linked(checkpoint_dir, STABLE) == checkpoints(checkpoint_dir)[-1]
    good = linked(checkpoint_dir, STABLE)
    for _ in range(8):  # more noise than the held-out ring holds
        sidecar.send(noisy(lines[:1000], chance))
        assert publish()["verdict"] == "unstable"
        assert linked(checkpoint_dir, STABLE) == good
    assert sidecar.stop() == 0


def test_real_drift_that_the_anchor_holds_back_is_let_through_by_promote(serve, base_path, lines, tmp_path):
    checkpoint_dir, settings = tmp_path / "checkpoints", {"base_model": base_path, "holdout_fraction": 0.2}

    def drifted(line, number):
        pair = json.loads(line)
        return json.dumps({**pair, "job_id": f"d{number}", "true_score": 0.5 * pair["true_score"]}).encode()

    def life(batch):
        sidecar = serve(**settings).connect()
        sidecar.send(batch)
        assert sidecar.stop() == 0
        return json.loads(checkpoints(checkpoint_dir)[-1].description.read_text())["gate"]["verdict"]

    assert life(lines) == "stable"
    moved = [drifted(line, number) for number, line in enumerate(lines * 3)]
    assert life(moved[: len(lines)]) == "unstable"
    assert life(moved[len(lines) : 2 * len(lines)]) == "unstable"
    newest = checkpoints(checkpoint_dir)[-1].version
    assert run("promote", newest, "--checkpoint-dir", checkpoint_dir).returncode == 0
    (checkpoint_dir / "base.onnx").write_bytes(checkpoints(checkpoint_dir)[-1].model.read_bytes())
    settings["base_model"] = tmp_path / "none.onnx"  # the base model of old knows nothing of the drift
    assert life(moved[2 * len(lines) :]) == "stable"
    assert linked(checkpoint_dir, STABLE).version == newest + 1


def test_export_io_base_goes_on_from_a_checkpoint_of_its_own(serve, base_path, lines, tmp_path):
    sidecar = serve(base_model=base_path, export_io="base", holdout_fraction=0.2).connect()
    sidecar.send(lines[:300])
    assert sidecar.stop() == 0
    for base in (tmp_path / "checkpoints" / "latest.onnx", tmp_path / "none.onnx"):
        sidecar = serve(base_model=base, export_io="base", holdout_fraction=0.2).connect()
        answers = sidecar.send([line.replace(b'"job_id": "', b'"job_id": "%s' % base.name.encode()) for line in lines[300:400]])
        assert any(answer["trained"] for answer in answers)
        assert sidecar.stop() == 0
    models = checkpoints(tmp_path / "checkpoints")
    assert len(models) == 3
    assert [run("evaluate", each.model, EXAMPLE).returncode for each in models] == [0, 0, 0]


def test_where_the_base_is_gone_the_gate_still_compares_with_it(serve, base_path, lines, tmp_path):
    sidecar = serve(base_model=base_path, holdout_fraction=0.2).connect()
    sidecar.send(lines[:300])
    assert sidecar.stop() == 0
    sidecar = serve(base_model=tmp_path / "none.onnx", holdout_fraction=0.2).connect()
    sidecar.send(lines[300:500])
    assert sidecar.stop() == 0
    about = json.loads(checkpoints(tmp_path / "checkpoints")[-1].description.read_text())
    assert Path(about["base_model"]["path"]).parent == tmp_path / "checkpoints" / "state"


def test_a_model_that_does_not_fit_the_stable_one_moves_no_link_and_is_warned_of_once(
    serve, base_path, lines, random_rows, tmp_path
):
    directory = tmp_path / "checkpoints"
    sidecar = serve(base_model=base_path, holdout_fraction=0.2, log_format="json").connect()
    sidecar.send(lines[:600])
    assert sidecar.stop() == 0
    assert linked(directory, STABLE).version == 1
    rows = [json.dumps(row).encode() for row in random_rows(900)]
    sidecar = serve(
        base_model=tmp_path / "none.onnx", n_features=5, log_format="json", http=(address := free_address())
    ).connect()
    for part in (rows[:400], rows[400:600]):
        sidecar.send(part)
        wait_until(lambda: json.loads(run("status", "--http", address, "--json").stdout)["phase"] == "running")  # it is fitted
        known = len(checkpoints(directory)) + 1
        sidecar.process.send_signal(signal.SIGUSR1)
        wait_until(lambda known=known: len(events(sidecar, "checkpoint published")) == known)
        wait_until(lambda known=known: told_of_one_checkpoint(address, directory) == f"model_v{known:06d}")
    sidecar.send(rows[600:])
    assert sidecar.stop() == 0
    published = events(sidecar, "checkpoint published")
    assert [each["gate"] for each in published] == ["stable"] + ["incompatible"] * 3
    assert [each["level"] for each in published] == ["info", "warning", "info", "info"]
    assert published[1]["reason"] == "it takes 5 features, model_v000001 takes 80"
    assert not events(sidecar, "checkpoint not published")
    for name in ("latest", "stable"):
        assert os.readlink(directory / f"{name}.onnx") == "model_v000001.onnx"
        assert os.readlink(directory / f"{name}.json") == "model_v000001.json"
    assert run("promote", 4, "--checkpoint-dir", directory).returncode == 0
    sidecar = serve(base_model=tmp_path / "none.onnx", n_features=5, log_format="json").connect()
    sidecar.send([row.replace(b'"j', b'"k') for row in rows])
    assert sidecar.stop() == 0
    assert events(sidecar, "checkpoint published")[-1]["gate"] in ("stable", "unstable")
    assert os.readlink(directory / "latest.json") == "model_v000005.json"


def test_evaluate_knows_what_of_a_journal_a_checkpoint_was_trained_on(serve, base_path, lines, tmp_path):
    settings = {"base_model": base_path, "holdout_fraction": 0.2}
    for part in (lines[:600], lines[600:900]):
        sidecar = serve(**settings).connect()
        sidecar.send(part)
        assert sidecar.stop() == 0
    state = tmp_path / "checkpoints" / "state"
    held_out = [holdout_position(f"g{i // 12}", UNSET, b"") < 0.2 for i in range(900)]
    for version, count in ((1, 600), (2, 900)):
        model = tmp_path / "checkpoints" / f"model_v{version:06d}.onnx"
        found = json.loads(run("evaluate", model, state, "--json").stdout)
        assert (found["pairs"], found["trained_on"]) == (900, count - sum(held_out[:count]))
        found = json.loads(run("evaluate", model, state, "--held-out", "--json").stdout)
        assert found["pairs"] == sum(held_out)
        assert "trained_on" not in found
