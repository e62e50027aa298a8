"""A program is run for each new model: once if it succeeds, on a copy that is gone afterwards, and never left behind."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from sidecar.checkpoints.directory import promote
from sidecar.consumer.follower import Follower
from sidecar.watch import program, runs
from sidecar.watch.interrupts import Interrupts
from sidecar.watch.program import run_program
from sidecar.watch.runs import Ran, Refused
from tests.consumer.published import ModelServer, constant, publish_model
from tests.running import PATIENCE_S, gone, signals_are_heard, wait_until


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(runs, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(program, "GRACE_S", 0.1)


@pytest.fixture(autouse=True)
def copies(tmp_path, monkeypatch):
    """The directory with the copies."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    return place


@pytest.fixture
def script(tmp_path):
    """Makes a program of a shell script; `$OUT` in it is a file that the test can read."""

    def make(text):
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\nOUT={tmp_path}/out\n{text}\n")
        path.chmod(0o755)
        return str(path)

    return make


def watching(source, *command, timeout_s=PATIENCE_S, sleep=time.sleep):
    """What is done about each model of a source."""
    return runs.runs(Follower(source).news, lambda model: run_program(model, command, timeout_s, sleep=sleep), 0.01, time.sleep)


def test_the_program_has_a_private_read_only_copy_that_is_gone_afterwards(directory, script, copies, tmp_path):
    look = 'for each in "$(dirname "$1")" "$(dirname "$1")"/*; do stat -c "%a %n" "$each"; done > $OUT\ncat "$@" > $OUT.model'
    events = watching(directory, script(look))
    checkpoint = publish_model(directory, constant(20), feature_order=["a", "b", "c"])
    ran = next(events)
    assert (ran.model.version, ran.attempt, ran.failed, ran.retry_s) == (1, 1, "", 0)
    modes = [line.split() for line in (tmp_path / "out").read_text().splitlines()]
    assert [(mode, Path(path).name) for mode, path in modes[1:]] == [
        ("400", f"model_v000001{ending}") for ending in (".json", ".onnx", ".onnx.sha256")
    ]
    assert modes[0][0] == "700"
    assert (tmp_path / "out.model").read_bytes() == checkpoint.model.read_bytes()
    assert list(copies.iterdir()) == []


def test_the_files_beside_the_copy_are_those_of_the_checkpoint(directory, script, tmp_path):
    checkpoint = publish_model(directory, constant(20), feature_order=["a", "b", "c"])
    next(watching(directory, script('cat "$1.sha256" > $OUT; cat "${1%.onnx}.json" > $OUT.json')))
    assert (tmp_path / "out").read_bytes() == checkpoint.digest.read_bytes()
    assert (tmp_path / "out.json").read_bytes() == checkpoint.description.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ([], ["PATH"]),
        (["-x", "$HOME; *"], ["-x", "$HOME; *", "PATH"]),
        (["{}", "b"], ["PATH", "b"]),
        (["--model={}", "{}.sha256", ""], ["--model=PATH", "PATH.sha256", ""]),
    ],
)
def test_arguments_are_given_as_they_are_but_for_the_path(directory, script, tmp_path, arguments, given):
    publish_model(directory, constant(20))
    next(watching(directory, script('printf "%s\\n" "$@" > $OUT'), *arguments))
    said = (tmp_path / "out").read_text()
    path = next(part for part in said.replace("=", "\n").split("\n") if part.endswith("model_v000001.onnx"))
    assert said.replace(path, "PATH").split("\n")[:-1] == given


def test_each_model_runs_it_once_and_one_that_is_taken_back_to_again(directory, script):
    events = watching(directory, script("exit 0"))
    versions = []
    for score in (20, 30):
        publish_model(directory, constant(score))
        versions.append(next(events).model.version)
    promote(directory, 1)
    versions.append(next(events).model.version)
    assert versions == [1, 2, 1]


def test_of_a_flood_of_versions_only_the_newest_is_next(directory, script, tmp_path):
    def flood(seconds):
        if not (tmp_path / "out").exists():
            for score in range(30, 39):
                publish_model(directory, constant(score))
            (tmp_path / "out").touch()
        time.sleep(seconds)

    events = watching(directory, script("until [ -e $OUT ]; do sleep 0.02; done"), sleep=flood)
    publish_model(directory, constant(20))
    assert [next(events).model.version for _ in range(2)] == [1, 10]


