"""Trainings side by side, against each alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sidecar.learning.device.fitting import Job, fit_stacked
from sidecar.learning.recipe import Recipe, TrainingError, fit
from tests.devices import devices
from tests.learning.test_head import some_pairs

RECIPE = Recipe(epochs=12, hidden=9, warmup_steps=20)


@pytest.fixture
def pairs():
    features, scores = some_pairs(7, 210)
    return features.astype(np.float32), (scores / 2 + 20 * np.tanh(features[:, 0])).astype(np.float32)


@devices
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_each_comes_out_as_it_would_alone(pairs, open_device, optimizer, activation):
    recipe = replace(RECIPE, optimizer=optimizer, activation=activation)
    rows = [np.arange(210), np.arange(0, 210, 2), np.arange(30, 50)]  # the last is fewer than a batch
    jobs = [Job(part, replace(recipe, seed=seed)) for seed, part in enumerate(rows)]
    told = []
    found = fit_stacked(*pairs, jobs, open_device(3), lambda count, loss: told.append(count))
    for job, ours in zip(jobs, found, strict=True):
        alone = fit(*pairs, job.rows, job.recipe)
        assert ours.steps == alone.steps
        for mine, other in ((ours.live, alone.live), (ours.ema, alone.ema)):
            np.testing.assert_allclose(mine.predict(pairs[0]), other.predict(pairs[0]), rtol=0, atol=2e-3)
    assert sum(told) == recipe.epochs * sum(map(len, rows))


@devices
def test_a_base_model_is_fine_tuned_in_units_of_each_part(pairs, open_device):
    base = fit(*pairs, np.arange(100), replace(RECIPE, epochs=2)).ema.network()
    jobs = [Job(np.arange(150), RECIPE), Job(np.arange(60, 210), RECIPE)]
    for job, ours in zip(jobs, fit_stacked(*pairs, jobs, open_device(2), base=base), strict=True):
        alone = fit(*pairs, job.rows, job.recipe, base=base)
        np.testing.assert_allclose(ours.ema.predict(pairs[0]), alone.ema.predict(pairs[0]), rtol=0, atol=2e-3)


@devices
def test_it_can_be_watched(pairs, open_device):
    seen = []

    def observe(step, live, ema):
        seen.append((step, live.predict(pairs[0])))

    fit_stacked(*pairs, [Job(np.arange(210), RECIPE)], open_device(1), observe=observe)
    assert [step for step, _ in seen] == [0, 84]
    assert not np.allclose(seen[0][1], seen[1][1])


@devices
def test_a_training_that_diverges_says_so(pairs, open_device):
    jobs = [Job(np.arange(210), RECIPE), Job(np.arange(210), replace(RECIPE, learning_rate=1e30))]
    with pytest.raises(TrainingError, match=r"diverged within steps 1 to 84 of 84 with learning rate 1e\+30"):
        fit_stacked(*pairs, jobs, open_device(2))
