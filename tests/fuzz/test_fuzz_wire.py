"""A short run of `tests/fuzz/fuzz_wire.py`; the long one is run by hand."""

from __future__ import annotations

import pytest

from tests.fuzz.fuzz_wire import fuzz


@pytest.mark.usefixtures("quick_fits")
@pytest.mark.parametrize("inputs", [3000, pytest.param(12_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fresh", [False, True])
def test_random_and_mutated_lines_are_taken_or_refused_and_what_was_taken_outlives_the_process(tmp_path, fresh, inputs):
    result = fuzz(tmp_path, inputs, seed=9, fresh=fresh, restarts=4)
    assert result.failures == []
    assert result.accepted > inputs // 6
    assert result.refused > inputs // 3
    assert result.duplicates > inputs // 240
    assert result.too_long > 0
