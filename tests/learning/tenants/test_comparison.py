"""When a tenant's head is used, and when no longer."""

from __future__ import annotations

import pytest

from sidecar.learning.tenants.comparison import Comparison


def compared(*stretches):
    comparison = Comparison()
    for pairs, shared, own in stretches:
        for _ in range(pairs):
            comparison.add(shared, own)
    return comparison


@pytest.mark.parametrize(
    ("stretches", "used"),
    [
        ([(49, 2.0, 1.0)], False),
        ([(50, 2.0, 1.0)], True),
        ([(500, 2.0, 1.96)], False),  # better, but not clearly
        ([(100, 2.0, 1.0), (100, 2.0, 1.98)], True),
        ([(100, 2.0, 1.0), (900, 2.0, 2.5)], False),
        ([(100, 0.0, 0.0)], False),
    ],
)
def test_a_head_is_used_while_it_is_better_on_at_least_fifty_pairs(stretches, used):
    assert compared(*stretches).used == used


def test_its_rmse_is_that_of_the_pairs():
    comparison = compared((80, 2.0, 1.0))
    assert comparison.rmse == pytest.approx((2.0, 1.0))
    again = Comparison()
    again.load(comparison.state())
    assert (again.pairs, again.used, again.rmse) == (80, True, comparison.rmse)
    assert Comparison().rmse == (0.0, 0.0)
