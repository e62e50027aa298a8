"""Another base model while it trains: its run begins with the next pair, and the state stays a function of the journal."""

from __future__ import annotations

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

import sidecar.journal.writer as journal_module
import sidecar.online.training as training_module
from onnx_builder.write import to_bytes
from sidecar.checkpoints.publishing import Terms
from sidecar.journal.run import Run
from sidecar.journal.segments import read_journal
from sidecar.learning.recipe import Recipe, fit
from sidecar.learning.training_settings import TrainingSettings
from sidecar.online.publication import publication
from sidecar.online.stream import train_stream
from sidecar.online.training import OnlineTraining
from sidecar.state.base_models import digest_of, keep_base

SETTINGS = TrainingSettings(replay_capacity=300)


@pytest.fixture(scope="module")
def other(example):
    """Another base model."""
    return fit(example.features, example.true_score, np.arange(100, 200), Recipe(epochs=3)).ema.network()


@pytest.fixture(scope="module")
def run(base):
    return Run(80, SETTINGS, 0.1, digest_of(base))


@pytest.fixture
def online(tmp_path, run, base):
    opened = OnlineTraining(tmp_path / "state", run, base)
    yield opened
    opened.close()


@pytest.fixture
def follow(tmp_path, run):
    """Lets the run of a base model begin; what it gives tells of each that has begun."""
    begun = []

    def follow_one(online, base):
        keep_base(tmp_path / "state", base)
        new = replace(run, base=digest_of(base))
        online.follow(new, base, lambda: begun.append(new.base))
        return begun

    return follow_one


def runs_of(state):
    """The position and the base of each run record, without those that a segment repeats."""
    found = [(entry.position, entry.run["base"]) for entry in read_journal(state) if entry.run is not None]
    return [each for place, each in enumerate(found) if not place or each[1] != found[place - 1][1]]


def assert_made_again(online, tmp_path, run, base):
    """A process that was killed now leaves the state that this one has, with its snapshots and without."""
    online.backlog.wait()
    expected = online.learner.state()
    for place, keep_snapshots in (("with", True), ("without", False)):
        copy = tmp_path / place
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / "state", copy)
        for snapshot in () if keep_snapshots else copy.glob("snapshot_*"):
            snapshot.unlink()
        again = OnlineTraining(copy, run, base)
        again.backlog.wait()
        found = again.learner.state()
        again.close()
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert np.array_equal(array, found[name]), name


def test_its_run_begins_with_the_next_pair_and_is_recorded(tmp_path, run, base, other, lines, online, follow):
    online.accept(lines[:100])
    begun = follow(online, other)
    online.accept([b"junk", lines[0]])  # refused, and a duplicate
    assert (begun, runs_of(tmp_path / "state")) == ([], [(0, run.base)])
    online.backlog.wait()
    before = online.learner.state()
    online.accept(lines[100:101])
    assert begun == [digest_of(other)]
    assert runs_of(tmp_path / "state") == [(0, run.base), (100, digest_of(other))]
    online.accept(lines[101:200])
    assert begun == [digest_of(other)]
    online.backlog.wait()
    assert not np.array_equal(before["run"], online.learner.state()["run"])
    assert_made_again(online, tmp_path, replace(run, base=digest_of(other)), other)


def test_it_is_what_a_restart_with_that_model_would_be(tmp_path, run, base, other, lines, online, follow):
    online.accept(lines[:100])
    follow(online, other)
    online.accept(lines[100:300])
    first = OnlineTraining(tmp_path / "restarted", run, base)
    first.accept(lines[:100])
    first.backlog.wait()
    first.close()
    second = OnlineTraining(tmp_path / "restarted", replace(run, base=digest_of(other)), other)
    second.accept(lines[100:300])
    for each in (online, second):
        each.backlog.wait()
    expected, found = second.learner.state(), online.learner.state()
    second.close()
    assert all(np.array_equal(array, found[name]) for name, array in expected.items())


