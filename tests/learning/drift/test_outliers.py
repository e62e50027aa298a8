"""Outliers: broken vectors are told from other content, and content that has come to stay is none."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_builder import Clip, Dense, Elementwise, Network
from sidecar.learning.drift.outliers import OF_PAIRS, STAYING, Outliers, usual_range

SIX = (0, 5, 6, 7, 8, 10)
"""Window means of adm2, the four vif scales and motion2."""


@pytest.mark.parametrize("columns", [range(80), SIX])
def test_other_clips_are_no_outliers_and_vectors_in_another_unit_are(example, columns):
    features = example.features[:, list(columns)]
    for clip in range(len(example.group_names)):
        outliers = Outliers(len(columns))
        outliers.measure(features[example.group == clip][:256])
        assert outliers.among(features).mean() <= 0.001
        assert outliers.among(features * 10).mean() > 0.95


def test_a_tenth_of_broken_vectors_does_not_change_what_is_usual_much(example):
    features = example.features[:1000].copy()
    features[::11] *= 1e4
    outliers = Outliers(80)
    outliers.measure(features)
    assert np.array_equal(outliers.among(features), np.arange(1000) % 11 == 0)


def test_one_hot_features_are_usual_though_they_were_never_seen():
    outliers = Outliers(8)
    outliers.measure(np.zeros((256, 8), dtype=np.float32))
    assert not outliers.among(np.eye(8, dtype=np.float32)).any()
    assert outliers.among(np.full((1, 8), 50, dtype=np.float32)).all()


def test_everything_is_usual_before_it_is_measured():
    assert not Outliers(3).among(np.full((2, 3), 3e38, dtype=np.float32)).any()


def test_a_scaling_of_the_base_model_says_what_is_usual_and_measuring_changes_nothing():
    dense = Dense(np.ones((1, 2), np.float32), np.zeros(1, np.float32))
    scaling = (Elementwise("Sub", np.float32([1, 50])), Elementwise("Div", np.float32([2, 10])), Clip(-5, 5))
    outliers = Outliers(2)
    outliers.begin(Network(2, (*scaling, dense)))
    assert outliers.usual.tolist() == [[-19, -50], [21, 150]]
    outliers.measure(np.zeros((9, 2), dtype=np.float32))
    assert outliers.usual.tolist() == [[-19, -50], [21, 150]]
    unscaled = Outliers(2)
    unscaled.begin(Network(2, (dense,)))
    assert np.isinf(unscaled.usual).all()


def some(count, centre=0.0):
    return (centre + np.random.default_rng(count).normal(size=(count, 4))).astype(np.float32)


def test_outliers_that_come_to_stay_are_let_in():
    outliers = Outliers(4)
    outliers.measure(some(256))
    others = some(STAYING, centre=1000)
    for features in others:
        assert outliers.among(features[None]).all(), "not before the last of them"
        outliers.leave_out(features[None], 0)
    assert not outliers.among(some(100, centre=1000)).any()
    assert not outliers.among(some(100)).any()
    assert outliers.count == STAYING


def test_outliers_now_and_then_are_never_let_in():
    outliers = Outliers(4)
    outliers.measure(some(256))
    each = OF_PAIRS // STAYING + 1
    for arrival, features in enumerate(some(1000, centre=1000)):
        outliers.leave_out(features[None], arrival * each)
    assert outliers.among(some(100, centre=1000)).all()


def test_with_another_base_model_outliers_are_counted_anew():
    outliers = Outliers(4)
    outliers.measure(some(256))
    for arrival, features in enumerate(some(STAYING, centre=1000)):
        outliers.leave_out(features[None], arrival * OF_PAIRS)
    outliers.begin(Network(4, (Dense(np.ones((1, 4), np.float32), np.zeros(1, np.float32)),)))
    outliers.leave_out(some(1, centre=1000), 0)
    assert outliers.among(some(100, centre=1000)).all()


def test_many_outliers_among_the_first_pairs_are_none():
    few, many = Outliers(4), Outliers(4)
    assert few.sort_out(np.concatenate([some(90), some(10, centre=1000)])).sum() == 90
    assert many.sort_out(np.concatenate([some(70), some(30, centre=1000)])).all()
    assert (few.count, many.count) == (10, 0)
    assert few.by_feature.tolist() == [10] * 4


def test_which_features_are_unusual_is_told():
    outliers = Outliers(4)
    outliers.measure(some(256))
    features = some(1)[0]
    assert outliers.in_words(()) == ""
    outliers.leave_out(features * np.float32([[1, 1e4, 1, 1e4]]), 0)
    assert outliers.in_words(("a", "b", "c", "d")) == "b, d"
    outliers.leave_out(features * np.float32([[1e4, 1e4, 1e4, 1e4]]), 1)
    assert outliers.in_words(("a", "b", "c", "d")) == "b, d, a and 1 other"


def test_it_continues_from_its_state():
    outliers = Outliers(4)
    outliers.measure(some(256))
    for features in some(STAYING - 1, centre=1000):
        outliers.leave_out(features[None], 0)
    again = Outliers.from_state(outliers.state())
    for each in (outliers, again):
        each.leave_out(some(1, centre=1000), 1)
        assert not each.among(some(50, centre=1000)).any()
    assert all(np.array_equal(value, again.state()[name]) for name, value in outliers.state().items())


def test_reordered_features_are_as_usual_as_before():
    outliers = Outliers(3)
    outliers.measure(np.random.default_rng(0).normal([0, 100, 1e6], [1, 2, 3], size=(200, 3)).astype(np.float32))
    outliers.reorder([2, 0, 1])
    assert not outliers.among(np.float32([[1e6, 0, 100]])).any()
    assert outliers.among(np.float32([[0, 100, 1e6]])).all()


def test_the_largest_float32_features_are_no_error():
    low, high = usual_range(np.full((9, 2), 3.4e38, dtype=np.float32))
    assert (low <= 3.4e38).all()
    assert (high >= 3.4e38).all()
