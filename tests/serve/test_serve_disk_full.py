"""Disks that are full or turn read-only under a running sidecar: it says so, keeps what it answered, and goes on by itself.

Small file systems are mounted for it, which needs root; elsewhere these tests are skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from sidecar.checkpoints.directory import LATEST, checkpoints, linked
from sidecar.client.feedback_client import FeedbackClient
from sidecar.journal.blocks import encode_block
from sidecar.journal.segments import read_journal
from sidecar.monitoring.fetch import fetch_status
from sidecar.monitoring.history import HISTORY
from sidecar.state.snapshots import snapshots
from tests.conftest import run, run_process, tree
from tests.running import PATIENCE_S, free_address, metrics, published, wait_until

FULL = "journal: no space left on device"
PAGE = 4096


class Disk:
    """A small file system, and what fills it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._filler = directory / "filler"

    def fill(self, free: int = 0) -> None:
        """Leave so many bytes, in whole pages."""
        with self._filler.open("ab", buffering=0) as stream, contextlib.suppress(OSError):
            while stream.write(b"x" * PAGE):
                pass
        os.truncate(self._filler, self._filler.stat().st_size // PAGE * PAGE - free)

    def fill_with_files(self) -> None:
        """Leave no room for another file; those that are there can grow."""
        self._filler.mkdir()
        with contextlib.suppress(OSError):
            for number in range(1000):
                (self._filler / str(number)).touch()

    def empty(self) -> None:
        if self._filler.is_dir():
            for path in self._filler.iterdir():
                path.unlink()
            self._filler.rmdir()
        else:
            self._filler.unlink()


@pytest.fixture
def mount(tmp_path):
    """Mounts a file system of a type at a name, with options, from a device; unmounts all at the end."""
    mounted = []

    def make(name, kind, options, device="none"):
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", kind, "-o", options, device, directory], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount {kind}: {done.stderr.strip()}")
        mounted.append(directory)
        return directory

    yield make
    for directory in mounted:
        subprocess.run(["umount", directory], check=False, capture_output=True)


@pytest.fixture
def small_disk(mount):
    return lambda options="size=4m": Disk(mount("disk", "tmpfs", options))


@pytest.fixture
def start(mount, serve, base_path, tmp_path):
    """Starts the sidecar whose state is on the disk. It is ended before that is unmounted."""

    def begin(**settings):
        state = tmp_path / "disk" / "state"
        sidecar = serve(**{"base_model": base_path, "state_dir": state, "snapshot_interval": 3600, **settings}).connect()
        # What its first turn does on the disk is done: a snapshot that fails later would give room back.
        wait_until((state / HISTORY).exists)
        return sidecar

    return begin


@pytest.fixture
def uninterrupted(serve, base_path, tmp_path):
    """What a sidecar that nothing happens to makes of some lines: its last checkpoint."""

    def life(lines):
        sidecar = serve(tmp_path / "whole", base_model=base_path).connect()
        assert all(answer["ok"] for answer in sidecar.send(lines))
        assert sidecar.stop() == 0
        return published(tmp_path / "whole")[-1]

    return life


def journalled(disk):
    return [entry.line for entry in read_journal(disk / "state") if entry.run is None]


def not_taken(sidecar, lines, error=FULL):
    """Send lines to a sidecar whose journal cannot be written; gives those that it did not take."""
    answers = sidecar.send(lines)
    for line, answer in zip(lines, answers, strict=True):
        if not answer["ok"]:
            assert answer == {"ok": False, "job_id": json.loads(line)["job_id"], "retryable": True, "error": error}
    return [line for line, answer in zip(lines, answers, strict=True) if not answer["ok"]]


