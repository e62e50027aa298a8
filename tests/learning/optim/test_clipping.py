"""Clipping of the gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sidecar.learning.optim.clipping import clip_gradient


def test_clipping_scales_down_to_the_norm_and_leaves_smaller_gradients():
    gradient = np.array([3.0, 4.0])
    assert clip_gradient(gradient, 1.0) == 5.0
    assert np.allclose(gradient, [0.6, 0.8], rtol=1e-6)
    assert clip_gradient(gradient, 2.0) == pytest.approx(1.0)
    assert np.allclose(gradient, [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38])
def test_a_gradient_whose_norm_is_not_finite_is_told_and_left(bad):
    gradient = np.array([1.0, bad], dtype=np.float32)
    with np.errstate(over="ignore"):
        assert not clip_gradient(gradient, 1.0) < math.inf
    assert gradient[0] == 1
