"""The balanced buffer: which pairs it keeps, beside a plain model of it; and what holds for every replay buffer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.learning.replay.balanced import BINS, BalancedReplayBuffer
from sidecar.learning.replay.ring import ReplayBuffer

SCORES = st.lists(st.sampled_from([0.0, 4.9, 5.0, 52.0, 97.0, 99.0, 100.0]), max_size=60)
KINDS = [ReplayBuffer, lambda capacity, width: BalancedReplayBuffer(capacity, width, 0, 100)]


def rows_of(scores, first=0):
    """Rows that are told apart by their first number."""
    return np.column_stack([first + np.arange(len(scores)), scores]).astype(np.float32)


def kept_by(capacity, scores):
    """Which of the pairs are left, by the rule as it reads."""
    kept: list[int] = []
    for number, score in enumerate(scores):
        bins = [[other for other in kept if min(int(scores[other] // 5), BINS - 1) == each] for each in range(BINS)]
        own = bins[min(int(score // 5), BINS - 1)]
        if len(kept) == capacity:
            fullest = max(bins, key=len)
            kept.remove(own[0] if own and len(own) + 1 >= len(fullest) else fullest[0])
        kept.append(number)
    return kept


@given(capacity=st.integers(1, 30), scores=SCORES, block=st.integers(1, 40))
def test_the_oldest_pair_of_the_fullest_bin_drops_out(capacity, scores, block):
    buffer = BalancedReplayBuffer(capacity, 2, 0, 100)
    for start in range(0, len(scores), block):
        buffer.add(rows_of(scores[start : start + block], start))
    kept = kept_by(capacity, scores)
    assert buffer.rows()[:, 0].tolist() == kept
    assert buffer.rows(newest=3)[:, 0].tolist() == kept[-3:]
    assert (len(buffer), buffer.added, buffer.evictions) == (len(kept), len(scores), len(scores) - len(kept))


def test_a_burst_of_one_score_leaves_the_others():
    buffer = BalancedReplayBuffer(1000, 2, 0, 100)
    buffer.add(rows_of(np.linspace(0, 100, 1000)))
    buffer.add(rows_of(np.full(40_000, 98.0)))
    assert np.count_nonzero(buffer.rows()[:, 1] < 95) == 950


@pytest.mark.parametrize("make", KINDS)
@given(capacity=st.integers(1, 30), scores=SCORES, later=SCORES)
def test_a_restored_buffer_continues_in_the_same_places(make, capacity, scores, later):
    buffer, restored = make(capacity, 2), make(capacity, 2)
    buffer.add(rows_of(scores))
    restored.restore(buffer.rows(), buffer.added, buffer.places())
    for rows in (rows_of(later, 1000), rows_of(later, 2000)):
        everywhere = np.arange(capacity)
        assert everywhere[buffer.add(rows)].tolist() == everywhere[restored.add(rows)].tolist()
    assert buffer.data.tobytes() == restored.data.tobytes()
    assert (len(buffer), buffer.added) == (len(restored), restored.added)
    assert buffer.places().tolist() == restored.places().tolist()


@pytest.mark.parametrize("make", KINDS)
@given(capacity=st.integers(1, 30), scores=SCORES, data=st.data())
def test_rows_that_are_removed_leave_the_others_in_order(make, capacity, scores, data):
    buffer = make(capacity, 2)
    buffer.add(rows_of(scores))
    before = buffer.rows()
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(before), max_size=len(before))), dtype=bool)
    buffer.keep(mask)
    assert buffer.rows().tolist() == before[mask].tolist()
    assert buffer.added == len(scores)
    assert sorted(buffer.places()) == list(range(mask.sum()))
    buffer.add(rows_of([50.0], first=1000))
    assert buffer.rows(newest=1)[0, 0] == 1000


@pytest.mark.parametrize("make", KINDS)
def test_more_than_it_holds_are_taken_in_any_blocks(make):
    scores = 100 * np.random.default_rng(0).random(500)
    at_once, one_by_one = make(70, 2), make(70, 2)
    at_once.add(rows_of(scores))
    for row in rows_of(scores):
        one_by_one.add(row[None])
    assert at_once.data.tobytes() == one_by_one.data.tobytes()
