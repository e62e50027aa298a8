"""The schedules of the learning rate."""

from __future__ import annotations

import pytest

from sidecar.learning.optim.learning_rate import cosine_decay, warmed_up


def test_learning_rate_warms_up_and_decays():
    assert [warmed_up(1.0, step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warmed_up(1.0, 0, 0) == 1
    assert [cosine_decay(step, 4) for step in (0, 2, 4, 9)] == pytest.approx([1, 0.5, 0, 0], abs=1e-15)