def test_a_full_disk_pauses_it_and_space_lets_it_go_on(small_disk, start, uninterrupted, lines, tmp_path):
    disk, address = small_disk(), free_address()
    sidecar = start(http=address)
    answers = sidecar.send(lines[:200])
    assert all(answer["ok"] for answer in answers)
    sent = 200
    for round_ in range(1, 4):
        disk.fill()
        before = len(journalled(disk.directory))
        again = not_taken(sidecar, lines[sent : sent + 60])
        assert again == lines[sent : sent + 60]  # they are written as one, or not at all
        assert len(journalled(disk.directory)) == before
        wait_until(lambda: fetch_status(address)["phase"] == "paused")
        status = fetch_status(address)
        assert status["reason"] == FULL
        assert (status["step"], status["current_samples"]) == (answers[-1]["step"], sent)
        assert metrics(address)['vmafx_training_phase{phase="paused"}'] == 1
        assert metrics(address)["vmafx_training_journal_errors_total"] >= round_
        bad, new = sidecar.send([b'{"job_id": "bad"}', lines[sent]])
        assert (bad["ok"], "retryable" in bad) == (False, False)
        assert new["ok"] or new["retryable"]  # one line may just fit
        assert sidecar.send([lines[0]])[0]["duplicate"] is True
        again = lines[sent + new["ok"] : sent + 60]
        disk.empty()
        wait_until(lambda: fetch_status(address)["phase"] == "running")  # with no pair sent
        assert "reason" not in fetch_status(address)
        answers = sidecar.send([*again, *lines[sent : sent + 60]])
        assert [answer.get("duplicate", False) for answer in answers] == [False] * len(again) + [True] * 60
        sent += 60
        assert journalled(disk.directory) == lines[:sent]
    assert all(answer["ok"] for answer in sidecar.send(lines[sent:500]))
    assert metrics(address)['vmafx_training_pairs_total{result="rejected"}'] == 3
    assert sidecar.stop() == 0
    assert journalled(disk.directory) == lines[:500]
    assert published(tmp_path)[-1] == uninterrupted(lines[:500])


@pytest.mark.slow
def test_killed_on_a_full_disk_it_starts_there_again_and_waits_for_space(small_disk, start, uninterrupted, lines, tmp_path):
    disk = small_disk()
    sidecar = start()
    sidecar.send(lines[:100])
    disk.fill()
    left = lines[100:200]
    for _ in range(3):
        left = [line for line in left[:3] if line in not_taken(sidecar, [line])] + left[3:]
        not_taken(sidecar, left)
        assert sidecar.stop(signal.SIGKILL) == -signal.SIGKILL
        taken = journalled(disk.directory)
        assert sorted([*taken, *left]) == sorted(lines[:200])
        address = free_address()
        sidecar = start(http=address)
        sidecar.logged(f"position={len(taken)} ")
        assert not_taken(sidecar, left) == left
        wait_until(lambda address=address: fetch_status(address)["phase"] == "paused")
    disk.empty()
    wait_until(lambda: fetch_status(address)["phase"] == "running")
    assert not_taken(sidecar, left) == []
    assert sidecar.stop() == 0
    assert published(tmp_path)[-1] == uninterrupted(journalled(disk.directory))


@pytest.mark.slow
def test_the_feedback_client_rides_it_out(small_disk, start, uninterrupted, example, tmp_path):
    disk, address = small_disk(), free_address()
    sidecar = start(http=address)
    registry = CollectorRegistry()
    with FeedbackClient(sidecar.socket_path, in_flight=40, retry_s=(0.05, 0.2), registry=registry) as client:

        def send(start, stop):
            for i in range(start, stop):
                assert client.send(example.features[i], float(example.true_score[i]), job_id=f"j{i}", group=f"g{i // 12}")

        send(0, 100)
        wait_until(lambda: client.delivered == 100)
        for start_at in (100, 250):
            disk.fill()
            send(start_at, start_at + 150)
            wait_until(lambda: metrics(address)['vmafx_training_phase{phase="paused"}'] == 1)
            assert client.queued
            disk.empty()
            wait_until(lambda: not client.queued)
        assert (client.delivered, client.dropped) == (400, 0)
    names = [json.loads(line)["job_id"] for line in journalled(disk.directory)]
    assert sorted(names) == sorted(f"j{i}" for i in range(400))
    assert sidecar.stop() == 0
    assert published(tmp_path)[-1] == uninterrupted(journalled(disk.directory))


