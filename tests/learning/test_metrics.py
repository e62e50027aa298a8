"""PLCC, SROCC and RMSE."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sidecar.learning.metrics import metrics, plcc, rmse, srocc


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
