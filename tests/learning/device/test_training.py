"""A whole trainer whose steps run on a device, against the same in numpy: all that uses weights uses those."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sidecar.learning.metrics import rmse
from sidecar.learning.online.trainer import RATE_UNIT, Trainer
from sidecar.learning.online.weights import Weights
from sidecar.learning.recipe import Recipe, fit
from sidecar.learning.tenants.tenants import Tenants
from sidecar.learning.training_settings import TrainingSettings
from tests.devices import devices

SETTINGS = {
    "sgd": TrainingSettings(),
    # At the default rate, which is that of SGD, one ulp in the weights moves Adam's result in numpy by 0.1 points and more.
    "adam": TrainingSettings(optimizer="adam", learning_rate=1e-5),
}
pytestmark = pytest.mark.usefixtures("quick_fits")


@pytest.fixture(scope="module")
def base(example):
    """A head that has seen a third of the pairs."""
    return fit(example.features, example.true_score, np.arange(0, 2400, 3), Recipe(epochs=40)).ema.network()


def trained(trainer, example, start, stop):
    trainer.add(example.features[start:stop], example.true_score[start:stop])
    return trainer


def assert_close(ours, theirs, example):
    """Two trainers have done the same, and their states agree to 1e-4 in all weights, relative to the whole vector."""
    one, other = ours.state(), theirs.state()
    assert one.keys() == other.keys()
    assert np.array_equal(one["counts"], other["counts"])
    assert (ours.refits, ours.divergence.count) == (theirs.refits, theirs.divergence.count)
    for name in {"average", "parameters", "kept", "velocity", "mean", "square"} & one.keys():
        assert np.linalg.norm(one[name] - other[name]) <= 1e-4 * np.linalg.norm(other[name]), name
    features = example.features.astype(np.float32)
    for head in (ours.live, ours.ema, ours.weights.kept):
        np.testing.assert_allclose(head.predict(features), head.network().forward(features), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(*(each.ema.predict(features) for each in (ours, theirs)), rtol=1e-4, atol=0.01)


@devices
@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("loss", ["huber", "squared"])
@pytest.mark.parametrize("optimizer", SETTINGS)
def test_it_ends_where_it_does_in_numpy(example, base, open_device, optimizer, loss, with_base):
    settings = replace(SETTINGS[optimizer], loss=loss)
    ours, theirs = (Trainer(80, settings, base if with_base else None, device) for device in (open_device(1), None))
    for each in (ours, theirs):
        trained(each, example, 0, 1000)
    assert ours.refits["rejected" if with_base else "adopted"]
    assert_close(ours, theirs, example)


@devices
@pytest.mark.parametrize("optimizer", SETTINGS)
def test_a_state_goes_to_the_device_and_back(example, base, open_device, optimizer):
    settings = SETTINGS[optimizer]
    theirs = trained(Trainer(80, settings, base), example, 0, 600)
    ours = Trainer(80, settings, base)
    for start, device in ((0, None), (200, open_device(1)), (400, None)):
        ours = trained(Trainer.from_state(80, settings, ours.state(), device) if start else ours, example, start, start + 200)
    assert_close(ours, theirs, example)


@devices
@pytest.mark.parametrize("change", [{"batch_size": 20}, {"optimizer": "adam"}, {"loss": "squared"}, {"learning_rate": 5e-5}])
def test_with_other_settings_it_goes_on_there(example, base, open_device, change):
    ours, theirs = (trained(Trainer(80, SETTINGS["sgd"], base, device), example, 0, 200) for device in (open_device(1), None))
    settings = replace(SETTINGS["sgd"], **{"learning_rate": 1e-5, **change})
    assert_close(*(trained(each.configured(settings), example, 200, 400) for each in (ours, theirs)), example)


def some_steps(weights, example, start, rate):
    """Eight steps on pairs from a place on, all with limits of errors."""
    head = weights.live
    head.bound_errors(0.5)
    for place in range(start, start + 256, 32):
        rows = slice(place, place + 32)
        head.loss_and_gradient(head.rows(example.features[rows], example.true_score[rows]))
        assert weights.step(rate)


@devices
@pytest.mark.parametrize("back_to", ["ema", "kept", None])
@pytest.mark.parametrize("optimizer", SETTINGS)
def test_weights_go_back(example, base, open_device, optimizer, back_to):
    """To their average, to those that were kept, or to what they were before a group."""
    states, rate = [], RATE_UNIT * SETTINGS[optimizer].learning_rate
    for device in (open_device(1), None):
        weights = Weights(SETTINGS[optimizer], base, base, device=device).in_units_of(example.features[:256])
        some_steps(weights, example, 0, rate)
        weights.keep()
        some_steps(weights, example, 256, rate)
        undo, before = weights.undo(), weights.state()
        some_steps(weights, example, 512, rate)
        assert weights.is_finite()
        if back_to is None:
            undo()
            assert all(np.array_equal(values, before[name]) for name, values in weights.state().items())
        else:
            weights.go_back(getattr(weights, back_to))
        some_steps(weights, example, 768, rate)
        states.append(weights.state())
    for name in ("parameters", "average", "kept"):
        ours, theirs = (state[name] for state in states)
        assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs), name


@devices
def test_steps_that_would_make_a_weight_infinite_are_left_out_and_counted(example, base, open_device):
    trainer = Trainer(80, replace(SETTINGS["sgd"], weight_decay=1e30), base, open_device(1))
    before = trainer.network(trainer.ema).forward(example.features)
    trained(trainer, example, 0, 200)
    assert trainer.skipped_steps == trainer.step == 48
    np.testing.assert_allclose(trainer.network(trainer.ema).forward(example.features), before, atol=1e-3)


@devices
def test_weights_that_diverge_go_back(example, base, open_device):
    trainer = trained(Trainer(80, replace(SETTINGS["sgd"], learning_rate=1e-2), base, open_device(1)), example, 0, 2400)
    assert trainer.divergence.count
    assert rmse(trainer.ema.predict(example.features), example.true_score) < 1.5


@devices
def test_a_fit_that_is_better_takes_the_place_of_weights_there(example, base, open_device):
    """Pairs that never train, and a model that knows nothing of their scores: its first fit is taken."""
    ours, theirs = (Trainer(80, SETTINGS["sgd"], base, device) for device in (open_device(1), None))
    scores = 100 - example.true_score[:1000]
    judged = np.column_stack([example.features[1000:1200], 100 - example.true_score[1000:1200]])
    for each in (ours, theirs):
        each.add(example.features[:1000], scores, evidence=lambda: judged)
    assert ours.refits["adopted"]
    assert_close(ours, theirs, example)


@devices
@pytest.mark.parametrize("with_base", [True, False])
def test_tenants_have_the_heads_that_they_have_in_numpy(example, base, open_device, with_base):
    settings = replace(SETTINGS["sgd"], tenants=("*",), tenant_rank=2)
    names = ["ab"[place // 12 % 2] for place in range(1000)]
    scores = np.clip(example.true_score[:1000] + np.where(np.equal(names, "a"), 3, -3), 0, 100)
    models = []
    for device in (open_device(1), None):
        trainer = Trainer(80, settings, base if with_base else None, device)
        tenants = Tenants(80, settings)
        for stop in (500, 1000):
            rows = slice(stop - 500, stop)
            tenants.add(trainer, example.features[rows], scores[rows], names[rows])
            if stop == 500:  # from a state, as after a start
                state = {**tenants.state(trainer), **trainer.state()}
                trainer, tenants = Trainer.from_state(80, settings, state, device), Tenants(80, settings)
                tenants.load(state, trainer)
        models.append(tenants.models(trainer))
    for ours, theirs in zip(*models, strict=True):
        assert (ours.name, ours.compared.used) == (theirs.name, theirs.compared.used)
        assert theirs.compared.used or not with_base
        scores_of = [each.network().forward(example.features) for each in (ours, theirs)]
        np.testing.assert_allclose(*scores_of, rtol=1e-4, atol=0.01)
