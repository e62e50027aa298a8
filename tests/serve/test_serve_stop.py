"""SIGTERM ends it whatever it is waiting for, and what was answered is there afterwards."""

from __future__ import annotations

import fcntl
import itertools
import json
import shutil
import signal
from datetime import datetime

import pytest

from sidecar.checkpoints.directory import checkpoints
from sidecar.journal.segments import read_journal
from sidecar.serve.process import END_S
from tests.monitoring.live import ask_json, told_of_one_checkpoint
from tests.running import free_address, journalled, metrics, wait_until

HANGS = """
import os, sys, threading
def within(name):
    frame = sys._getframe()
    while frame := frame.f_back:
        if frame.f_code.co_name == name:
            return True
def never_answers(*arguments, **options):
    if os.path.exists({trigger!r}) and (within({where!r}) or threading.current_thread().name.startswith({where!r})):
        print("it hangs", file=sys.stderr, flush=True)
        hung.set()
        threading.Event().wait()
    return answers(*arguments, **options)
def from_the_hang_on(seconds):
    hung.wait()
    return wait(seconds)
hung = threading.Event()
import sidecar.serve.server
import sidecar.serve.process as process
begin = process.Signals.__init__
def begun(signals):
    global wait
    begin(signals)
    wait, signals._ended.wait = signals._ended.wait, from_the_hang_on
process.Signals.__init__ = begun
answers, os.{call} = os.{call}, never_answers
"""
"""From the moment that a file is there, a call in a function or on a thread of a name waits for a disk that never answers. The
time that the end may take begins then, so that a slow machine comes as far as that."""
LONGER_S = 15.0
"""For what goes on beside a disk that hangs, on a slow machine."""


