"""Divergence: weights that have become useless go back, and what training looks like otherwise changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnx_builder import Dense, Network
from sidecar.learning.metrics import rmse
from sidecar.learning.online.divergence import WINDOW_GROUPS, Divergence, Errors
from sidecar.learning.online.trainer import FIRST_PAIRS, Trainer
from sidecar.learning.recipe import Recipe, fit
from sidecar.learning.training_settings import TrainingSettings

SETTINGS = TrainingSettings()


@pytest.fixture(scope="module")
def base(example):
    """A head that has seen the first 256 pairs."""
    return fit(example.features, example.true_score, np.arange(256), Recipe(epochs=100)).ema.network()


def without_scaling(network):
    """The same function without a scaling of the features in front."""
    subtract, multiply, _, first, *rest = network.steps
    weight = first.weight * multiply.value
    return Network(network.n_features, (Dense(weight, first.bias - weight @ subtract.value), *rest))


def stream(example, count, seed=0):
    """Pairs in order, then again and again in other orders."""
    generator = np.random.default_rng(seed)
    encodes = np.arange(len(example)).reshape(-1, 12)
    rows = np.concatenate([np.arange(len(example)), *(generator.permutation(encodes).ravel() for _ in range(count // 2000))])
    return example.features[rows[:count]], example.true_score[rows[:count]].astype(np.float32)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.999}, {"loss": "squared"}, {"optimizer": "adam"}])
@pytest.mark.parametrize("rate", [10, 100, 1000])
def test_a_rate_that_is_far_too_high_ends_in_a_model_that_is_alive(example, base, rate, settings):
    features, scores = stream(example, 4000)
    trainer = Trainer(80, replace(SETTINGS, learning_rate=rate * 1e-4, **settings), base)
    trainer.add(features, scores)
    assert trainer.divergence.count or rate == 10
    assert (trainer.divergence.share < 1) == (trainer.divergence.count > 0)
    assert rmse(trainer.ema.predict(features), scores) < 4
    right = trainer.configured(SETTINGS)
    assert right.divergence.share == 1
    right.add(*stream(example, 2000, seed=1))
    assert rmse(right.ema.predict(features), scores) < 1.5


@pytest.mark.parametrize(
    "settings",
    [{}, {"steps_per_batch": 16, "learning_rate": 2e-4}, {"replay_mix": 0.0}, {"batch_size": 1, "learning_rate": 1e-5}],
)
def test_nothing_diverges_at_usual_settings(example, base, settings):
    trainer = Trainer(80, replace(SETTINGS, **settings), base)
    trainer.add(*stream(example, 3000))
    assert (trainer.divergence.count, trainer.divergence.share) == (0, 1)


@pytest.mark.parametrize("has_scaling", [True, False])
def test_a_base_model_whose_first_pairs_are_broken_is_alive_soon(example, base, has_scaling):
    features, scores = stream(example, 2128)
    features = features.copy()
    features[:128] *= 1e4
    trainer = Trainer(80, SETTINGS, base if has_scaling else without_scaling(base))
    trainer.add(features, scores)
    assert rmse(trainer.ema.predict(features[128:]), scores[128:]) < 1.5
    if has_scaling:
        assert trainer.outliers.came == 128


@pytest.mark.usefixtures("quick_fits")
def test_a_fresh_head_with_one_broken_pair_among_its_first(example):
    features, scores = stream(example, 2000)
    broken = features.copy()
    broken[100] *= 1e4
    trainer = Trainer(80, SETTINGS)
    trainer.add(broken[:FIRST_PAIRS], scores[:FIRST_PAIRS])
    assert trainer.ema is None
    assert trainer.missing == 1
    trainer.add(broken[FIRST_PAIRS:], scores[FIRST_PAIRS:])
    assert (trainer.outliers.came, trainer.outliers.given_up) == (0, 1)
    whole = Trainer(80, SETTINGS)
    whole.add(np.delete(features, 100, axis=0), np.delete(scores, 100))
    assert np.array_equal(trainer.ema.parameters, whole.ema.parameters)


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_outliers_train_nothing_however_the_pairs_come(example, base, block):
    features, scores = stream(example, 1000)
    broken, places = np.insert(features, [5, 300, 301, 302, 900], 3e38, axis=0), [5, 301, 303, 305, 904]
    assert (broken[places] == np.float32(3e38)).all()
    with_them, without = Trainer(80, SETTINGS, base), Trainer(80, SETTINGS, base)
    values = np.insert(scores, [5, 300, 301, 302, 900], 1)
    for start in range(0, len(broken), block):
        with_them.add(broken[start : start + block], values[start : start + block])
    without.add(features, scores)
    assert with_them.outliers.came == 5
    assert np.array_equal(with_them.ema.parameters, without.ema.parameters)
    assert np.array_equal(with_them.replay.rows(), without.replay.rows())


def test_it_continues_from_its_state(example, base):
    features, scores = stream(example, 3000)
    features = features.copy()
    features[::50] *= 30
    settings = replace(SETTINGS, learning_rate=1e-2)
    whole = Trainer(80, settings, base)
    whole.add(features, scores)
    parts = Trainer(80, settings, base)
    for start in range(0, 3000, 250):
        parts.add(features[start : start + 250], scores[start : start + 250])
        parts = Trainer.from_state(80, settings, parts.state())
    assert whole.divergence.count
    assert whole.outliers.came
    state, again = whole.state(), parts.state()
    assert state.keys() == again.keys()
    assert all(np.array_equal(value, again[name]) for name, value in state.items())


def test_it_judges_by_the_average_the_kept_weights_and_a_constant():
    def diverged(*errors):
        return Divergence().judge(Errors(*errors), 1.0)

    assert not diverged(0.9, 0.1, 0.1, 20)  # negligible
    assert not diverged(3, 2, 5, 20)
    assert diverged(5, 2, 9, 20)
    assert diverged(5, 9, 2, 20)
    assert diverged(19, 12, 12, 20)  # no better than a constant, which the average is
    assert not diverged(30, 29, 28, 20)  # nothing is any better: the pairs are odd
    assert diverged(np.inf, 2, 2, 20)


def test_the_rate_comes_back_after_quiet_windows_and_more_slowly_each_time():
    divergence, waits = Divergence(), []
    for _ in range(3):
        divergence.judge(Errors(20, 1, 1, 20), 1.0)
        low, windows = divergence.share, 0
        while divergence.share == low:
            divergence.stay_quiet()
            windows += 1
        waits.append(windows)
        assert divergence.share == 2 * low
    assert waits == [16, 32, 64]


def test_a_window_looks_wrong_only_where_errors_are_large():
    def looks_wrong(live, average, variance=100.0):
        divergence = Divergence()
        for group in range(WINDOW_GROUPS):
            assert divergence.note(live, average) == (group == WINDOW_GROUPS - 1)
        return divergence.looks_wrong(variance)

    assert not looks_wrong(1, 1)
    assert looks_wrong(5, 1)
    assert looks_wrong(30, 20)
    assert looks_wrong(1, 30)
    assert looks_wrong(np.nan, 1)
