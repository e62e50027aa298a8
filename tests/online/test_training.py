"""Online training outlives its process: what was answered is kept, and the state after a restart is the one never stopped."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import sidecar.journal.run as run_module
import sidecar.journal.writer as journal_module
import sidecar.learning.online.fits as fits_module
import sidecar.online.backlog as backlog_module
from sidecar.journal.blocks import encode_block
from sidecar.journal.repair import replace_segment
from sidecar.journal.run import Run
from sidecar.journal.segments import journal_segments, read_journal, whole_blocks
from sidecar.learning.recipe import Recipe, TrainingError, fit
from sidecar.learning.training_settings import TrainingSettings
from sidecar.online.recovery import newest_run
from sidecar.online.training import OnlineTraining
from sidecar.pairs.line_protocol import encode
from sidecar.state.base_models import digest_of
from sidecar.state.directory import StateError
from sidecar.state.snapshots import snapshots

pytestmark = pytest.mark.usefixtures("quick_fits")
SETTINGS = TrainingSettings(replay_capacity=300)


@pytest.fixture(scope="module")
def run(base):
    return Run(80, SETTINGS, 0.1, digest_of(base))


@pytest.fixture
def start():
    """Starts online training, and lets go of what a test leaves open."""
    opened = []

    def begin(*arguments):
        opened.append(OnlineTraining(*arguments))
        return opened[-1]

    yield begin
    for online in opened:
        online.close()


def journalled(state):
    return [entry.line for entry in read_journal(state) if entry.run is None]


def assert_same_state(one, other):
    for each in (one, other):
        each.backlog.wait()
    expected, found = one.learner.state(), other.learner.state()
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        assert np.array_equal(array, found[name]), name


def said(answers):
    return [json.loads(line) for line in encode(answers).splitlines()]


def test_answers_come_in_order_and_say_what_became_of_each_line(tmp_path, run, base, lines, start):
    online = start(tmp_path, run, base)
    answers = said(online.accept([lines[0], b"junk", lines[1], lines[0], b'{"job_id": "x", "features": [1], "true_score": 1}']))
    assert answers[0] == {"ok": True, "job_id": "j0", "step": 0, "trained": False}
    assert answers[1]["error"].startswith("not JSON")
    assert answers[2] == {"ok": True, "job_id": "j1", "step": 0, "trained": False}
    assert answers[3] == {"ok": True, "job_id": "j0", "step": 0, "trained": False, "duplicate": True}
    assert answers[4] == {"ok": False, "job_id": "x", "error": "features: expected 80 numbers, got 1"}
    assert journalled(tmp_path) == lines[:2]
    assert vars(online.counts) == {"accepted": 2, "held_out": 0, "duplicate": 1, "rejected": 2}


def test_a_group_is_answered_with_its_loss_and_the_steps_after_it(tmp_path, run, base, lines, start):
    online = start(tmp_path, replace(run, holdout_fraction=0.0), base)
    answers = said(online.accept(lines[:20]))
    assert [answer["trained"] for answer in answers] == [False] * 15 + [True] + [False] * 4
    assert [answer["step"] for answer in answers] == [0] * 15 + [4] * 5
    assert answers[15]["loss"] > 0
    assert "loss" not in answers[14]


@pytest.mark.parametrize("with_base", [True, False])
def test_how_pairs_were_grouped_into_reads_does_not_matter(tmp_path, run, base, lines, with_base, start, monkeypatch):
    monkeypatch.setattr(fits_module, "JUDGED_PAIRS", 1)
    run, base = (run, base) if with_base else (replace(run, base=None), None)
    one, other = (start(tmp_path / name, run, base) for name in ("one", "other"))
    at_once = said(one.accept(lines[:500]))
    draw, bit_by_bit = random.Random(0), []
    while len(bit_by_bit) < 500:
        bit_by_bit += said(other.accept(lines[len(bit_by_bit) : min(len(bit_by_bit) + draw.choice([1, 1, 1, 7, 40]), 500)]))
        for _ in range(draw.choice([0, 1, 1, 2, 9])):
            other.backlog.catch_up()
    assert bit_by_bit == at_once
    assert_same_state(one, other)


def test_steps_that_answers_need_not_wait_for_are_run_one_at_a_time(tmp_path, run, base, lines, start):
    online = start(tmp_path, replace(run, holdout_fraction=0.0), base)
    answers = [said(online.accept([line]))[0] for line in lines[:15]]
    assert not online.backlog.has_work
    answers += said(online.accept(lines[15:16]))
    assert (answers[-1]["trained"], answers[-1]["step"]) == (True, 4)
    for step in (1, 2, 3, 4):
        assert online.backlog.has_work
        online.backlog.catch_up()
        assert online.learner.trainer.step == step
    assert not online.backlog.has_work


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("with_base", [True, False])
def test_after_any_number_of_kills_the_state_is_the_one_never_stopped(tmp_path, run, base, lines, with_base, seed, start):
    run, base = (run, base) if with_base else (replace(run, base=None), None)
    chance = random.Random(seed)
    uninterrupted = start(tmp_path / "whole", run, base)
    uninterrupted.accept(lines[:700])

    state, sent = tmp_path / "killed", 0
    while sent < 700:
        online = start(state, run, base)
        assert online.journal.position == online.learner.position
        sent = online.journal.position
        stop = min(700, sent + chance.randrange(1, 250))
        while sent < stop:
            size = min(chance.randrange(1, 30), stop - sent)
            # What was journalled and not answered is sent again, with some of what was.
            online.accept(lines[max(0, sent - chance.randrange(3)) : sent + size])
            sent += size
            write = online.snapshot() if chance.random() < 0.1 else None
            if write:
                write()
        online.close()  # no snapshot: as a kill leaves it
        if chance.random() < 0.5:
            with journal_segments(state)[-1].open("ab") as stream:
                stream.write(lines[sent % 700][: chance.randrange(1, 100)])
    final = start(state, run, base)
    assert journalled(state) == lines[:700]
    assert_same_state(final, uninterrupted)


def test_settings_changed_between_restarts_count_from_where_they_changed(tmp_path, run, base, lines, start):
    changed = replace(run, settings=replace(SETTINGS, learning_rate=5e-4, batch_size=16, seed=3), holdout_fraction=0.3)
    whole = start(tmp_path / "whole", run, base)
    whole.accept(lines[:300])
    whole.snapshot()()
    whole.close()
    whole = start(tmp_path / "whole", changed, base)
    whole.accept(lines[300:500])

    killed = start(tmp_path / "killed", run, base)
    killed.accept(lines[:300])
    killed.close()
    killed = start(tmp_path / "killed", changed, base)
    killed.accept(lines[300:411])
    killed.close()
    killed = start(tmp_path / "killed", changed, base)
    killed.accept(lines[411:500])
    assert_same_state(killed, whole)
    assert sum(entry.run is not None for entry in read_journal(tmp_path / "killed")) == 2


def test_another_base_model_begins_a_new_run_that_can_be_made_again(tmp_path, example, run, base, lines, start):
    other = fit(example.features, example.true_score, np.arange(100), Recipe(epochs=5, seed=8)).ema.network()
    then = replace(run, base=digest_of(other))
    online = start(tmp_path, run, base)
    online.accept(lines[:200])
    online.close()
    online = start(tmp_path, then, other)
    online.accept(lines[200:300])
    online.close()
    again = start(tmp_path, then, other)
    online.backlog.wait()
    assert again.learner.trainer.step < online.learner.trainer.step + 1
    assert_same_state(again, online)
    again.close()


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_a_base_model_that_is_lost_is_told_and_training_goes_on(tmp_path, example, run, base, lines, start, damage):
    online = start(tmp_path, run, base)
    online.accept(lines[:200])
    online.close()
    (path,) = tmp_path.glob("base_*.onnx")
    if damage == "missing":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    other = fit(example.features, example.true_score, np.arange(100), Recipe(epochs=5, seed=8)).ema.network()
    then = replace(run, base=digest_of(other))
    online = start(tmp_path, then, other)
    assert online.learner.position == 200
    assert online.damages.counts
    online.accept(lines[200:260])
    online.backlog.wait()
    assert online.learner.trainer.trained >= 48
    online.close()
    again = start(tmp_path, then, other)
    assert_same_state(again, online)


def test_a_damaged_copy_of_the_base_model_is_written_again(tmp_path, run, base, lines, start):
    online = start(tmp_path, run, base)
    online.accept(lines[:100])
    online.close()
    (path,) = tmp_path.glob("base_*.onnx")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    again = start(tmp_path, run, base)
    assert path.read_bytes() == whole
    assert again.damages.counts == {"base": 1}
    assert_same_state(again, online)


def test_a_snapshot_spares_training_again_and_a_damaged_one_only_costs_time(tmp_path, run, base, lines, start):
    online = start(tmp_path, run, base)
    online.accept(lines[:200])
    online.snapshot()()
    online.accept(lines[200:400])
    online.snapshot()()
    online.accept(lines[400:430])
    online.close()
    again = start(tmp_path, run, base)
    assert again.recovered == 30
    assert_same_state(again, online)
    again.close()
    snapshots(tmp_path)[0][1].write_bytes(b"junk")
    again = start(tmp_path, run, base)
    assert again.recovered == 230
    assert_same_state(again, online)


def test_a_snapshot_after_the_journals_end_is_moved_aside(tmp_path, run, base, lines, start):
    online = start(tmp_path, run, base)
    online.accept(lines[:100])
    online.journal.syncer()()
    shutil.copytree(tmp_path / "journal", tmp_path / "copy")
    online.accept(lines[100:200])
    online.snapshot()()
    online.close()
    shutil.rmtree(tmp_path / "journal")
    shutil.move(tmp_path / "copy", tmp_path / "journal")
    again = start(tmp_path, run, base)
    assert again.learner.position == again.recovered == 100
    assert snapshots(tmp_path) == []
    assert again.damages.names == ["000001-snapshot_000000000200.npz"]


def test_where_the_journal_is_lost_a_good_snapshot_is_gone_on_from(tmp_path, run, base, lines, start):
    online = start(tmp_path, run, base)
    online.accept(lines[:200])
    online.snapshot()()
    online.close()
    (path,) = journal_segments(tmp_path)
    path.write_bytes(b"junk" * 1000)
    again = start(tmp_path, run, base)
    assert (again.learner.position, again.recovered) == (200, 0)
    assert_same_state(again, online)
    again.accept(lines[200:300])
    again.close()
    once_more = start(tmp_path, run, base)
    assert_same_state(once_more, again)
    assert once_more.damages.counts == {}
    assert once_more.damages.names  # until somebody has looked at it and removed it


def test_duplicates_are_known_after_a_restart(tmp_path, run, base, lines, start):
    online = start(tmp_path, run, base)
    online.accept(lines[:50])
    online.snapshot()()
    online.close()
    again = start(tmp_path, run, base)
    assert [answer["duplicate"] for answer in said(again.accept(lines[40:50]))] == [True] * 10
    assert journalled(tmp_path) == lines[:50]


def test_where_the_journal_is_full_nothing_is_lost_or_doubled(tmp_path, monkeypatch, run, base, lines, start):
    online, other = start(tmp_path / "full", run, base), start(tmp_path / "whole", run, base)
    online.accept(lines[:100])
    before = online.learner.state()

    def full(descriptor, data, offset):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal_module.os, "pwrite", full)
        answers = said(online.accept([*lines[100:120], b"junk", lines[5]]))
    assert answers[0] == {"ok": False, "job_id": "j100", "retryable": True, "error": "journal: no space left on device"}
    assert [answer.get("retryable") for answer in answers] == [True] * 20 + [None, True]
    after = online.learner.state()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert [answer["ok"] for answer in said(online.accept(lines[100:400]))] == [True] * 300
    other.accept(lines[:400])
    assert_same_state(online, other)
    assert journalled(tmp_path / "full") == lines[:400]


def test_a_forgotten_pair_keeps_its_position_and_does_not_train(tmp_path, run, base, lines, start):
    online = start(tmp_path / "forgot", run, base)
    online.accept(lines[:200])
    online.close()
    path = journal_segments(tmp_path / "forgot")[0]
    blocks = (
        encode_block(block.position, [b"#gone" if line == lines[50] else line for line in block.lines])
        for block in whole_blocks(path)
    )
    replace_segment(path, iter([*blocks]))
    never = start(tmp_path / "never", run, base)
    never.accept(lines[:50] + lines[51:200])
    never.backlog.wait()
    again = start(tmp_path / "forgot", run, base)
    assert again.learner.position == 200
    assert np.array_equal(again.learner.trainer.ema.parameters, never.learner.trainer.ema.parameters)
    assert np.array_equal(again.learner.held_out.rows(), never.learner.held_out.rows())


def test_two_sidecars_cannot_share_a_state_directory(tmp_path, run, base, start):
    online = start(tmp_path, run, base)
    with pytest.raises(StateError, match="another sidecar holds this state directory"):
        start(tmp_path, run, base)
    online.close()
    start(tmp_path, run, base).close()


def test_a_file_system_without_locks_is_told(tmp_path, run, base, start, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(StateError, match="it cannot be locked: No locks available"):
        start(tmp_path, run, base)


def test_a_folder_that_somebody_has_put_there_does_not_stop_a_start(tmp_path, run, base, start):
    (tmp_path / ".tmp-backup").mkdir()
    (tmp_path / ".tmp-snapshot_000000000001.npz").touch()
    start(tmp_path, run, base).close()
    assert [path.name for path in tmp_path.glob(".tmp-*")] == [".tmp-backup"]


def test_pairs_of_another_width_are_not_mixed(tmp_path, run, base, lines, start):
    online = start(tmp_path, run, base)
    online.accept(lines[:3])
    online.close()
    with pytest.raises(StateError, match="its pairs have 80 features, 6 are set"):
        start(tmp_path, replace(run, n_features=6, base=None))


def test_a_state_that_cannot_be_made_is_told(tmp_path, run, base, start):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match="file"):
        start(tmp_path / "file", run, base)


def test_the_state_can_be_moved(tmp_path, run, base, lines, start):
    online = start(tmp_path / "here", run, base)
    online.accept(lines[:60])
    online.close()
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert_same_state(start(tmp_path / "there", run, base), online)


def test_pairs_recorded_without_training_know_duplicates_and_train_under_the_first_run_after(tmp_path, run, base, lines, start):
    failed = start(tmp_path, replace(run, base=None), None, "everysec", False)
    failed.accept(lines[:100])
    failed.close()
    failed = start(tmp_path, replace(run, base=None), None, "everysec", False)
    assert [answer["duplicate"] for answer in said(failed.accept(lines[90:100]))] == [True] * 10
    failed.close()
    good = start(tmp_path, run, base)
    assert good.recovered == 100
    good.close()
    changed = replace(run, settings=replace(SETTINGS, learning_rate=1e-3))
    later = start(tmp_path, changed, base)
    assert np.array_equal(later.learner.trainer.ema.parameters, good.learner.trainer.ema.parameters)


def test_a_fresh_head_is_fitted_on_the_worker_while_pairs_are_journalled_and_answered(tmp_path, run, lines, start):
    run = replace(run, base=None)
    with ThreadPoolExecutor(1) as worker:
        hold = threading.Event()
        worker.submit(hold.wait)  # so that the fit cannot begin
        online = start(tmp_path / "worker", run, None, "everysec", True, worker)
        answers = []
        for at in range(0, 700, 50):
            answers += said(online.accept(lines[at : at + 50]))
        assert online.backlog.busy
        assert online.snapshot() is None
        assert [(answer["ok"], answer["step"], answer["trained"]) for answer in answers] == [(True, 0, False)] * 700
        assert online.journal.position == 700
        assert online.backlog.waiting > 400
        hold.set()
        online.backlog.wait()
    assert not online.backlog.busy
    at_once = start(tmp_path / "at once", run)
    at_once.accept(lines[:700])
    assert_same_state(online, at_once)
    step = said(online.accept(lines[700:720]))[-1]["step"]
    online.backlog.wait()
    assert step == online.learner.trainer.step > 0
    assert_same_counts(online, at_once, 20)


def test_a_model_that_learns_is_fitted_again_on_the_worker_with_the_same_result(tmp_path, run, base, lines, start, monkeypatch):
    monkeypatch.setattr(fits_module, "JUDGED_PAIRS", 1)
    with ThreadPoolExecutor(1) as worker:
        hold = threading.Event()
        worker.submit(hold.wait)  # so that the fit cannot begin
        online = start(tmp_path / "worker", run, base, "everysec", True, worker)
        answers = []
        for at in range(0, 400, 50):
            answers += said(online.accept(lines[at : at + 50]))
        assert online.backlog.busy
        assert online.snapshot() is None
        assert all(answer["ok"] for answer in answers)
        assert [answer["step"] for answer in answers][-1] == 256 // 16 * 4
        assert online.backlog.waiting > 100
        hold.set()
        online.backlog.wait()
        for at in range(400, 700, 50):
            online.accept(lines[at : at + 50])
        online.backlog.wait()
    at_once = start(tmp_path / "at once", run, base)
    at_once.accept(lines[:700])
    assert_same_state(online, at_once)
    assert sum(online.learner.trainer.refits.values()) == 3  # after 256, 363 and 512 training pairs


def test_where_there_is_little_time_no_fit_begins(tmp_path, run, base, lines, start, monkeypatch):
    with ThreadPoolExecutor(1) as worker:
        hold = threading.Event()
        worker.submit(hold.wait)
        online = start(tmp_path, run, base, "everysec", True, worker)
        for at in range(0, 450, 50):
            online.accept(lines[at : at + 50])
        hold.set()
        clock = itertools.chain([0.0], itertools.repeat(6.0))
        with monkeypatch.context() as patch:
            patch.setattr(backlog_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
            online.backlog.wait(10.0)
        trainer = online.learner.trainer
        assert sum(trainer.refits.values()) == 1
        assert trainer.fit is None
        assert online.backlog.is_behind
        online.backlog.wait()
        assert sum(trainer.refits.values()) == 2  # after 256 and 363 training pairs
        assert online.backlog.waiting == 0


def assert_same_counts(one, other, more):
    assert one.counts.accepted == other.counts.accepted + more
    assert one.counts.held_out >= other.counts.held_out > 0


def test_pairs_that_wait_for_a_fit_are_bounded(tmp_path, run, lines, start, monkeypatch):
    monkeypatch.setattr(backlog_module, "MOST_WAITING", 300)
    with ThreadPoolExecutor(1) as worker:
        online = start(tmp_path, replace(run, base=None), None, "everysec", True, worker)
        for at in range(0, 1000, 100):
            online.accept(lines[at : at + 100])
            assert online.backlog.waiting <= 300
        online.backlog.wait()
        assert online.backlog.waiting == 0
        assert online.learner.position == 1000


def test_a_fit_that_fails_leaves_it_recording(tmp_path, run, lines, start, monkeypatch):
    def diverges(*arguments, **options):
        raise TrainingError("training diverged at step 1")

    run = replace(run, base=None)
    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as worker:
        patch.setattr(fits_module, "fit", diverges)
        online = start(tmp_path, run, None, "everysec", True, worker)
        online.accept(lines[:400])
        online.backlog.wait()
        assert online.backlog.failed == "a new model could not be fitted to its first pairs: training diverged at step 1"
        assert [answer["ok"] for answer in said(online.accept(lines[400:500]))] == [True] * 100
        assert online.snapshot() is None
        online.close()
        online = start(tmp_path, run, None, "everysec", True, worker)
        assert online.backlog.failed
        online.close()
    online = start(tmp_path, run)
    assert not online.backlog.failed
    assert online.recovered == 500


def test_a_damaged_pair_is_lost_and_the_others_train(tmp_path, run, base, lines, start):
    online = start(tmp_path / "state", run, base)
    for line in lines[:60]:
        online.accept([line])
    online.close()
    (path,) = journal_segments(tmp_path / "state")
    path.write_bytes(path.read_bytes().replace(lines[33], lines[33].replace(b"[", b"(")))
    again = start(tmp_path / "state", run, base)
    assert again.damages.counts == {"journal": 1}
    without = start(tmp_path / "without", run, base)
    without.accept(lines[:33] + lines[34:60])
    for each in (again, without):
        each.backlog.wait()
    assert np.array_equal(again.learner.trainer.ema.parameters, without.learner.trainer.ema.parameters)
    assert again.learner.position == 60


@pytest.mark.parametrize("number", [33, 59])
@pytest.mark.parametrize("closed", [False, True])
def test_damage_on_a_full_disk_keeps_it_from_recording_nothing(tmp_path, run, base, lines, start, monkeypatch, number, closed):
    state = tmp_path / "state"
    online = start(state, run, base)
    for line in lines[:60]:
        online.accept([line])
    if closed:
        online.journal.roll()
        online.accept(lines[60:61])
    online.close()
    path = journal_segments(state)[0]
    damaged = path.read_bytes().replace(lines[number], lines[number].replace(b"[", b"("))
    path.write_bytes(damaged)

    def no_room(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sidecar.journal.repair.whole_file", no_room)
        for _ in range(2):
            full = start(state, run, base)
            assert path.read_bytes() == damaged
            assert full.learner.position == full.journal.position == (61 if closed else 60)
            full.close()
        full = start(state, run, base)
        assert all(answer["ok"] for answer in said(full.accept(lines[61:100])))
        full.close()
    again = start(state, run, base)
    left = [line for line in lines[: 61 if closed else 60] if line != lines[number]] + lines[61:100]
    assert [line for line in journalled(state) if line is not None] == left
    without = start(tmp_path / "without", run, base)
    without.accept(left)
    for each in (again, without):
        each.backlog.wait()
    assert np.array_equal(again.learner.trainer.ema.parameters, without.learner.trainer.ema.parameters)


def test_the_run_that_goes_on_is_that_before_a_segment_in_which_nothing_came(tmp_path, run, base, lines, start):
    online = start(tmp_path, run, base)
    online.accept(lines[:10])
    online.close()
    later = replace(run, settings=replace(SETTINGS, learning_rate=0.0002))
    online = start(tmp_path, later, base)
    online.accept(lines[10:20])
    online.close()
    (tmp_path / "journal" / "000000000020.jsonl").touch()
    assert newest_run(tmp_path) == later


def test_where_all_snapshots_are_damaged_and_the_beginning_is_gone_it_begins_anew(tmp_path, run, base, lines, start, caplog):
    online = start(tmp_path, run, base)
    online.accept(lines[:100])
    online.journal.roll()
    online.accept(lines[100:300])
    online.snapshot()()
    online.close()
    journal_segments(tmp_path)[0].unlink()
    for _, path in snapshots(tmp_path):
        path.write_bytes(b"junk")
    again = start(tmp_path, run, base)
    assert (again.recovered, again.learner.first, again.learner.position) == (200, 100, 300)
    assert "training begins anew with position 100, the first that retention kept" in caplog.text


def test_another_processor_is_told(tmp_path, run, base, lines, start, caplog):
    online = start(tmp_path, replace(run, kernel="numpy 9 on a toaster"), base)
    online.accept(lines[:50])
    online.close()
    start(tmp_path, replace(run, kernel="numpy 10"), base).close()
    assert "the state comes from numpy 9 on a toaster; on numpy 10 its last bits may differ" in caplog.text


def test_recovery_tells_of_its_progress(tmp_path, run, base, lines, start):
    online = start(tmp_path, run, base)
    online.accept(lines[:1000])
    online.close()
    told = []
    start(tmp_path, run, base, "everysec", True, None, told.append).close()
    assert sum(told) == 1000
    assert len(told) > 3


def test_a_snapshot_that_failed_is_written_again(tmp_path, run, base, lines, start):
    online = start(tmp_path, run, base)
    online.accept(lines[:50])
    assert online.snapshot() is not None
    assert online.snapshot() is None
    online.snapshot_failed()
    online.snapshot()()
    assert snapshots(tmp_path)[0][0] == 50


@pytest.mark.parametrize("where", ["journal", "snapshot"])
def test_a_state_of_a_newer_format_is_refused(tmp_path, run, base, lines, start, where, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "STATE_FORMAT", 2)
        online = start(tmp_path, run, base)
        online.accept(lines[:100])
        if where == "snapshot":
            online.snapshot()()
        online.close()
    with pytest.raises(StateError, match="state of format 2; this program knows up to 1: use a newer one"):
        start(tmp_path, run, base)
    with pytest.raises(StateError, match="state of format 2"):
        newest_run(tmp_path)