@pytest.mark.slow
def test_a_disk_that_turns_read_only_costs_a_restart_and_no_pair(mount, start, uninterrupted, lines, tmp_path):
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("there is no mkfs.ext4")
    image = tmp_path / "image"
    with image.open("wb") as stream:
        stream.truncate(16 << 20)
    made = subprocess.run(["mkfs.ext4", "-q", "-F", image], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"cannot make an ext4 file system: {made.stderr.strip()}")
    disk, address = mount("disk", "ext4", "loop", image), free_address()
    sidecar = start(http=address, journal_fsync="always", snapshot_interval=0.05)
    assert all(answer["ok"] for answer in sidecar.send(lines[:200]))
    wait_until(lambda: snapshots(disk / "state"))
    # As after an error of the disk: a plain `remount,ro` is refused while a file is open for writing.
    aborted = subprocess.run(["mount", "-o", "remount,abort", disk], capture_output=True, text=True)
    if aborted.returncode:
        pytest.skip(f"cannot turn ext4 read-only: {aborted.stderr.strip()}")
    error = "journal: read-only file system"  # tried again each second, without a restart
    assert not_taken(sidecar, lines[200:260], error) == lines[200:260]
    assert not_taken(sidecar, lines[200:201], error) == lines[200:201]
    wait_until(lambda: fetch_status(address)["phase"] == "paused")
    assert fetch_status(address)["reason"] == error
    assert fetch_status(address)["current_samples"] == 200
    assert sidecar.send([lines[5]])[0]["duplicate"] is True
    assert sidecar.stop() == 0
    assert len(published(tmp_path)) == 1  # what was trained is published all the same

    subprocess.run(["umount", disk], check=True)
    mount("disk", "ext4", "loop", image)
    sidecar = start()
    assert not_taken(sidecar, lines[:400]) == []
    assert sidecar.stop() == 0
    assert journalled(disk) == lines[:400]
    assert published(tmp_path)[-1] == uninterrupted(lines[:400])


@pytest.fixture
def full_checkpoints(mount, serve, base_path, tmp_path):
    """A sidecar whose checkpoints are on a disk of their own, and checkpoints are made when asked for."""
    disk, address = Disk(mount("checkpoints", "tmpfs", "size=256k")), free_address()

    def begin():
        return serve(base_model=base_path, state_dir=tmp_path / "state", http=address, min_samples=10**9).connect()

    return disk, address, begin


def failures(address):
    return metrics(address)['vmafx_training_checkpoint_failures_total{stage="write"}']


def shown(disk):
    """The disk's names and contents, without the number of the next version and what fills it."""
    return {name: content for name, content in tree(disk.directory).items() if name not in (".next_version", "filler")}


def test_training_goes_on_while_no_checkpoint_can_be_written(full_checkpoints, uninterrupted, lines, tmp_path):
    disk, address, begin = full_checkpoints
    sidecar = begin()
    sidecar.send(lines[:200])
    sidecar.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: linked(disk.directory, LATEST))
    before, sent, step = shown(disk), 200, 0
    for count, free in enumerate([0, PAGE, 2 * PAGE, 3 * PAGE, 6 * PAGE], 1):
        disk.fill(free)
        answers = sidecar.send(lines[sent : sent + 50])
        sent += 50
        assert all(answer["ok"] for answer in answers)
        assert answers[-1]["step"] > step
        step = answers[-1]["step"]
        sidecar.process.send_signal(signal.SIGUSR1)
        wait_until(lambda count=count: failures(address) == count)
        assert shown(disk) == before
        assert fetch_status(address)["phase"] == "running"
        disk.empty()
    used = int((disk.directory / ".next_version").read_text()) - 1
    assert used > 1  # numbers went to checkpoints that never came
    sidecar.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: linked(disk.directory, LATEST).version > 1)
    assert [checkpoint.version for checkpoint in checkpoints(disk.directory)] == [1, used + 1]
    about = json.loads(checkpoints(disk.directory)[-1].description.read_text())
    assert (about["parent"], about["step"]) == (1, step)
    assert run("verify", disk.directory).returncode == 0
    assert published(tmp_path)[-1] == uninterrupted(lines[:sent])
    assert sidecar.stop() == 0
    assert len(checkpoints(disk.directory)) == 2


def test_what_could_not_be_published_when_asked_for_is_at_the_end(full_checkpoints, uninterrupted, lines, tmp_path):
    disk, address, begin = full_checkpoints
    sidecar = begin()
    sidecar.send(lines[:200])
    disk.fill()
    sidecar.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: failures(address) == 1)
    disk.empty()
    assert sidecar.stop() == 0
    assert published(tmp_path) == [uninterrupted(lines[:200])]


