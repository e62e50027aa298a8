"""Scaling of features and scores."""

from __future__ import annotations

import numpy as np
import pytest

from sidecar.learning.scaler import measure_scaling


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
