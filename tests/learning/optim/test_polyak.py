"""Polyak averaging against its formula."""

from __future__ import annotations

import numpy as np
import pytest

from sidecar.learning.optim.polyak import PolyakAverage


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
