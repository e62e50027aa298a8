"""When a tenant's head is used, and when no longer."""

from __future__ import annotations

import numpy as np
import pytest

from sidecar.learning.tenants.comparison import Comparisons
from sidecar.learning.tenants.whose import ByTenant


def compared(*stretches):
    """Two tenants of three, of which the second has the opposite errors."""
    comparisons = Comparisons(3)
    for pairs, shared, own in stretches:
        errors = np.array([shared, own])[:, None] * np.ones(pairs)
        comparisons.add(ByTenant.of(np.repeat([0, 2], pairs)), np.hstack([errors, errors[::-1]]))
    return comparisons


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
    assert compared(*stretches).of(0).used == used


def test_its_rmse_is_that_of_the_pairs():
    comparisons = compared((80, 2.0, 1.0))
    assert comparisons.of(0) == pytest.approx((80, True, 2.0, 1.0))
    assert comparisons.of(2) == pytest.approx((80, False, 1.0, 2.0))
    assert comparisons.of(1) == (0, False, 0.0, 0.0)
    again = Comparisons(3)
    again.load(comparisons.state())
    assert [again.of(tenant) for tenant in range(3)] == [comparisons.of(tenant) for tenant in range(3)]


def test_older_errors_weigh_less_and_such_as_are_not_finite_tell_nothing():
    comparisons, errors = Comparisons(1), np.array([[3.0, np.nan, 1.0], [1.0, 1.0, np.inf]])
    comparisons.add(ByTenant.of(np.zeros(3, dtype=np.intp)), errors)
    assert comparisons.of(0) == (1, False, 3.0, 1.0)
    comparisons.add(ByTenant.of(np.zeros(256, dtype=np.intp)), np.ones((2, 256)))
    share = (1 - 1 / 256) ** 256
    weights = 256 * (1 - share * (1 - 1 / 256))
    assert comparisons.of(0).rmse_of_shared == pytest.approx(((9 * share + 256 * (1 - share)) / weights) ** 0.5)
