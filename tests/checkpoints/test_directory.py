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
    promote,
    publish,
    read_digest,
    trained_after,
)
from sidecar.models.description import DescriptionError, read_description
from tests.conftest import ROOT, tree


def versions(directory):
    return [checkpoint.version for checkpoint in checkpoints(directory)]


def assert_whole(directory):
    """Every model has its digest and JSON, and nothing else lies about."""
    names = {name for name in os.listdir(directory) if not name.startswith(".")} - {
        LATEST,
        STABLE,
        "latest.json",
        "stable.json",
    }
    for checkpoint in checkpoints(directory):
        digest = hashlib.sha256(checkpoint.model.read_bytes()).hexdigest()
        assert checkpoint.digest.read_text() == digest + "\n"
        assert json.loads(checkpoint.description.read_text())["sha256"] == digest
        names -= {checkpoint.model.name, checkpoint.digest.name, checkpoint.description.name}
    return names


def links(directory):
    """Where the four links point; None for one that is not there."""
    places = (directory / name for name in (LATEST, "latest.json", STABLE, "stable.json"))
    return [os.readlink(place) if place.is_symlink() else None for place in places]


def test_a_checkpoint_and_its_siblings(tmp_path):
    first = publish(tmp_path / "a" / "b", b"one", {"n_features": 80}, stable=True)
    directory = first.directory
    second = publish(directory, b"two", {})
    assert (first.version, second.version, first.name) == (1, 2, "model_v000001")
    assert os.readlink(directory / LATEST) == "model_v000002.onnx"
    assert os.readlink(directory / STABLE) == "model_v000001.onnx"
    assert os.readlink(directory / "latest.json") == "model_v000002.json"
    assert os.readlink(directory / "stable.json") == "model_v000001.json"
    assert (linked(directory, LATEST), linked(directory, STABLE)) == (second, first)
    assert not assert_whole(directory)
    assert read_digest(second.model) == hashlib.sha256(b"two").hexdigest()
    assert read_description(first.model)["n_features"] == 80
    assert "parent" not in read_description(first.model)
    assert {k: v for k, v in read_description(second.model).items() if k != "sha256"} == {
        "name": "model_v000002",
        "id": "model_v000002",
        "onnx": "model_v000002.onnx",
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
    halves = (
        ".tmp-model_v000002.onnx",
        ".tmp-latest.onnx",
        ".tmp-latest.json",
        "model_v000002.json",
        "model_v000003.onnx.sha256",
    )
    for name in halves:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.json").write_bytes(b"not ours")
    publish(tmp_path, b"two", {})
    assert assert_whole(tmp_path) == {"notes.json"}


def test_a_checkpoint_that_moves_no_link_is_there_and_no_link_ever_leads_nowhere(tmp_path):
    publish(tmp_path, b"one", {}, stable=True)
    publish(tmp_path, b"two", {})
    before = links(tmp_path)
    for _ in range(4):
        publish(tmp_path, b"other", {}, latest=False, keep=2)
    assert links(tmp_path) == before == ["model_v000002.onnx", "model_v000002.json", "model_v000001.onnx", "model_v000001.json"]
    assert versions(tmp_path) == [1, 2, 5, 6]
    promote(tmp_path, 6)
    assert links(tmp_path) == [*before[:2], "model_v000006.onnx", "model_v000006.json"]
    promote(tmp_path, 1)
    assert links(tmp_path) == before
    assert not assert_whole(tmp_path)


@pytest.mark.parametrize("write", [lambda d: publish(d, b"three", {}, latest=False, keep=1), lambda d: promote(d, 2)])
def test_links_that_a_crash_or_an_older_program_left_apart_are_brought_together(tmp_path, write):
    publish(tmp_path, b"one", {}, stable=True)
    publish(tmp_path, b"two", {}, stable=True)
    (tmp_path / "latest.json").unlink()
    (tmp_path / "stable.json").unlink()
    (tmp_path / "stable.json").symlink_to("model_v000001.json")
    write(tmp_path)
    assert links(tmp_path) == ["model_v000002.onnx", "model_v000002.json"] * 2
    (tmp_path / STABLE).unlink()  # withdrawn by hand
    publish(tmp_path, b"four", {})
    assert links(tmp_path)[2:] == [None, None]


def test_a_folder_where_a_link_belongs_is_told_before_anything_is_published(tmp_path):
    publish(tmp_path, b"one", {})
    (tmp_path / "stable.json").mkdir()
    for write in (lambda: publish(tmp_path, b"two", {}, stable=True), lambda: promote(tmp_path, 1)):
        with pytest.raises(CheckpointError, match="Is a directory"):
            write()
    assert links(tmp_path) == ["model_v000001.onnx", "model_v000001.json", None, None]
    assert assert_whole(tmp_path) == set()
    assert versions(tmp_path) == [1]
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_reader_of_any_link_always_finds_one_whole_checkpoint(tmp_path):
    publish(tmp_path, b"one", {}, stable=True)
    writer, seen = start_writer(tmp_path, 60), 0
    while writer.poll() is None:
        for name in (LATEST, "latest.json", STABLE, "stable.json"):
            target = tmp_path / os.readlink(tmp_path / name)
            try:
                about = json.loads(target.with_suffix(".json").read_bytes())
                model = target.with_suffix(".onnx").read_bytes()
            except FileNotFoundError:  # pruned since: only where no link names it any more
                assert os.readlink(tmp_path / name) != target.name
                continue
            assert about["sha256"] == hashlib.sha256(model).hexdigest()
            seen += 1
    writer.communicate()
    assert seen


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
        for place in (tmp_path / name for name in (LATEST, "latest.json", STABLE, "stable.json")):
            assert place.exists() or not place.is_symlink()
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
        with pytest.raises(LockedError, match=rf"process {os.getpid()} \(.+\) holds the lock \.lock"):
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


def test_a_json_that_is_too_large_loses_what_nobody_needs(tmp_path, caplog):
    about = {"feature_order": ["x" * 1000] * 400, "data": ["p" * 1000] * 400, "loso": ["q" * 1000] * 500, "small": 1}
    published = publish(tmp_path, b"model", about)
    assert published.description.stat().st_size <= 1 << 20
    assert {*read_description(published.model)} >= {"feature_order", "data", "small", "name", "sha256"}
    assert "loso is left out of the checkpoint's JSON, which may have 1,048,576 bytes at most" in caplog.text
    with pytest.raises(CheckpointError, match="the JSON of the checkpoint would have"):
        publish(tmp_path, b"model", {"feature_order": ["x" * 1000] * 2000, "data": []})
    assert [each.version for each in checkpoints(tmp_path)] == [1]
    assert not assert_whole(tmp_path)


@pytest.mark.parametrize(
    "journal", [None, {}, 3, {"directory": "elsewhere", "last": 9}, {"directory": "{state}", "last": None}]
)
def test_a_json_that_says_nothing_of_a_journal_is_of_no_state(tmp_path, journal):
    if isinstance(journal, dict) and "directory" in journal:
        journal = {**journal, "directory": journal["directory"].format(state=(tmp_path / "state").resolve())}
    publish(tmp_path, b"model", {"journal": journal})
    assert trained_after(tmp_path, tmp_path / "state", 0) == []
