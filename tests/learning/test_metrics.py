"""PLCC, SROCC, RMSE and winsorized RMSE."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sidecar.learning.metrics import metrics, plcc, rmse, srocc, winsorized_rmse


def test_metrics_of_known_vectors():
    predicted, true = np.array([1.0, 2, 2, 4]), np.array([1.0, 3, 2, 5])
    assert plcc(predicted, true) == pytest.approx(6.25 / math.sqrt(4.75 * 8.75))
    assert srocc(predicted, true) == pytest.approx(0.9486832981)  # ranks 1, 2.5, 2.5, 4
    assert rmse(predicted, true) == pytest.approx(math.sqrt(0.5))
    assert metrics(true, true)[:4] == pytest.approx((1, 1, 0, 0))


def test_an_error_counts_as_at_most_twenty_times_the_median_one():
    error = np.array([1.0, -1, 1, 2, 70])
    assert winsorized_rmse(error, np.zeros(5)) == pytest.approx(math.sqrt((3 + 4 + 400) / 5))
    assert winsorized_rmse(error, error) == 0


def test_errors_of_zero_do_not_make_the_others_large():
    error = np.array([0.0] * 90 + [1] * 9 + [70])
    assert winsorized_rmse(error, np.zeros(100)) == pytest.approx(math.sqrt((9 + 400) / 100))


def test_winsorized_rmse_is_rmse_without_wrong_scores_and_tells_models_apart_with_them():
    rng = np.random.default_rng(0)
    true, noise = rng.uniform(0, 100, 1000), rng.normal(size=1000)
    assert winsorized_rmse(true + noise, true) == rmse(true + noise, true)
    wrong = np.where(rng.random(1000) < 0.05, rng.uniform(0, 100, 1000), true)
    one, other = true + noise, true + 0.5 * noise
    assert rmse(one, wrong) < 1.1 * rmse(other, wrong)
    assert winsorized_rmse(one, wrong) > 1.3 * winsorized_rmse(other, wrong)


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
    assert constant.as_json() == {**dict.fromkeys(("rmse", "winsorized_rmse"), pytest.approx(math.sqrt(50 / 3))), "pairs": 3}
    assert metrics(np.empty(0), np.empty(0)).as_json() == {"pairs": 0}
