"""The online trainer: what a group trains on, how a fresh head and a base model begin, that only the pairs count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnx_builder import Activation, Dense, Elementwise, Network
from sidecar.learning.metrics import rmse
from sidecar.learning.online.fits import FIRST_PAIRS, FIRST_RATE
from sidecar.learning.online.trainer import Trainer
from sidecar.learning.recipe import Recipe, fit
from sidecar.learning.training_settings import TrainingSettings

SETTINGS = TrainingSettings()


@pytest.fixture(scope="module")
def base(example):
    """A head that has seen the first 256 pairs."""
    return fit(example.features, example.true_score, np.arange(256), Recipe(epochs=40)).ema.network()


def trained(example, settings, base=None, count=600, start=256):
    trainer = Trainer(80, settings, base)
    losses = [None] * count
    for group in trainer.add(example.features[start : start + count], example.true_score[start : start + count]):
        losses[group.place] = group.loss
    return trainer, losses


def test_a_group_is_complete_after_its_new_pairs_and_runs_all_its_steps(example, base):
    trainer, losses = trained(example, SETTINGS, base, count=48)
    assert [place for place, loss in enumerate(losses) if loss is not None] == [15, 31, 47]
    assert trainer.step == 3 * 4
    assert len(trainer.replay) == 48


@pytest.mark.parametrize(
    ("mix", "batch", "new"), [(0.5, 32, 16), (0.0, 32, 32), (0.9, 32, 3), (0.5, 3, 1), (0.99, 8, 1), (0.25, 10, 7)]
)
def test_new_pairs_of_a_group(mix, batch, new):
    assert TrainingSettings(batch_size=batch, replay_mix=mix).new_pairs == new


def test_without_replay_there_is_one_step_a_group(example, base):
    trainer, _ = trained(example, replace(SETTINGS, replay_mix=0.0), base, count=64)
    assert trainer.step == 2


def test_the_first_loss_is_the_mean_squared_error_of_the_base(example, base):
    _, losses = trained(example, SETTINGS, base, count=16)
    error = base.forward(example.features[256:272]) - example.true_score[256:272]
    assert losses[15] == pytest.approx(np.mean(error**2), rel=1e-3)


@pytest.mark.usefixtures("quick_fits")
def test_a_fresh_head_is_fitted_to_its_first_pairs_and_steps_start_there(example):
    trainer, losses = trained(example, SETTINGS, count=FIRST_PAIRS + 16)
    assert losses[:-1] == [None] * (FIRST_PAIRS + 15)
    assert trainer.step == 4
    assert len(trainer.replay) == FIRST_PAIRS + 16
    recipe, first = Recipe(learning_rate=FIRST_RATE), np.arange(256, 256 + FIRST_PAIRS)
    expected = fit(example.features, example.true_score, first, recipe).ema.network()
    error = expected.forward(example.features[512:528]) - example.true_score[512:528]
    assert losses[-1] < 4 * np.mean(error**2) + 1
    fitted, _ = trained(example, SETTINGS, count=FIRST_PAIRS)
    assert np.allclose(fitted.network(fitted.ema).forward(example.features), expected.forward(example.features), atol=0.01)
    assert fitted.step == 0


def test_no_head_before_a_fresh_one_is_fitted(example):
    trainer, _ = trained(example, SETTINGS, count=FIRST_PAIRS - 1)
    assert trainer.live is None
    assert trainer.ema is None


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_learning_follows_the_stream(example, base, with_base, optimizer):
    trainer, _ = trained(example, replace(SETTINGS, optimizer=optimizer), base if with_base else None, count=1800)
    rest, true = example.features[2100:], example.true_score[2100:]
    before = rmse(base.forward(rest), true)
    assert rmse(trainer.network(trainer.ema).forward(rest), true) < 0.8 * before


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.usefixtures("quick_fits")
def test_equal_pairs_give_equal_weights_and_another_seed_others(example, base, with_base):
    first, again, other = (
        trained(example, replace(SETTINGS, seed=seed), base if with_base else None, count=400)[0] for seed in (1, 1, 2)
    )
    assert np.array_equal(first.ema.parameters, again.ema.parameters)
    assert np.array_equal(first.live.parameters, again.live.parameters)
    assert not np.array_equal(first.live.parameters, other.live.parameters)


@pytest.mark.parametrize("policy", ["ring", "balanced"])
def test_a_full_replay_buffer_is_drawn_from_in_the_same_order_after_a_restart(example, base, policy):
    settings = replace(SETTINGS, replay_policy=policy, replay_capacity=300)
    trainer, _ = trained(example, settings, base, count=1000)
    again = Trainer.from_state(80, settings, trainer.state())
    for each in (trainer, again):
        each.add(example.features[:64], example.true_score[:64])
    assert np.array_equal(trainer.live.parameters, again.live.parameters)
    assert {name: values.tobytes() for name, values in trainer.state().items()} == {
        name: values.tobytes() for name, values in again.state().items()
    }


def test_measuring_the_units_again_changes_no_prediction(example, base):
    trainer, _ = trained(example, replace(SETTINGS, learning_rate=1e-30, weight_decay=0.0), base, count=240)
    predicted = trainer.network(trainer.ema).forward(example.features)
    assert np.allclose(predicted, base.forward(example.features), atol=2e-3)
    assert trainer.replay.added == 240


def test_a_raw_base_of_another_scale_learns_at_the_default_rate(example):
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(16, 80)) / 30).astype(np.float32)
    raw = Network(
        80,
        (
            Dense(weight, np.zeros(16, np.float32)),
            Activation("relu"),
            Dense(np.ones((1, 16), np.float32), np.zeros(1, np.float32)),
        ),
    )
    _, losses = trained(example, SETTINGS, raw, count=1600)
    seen = [loss for loss in losses if loss is not None]
    assert np.mean(seen[-10:]) < np.mean(seen[:10]) / 20


def test_a_step_whose_gradient_is_not_finite_is_left_out_and_counted(example, base):
    trainer, _ = trained(example, SETTINGS, base, count=64)
    before = trainer.live.parameters.copy()
    trainer._rows[:] = np.nan
    trainer.add(example.features[:16], example.true_score[:16])
    assert trainer.skipped_steps == 4
    assert np.array_equal(trainer.live.parameters, before)


@pytest.mark.parametrize(("optimizer", "weight_decay"), [("sgd", 1e30), ("sgd", 0), ("adam", 0)])
def test_steps_that_would_make_a_weight_infinite_are_left_out_and_counted(example, base, optimizer, weight_decay):
    settings = replace(SETTINGS, optimizer=optimizer, weight_decay=weight_decay, learning_rate=1e35)
    trainer, _ = trained(example, settings, base, count=64)
    assert np.isfinite(trainer.live.parameters).all()
    assert np.isfinite(trainer.ema.parameters).all()
    assert trainer.skipped_steps == trainer.step == 16


@pytest.mark.usefixtures("quick_fits")
def test_a_base_far_off_is_not_warmed_up_and_a_good_one_is(example, base):
    far = replace(base, steps=(*base.steps[:-1], Elementwise("Sub", np.asarray(50, dtype=np.float32))))
    shares = {}
    for name, each in {"good": base, "far": far, "fresh": None}.items():
        trainer, _ = trained(example, SETTINGS, each, count=320)
        shares[name] = trainer.warmup_start
        assert Trainer.from_state(80, SETTINGS, trainer.state()).warmup_start == trainer.warmup_start
    error = base.forward(example.features[256:272]) - example.true_score[256:272]
    assert shares["good"] == pytest.approx(np.sqrt(np.mean(error**2)) / 10, rel=1e-3)
    assert shares["far"] == 1
    assert shares["fresh"] == 0


def test_new_pairs_are_predicted_before_they_train(example, base):
    trainer, _ = trained(example, SETTINGS, base, count=16)
    rows = trainer.prequential.rows()
    assert np.allclose(rows[:, 0], base.forward(example.features[256:272]), atol=1e-2)
    assert np.array_equal(rows[:, 1], example.true_score[256:272])
    trainer, _ = trained(example, SETTINGS, base, count=1200)
    assert len(trainer.prequential) == 1000


def test_wrong_scores_do_little_harm_with_hubers_loss(example, base):
    count = 1500
    features, scores = example.features[256:][:count], example.true_score[256:][:count]
    wrong, generator = scores.copy(), np.random.default_rng(0)
    wrong[400:900] = generator.permutation(scores[400:900])
    errors = {}
    for loss in ("huber", "squared"):
        trainer = Trainer(80, replace(SETTINGS, loss=loss), base)
        trainer.add(features, wrong)
        errors[loss] = rmse(trainer.ema.predict(features), scores)
    assert errors["huber"] < 0.5 * errors["squared"]


def test_live_and_averaged_weights_differ(example, base):
    trainer, _ = trained(example, SETTINGS, base, count=160)
    assert not np.allclose(trainer.live.parameters, trainer.ema.parameters)


def after_a_change_of_scores(example, settings, change):
    """A trainer that has seen 1,500 pairs as they were measured, and then 600 with scores that `change` gives."""
    knows = fit(example.features, example.true_score, np.arange(1500), Recipe(epochs=60)).ema.network()
    trainer = Trainer(80, settings, knows)
    trainer.add(example.features[:1504], example.true_score[:1504])
    trainer.add(example.features[1504:2104], change(example.true_score[1504:2104]).astype(np.float32))
    return trainer


@pytest.mark.parametrize("policy", ["balanced", "ring"])
def test_earlier_pairs_are_given_up_when_scores_shift(example, policy):
    settings = replace(SETTINGS, replay_policy=policy)
    trainer = after_a_change_of_scores(example, settings, lambda scores: np.maximum(scores - 6, 0))
    assert trainer.shifts == (policy == "balanced")
    if policy == "balanced":
        kept = trainer.replay.rows()
        assert 500 < len(kept) < 650
        assert np.isin(kept[-500:, -1], np.maximum(example.true_score[1504:2104] - 6, 0)).all()
    else:
        assert len(trainer.replay) == trainer.trained


def test_wrong_scores_are_no_shift(example):
    trainer = after_a_change_of_scores(example, SETTINGS, np.random.default_rng(0).permutation)
    assert trainer.shifts == 0
    assert len(trainer.replay) == trainer.trained
