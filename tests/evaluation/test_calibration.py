"""The mean residual by predicted score, and a band that counts groups, not pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sidecar.evaluation.calibration import calibration, half_width, student
from sidecar.evaluation.residuals import Judged
from sidecar.pairs.recorded import RecordedPairs


@pytest.mark.parametrize(
    ("share", "freedom", "t"),
    [(0.9, 1, 6.3138), (0.9, 2, 2.9200), (0.9, 7, 1.8946), (0.95, 19, 2.0930), (0.9, 1000, 1.6464), (0.9, 10**6, 1.6449)],
)
def test_student_is_that_of_the_tables(share, freedom, t):
    assert student(share, freedom) == pytest.approx(t, abs=1e-4)


def test_of_groups_of_the_same_size_it_is_the_interval_of_their_means():
    values = np.random.default_rng(0).normal(size=(6, 4))
    means = values.mean(axis=1)
    expected = student(0.9, 5) * means.std(ddof=1) / math.sqrt(6)
    assert half_width(values.ravel(), np.repeat(np.arange(6), 4)) == pytest.approx(expected)


def test_a_group_weighs_the_same_however_often_its_pairs_are_repeated():
    rng = np.random.default_rng(0)
    values, group = rng.normal(size=20), np.arange(20)
    assert half_width(np.repeat(values, 12), np.repeat(group, 12)) == pytest.approx(half_width(values, group))


@pytest.mark.parametrize("sizes", [[12] * 8, [1, 2, 4, 8, 8, 16, 24, 32]])
def test_the_band_holds_the_mean_as_often_as_it_says(sizes):
    rng, group = np.random.default_rng(0), np.repeat(np.arange(8), sizes)
    held, by_pairs = 0, 0
    for _ in range(400):
        values = rng.normal(size=8)[group] + rng.normal(scale=0.5, size=len(group))
        held += abs(values.mean()) <= half_width(values, group)
        by_pairs += abs(values.mean()) <= half_width(values, np.arange(len(group)))
    assert 0.84 < held / 400 < 0.93
    assert by_pairs / 400 < 0.5


def test_each_pair_is_in_the_tenth_of_its_prediction():
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 100, 500).astype(np.float32)
    predicted = np.clip(true + 3, 0, 104).astype(np.float32)
    rows = np.arange(0, 500, 2)
    pairs = RecordedPairs(
        np.zeros((500, 1), np.float32), true, np.zeros(500), (np.arange(500) // 20).astype(np.int32), ["g"] * 25
    )
    found = calibration(Judged(pairs, rows, predicted[rows], []), 0, 100)
    assert sum(each["pairs"] for each in found) == 250
    for each in found:
        inside = (predicted[rows] >= each["low"]) & ((predicted[rows] < each["high"]) | (each["high"] == 100))
        assert each["pairs"] == inside.sum()
        assert each["groups"] == len(np.unique(pairs.group[rows][inside]))
        assert each["mean"] == pytest.approx(3, abs=1e-4)
        assert each["band"] == pytest.approx([3, 3], abs=1e-4)


def test_there_is_no_band_where_no_groups_are_known():
    true = np.linspace(0, 100, 50, dtype=np.float32)
    pairs = RecordedPairs(np.zeros((50, 1), np.float32), true, np.zeros(50))
    found = calibration(Judged(pairs, np.arange(50), true, []), 0, 100)
    assert [(each["groups"], each["band"]) for each in found] == [(1, None)] * 10
