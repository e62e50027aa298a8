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


@pytest.mark.parametrize(("capacity", "count"), [(100, 20), (1000, 20), (1000, 5)])
def test_replay_buffer_draws_uniformly_without_replacement(capacity, count):
    buffer, generator, times = ReplayBuffer(capacity, 1), np.random.default_rng(0), np.zeros(130)
    buffer.add(np.arange(130, dtype=np.float32)[:, None])
    some = times[-len(buffer) :]
    for places in buffer.draw(generator, 2000, count):
        drawn = buffer.data[places, 0].astype(int)
        assert len(set(drawn)) == count
        times[drawn] += 1
    share = count / len(buffer)
    assert abs(some - 2000 * share).max() < 5 * math.sqrt(2000 * share * (1 - share))  # five deviations of a binomial
    assert some.sum() == times.sum()


def test_a_full_buffer_draws_each_pair_once_before_any_again():
    buffer, generator = ReplayBuffer(100, 1), np.random.default_rng(0)
    buffer.add(np.arange(100, dtype=np.float32)[:, None])
    for _ in range(3):
        drawn = np.concatenate(buffer.draw(generator, 4, 24))
        assert len(set(drawn.tolist())) == 96  # the four that are left are fewer than are drawn at a time
        buffer.add(np.zeros((7, 1), dtype=np.float32))


def test_replay_buffer_without_room_is_refused():
    with pytest.raises(ValueError, match="0 × 1"):
        ReplayBuffer(0, 1)
