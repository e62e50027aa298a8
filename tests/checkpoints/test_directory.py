"""The checkpoint directory: whole or not at all, numbers never used twice."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import sidecar.checkpoints.directory as module
from sidecar.checkpoints.directory import (
    LATEST,
    STABLE,
    CheckpointError,
    LockedError,
    check_writable,
    checkpoints,
    linked,
    publish,
    read_digest,
)
from sidecar.models.description import DescriptionError, read_description
from tests.conftest import ROOT, tree


def versions(directory):
    return [checkpoint.version for checkpoint in checkpoints(directory)]


def assert_whole(directory):
    """Every model has its digest and JSON, and nothing else lies about."""
    names = {name for name in os.listdir(directory) if not name.startswith(".")} - {LATEST, STABLE}
    for checkpoint in checkpoints(directory):
        digest = hashlib.sha256(checkpoint.model.read_bytes()).hexdigest()
        assert checkpoint.digest.read_text() == digest + "\n"
        assert json.loads(checkpoint.description.read_text())["sha256"] == digest
        names -= {checkpoint.model.name, checkpoint.digest.name, checkpoint.description.name}
    return names


def test_a_checkpoint_and_its_siblings(tmp_path):
    first = publish(tmp_path / "a" / "b", b"one", {"n_features": 80}, stable=True)
    directory = first.directory
    second = publish(directory, b"two", {})
    assert (first.version, second.version, first.name) == (1, 2, "model_v000001")
    assert os.readlink(directory / LATEST) == "model_v000002.onnx"
    assert os.readlink(directory / STABLE) == "model_v000001.onnx"
    assert (linked(directory, LATEST), linked(directory, STABLE)) == (second, first)
    assert not assert_whole(directory)
    assert read_digest(second.model) == hashlib.sha256(b"two").hexdigest()
    assert read_description(first.model)["n_features"] == 80
    assert "parent" not in read_description(first.model)
    assert {k: v for k, v in read_description(second.model).items() if k != "sha256"} == {
        "name": "model_v000002",
        "version": 2,
        "parent": 1,
    }


def test_version_numbers_are_never_used_again(tmp_path):
    for model in (b"a", b"b", b"c"):
        newest = publish(tmp_path, model, {})
    for path in (newest.model, newest.digest, newest.description):
        path.unlink()
    assert publish(tmp_path, b"d", {}).version == 4
    (tmp_path / ".next_version").write_text("garbage")
    assert publish(tmp_path, b"e", {}).version == 5
    (tmp_path / ".next_version").unlink()
    assert publish(tmp_path, b"f", {}).version == 6


def test_pruning_keeps_the_newest_and_the_stable_one(tmp_path):
    for number in range(1, 7):
        publish(tmp_path, b"%d" % number, {}, stable=number == 2, keep=3)
    assert versions(tmp_path) == [2, 4, 5, 6]
    assert not assert_whole(tmp_path)


def test_what_a_crash_left_is_removed_by_the_next_writer(tmp_path):
    publish(tmp_path, b"one", {})
    for name in (".tmp-model_v000002.onnx", ".tmp-latest.onnx", "model_v000002.json", "model_v000003.onnx.sha256"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.json").write_bytes(b"not ours")
    publish(tmp_path, b"two", {})
    assert assert_whole(tmp_path) == {"notes.json"}


@pytest.mark.parametrize("step", range(9))
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_step_leaves_what_was_there(tmp_path, monkeypatch, step, error):
    publish(tmp_path, b"one", {}, stable=True)
    before = tree(tmp_path)
    real, calls = os.fsync, iter(range(100))

    def fail(descriptor):
        if next(calls) == step:
            raise error
        real(descriptor)

    monkeypatch.setattr(module.os, "fsync", fail)
    raised = pytest.raises((CheckpointError, KeyboardInterrupt), match=r"^$|cannot publish a checkpoint: No space left")
    complete = step >= 7 and isinstance(error, OSError)  # only the names of the links may not be on disk yet
    with contextlib.nullcontext() if complete else raised:
        publish(tmp_path, b"two", {}, stable=True)
    monkeypatch.undo()
    if step < 7:  # later the checkpoint is complete, and only a later fsync of its directory failed
        after = tree(tmp_path)
        del before[".next_version"], after[".next_version"]
        assert after == before
    assert not assert_whole(tmp_path)
    assert publish(tmp_path, b"three", {}).version > versions(tmp_path)[-2]


WRITER = """
import sys, pathlib
from sidecar.checkpoints.directory import publish
for i in range(int(sys.argv[2])):
    print(publish(pathlib.Path(sys.argv[1]), b"x" * 5000, {}, stable=i % 3 == 0, keep=5).version, flush=True)
