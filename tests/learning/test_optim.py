"""Optimizers, averaging, replay, scaling and metrics: each against its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.learning.metrics import metrics, plcc, rmse, srocc
from sidecar.learning.optim.clipping import clip_gradient
from sidecar.learning.optim.group_lasso import GroupLasso
from sidecar.learning.optim.learning_rate import cosine_decay, warmed_up
from sidecar.learning.optim.polyak import PolyakAverage
from sidecar.learning.optim.sgd import Sgd
from sidecar.learning.replay_buffer import ReplayBuffer
from sidecar.learning.scaler import measure_scaling


def test_sgd_is_its_formula():
    parameters, slot, velocity = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    optimizer = Sgd(parameters, slot, momentum=0.9, weight_decay=0.1)
    expected = parameters.copy()
    for gradient in ([0.5, 1.0], [-0.25, 0.0], [3.0, 1.0]):
        velocity = 0.9 * velocity + np.array(gradient) + 0.1 * expected
        expected = expected - 0.01 * velocity
        slot[:] = gradient
        optimizer.step(0.01)
    assert np.allclose(parameters, expected, rtol=1e-14)


def test_clipping_scales_down_to_the_norm_and_leaves_smaller_gradients():
    gradient = np.array([3.0, 4.0])
    assert clip_gradient(gradient, 1.0) == 5.0
    assert np.allclose(gradient, [0.6, 0.8], rtol=1e-6)
    assert clip_gradient(gradient, 2.0) == pytest.approx(1.0)
    assert np.allclose(gradient, [0.6, 0.8], rtol=1e-6)


def test_group_lasso_shortens_the_weights_of_each_feature():
    weights = np.array([[3.0, 0.1, 0.0], [4.0, 0.0, 0.0]])
    GroupLasso(weights).shrink(0.5)
    assert np.allclose(weights, [[2.7, 0, 0], [3.6, 0, 0]])


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38])
def test_a_gradient_whose_norm_is_not_finite_is_told_and_left(bad):
    gradient = np.array([1.0, bad], dtype=np.float32)
    with np.errstate(over="ignore"):
        assert not clip_gradient(gradient, 1.0) < math.inf
    assert gradient[0] == 1


def test_learning_rate_warms_up_and_decays():
    assert [warmed_up(1.0, step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warmed_up(1.0, 0, 0) == 1
    assert [cosine_decay(step, 4) for step in (0, 2, 4, 9)] == pytest.approx([1, 0.5, 0, 0], abs=1e-15)


def test_average_without_warmup_is_the_plain_formula():
    parameters = np.zeros(1)
    average = PolyakAverage(parameters, 0.9, warmup=False)
    parameters[:] = 1
    for _ in range(3):
        average.update()
    assert average.parameters[0] == pytest.approx(1 - 0.9**3)


def test_average_with_warmup_soon_forgets_where_it_began_and_then_follows_the_plain_formula():
    parameters = np.zeros(1)
    warm, plain = PolyakAverage(parameters, 0.999), PolyakAverage(parameters, 0.999, warmup=False)
    late = PolyakAverage(parameters, 0.999)
    parameters[:] = 1
    for _ in range(62):
        warm.update()
        plain.update()
    assert 1 - plain.parameters[0] == pytest.approx(0.94, abs=0.001)
    assert 1 - warm.parameters[0] < 1e-9
    late.steps = 100_000
    late.update()
    assert late.parameters[0] == pytest.approx(0.001)


@settings(deadline=None)
@given(capacity=st.integers(1, 20), sizes=st.lists(st.integers(0, 50), max_size=8))
def test_replay_buffer_keeps_the_newest_in_order(capacity, sizes):
    buffer, kept = ReplayBuffer(capacity, 2), []
    for size in sizes:
        rows = np.arange(len(kept), len(kept) + size, dtype=np.float32)[:, None] * [1, -1]
        kept += rows.tolist()
        buffer.add(rows)
        assert buffer.rows().tolist() == kept[-capacity:]
    assert (len(buffer), buffer.evictions) == (min(len(kept), capacity), max(0, len(kept) - capacity))


def test_replay_buffer_draws_uniformly_without_replacement():
    buffer = ReplayBuffer(100, 1)
    buffer.add(np.arange(130, dtype=np.float32)[:, None])
    generator, out, drawn = np.random.default_rng(0), np.empty((20, 1), dtype=np.float32), np.zeros(130)
    for _ in range(2000):
        assert buffer.sample(generator, out) == 20
        assert len(set(out[:, 0])) == 20
        drawn[out[:, 0].astype(int)] += 1
    assert not drawn[:30].any()
    assert abs(drawn[30:] - 400).max() < 5 * math.sqrt(400 * 0.8)  # five deviations of a binomial


def test_replay_buffer_with_fewer_rows_than_asked_gives_all():
    buffer, out = ReplayBuffer(10, 1), np.empty((5, 1), dtype=np.float32)
    assert buffer.sample(np.random.default_rng(0), out) == 0
    buffer.add(np.ones((3, 1)))
    assert buffer.sample(np.random.default_rng(0), out) == 3
    with pytest.raises(ValueError, match="0 × 1"):
        ReplayBuffer(0, 1)


def test_scaling_gives_mean_zero_and_deviation_one_whatever_the_scale():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(20000, 4)) * [1e-3, 1, 60, 1e20] + [5, 0, 1000, 3e20]).astype(np.float32)
    scaling = measure_scaling(features, rng.uniform(0, 100, 20000), np.arange(10, 20000))
    scaled = (features[10:] - scaling.offset) * scaling.factor
    assert np.allclose(scaled.mean(axis=0), 0, atol=1e-3)
    assert np.allclose(scaled.std(axis=0), 1, atol=1e-3)
    assert scaling.varying.all()


def test_constant_features_and_scores_scale_to_zero_and_stay_finite():
    features = np.full((50, 3), [0.1, 0, 3e4], dtype=np.float32)
    scaling = measure_scaling(features, np.full(50, 42.0), np.arange(50))
    assert not scaling.varying.any()
    assert np.allclose((features - scaling.offset) * scaling.factor, 0, atol=1e-6)
    assert scaling.factor == pytest.approx([1, 1, 1 / 3e4])
    assert (scaling.score_offset, scaling.score_scale) == (42, 1)


def test_metrics_of_known_vectors():
    predicted, true = np.array([1.0, 2, 2, 4]), np.array([1.0, 3, 2, 5])
    assert plcc(predicted, true) == pytest.approx(6.25 / math.sqrt(4.75 * 8.75))
    assert srocc(predicted, true) == pytest.approx(0.9486832981)  # ranks 1, 2.5, 2.5, 4
    assert rmse(predicted, true) == pytest.approx(math.sqrt(0.5))
    assert metrics(true, true)[:3] == pytest.approx((1, 1, 0))


@pytest.mark.parametrize("count", [3, 500])
def test_metrics_agree_with_scipy(count):
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed: pip install '.[bench]'")
    rng = np.random.default_rng(count)
    x = rng.integers(0, 40, count)
    y = x + rng.integers(0, 9, count)
    assert plcc(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, rel=1e-12)
    assert srocc(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-12)


def test_undefined_metrics_are_nan_and_absent_from_json():
    constant = metrics(np.full(3, 5.0), np.arange(3.0))
    assert math.isnan(constant.plcc)
    assert constant.as_json() == {"rmse": pytest.approx(math.sqrt(50 / 3)), "pairs": 3}
    assert metrics(np.empty(0), np.empty(0)).as_json() == {"pairs": 0}
