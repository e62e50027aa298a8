"""Adam against its formula."""

from __future__ import annotations

import numpy as np

from sidecar.learning.optim.adam import Adam


def test_adam_is_its_formula():
    parameters, slot = np.array([1.0, -2.0]), np.zeros(2)
    optimizer = Adam(parameters, slot, weight_decay=0.1)
    expected, mean, square = parameters.copy(), np.zeros(2), np.zeros(2)
    for step, gradient in enumerate(([0.5, 1.0], [-0.25, 0.0], [3.0, 1.0]), 1):
        decayed = np.array(gradient) + 0.1 * expected
        mean, square = 0.9 * mean + 0.1 * decayed, 0.999 * square + 0.001 * decayed**2
        expected = expected - 0.01 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        slot[:] = gradient
        optimizer.step(0.01)
    assert np.allclose(parameters, expected, rtol=1e-7)
