"""The trial of the stable checkpoint, on a journal whose pairs say what the models are worth."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnx_builder import Clip, Dense, Network
from onnx_builder.write import to_bytes
from sidecar.checkpoints.directory import STABLE, linked, promote, publish
from sidecar.checkpoints.publishing import Terms
from sidecar.checkpoints.rollbacks import read_rollbacks
from sidecar.evaluation.inspect import inspect
from sidecar.journal.blocks import GONE, RUN
from sidecar.journal.run import Run
from sidecar.learning.training_settings import TrainingSettings
from sidecar.online.learner import Learner
from sidecar.online.publication import publication
from sidecar.online.rollback import evidence_of_rollback, hold_trial
from sidecar.pairs.pair import PairBlock
from sidecar.state.anchor import ANCHOR, kept_anchors, read_anchor, write_anchor
from tests.journals import write_journal
from tests.small_states import N_FEATURES, small_lines
from tests.small_states import RUN as SMALL

FIRST = 100
"""The first position after the checkpoint on trial."""


def network(offset):
    """One whose scores are off by so much."""
    weights = np.full((1, N_FEATURES), 12, dtype=np.float32)
    return Network(N_FEATURES, (Dense(weights, np.array([60 + offset], dtype=np.float32)), Clip(0, 100)))


def journal(state, pairs, run=SMALL, groups=2):
    """A journal of so many pairs, in groups of so many, and the state directory."""
    lines = [json.loads(line) for line in small_lines(pairs)]
    lines = [json.dumps(line | {"group": f"g{i // groups}"}).encode() for i, line in enumerate(lines)]
    return write_journal(state, {f"{0:012d}.jsonl": [RUN + json.dumps(run.as_json()).encode(), *lines]})


@pytest.fixture
def place(tmp_path):
    """A checkpoint directory with a stable model that is off by a point, and a successor, and the state in it."""
    directory, state = tmp_path / "c", tmp_path / "c" / "state"

    def make(offset=40.0, **about):
        publish(directory, to_bytes(network(1)), {}, stable=True)
        trained = {"directory": str(state.resolve()), "first": 0, "last": FIRST - 1}
        return publish(
            directory,
            to_bytes(network(offset)),
            {"n_features": N_FEATURES, "journal": trained, **about},
            stable=True,
            on_trial=True,
        )

    return directory, state, make


def hold(place, threshold=0.05, position=10**6):
    return hold_trial(place[0], place[1], position, threshold, 100.0, 1.0)


def stable(place):
    return linked(place[0], STABLE).version


def test_a_bad_one_is_taken_back_with_the_figures_and_its_anchor(place):
    directory, state, make = place
    journal(state, 400)
    anchors = np.arange(12.0).reshape(2, 6), np.ones((2, 6))
    write_anchor(state, anchors[0])
    second = make()
    write_anchor(state, anchors[1], "model_v000001")
    done = hold(place)
    why = read_rollbacks(directory).rolled_back[second.name]
    assert (stable(place), done.again_at) == (1, None)
    assert done.taken_back == f"{second.name}: {why['reason']}"
    assert (why["pairs"], why["groups"], why["worse_in"]) == (200, 100, 99)
    assert why["error"] == pytest.approx(29, abs=5)  # clipped to 100
    assert why["predecessor_error"] == pytest.approx(1, abs=0.1)
    assert why["chance"] < 1e-9
    assert why["journal"] == {"directory": str(state), "first": FIRST, "last": FIRST + 199}
    np.testing.assert_array_equal(read_anchor(state), anchors[0])
    assert kept_anchors(state) == []
    assert inspect(second.model)["rolled_back"] == why
    assert "rolled_back" not in inspect(directory / STABLE)


@pytest.mark.parametrize(("offset", "threshold", "left"), [(1.01, 0.05, 2), (1.2, 0.05, 1), (1.2, 0.5, 2), (0, 0.05, 2)])
def test_it_is_decided_once(place, offset, threshold, left):
    journal(place[1], 400)
    place[2](offset)
    assert hold(place, threshold).again_at is None
    assert (stable(place), read_rollbacks(place[0]).on_trial) == (left, {})
    before = read_rollbacks(place[0])
    assert hold(place, 0.0).taken_back == ""
    assert (stable(place), read_rollbacks(place[0])) == (left, before)


def test_the_same_pairs_decide_the_same_again(place, tmp_path):
    journal(place[1], 400)
    second = place[2](1.2)
    hold(place)
    first = read_rollbacks(place[0]).rolled_back[second.name]
    promote(place[0], 1)
    third = place[2](1.2)
    promote(place[0], 1)
    assert third.version == 4
    place[2](1.2)
    journal(place[1], 900)  # more has come, which is not looked at
    hold(place)
    again = [*read_rollbacks(place[0]).rolled_back.values()][-1]
    for told in (first, again):
        for name in ("rolled_back_at", "predecessor", "reason"):
            told.pop(name)
    assert first == again


@pytest.mark.parametrize(("pairs", "groups", "again_at"), [(299, 2, 300), (320, 20, 430), (420, 12, 455), (120, 1, 300)])
def test_it_waits_for_enough_pairs_of_enough_groups(place, pairs, groups, again_at):
    journal(place[1], pairs, groups=groups)
    place[2]()
    assert hold(place, position=pairs).again_at == again_at
    assert (stable(place), len(read_rollbacks(place[0]).on_trial)) == (2, 1)


def test_too_many_pairs_of_too_few_groups_decide_nothing(place, monkeypatch):
    monkeypatch.setattr("sidecar.online.rollback.MOST_PAIRS", 250)
    journal(place[1], 400, groups=20)
    place[2]()
    assert hold(place) == (None, "")
    assert stable(place) == 2


def test_pairs_that_were_forgotten_are_no_evidence(place):
    journal(place[1], 400)
    lines = [RUN + json.dumps(SMALL.as_json()).encode(), *small_lines(400)]
    lines[150:] = [GONE] * 251
    write_journal(place[1], {f"{0:012d}.jsonl": lines})
    place[2]()
    assert hold(place, position=400).again_at > 400
    assert stable(place) == 2


@pytest.mark.parametrize(
    "about",
    [
        {"journal": {"directory": "/another/state", "first": 0, "last": 99}},
        {"journal": {"first": 0, "last": 99}},
        {"journal": None},
        {"journal": {"directory": "", "last": "99"}},
        {"n_features": 5},
        {"feature_order": ["a", "b", "c", "d"]},
        {"target": "vmaf_4k_v0.6.1"},
    ],
)
def test_one_that_another_has_published_or_of_other_pairs_stays(place, about):
    run = Run(N_FEATURES, SMALL.settings, 0.1, SMALL.base, features=(*"abdc",), order=(*"abdc",), target="vmaf_v0.6.1")
    journal(place[1], 400, run)
    place[2](**about)
    assert hold(place) == (None, "")
    assert stable(place) == 2


def test_with_none_before_it_it_stays(place):
    journal(place[1], 400)
    publish(place[0], to_bytes(network(40)), {"n_features": N_FEATURES}, stable=True, on_trial=True)
    assert hold(place) == (None, "")
    assert stable(place) == 1


def test_a_predecessor_that_cannot_be_used_is_not_gone_back_to(place, caplog):
    journal(place[1], 400)
    place[2]()
    (place[0] / "model_v000001.onnx").write_bytes(b"damaged")
    assert hold(place) == (None, "")
    assert (stable(place), read_rollbacks(place[0]).on_trial) == (2, {})
    assert "model_v000002 stays stable, whatever comes" in caplog.text


def test_the_next_one_must_not_be_worse_on_these_pairs(place):
    directory, state, make = place
    run = Run(N_FEATURES, TrainingSettings(batch_size=8, hidden=3), 0.1)
    journal(state, 400, run)
    make(offset=10)
    assert evidence_of_rollback(directory, state, {"n_features": N_FEATURES}) is None
    hold(place)
    found = evidence_of_rollback(directory, state, {"n_features": N_FEATURES})
    assert (len(found.features), found.rmse_ratio) == (200, 1.0)

    learner = Learner(run)  # a few points off what the pairs say: good enough for its own held-out pairs
    pairs = [json.loads(line) for line in small_lines(800)]
    features = np.array([pair["features"] for pair in pairs], dtype=np.float32)
    scores = np.array([pair["true_score"] for pair in pairs], dtype=np.float32)
    learner.take(PairBlock(features, np.clip(scores + 4, 0, 100), [(i * 0.618) % 1 for i in range(800)]))
    terms = Terms(directory, on_trial=True)
    refused = publication(learner, terms, state)()
    assert refused.gate.verdict == "unstable"
    assert refused.gate.reason.startswith("pairs that took model_v000002 back: on 200 held-out pairs, ")
    assert stable(place) == 1

    promote(directory, 3)  # whoever knows better says so
    assert evidence_of_rollback(directory, state, {"n_features": N_FEATURES}) is None


def test_the_anchor_follows_where_a_crash_came_between(place):
    directory, state, make = place
    journal(state, 400)
    anchor = np.arange(12.0).reshape(2, 6)
    write_anchor(state, anchor)
    make()
    write_anchor(state, np.ones((2, 6)), "model_v000001")
    kept = kept_anchors(state)[0].read_bytes()
    hold(place)
    (state / ANCHOR).write_bytes(b"")
    (state / "anchor_model_v000001.npy").write_bytes(kept)
    learner = Learner(Run(N_FEATURES, TrainingSettings(batch_size=8, hidden=3), 0.1))
    pairs = [json.loads(line) for line in small_lines(400)]
    block = [np.array([pair[name] for pair in pairs], dtype=np.float32) for name in ("features", "true_score")]
    learner.take(PairBlock(*block, [0.5] * 400))
    publication(learner, Terms(directory), state)()
    np.testing.assert_array_equal(read_anchor(state), anchor)
    assert kept_anchors(state) == []