"""


def start_writer(directory, count):
    return subprocess.Popen([sys.executable, "-c", WRITER, str(directory), str(count)], stdout=subprocess.PIPE, cwd=ROOT)


def test_writers_in_two_processes_never_share_a_number(tmp_path):
    writers = [start_writer(tmp_path, 40) for _ in range(3)]
    taken = [int(line) for writer in writers for line in writer.communicate()[0].split()]
    assert sorted(taken) == list(range(1, 121))
    assert not assert_whole(tmp_path)


def test_a_reader_never_sees_a_model_without_its_digest_and_json(tmp_path):
    stop, wrong = threading.Event(), []

    def watch():
        while not stop.is_set():
            newest = linked(tmp_path, LATEST)
            if newest and not (newest.digest.exists() and newest.description.exists()) and newest.model.exists():
                wrong.append(newest.name)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start_writer(tmp_path, 80).communicate()
    stop.set()
    watcher.join()
    assert not wrong


def test_killed_writers_leave_only_whole_checkpoints_and_no_number_twice(tmp_path):
    seen = []
    for _ in range(12):
        writer = start_writer(tmp_path, 1000)
        lines = [writer.stdout.readline() for _ in range(4)]
        writer.send_signal(signal.SIGKILL)
        lines += writer.communicate()[0].splitlines()
        seen += [int(line) for line in lines if line.strip()]
        for checkpoint in checkpoints(tmp_path):
            assert checkpoint.digest.exists()
            assert checkpoint.description.exists()
        assert linked(tmp_path, LATEST) is not None
    assert len(set(seen)) == len(seen)
    assert publish(tmp_path, b"last", {}).version > max(seen)
    assert not assert_whole(tmp_path)


def test_directories_that_cannot_be_written_are_told_before_anything_is_made(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    check_writable(tmp_path / "new" / "deeper")
    assert not (tmp_path / "new").exists()
    with pytest.raises(CheckpointError, match="file is not a directory"):
        check_writable(file / "below")
    with pytest.raises(CheckpointError, match=r"cannot publish a checkpoint: (Not a directory|File exists)"):
        publish(file, b"one", {})


def test_links_that_name_nothing_are_absent(tmp_path):
    assert linked(tmp_path, STABLE) is None
    (tmp_path / STABLE).symlink_to("model_v000009.onnx")
    assert linked(tmp_path, STABLE) is None
    (tmp_path / LATEST).write_text("a file")
    assert linked(tmp_path, LATEST) is None
    assert checkpoints(tmp_path / "nowhere") == []


def test_a_description_that_is_not_json_is_told(tmp_path):
    checkpoint = publish(tmp_path, b"one", {})
    for text in ("{", "[1]"):
        checkpoint.description.write_text(text)
        with pytest.raises(DescriptionError, match=r"model_v000001\.json"):
            read_description(checkpoint.model)
    checkpoint.description.unlink()
    assert read_description(checkpoint.model) is None


def test_a_checkpoint_that_cannot_be_deleted_does_not_keep_the_next_from_being_published(tmp_path, monkeypatch, caplog):
    publish(tmp_path, b"one", {})
    (tmp_path / "model_v000000.onnx").mkdir()
    real = Path.unlink

    def unlink(path, missing_ok=False):
        if path.name == "model_v000001.onnx":
            raise OSError(16, "Device or resource busy", str(path))
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    assert [publish(tmp_path, b"more", {}, keep=2).version for _ in range(4)] == [2, 3, 4, 5]
    assert "Device or resource busy" in caplog.text
    assert versions(tmp_path) == [1, 4, 5]


def test_a_directory_that_another_process_has_locked_is_told(tmp_path):
    publish(tmp_path, b"one", {})
    with (tmp_path / ".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="another process holds the lock"):
            publish(tmp_path, b"two", {}, lock_s=0.01)
    assert publish(tmp_path, b"two", {}).version == 2


def test_what_is_planted_under_its_names_is_not_followed_and_not_waited_for(tmp_path):
    publish(tmp_path, b"one", {})
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    for name in (".tmp-model_v000002.onnx", ".tmp-model_v000002.json", ".tmp-.next_version"):
        (tmp_path / name).symlink_to(precious)
    (tmp_path / "model_v000000.onnx").write_bytes(b"zero")
    os.mkfifo(tmp_path / "model_v000000.json")
    (tmp_path / ".next_version").unlink()
    os.mkfifo(tmp_path / ".next_version")
    assert read_description(tmp_path / "model_v000000.onnx") is None
    assert publish(tmp_path, b"two", {}).version == 2
    assert precious.read_bytes() == b"precious"
