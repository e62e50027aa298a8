"""The learner: what it takes, what it keeps out, and that another run goes on where the last one stood."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sidecar.journal.run import Run
from sidecar.learning.recipe import Recipe, fit
from sidecar.learning.training_settings import TrainingSettings
from sidecar.online.learner import HELD_OUT_PAIRS, Learner

SETTINGS = TrainingSettings()
RUN = Run(80, SETTINGS, 0.1, "digest")


@pytest.fixture(scope="module")
def base(example):
    return fit(example.features, example.true_score, np.arange(200), Recipe(epochs=10)).ema.network()


def take(learner, example, start, stop):
    return learner.take(example.block(start, stop))


def test_pairs_below_the_fraction_are_held_out_and_never_train(example, base):
    learner = Learner(RUN, base)
    groups = take(learner, example, 0, 500)
    expected = example.position[:500] < 0.1
    assert len(learner.held_out) == expected.sum() > 10
    rows = learner.held_out.rows()
    assert np.array_equal(rows[:, :-2], example.features[:500][expected])
    assert np.array_equal(rows[:, -2], example.true_score[:500][expected])
    assert np.array_equal(rows[:, -1], example.position[:500][expected])
    assert [group.place for group in groups] == np.flatnonzero(~expected)[15::16].tolist()
    assert [group.step for group in groups] == [4 * (number + 1) for number in range(len(groups))]
    assert learner.trainer.trained == (500 - expected.sum()) // 16 * 16
    assert learner.position == 500


def test_the_held_out_ring_is_bounded(example, base):
    learner = Learner(replace(RUN, holdout_fraction=0.999), base)
    take(learner, example, 0, 1200)
    assert len(learner.held_out) == HELD_OUT_PAIRS


@pytest.mark.parametrize("changes", [{}, {"replay_capacity": 100}, {"replay_capacity": 100, "replay_policy": "ring"}])
def test_a_learner_goes_on_bit_for_bit_from_its_state(example, base, changes):
    learner = Learner(replace(RUN, settings=replace(SETTINGS, **changes)), base)
    take(learner, example, 0, 333)
    again = Learner.from_state(learner.state())
    assert again.run == learner.run
    take(learner, example, 333, 700)
    take(again, example, 333, 700)
    expected, found = learner.state(), again.state()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e-3},
        {"batch_size": 8},
        {"replay_mix": 0.9},
        {"replay_capacity": 50},
        {"replay_policy": "ring"},
        {"optimizer": "adam"},
        {"ema_decay": 0.5, "momentum": 0.5, "weight_decay": 0.1, "max_grad_norm": 0.1},
        {"seed": 9},
    ],
)
@pytest.mark.parametrize("count", [40, 150, 300])
def test_other_settings_go_on_with_the_same_weights(example, base, changes, count):
    learner = Learner(RUN, base)
    take(learner, example, 0, count)
    before, waiting = learner.trainer.live.parameters.copy(), learner.trainer.state()["waiting"]
    step, trained = learner.trainer.step, learner.trainer.trained
    learner.begin(replace(RUN, settings=replace(SETTINGS, **changes)), base)
    after = learner.trainer
    if after.step == step:  # where the waiting pairs complete no group of the new size
        assert np.array_equal(after.live.parameters, before)
        assert len(after.state()["waiting"]) == len(waiting)
    assert after.trained >= trained
    assert after.replay.added == after.trained
    losses = [group.loss for group in take(learner, example, count, count + 200)]
    assert losses
    assert np.isfinite(losses).all()


def test_another_base_model_begins_anew_and_keeps_the_pairs(example, base):
    learner = Learner(RUN, base)
    take(learner, example, 0, 400)
    replayed, held_out = learner.trainer.replay.rows(), learner.held_out.rows()
    other = fit(example.features, example.true_score, np.arange(300), Recipe(epochs=40, seed=1)).ema.network()
    learner.begin(replace(RUN, base="other"), other)
    assert learner.trainer.step == 0
    assert np.allclose(learner.trainer.network(learner.trainer.ema).forward(example.features), other.forward(example.features))
    assert np.array_equal(learner.trainer.replay.rows(), replayed)
    assert np.array_equal(learner.held_out.rows(), held_out)
    assert take(learner, example, 400, 450)[0].loss < 100


TENANTS = replace(RUN, settings=replace(SETTINGS, tenants=("a", "b")))


def take_tenants(learner, example, start, stop, step=None):
    for at in range(start, stop, step or stop - start):
        block = example.block(at, min(stop, at + (step or stop - start)))
        learner.take(block._replace(tenants=["abc"[row // 12 % 3] for row in range(at, at + len(block.holdout))]))


def assert_equal(one, other):
    expected, found = one.state(), other.state()
    assert expected.keys() == found.keys()
    assert [name for name in expected if not np.array_equal(expected[name], found[name])] == []


@pytest.mark.parametrize("with_base", [True, False])
def test_with_tenants_a_learner_goes_on_bit_for_bit_from_its_state(example, base, with_base):
    run = TENANTS if with_base else replace(TENANTS, base=None)
    learner = Learner(run, base if with_base else None)
    take_tenants(learner, example, 0, 333)
    again = Learner.from_state(learner.state())
    take_tenants(learner, example, 333, 800)
    take_tenants(again, example, 333, 800, step=7)
    assert again.tenants.numbers.keys() == {"a", "b"}
    assert again.tenants.refused > 200
    assert_equal(learner, again)


@pytest.mark.parametrize(
    "changes", [{"tenants": None}, {"tenants": ("b", "c")}, {"tenant_rank": 2}, {"batch_size": 20}, {"learning_rate": 2e-4}]
)
def test_other_settings_of_tenants_begin_with_a_pair_and_lose_none(example, base, changes):
    learner, run = Learner(TENANTS, base), replace(TENANTS, settings=replace(TENANTS.settings, **changes))
    take_tenants(learner, example, 0, 400)
    again = Learner.from_state(learner.state())
    for each in (learner, again):
        each.begin(run, None)
        take_tenants(each, example, 400, 800)
    assert_equal(learner, again)
    waiting = 0 if learner.tenants is None else sum(figures.held for figures in learner.tenants.figures().values())
    assert 800 - len(learner.held_out) - learner.trainer.trained - waiting < 64 + 16


def test_heads_are_made_again_with_another_base_model(example, base):
    learner = Learner(TENANTS, base)
    take_tenants(learner, example, 0, 800)
    other = fit(example.features, example.true_score, np.arange(200), Recipe(epochs=10, hidden=8)).ema.network()
    learner.begin(replace(TENANTS, base="other"), other)
    network = next(model.network() for model in learner.tenants.models(learner.trainer) if model.name == "a")
    assert network.dense_widths == (80, 8, 1)
    assert not np.array_equal(network.forward(example.features), other.forward(example.features))
    take_tenants(learner, example, 800, 900)


def test_the_features_of_tenants_pairs_are_put_in_order_with_all_others(example, base):
    names = tuple(f"f{number}" for number in range(80))
    learner = Learner(replace(TENANTS, features=names, order=names), base)
    take_tenants(learner, example, 0, 400)
    before = learner.tenants.rows("a")
    learner.begin(replace(TENANTS, features=names, order=names[::-1], base="other"), base)
    after = learner.tenants.rows("a")
    assert np.array_equal(after, np.column_stack([before[:, 79::-1], before[:, 80]]))
