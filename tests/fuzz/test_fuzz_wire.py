"""A short run of `tests/fuzz/fuzz_wire.py`; the long one is run by hand."""

from __future__ import annotations

import pytest

from tests.fuzz.fuzz_wire import fuzz


@pytest.mark.parametrize("fresh", [False, True])
def test_random_and_mutated_lines_are_taken_or_refused_and_what_was_taken_outlives_the_process(tmp_path, fresh):
    result = fuzz(tmp_path, 12_000, seed=7, fresh=fresh, restarts=4)
    assert result.failures == []
    assert result.accepted > 2000
    assert result.refused > 5000
    assert result.duplicates > 50
    assert result.too_long > 0
