"""The replay buffer: what it keeps, and what it draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.learning.replay_buffer import ReplayBuffer


@given(capacity=st.integers(1, 20), sizes=st.lists(st.integers(0, 50), max_size=8))
def test_replay_buffer_keeps_the_newest_in_order(capacity, sizes):
    buffer, kept = ReplayBuffer(capacity, 2), []
    for size in sizes:
        rows = np.arange(len(kept), len(kept) + size, dtype=np.float32)[:, None] * [1, -1]
        kept += rows.tolist()
        buffer.add(rows)
        assert buffer.rows().tolist() == kept[-capacity:]
    assert (len(buffer), buffer.evictions) == (min(len(kept), capacity), max(0, len(kept) - capacity))


def test_replay_buffer_draws_uniformly_without_replacement():
    buffer = ReplayBuffer(100, 1)
    buffer.add(np.arange(130, dtype=np.float32)[:, None])
    generator, out, drawn = np.random.default_rng(0), np.empty((20, 1), dtype=np.float32), np.zeros(130)
    for _ in range(2000):
        assert buffer.sample(generator, out) == 20
        assert len(set(out[:, 0])) == 20
        drawn[out[:, 0].astype(int)] += 1
    assert not drawn[:30].any()
    assert abs(drawn[30:] - 400).max() < 5 * math.sqrt(400 * 0.8)  # five deviations of a binomial


def test_replay_buffer_with_fewer_rows_than_asked_gives_all():
    buffer, out = ReplayBuffer(10, 1), np.empty((5, 1), dtype=np.float32)
    assert buffer.sample(np.random.default_rng(0), out) == 0
    buffer.add(np.ones((3, 1)))
    assert buffer.sample(np.random.default_rng(0), out) == 3
    with pytest.raises(ValueError, match="0 × 1"):
        ReplayBuffer(0, 1)
