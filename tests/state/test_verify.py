"""`verify STATE_DIR`: everything is read, nothing is changed, and what is damaged is named with what it costs."""

from __future__ import annotations

import json

import pytest

from sidecar.journal.retention import compress_closed
from sidecar.journal.run import Run
from sidecar.journal.segments import journal_segments
from sidecar.learning.training_settings import TrainingSettings
from sidecar.monitoring.history import COLUMNS, History, write_history
from sidecar.online.training import OnlineTraining
from sidecar.state.anchor import write_anchor
from sidecar.state.base_models import digest_of
from sidecar.state.published_pairs import write_published_pairs
from sidecar.state.snapshots import snapshots
from tests.conftest import run, tree


@pytest.fixture(scope="module")
def state(tmp_path_factory, lines, base):
    """A state with everything in it."""
    directory = tmp_path_factory.mktemp("verify") / "state"
    online = OnlineTraining(directory, Run(80, TrainingSettings(replay_capacity=50), 0.2, digest_of(base)), base)
    for start in range(0, 300, 100):
        online.accept(lines[start : start + 100])
        online.backlog.wait()
        online.snapshot()()
        online.journal.roll()
    online.accept(lines[300:310])
    write_anchor(directory, online.learner.held_out.rows())
    online.close()
    compress_closed(directory, 0)
    write_published_pairs(directory, 200)
    write_history(directory, History(((1, json.dumps([1, *[None] * (len(COLUMNS) - 1)]).encode()),)))
    return directory


def test_a_whole_state_is_ok_and_unchanged(state):
    before = tree(state)
    done = run("verify", state)
    assert done.returncode == 0, done.stdout
    kinds = len(journal_segments(state)) + len(snapshots(state)) + len(["base", "anchor", "published", "history"])
    assert done.stdout.count(": ok\n") == len(done.stdout.splitlines()) == kinds == 10
    assert tree(state) == before


@pytest.mark.parametrize("name", ["journal/000000000000.jsonl.gz", "journal/000000000300.jsonl", "anchor.npy", "published"])
def test_what_is_damaged_is_named_and_the_exit_code_is_1(state, name):
    path = state / name
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    path.write_bytes(changed)
    try:
        done = run("verify", state, "--json")
    finally:
        path.write_bytes(whole)
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["ok"] is False
    assert [file["file"] for file in document["state"] if not file["ok"]] == [str(path)]
    (damaged,) = [file for file in document["state"] if not file["ok"]]
    assert damaged["wrong"]
    assert damaged["lost"]


def test_a_model_and_a_state_can_be_verified_together_and_a_stranger_is_refused(state, tmp_path):
    (tmp_path / "empty").mkdir()
    done = run("verify", state, tmp_path / "empty")
    assert done.returncode == 2
    assert "no checkpoint" in done.stderr
