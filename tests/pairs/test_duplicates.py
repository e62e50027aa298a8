"""What makes a pair a duplicate."""

from __future__ import annotations

import numpy as np

from sidecar.pairs.duplicates import RECENT_PAIRS, RecentPairs
from sidecar.pairs.pair import Pair


def pair(job_id, score=1.0, features=(1.0, 2.0)):
    return Pair(np.array(features, dtype=np.float32).tobytes(), score, 0.5, job_id)


def test_a_duplicate_has_the_same_job_and_the_same_float32_values():
    recent = RecentPairs()
    recent.add(pair("a"))
    assert pair("a") in recent
    assert pair("a", features=(1.0 + 1e-12, 2.0)) in recent
    assert pair("a", score=1.5) not in recent
    assert pair("a", features=(1.0, 3.0)) not in recent
    assert pair("b") not in recent
    recent.add(pair(""))
    assert pair("") not in recent


def test_only_the_last_pairs_count_as_recent():
    recent = RecentPairs()
    pairs = [pair(f"j{i}") for i in range(RECENT_PAIRS + 1)]
    for each in pairs[:RECENT_PAIRS]:
        recent.add(each)
    assert pairs[0] in recent
    recent.add(pairs[RECENT_PAIRS])
    assert pairs[0] not in recent
    assert pairs[1] in recent