@pytest.mark.parametrize("rolled", [False, True])
def test_one_that_is_taken_back_before_a_pair_comes_leaves_no_trace(tmp_path, run, base, other, lines, online, follow, rolled):
    online.accept(lines[:100])
    if rolled:
        online.journal.roll()
    follow(online, other)
    begun = follow(online, base)
    online.accept(lines[100:150])
    assert (begun, runs_of(tmp_path / "state")) == ([], [(0, run.base)])
    assert_made_again(online, tmp_path, run, base)


def test_killed_at_any_moment_the_state_is_that_of_the_journal(tmp_path, run, base, other, lines, online, follow):
    models = {digest_of(each): each for each in (base, other)}
    for number in range(12):
        if number % 2:
            follow(online, (base, other)[number // 2 % 2])
        if number % 3 == 0:
            online.journal.roll()
        online.accept(lines[number * 23 : number * 23 + 7])
        if number % 4 == 1 and (write := online.snapshot()):
            write()
        online.accept(lines[number * 23 + 7 : number * 23 + 23])
        now = online.learner.run
        assert_made_again(online, tmp_path, now, models[now.base])
    assert len(runs_of(tmp_path / "state")) > 4


def test_where_the_journal_cannot_be_written_nothing_begins(tmp_path, run, base, other, lines, online, follow, monkeypatch):
    online.accept(lines[:100])
    begun = follow(online, other)

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(journal_module.os, "pwrite", full)
        assert all(answer.retryable for answer in online.accept(lines[100:120]))
    assert (begun, runs_of(tmp_path / "state")) == ([], [(0, run.base)])
    assert online.learner.run == run
    assert online.journal.try_again()
    follow(online, base)  # it is taken back
    online.accept(lines[100:120])
    assert_made_again(online, tmp_path, run, base)
    follow(online, other)
    online.accept(lines[120:140])
    assert begun == [digest_of(other)]
    assert_made_again(online, tmp_path, replace(run, base=digest_of(other)), other)


def test_a_checkpoint_of_each_run_can_be_made_again(tmp_path, run, base, other, lines, online, follow):
    made = []
    for model, part in ((None, lines[:300]), (other, lines[300:600]), (base, lines[600:900])):
        if model is not None:
            follow(online, model)
        online.accept(part)
        online.backlog.wait()
        made.append(publication(online.learner, Terms(tmp_path / "made"), tmp_path / "state")().checkpoint)
    for checkpoint, last in zip(made, (299, 599, 899), strict=True):
        again = train_stream([tmp_path / "state"], tmp_path / "again", until=last).checkpoint
        assert again.model.read_bytes() == checkpoint.model.read_bytes()


@pytest.mark.usefixtures("quick_fits")
def test_while_a_new_model_is_fitted_it_waits(tmp_path, run, other, lines, follow, monkeypatch):
    with ThreadPoolExecutor(1) as worker:
        fresh = OnlineTraining(tmp_path / "state", replace(run, base=None), None, "everysec", True, worker)
        fresh.accept(lines[:400])
        assert fresh.backlog.busy
        begun = follow(fresh, other)
        fresh.accept(lines[400:410])
        assert begun == []
        fresh.backlog.wait()
        with monkeypatch.context() as patch:
            patch.setattr(training_module, "_MOST_BEFORE", -1)  # too many wait
            fresh.accept(lines[410:420])
        assert begun == []
        fresh.accept(lines[420:500])
        assert begun == [digest_of(other)]
        assert runs_of(tmp_path / "state") == [(0, None), (420, digest_of(other))]
        assert_made_again(fresh, tmp_path, replace(run, base=digest_of(other)), other)
        fresh.close()


def test_what_is_only_recorded_begins_nothing(tmp_path, run, base, other, lines, follow):
    online = OnlineTraining(tmp_path / "state", run, base, "everysec", False)
    begun = follow(online, other)
    online.accept(lines[:50])
    assert begun == []
    online.close()


def test_its_bytes_are_kept_with_the_state(tmp_path, other, online, follow):
    follow(online, other)
    kept = tmp_path / "state" / f"base_{digest_of(other)[:16]}.onnx"
    assert kept.read_bytes() == to_bytes(other)
