"""Fits of an online model: when they begin, what they start from, and when their result is taken."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sidecar.learning import recipe as offline
from sidecar.learning.head import Head
from sidecar.learning.online import fits
from sidecar.learning.online.fits import FIRST_PAIRS, JUDGED_PAIRS, LATER_SHARE, NEWEST_JUDGED, Fit, next_fit
from sidecar.learning.online.trainer import Trainer
from sidecar.learning.recipe import Recipe, TrainingError, fit
from sidecar.learning.training_settings import TrainingSettings

SETTINGS = TrainingSettings()


@pytest.fixture(autouse=True)
def short_fits(monkeypatch):
    monkeypatch.setattr(offline, "TRAINED_PAIRS", offline.TRAINED_PAIRS // 10)


@pytest.fixture(scope="module")
def base(example):
    """Some points off."""
    return fit(example.features, 0.8 * example.true_score + 5, np.arange(256), Recipe(epochs=40)).ema.network()


@pytest.fixture(scope="module")
def pairs(example):
    return np.column_stack([example.features, example.true_score]).astype(np.float32)[256:768]


def mean_error(network, pairs):
    return np.abs(Head(network).predict(pairs[:, :-1]) - pairs[:, -1]).mean()


def test_fits_begin_after_256_pairs_and_each_time_after_a_square_root_of_two_as_many():
    found, at = [], 0
    while at < 10**6:
        found.append(at := next_fit(at))
    assert found == [math.ceil(FIRST_PAIRS * 2 ** (power / 2)) for power in range(len(found))]
    assert all(next_fit(at - 1) == at for at in found)


def test_a_later_fit_is_the_offline_recipe_from_the_average(base, pairs):
    epochs = math.ceil(offline.TRAINED_PAIRS / LATER_SHARE / len(pairs))
    expected = fit(pairs[:, :-1], pairs[:, -1], np.arange(len(pairs)), Recipe(epochs=epochs), base=base).ema.network()
    found = Fit(SETTINGS, pairs, base).result().network
    assert np.array_equal(Head(found).predict(pairs[:, :-1]), Head(expected).predict(pairs[:, :-1]))
    assert mean_error(found, pairs) < 0.8 * mean_error(base, pairs)


def test_it_is_taken_if_it_is_better_on_pairs_that_never_train_or_these_are_few(base, pairs):
    better = pairs[:: len(pairs) // JUDGED_PAIRS]
    worse = np.column_stack([better[:, :-1], Head(base).predict(better[:, :-1])])
    assert Fit(SETTINGS, pairs, base, judged=better).result() is not None
    assert Fit(SETTINGS, pairs, base, judged=worse).result() is None
    assert Fit(SETTINGS, pairs, base, judged=worse[: JUDGED_PAIRS - 1]).result() is not None
    newest = np.concatenate([better] * 4)[:NEWEST_JUDGED]
    assert Fit(SETTINGS, pairs, base, judged=np.concatenate([worse, newest])).result() is not None


def test_pairs_whose_scores_are_likely_wrong_do_not_count(base, pairs):
    wrong = pairs.copy()
    wrong[::12, -1] = 100 - wrong[::12, -1]
    settings = TrainingSettings(loss="mse")
    with_all, without = (Fit(settings, wrong, base, trusted).result().network for trusted in (math.inf, 20.0))
    assert mean_error(without, pairs) < 0.5 * mean_error(with_all, pairs)
    assert Fit(SETTINGS, wrong, base, trusted=0.0).result() is None


def test_wrong_scores_among_the_first_pairs_are_not_learned(example):
    first = np.column_stack([example.features, example.true_score]).astype(np.float32)[:FIRST_PAIRS]
    wrong = first.copy()
    wrong[::20, -1] = 100 - wrong[::20, -1]
    found, best = (Fit(SETTINGS, pairs).result().network for pairs in (wrong, first))
    others = np.column_stack([example.features, example.true_score])[FIRST_PAIRS:]
    assert mean_error(found, others) < 1.25 * mean_error(best, others)


def test_of_fits_that_diverge_only_a_new_models_is_an_error(base, pairs, monkeypatch):
    def diverges(*arguments, **options):
        raise TrainingError("training diverged at step 1")

    monkeypatch.setattr(fits, "fit", diverges)
    assert Fit(SETTINGS, pairs, base).result() is None
    with pytest.raises(TrainingError):
        Fit(SETTINGS, pairs).result()


@pytest.mark.parametrize("good", [True, False])
def test_a_good_base_model_is_given_up_only_for_what_is_clearly_better(base, pairs, good):
    features, scores = pairs[:, :-1], pairs[:, -1]
    network = fit(features, scores, np.arange(len(pairs)), Recipe(epochs=200)).ema.network() if good else base
    trainer = Trainer(80, SETTINGS, network)
    trainer.add(features[:256], scores[:256])
    assert trainer.refits == ({"adopted": 0, "rejected": 1} if good else {"adopted": 1, "rejected": 0})


def test_there_is_no_fit_where_scores_contradict_each_other(base, pairs):
    some = pairs.copy()
    some[: len(pairs) // 8, -1] = 100 - some[: len(pairs) // 8, -1]
    network = fit(pairs[:, :-1], pairs[:, -1], np.arange(len(pairs)), Recipe(epochs=100)).ema.network()
    assert Fit(SETTINGS, pairs, network, trusted=5.0).result() is not None
    assert Fit(SETTINGS, some, network, trusted=5.0).result() is None


def test_a_trainer_counts_its_later_fits_and_continues_with_what_they_give(base, pairs):
    trainer = Trainer(80, SETTINGS, base)
    features, scores = pairs[:, :-1], pairs[:, -1]
    trainer.add(features[:240], scores[:240])
    assert trainer.refits == {"adopted": 0, "rejected": 0}
    assert trainer.until_fit == 16
    trainer.add(features[240:256], scores[240:256])
    assert trainer.refits == {"adopted": 1, "rejected": 0}
    assert np.array_equal(trainer.live.parameters, trainer.ema.parameters)
    assert trainer.until_fit == 368 - 256  # 363, and the group is complete
    before = trainer.ema.predict(features)
    trainer.add(features[256:368], scores[256:368], evidence=lambda: np.column_stack([features, before]))
    assert trainer.refits == {"adopted": 1, "rejected": 1}
    assert Trainer.from_state(80, SETTINGS, trainer.state()).refits == trainer.refits