def test_a_program_that_fails_is_run_again_later_each_time(directory, script, monkeypatch):
    monkeypatch.setattr(runs, "LAST_RETRY_S", 0.05)
    publish_model(directory, constant(20))
    events = watching(directory, script("echo x >> $OUT; [ $(wc -l < $OUT) -gt 5 ] || exit 3"))
    ran = list(itertools.islice(events, 6))
    assert [each.failed for each in ran] == ["exit code 3"] * 5 + [""]
    assert [each.retry_s for each in ran] == [0.01, 0.02, 0.04, 0.05, 0.05, 0]
    assert [each.attempt for each in ran] == [1, 2, 3, 4, 5, 6]
    assert str(ran[1]).startswith("model_v000001: exit code 3; again in 0.02 s (run 2, ")
    assert ran[4].as_json().items() >= {"ok": False, "failed": "exit code 3", "retry_seconds": 0.05}.items()
    publish_model(directory, constant(30))
    assert next(events).model.version == 2


def test_a_newer_model_does_not_wait_for_an_older_one_that_fails(directory, script, monkeypatch):
    monkeypatch.setattr(runs, "FIRST_RETRY_S", 1e9)
    events = watching(directory, script('case "$1" in *1.onnx) exit 1;; esac'))
    publish_model(directory, constant(20))
    assert next(events).failed == "exit code 1"
    publish_model(directory, constant(30))
    ran = next(events)
    assert (ran.model.version, ran.attempt, ran.failed) == (2, 1, "")


def test_a_program_that_takes_too_long_is_ended_with_all_that_it_has_started(directory, script, tmp_path, copies):
    publish_model(directory, constant(20))
    text = "trap '' TERM\nsleep 1000 &\necho $$ $! > $OUT.part; mv $OUT.part $OUT\nwait; sleep 1000"
    run = watching(directory, script(text), timeout_s=0.5)
    wait_until(lambda: next(run).failed == "did not end in 0.5 s" and (tmp_path / "out").exists())
    for pid in (tmp_path / "out").read_text().split():
        wait_until(lambda pid=pid: gone(int(pid)), pid)
    assert list(copies.iterdir()) == []


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_program_that_may_not_be_ended_is_left(directory, script, tmp_path, monkeypatch):
    def forbidden(group, number):
        raise PermissionError

    publish_model(directory, constant(20))
    with monkeypatch.context() as patch:
        patch.setattr(os, "killpg", forbidden)
        ran = next(watching(directory, script("echo $$ > $OUT.part; mv $OUT.part $OUT; exec sleep 1000"), timeout_s=0.1))
    assert ran.failed == "did not end in 0.1 s"
    wait_until((tmp_path / "out").exists)
    os.kill(int((tmp_path / "out").read_text()), signal.SIGKILL)


def test_what_a_program_leaves_running_when_it_ends_by_itself_is_its_own_affair(directory, script, tmp_path):
    publish_model(directory, constant(20))
    assert next(watching(directory, script("sleep 1000 > /dev/null 2>&1 &\necho $! > $OUT"))).failed == ""
    pid = int((tmp_path / "out").read_text())
    assert not gone(pid)
    os.kill(pid, signal.SIGKILL)


def test_the_reasons_of_failures(directory, script, tmp_path, monkeypatch):
    publish_model(directory, constant(20))
    assert next(watching(directory, script("kill -SEGV $$"))).failed == "ended by signal 11"
    assert next(watching(directory, str(tmp_path / "none"))).failed == f"{tmp_path}/none: no such file or directory"
    (tmp_path / "text").write_text("x")
    assert next(watching(directory, str(tmp_path / "text"))).failed == f"{tmp_path}/text: permission denied"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert next(watching(directory, script("exit 0"))).failed.startswith(f"{tmp_path}/none/vmafx-watch-")