@pytest.mark.parametrize(
    ("call", "where", "settings", "doing"),
    [
        pytest.param("fsync", "fsync_0", {}, "waiting for the disk", marks=pytest.mark.slow),
        ("fsync", "write_snapshot", {"snapshot_interval": 0.1}, "publishing a checkpoint"),
        ("replace", "publish", {"checkpoint_interval": 0, "min_samples": 1}, "publishing a checkpoint"),
        pytest.param("readlink", "look", {}, "waiting for the disk", marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_never_answers_holds_up_no_answer_and_not_the_end(
    serve, base_path, lines, tmp_path, call, where, settings, doing
):
    trigger = tmp_path / "hang"
    changed = HANGS.format(call=call, where=where, trigger=str(trigger))
    end_s = LONGER_S if doing == "waiting for the disk" else END_S
    sidecar = serve(base_model=base_path, changed=changed, end_s=end_s, **settings).connect()
    sidecar.send(lines[:80])
    trigger.touch()
    answers = sidecar.send(lines[80:160])
    sidecar.logged("it hangs")
    answers += sidecar.send(lines[160:240])
    assert [answer["ok"] for answer in answers] == [True] * 160
    assert sidecar.stop() == 1
    sidecar.logged(f'ended without having finished seconds={end_s:g} doing="{doing}"')
    assert journalled(tmp_path) == lines[:240]
    sidecar = serve(base_model=base_path).connect()
    assert sidecar.send(lines[239:240])[0]["duplicate"] is True
    assert sidecar.stop() == 0


@pytest.mark.parametrize(
    ("call", "where", "doing"),
    [
        ("replace", "publish", "publishing a checkpoint"),
        ("replace", "write_snapshot", "writing a snapshot"),
        ("replace", "write_history", "writing a snapshot"),
        ("fsync", "close", "waiting for the disk"),
    ],
)
def test_it_ends_though_the_disk_does_not_answer_at_the_end(serve, base_path, lines, tmp_path, call, where, doing):
    trigger = tmp_path / "hang"
    changed = HANGS.format(call=call, where=where, trigger=str(trigger))
    sidecar = serve(base_model=base_path, changed=changed, end_s=END_S).connect()
    sidecar.send(lines[:240])
    wait_until((tmp_path / "checkpoints" / "state" / "history.jsonl").exists)  # the first housekeeping is done
    trigger.touch()
    assert sidecar.stop() == 1
    sidecar.logged("it hangs")
    sidecar.logged(f'ended without having finished seconds=3.5 doing="{doing}"')
    assert journalled(tmp_path) == lines[:240]


@pytest.mark.parametrize("where", ["_append", "journal_segments"])
def test_it_ends_though_the_thread_that_answers_waits_for_the_disk(serve, base_path, lines, tmp_path, where):
    sidecar = serve(base_model=base_path).connect()
    sidecar.send(lines[:100])
    assert sidecar.stop() == 0
    changed = HANGS.format(call="fsync" if where == "_append" else "listdir", where=where, trigger="/")
    sidecar = serve(base_model=base_path, changed=changed, end_s=END_S, journal_fsync="always")
    if where == "_append":
        sidecar.connect().client.sendall(lines[100] + b"\n")
    sidecar.logged("it hangs")
    assert sidecar.stop() == 1
    sidecar.logged(f"ended without having finished seconds=3.5 doing={'serving' if where == '_append' else 'starting'}")
    assert journalled(tmp_path)[:100] == lines[:100]


def test_a_fit_that_takes_long_does_not_hold_up_the_end(serve, base_path, lines, tmp_path):
    endless = "import sidecar.learning.online.fits as fits\nfits.LATER_SHARE = 1e-6"
    sidecar = serve(base_model=base_path, changed=endless, end_s=10.0).connect()
    sidecar.send(lines[:300])
    assert sidecar.stop() == 0
    sidecar.logged("the last pairs are left to the next start, which trains on them pairs=")
    assert not checkpoints(tmp_path / "checkpoints")
    assert journalled(tmp_path) == lines[:300]
    sidecar = serve(base_model=base_path).connect()
    assert sidecar.send(lines[:300])[-1]["duplicate"] is True
    assert sidecar.stop() == 0
    (published,) = checkpoints(tmp_path / "checkpoints")
    assert json.loads(published.description.read_text())["journal"]["last"] == 299


def test_another_process_that_holds_the_lock_holds_up_nothing_but_publishing(serve, base_path, lines, tmp_path):
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sidecar = serve(base_model=base_path, checkpoint_interval=0, min_samples=1, snapshot_interval=0.1).connect()
        sent = itertools.islice(itertools.cycle(lines), 1000)
        answers = sidecar.send([*sent])
        assert all(answer["ok"] for answer in answers)
        sidecar.logged("holds the lock .lock")
        wait_until(lambda: list((directory / "state").glob("snapshot_*")))
        assert sidecar.stop() == 0
    assert checkpoints(directory) == []
    assert not any("without having finished" in line for line in sidecar.log.read_text().splitlines())


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_checkpoint_directory_that_is_lost_is_told_and_made_again(serve, base_path, lines, tmp_path, how):
    address, directory = free_address(), tmp_path / "checkpoints"
    sidecar = serve(base_model=base_path, state_dir=tmp_path / "state", http=address).connect()
    sidecar.send(lines[:100])
    if how == "removed":
        shutil.rmtree(directory)
        sidecar.logged("WARNING the checkpoint directory was removed")
        sidecar.logged("the checkpoint directory was made again")
    else:
        directory.rename(tmp_path / "before")
        (tmp_path / "other").mkdir()
        (tmp_path / "other").rename(directory)
        sidecar.logged("WARNING the checkpoint directory was ")
    wait_until(lambda: ask_json(address, "/status").get("checkpoint_directory_lost"))
    assert metrics(address)["vmafx_training_checkpoint_directory_lost_total"] == 1
    assert all(answer["ok"] for answer in sidecar.send(lines[100:200]))
    assert directory.is_dir()
    assert sidecar.stop() == 0
    assert [checkpoint.version for checkpoint in checkpoints(directory)] == [1]
    assert len([entry for entry in read_journal(tmp_path / "state") if entry.run is None]) == 200


def test_a_checkpoint_directory_that_took_the_state_with_it_can_be_put_back(serve, base_path, lines, tmp_path):
    address, directory, aside = free_address(), tmp_path / "checkpoints", tmp_path / "aside"
    sidecar = serve(base_model=base_path, http=address).connect()
    sidecar.send(lines[:100])
    directory.rename(aside)
    sidecar.logged("WARNING the checkpoint directory was removed")
    wait_until(lambda: ask_json(address, "/status")["phase"] == "paused")
    assert sidecar.send(lines[100:101])[0]["retryable"] is True
    assert not directory.exists()
    aside.rename(directory)
    sidecar.logged("the checkpoint directory was put back")
    wait_until(lambda: ask_json(address, "/status")["phase"] == "running")
    assert all(answer["ok"] for answer in sidecar.send(lines[100:200]))
    assert sidecar.stop() == 0
    assert journalled(tmp_path) == lines[:200]


def test_two_sidecars_in_one_directory_each_report_their_own_last_checkpoint(serve, base_path, lines, tmp_path):
    directory = tmp_path / "checkpoints"

    def start(name):
        address = free_address()
        state = tmp_path / name
        return address, serve(state, base_model=base_path, checkpoint_dir=directory, state_dir=state, http=address).connect()

    def told(address):
        status = ask_json(address, "/status")
        return status.get("model_version"), status.get("latest_version")

    def publish(sidecar, more):
        """The path in the next answer after it."""
        answers = [sidecar.send(more)[-1]]
        sidecar.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: "checkpoint" in answers[-1] or answers.extend(sidecar.send([more[0]])))
        return answers[-1]["checkpoint"]

    (one_address, one), (two_address, two) = start("one"), start("two")
    assert told(one_address) == (None, None)
    assert publish(one, lines[:100]) == str(directory / "model_v000001.onnx")
    assert publish(two, lines[100:200]) == str(directory / "model_v000002.onnx")
    wait_until(lambda: told(one_address) == ("model_v000001", "model_v000002"))
    wait_until(lambda: told(two_address) == ("model_v000002", "model_v000002"))
    for address, version in ((one_address, 1), (two_address, 2)):
        created = json.loads((directory / f"model_v{version:06d}.json").read_text())["created_at"]
        status, figures = ask_json(address, "/status"), metrics(address)
        assert figures["vmafx_training_checkpoint_version"] == version
        moment = figures["vmafx_training_checkpoint_timestamp_seconds"]
        assert moment == datetime.fromisoformat(created).timestamp()
        assert datetime.fromisoformat(status["last_checkpoint_time"]).timestamp() == moment
    assert one.stop() == 0
    address, one = start("one")
    wait_until(lambda: told(address) == ("model_v000002", "model_v000002"))
    assert told_of_one_checkpoint(address, directory) == "model_v000002"
