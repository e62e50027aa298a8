"""A short run of `tests/fuzz/fuzz_state.py`; the long one is run by hand."""

from __future__ import annotations

import pytest

from tests.fuzz.fuzz_state import fuzz


@pytest.mark.parametrize("inputs", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_flipped_bits_and_cuts_are_named_and_never_change_the_state_silently(tmp_path, inputs):
    result = fuzz(tmp_path, inputs, seed=7, every=20, headers=False)
    assert result.failures == []
    assert result.starts >= inputs // 20
    assert len(result.inputs) == 9