def test_a_copy_that_finds_no_room_is_told_as_that(directory, script, copies, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    publish_model(directory, constant(20))
    events = watching(directory, script("exit 0"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        failed = next(events).failed
    assert failed.startswith(f"{copies}/")
    assert failed.endswith("/model_v000001.json: no space left on device")
    assert next(events).failed == ""


def test_a_model_that_is_refused_is_told_once_and_the_program_not_run(directory, script):
    events = watching(directory, script("exit 0"))
    checkpoint = publish_model(directory, constant(20))
    whole = checkpoint.model.read_bytes()
    checkpoint.model.write_bytes(whole[:-20])
    refused = next(events)
    assert isinstance(refused, Refused)
    assert "SHA-256" in refused.reason
    assert refused.as_json() == {"ok": False, "refused": refused.reason}
    publish_model(directory, constant(30))
    ran = next(events)
    assert isinstance(ran, Ran)
    assert ran.as_json() == {
        "model": "model_v000002",
        "version": 2,
        "sha256": hashlib.sha256(ran.model.data).hexdigest(),
        "ok": True,
        "attempt": 1,
        "seconds": round(ran.seconds, 3),
    }


def test_an_older_model_that_failed_is_run_again_though_the_newest_is_refused(directory, script):
    events = watching(directory, script("[ -e $OUT ] || { touch $OUT; exit 1; }"))
    publish_model(directory, constant(20))
    assert next(events).failed == "exit code 1"
    checkpoint = publish_model(directory, constant(30))
    checkpoint.digest.write_text("0" * 64)
    seen = [next(events) for _ in range(2)]
    assert {type(each) for each in seen} == {Refused, Ran}
    assert next(each for each in seen if isinstance(each, Ran)).model.version == 1


def test_a_source_that_cannot_be_read_is_told_once_and_followed_again(directory, script, tmp_path, caplog):
    follower, looked = Follower(directory), []

    def news():
        looked.append(1)
        if len(looked) == 10:
            directory.rename(tmp_path / "elsewhere")
        if len(looked) == 20:
            shutil.copytree(tmp_path / "elsewhere", directory, symlinks=True)
            publish_model(directory, constant(30))
        return follower.news()

    publish_model(directory, constant(20))
    events = runs.runs(news, lambda model: run_program(model, [script("exit 0")], 60, sleep=time.sleep), 0.001, time.sleep)
    assert [next(events).model.version for _ in range(2)] == [1, 2]
    assert len(looked) == 20
    assert [record.getMessage() for record in caplog.records] == [f"{directory}/stable.onnx: no such file or directory"]


def test_over_http_a_server_that_lies_runs_nothing(directory, script, caplog):
    with ModelServer(directory).running() as server:
        events = watching(server.url, script("exit 0"))
        publish_model(directory, constant(20))
        assert next(events).model.version == 1
        publish_model(directory, constant(30))
        json_of_another = json.dumps({"version": 7}).encode()
        changes = [
            lambda target, answer: (302, {"Location": target}, b""),
            lambda target, answer: (200, answer[1], answer[2] + b"x"),
            lambda target, answer: (200, {}, b"x"),
        ]

        def change(target, answer):
            if changes:
                return changes.pop()(target, answer)
            if target.endswith(".json") and len(seen) == 0:
                return answer[0], {"ETag": '"x"', "X-Vmafx-Model-Version": "model_v000002"}, json_of_another
            return answer

        seen = []
        server.change = change
        seen.append(next(events))
        assert "its JSON says sha256 None" in seen[0].reason
        assert [record.getMessage().partition(": ")[2][:22] for record in caplog.records] == [
            "X-Vmafx-Model-Version ",
            "what came is not what ",
            "answered 302; redirect",
        ]
        assert next(events).model.version == 2


def test_a_signal_ends_a_wait_and_nothing_else():
    with signals_are_heard(), Interrupts().handled() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(2):
            with pytest.raises(SystemExit) as ended:
                interrupts.sleep(PATIENCE_S)
            assert ended.value.code == 0
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_comes_in_a_wait_breaks_it_off():
    def interrupted(interrupts):
        with interrupts.waiting():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(PATIENCE_S)

    with signals_are_heard(), Interrupts().handled() as interrupts, pytest.raises(KeyboardInterrupt):
        interrupted(interrupts)
