"""Feature drift: no drift where features are as ever, a large one where their order is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_builder import Activation, Clip, Dense, Elementwise, Network
from sidecar.learning.drift.moving_mean import HORIZON_PAIRS, FeatureDrift
from sidecar.learning.online.trainer import Trainer
from sidecar.learning.training_settings import TrainingSettings


def fed(drift, features):
    for start in range(0, len(features), 16):
        drift.add(features[start : start + 16])
    return drift.largest[0]


def test_it_is_the_exponential_moving_mean_of_standardised_features():
    rng = np.random.default_rng(0)
    features = rng.normal(3, 2, size=(64, 5)).astype(np.float32)
    drift = FeatureDrift(np.full(5, 1.0), np.full(5, 4.0))
    expected = np.zeros(5)
    for start in range(0, 64, 16):
        expected += (1 - (1 - 1 / HORIZON_PAIRS) ** 16) * (((features[start : start + 16] - 1) / 4).mean(axis=0) - expected)
        drift.add(features[start : start + 16])
    assert np.allclose(drift.moving, expected)
    assert drift.largest == (pytest.approx(np.abs(expected).max()), np.abs(expected).argmax())


def test_real_features_in_order_drift_little_and_in_a_wrong_order_far(example):
    order = np.random.default_rng(1).permutation(80)
    drift = FeatureDrift.of_pairs(example.features[:256])
    assert fed(drift, example.features[256:]) < 2
    assert fed(FeatureDrift.of_pairs(example.features[:256]), example.features[256:][:, order]) > 5


def test_one_wild_pair_moves_it_by_no_more_than_ten_deviations():
    drift = FeatureDrift(np.zeros(3), np.ones(3))
    with np.errstate(over="ignore"):
        drift.add(np.array([[3e38, -3e38, 0]], dtype=np.float32))
    assert drift.largest[0] == pytest.approx(10 / HORIZON_PAIRS)


def test_a_networks_own_scaling_is_what_features_should_be_like():
    dense = Dense(np.ones((1, 2), np.float32), np.zeros(1, np.float32))
    mean, deviation = np.array([5, -1], dtype=np.float32), np.array([2, 4], dtype=np.float32)
    scaled = Network(2, (Elementwise("Sub", mean), Elementwise("Div", deviation), Clip(-10, 10), dense))
    drift = FeatureDrift.of_network(scaled)
    assert drift.mean.tolist() == [5, -1]
    assert drift.deviation.tolist() == [2, 4]
    other = FeatureDrift.of_network(
        Network(2, (Elementwise("Mul", 1 / deviation), Elementwise("Add", -mean / deviation), dense))
    )
    assert np.allclose(other.mean, [5, -1])
    assert np.allclose(other.deviation, [2, 4])
    assert FeatureDrift.of_network(Network(2, (dense,))) is None
    assert FeatureDrift.of_network(Network(2, (Activation("tanh"), dense))) is None


@pytest.mark.parametrize("scaled", [True, False])
def test_a_trainer_measures_drift_from_its_base_or_from_its_first_pairs(example, base, scaled):
    steps = base.steps if scaled else tuple(step for step in base.steps if not isinstance(step, Elementwise | Clip))
    trainer = Trainer(80, TrainingSettings(), Network(80, steps))
    trainer.add(example.features[:1000], example.true_score[:1000])
    own = FeatureDrift.of_network(base) if scaled else FeatureDrift.of_pairs(example.features[:256])
    assert np.allclose(trainer.drift.mean, own.mean, rtol=1e-4, atol=1e-4)
    assert 0 < trainer.drift.largest[0] < 2
    before = trainer.drift.moving.copy()
    again = Trainer.from_state(80, TrainingSettings(), trainer.state())
    assert np.array_equal(again.drift.moving, before)


@pytest.mark.usefixtures("quick_fits")
def test_a_fresh_heads_drift_is_from_the_pairs_that_it_was_fitted_to(example):
    trainer = Trainer(80, TrainingSettings())
    trainer.add(example.features[:255], example.true_score[:255])
    assert trainer.drift is None
    trainer.add(example.features[255:600], example.true_score[255:600])
    assert np.allclose(trainer.drift.mean, FeatureDrift.of_pairs(example.features[:256]).mean, rtol=1e-5)
