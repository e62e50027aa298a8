"""Stochastic gradient descent against its formula."""

from __future__ import annotations

import numpy as np

from sidecar.learning.optim.sgd import Sgd


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
