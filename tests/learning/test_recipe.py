"""The offline recipe: good on sources it has not seen, repeatable, and sound where pairs are odd."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sidecar.learning.metrics import plcc, rmse
from sidecar.learning.recipe import Recipe, TrainingError, fit, schedule

QUICK = Recipe(epochs=20)


def test_a_source_that_was_left_out_is_predicted_well(example):
    source = example.group_names.index("tree")
    inside = example.group == source
    head = fit(example.features, example.true_score, np.flatnonzero(~inside), Recipe(epochs=100)).ema
    predicted, true = head.predict(example.features[inside]), example.true_score[inside]
    assert plcc(predicted, true) > 0.998
    assert rmse(predicted, true) < 1.0


def test_few_pairs_already_give_a_usable_head(example):
    few = np.arange(256)
    fitted = fit(example.features, example.true_score, few, Recipe())
    rest = example.features[256:]
    assert rmse(fitted.ema.predict(rest), example.true_score[256:]) < 1.5
    assert fitted.steps == 3000 * 8


def test_equal_runs_give_equal_weights_and_another_seed_others(example):
    rows = np.arange(0, 2000, 2)
    first, again, other = (
        fit(example.features, example.true_score, rows, dataclasses.replace(QUICK, seed=seed)) for seed in (5, 5, 6)
    )
    assert np.array_equal(first.live.parameters, again.live.parameters)
    assert np.array_equal(first.ema.parameters, again.ema.parameters)
    assert not np.allclose(first.ema.parameters, other.ema.parameters)


def test_pairs_outside_the_chosen_rows_have_no_say(example):
    rows = np.arange(100, 400)
    features, scores = example.features.copy(), example.true_score.copy()
    features[:100], scores[400:] = 1e9, 0
    mixed = fit(features, scores, rows, QUICK)
    assert np.array_equal(mixed.ema.parameters, fit(example.features, example.true_score, rows, QUICK).ema.parameters)


def test_a_feature_that_never_varied_has_no_say(example):
    features = example.features.copy()
    features[:, 7] = 3.0
    head = fit(features, example.true_score, np.arange(1000), QUICK).ema
    moved = features[:50].copy()
    moved[:, 7] = 1000.0
    assert np.array_equal(head.predict(moved), head.predict(features[:50]))


def test_features_of_pure_noise_lose_their_weights(example):
    noise = np.random.default_rng(0).normal(size=(1500, 20)).astype(np.float32)
    features = np.column_stack([example.features[:1500], noise])
    noise_to_others = {}
    for strength in (0.0, 1e-3):
        head = fit(features, example.true_score, np.arange(1500), Recipe(epochs=60, group_lasso=strength)).ema
        weights = np.linalg.norm(head.feature_weights, axis=0)
        noise_to_others[strength] = weights[80:].mean() / weights[:80].mean()
    assert noise_to_others[0.0] > 0.5
    assert noise_to_others[1e-3] < 0.1


def test_ema_and_live_weights_differ_while_training_moves(example):
    fitted = fit(example.features, example.true_score, np.arange(500), Recipe(epochs=1))
    assert not np.allclose(fitted.live.parameters, fitted.ema.parameters)


def test_progress_counts_every_pair_once_an_epoch(example):
    told = []
    fit(example.features, example.true_score, np.arange(2100), Recipe(epochs=3), lambda pairs, loss: told.append((pairs, loss)))
    assert sum(pairs for pairs, _ in told) == 3 * 2100
    assert told[-1][1] < told[0][1]


def test_default_epochs_bound_the_work():
    assert [schedule(Recipe(), n).epochs for n in (1, 256, 5000, 70_000, 1_000_000)] == [3000, 3000, 615, 44, 10]


@pytest.mark.parametrize("with_base", [False, True])
def test_wrong_scores_do_little_harm_with_hubers_loss(example, with_base):
    unseen = example.group == example.group[0]
    rows = np.flatnonzero(~unseen)
    scores, generator = example.true_score.copy(), np.random.default_rng(0)
    wrong = rows[generator.random(len(rows)) < 0.05]
    scores[wrong] = generator.uniform(0, 100, len(wrong))
    base = fit(example.features, example.true_score, rows, Recipe(epochs=5)).ema.network() if with_base else None
    errors = {}
    for loss in ("huber", "squared"):
        head = fit(example.features, scores, rows, Recipe(epochs=40, loss=loss), base=base).ema
        errors[loss] = rmse(head.predict(example.features[unseen]), example.true_score[unseen])
    assert errors["huber"] < 0.5 * errors["squared"]


def test_a_learning_rate_that_diverges_is_told(example):
    with pytest.raises(TrainingError, match=r"diverged at step \d+ of 20 with learning rate 1e\+30"):
        fit(example.features, example.true_score, np.arange(100), Recipe(epochs=5, learning_rate=1e30))