@pytest.mark.slow
def test_what_could_not_be_published_at_the_end_is_at_the_next(full_checkpoints, uninterrupted, lines, tmp_path):
    disk, _, begin = full_checkpoints
    sidecar = begin()
    sidecar.send(lines[:200])
    disk.fill()
    assert sidecar.stop() == 0
    sidecar.logged("checkpoint not published stage=write")
    assert published(tmp_path) == []
    disk.empty()
    assert begin().stop() == 0
    assert published(tmp_path) == [uninterrupted(lines[:200])]


@pytest.mark.slow
def test_without_snapshots_it_serves_and_stops_and_a_restart_trains_again(small_disk, start, uninterrupted, lines, tmp_path):
    disk, address = small_disk("size=4m,nr_inodes=40"), free_address()
    state = disk.directory / "state"
    sidecar = start(http=address, snapshot_interval=0.05, changed="import sidecar.log\nsidecar.log.REPEATED_S = 0.0")

    def failed():
        return sidecar.log.read_text().count("No space left on device")

    sidecar.send(lines[:30])
    disk.fill_with_files()
    assert all(answer["ok"] for answer in sidecar.send(lines[30:200]))
    wait_until(failed)
    assert all(answer["ok"] for answer in sidecar.send(lines[200:300]))
    before = failed()
    wait_until(lambda: failed() > before + 1, "a snapshot of these to be tried too")
    assert fetch_status(address)["phase"] == "running"
    disk.empty()
    wait_until(lambda: snapshots(state) and snapshots(state)[0][0] == 300)  # with no pair sent

    disk.fill_with_files()
    assert all(answer["ok"] for answer in sidecar.send(lines[300:350]))
    assert sidecar.stop() == 0
    assert snapshots(state)[0][0] == 300
    assert "Traceback" not in sidecar.log.read_text()
    sidecar = start()
    sidecar.logged("trained_again=50 ")
    disk.empty()
    assert all(answer["ok"] for answer in sidecar.send(lines[350:400]))
    assert sidecar.stop() == 0
    assert snapshots(state)[0][0] == 400
    assert journalled(disk.directory) == lines[:400]
    assert published(tmp_path)[-1] == uninterrupted(lines[:400])


@pytest.mark.parametrize("with_base", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_start_on_a_full_disk_is_one_clear_line(small_disk, base_path, tmp_path, with_base):
    disk = small_disk()
    disk.fill()
    base = base_path if with_base else tmp_path / "none.onnx"
    state = disk.directory / "state"
    options = ("--socket", tmp_path / "s.sock", "--checkpoint-dir", tmp_path / "c", "--state-dir", state, "--http", "")
    done = run_process("serve", *options, "--base-model", base, "--log-level", "error", timeout=PATIENCE_S)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert str(state) in done.stderr
    assert "no space left on device" in done.stderr.lower()
    assert not (tmp_path / "s.sock").exists()
    disk.empty()
    assert [path.name for path in state.glob("**/.tmp-*")] == []


def test_settings_that_cannot_be_written_down_stop_a_start_and_harm_nothing(small_disk, start, lines, base_path, tmp_path):
    disk = small_disk()
    sidecar = start()
    sidecar.send(lines[:50])
    (segment,) = (disk.directory / "state" / "journal").iterdir()
    padding = b', "padding": "%b"}'  # up to the end of a page, so that nothing more fits
    size = segment.stat().st_size

    def block_of(count):
        return encode_block(50, [lines[50][:-1] + padding % (b"x" * count)])

    count = next(count for count in range(2 * PAGE) if (size + len(block_of(count))) % PAGE == 0)
    sidecar.send([lines[50][:-1] + padding % (b"x" * count)])
    assert segment.stat().st_size % PAGE == 0
    assert sidecar.stop() == 0
    disk.fill()
    before = tree(disk.directory / "state")
    options = ("--socket", tmp_path / "s.sock", "--checkpoint-dir", tmp_path / "c", "--state-dir", disk.directory / "state")
    options = (*options, "--http", "", "--base-model", base_path, "--learning-rate", 0.001, "--log-level", "error")
    done = run_process("serve", *options, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert done.stderr == f"Error: {disk.directory / 'state'}: {FULL}\n"
    assert tree(disk.directory / "state") == before
    disk.empty()
    sidecar = start(learning_rate=0.001)
    assert sidecar.send([lines[51]])[0]["ok"]
    assert sidecar.stop() == 0
    assert len(journalled(disk.directory)) == 52
