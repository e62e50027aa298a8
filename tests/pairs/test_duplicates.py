"""What makes a pair a duplicate."""

from __future__ import annotations

import numpy as np

from sidecar.pairs.duplicates import RECENT_PAIRS, RecentPairs
from sidecar.pairs.pair import Pair


def pair(job_id, score=1.0, features=(1.0, 2.0)):
    return Pair(np.array(features, dtype=np.float32).tobytes(), score, 0.5, job_id)


def test_a_duplicate_has_the_same_job_and_the_same_float32_values():
    recent = RecentPairs()
    assert recent.add(pair("a"))
    assert not recent.add(pair("a"))
    assert not recent.add(pair("a", features=(1.0 + 1e-12, 2.0)))
    assert recent.add(pair("a", score=1.5))
    assert recent.add(pair("a", features=(1.0, 3.0)))
    assert recent.add(pair("b"))
    assert recent.add(pair(""))
    assert recent.add(pair(""))


def test_only_the_last_pairs_count_as_recent():
    pairs = [pair(f"j{i}") for i in range(RECENT_PAIRS + 1)]
    recent = RecentPairs()
    assert all(recent.add(each) for each in pairs)
    assert not recent.add(pairs[1])
    assert recent.add(pairs[0])


def test_a_pair_that_was_taken_back_is_no_duplicate():
    recent = RecentPairs()
    recent.add(pair("a"))
    recent.add(pair("b"))
    recent.take_back([pair("b")])
    assert not recent.add(pair("a"))
    assert recent.add(pair("b"))
