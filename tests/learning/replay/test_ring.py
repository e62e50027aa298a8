"""The ring: which pairs it keeps, and what is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.learning.replay.ring import ReplayBuffer


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
    buffer, generator, times = ReplayBuffer(100, 1), np.random.default_rng(0), np.zeros(130)
    buffer.add(np.arange(130, dtype=np.float32)[:, None])
    for places in buffer.draw(generator, 2000, 20):
        drawn = buffer.data[places, 0].astype(int)
        assert len(set(drawn)) == 20
        times[drawn] += 1
    assert not times[:30].any()
    assert abs(times[30:] - 400).max() < 5 * math.sqrt(400 * 0.8)  # five deviations of a binomial


def test_replay_buffer_without_room_is_refused():
    with pytest.raises(ValueError, match="0 × 1"):
        ReplayBuffer(0, 1)
