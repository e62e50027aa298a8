"""Whose pairs are: the numbers of their tenants."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Whose = NDArray[np.intp]
"""The tenants of pairs (n,), by number; `NOBODY` for pairs of no tenant."""
NOBODY = -1


class ByTenant(NamedTuple):
    """Pairs sorted by their tenants, those of each in order.

    whose (n,): the tenant of each; tenants (k,): which there are; starts, counts (k,): where the first of each is, and how many
    there are; nth (n,): how many of the same tenant come before each.
    """

    whose: Whose
    tenants: Whose
    starts: NDArray[np.intp]
    counts: NDArray[np.intp]
    nth: NDArray[np.intp]

    @classmethod
    def of(cls, whose: Whose) -> ByTenant:
        """whose (n,): sorted, and none are nobody's."""
        (bounds,) = np.concatenate((whose[:1] >= 0, whose[1:] != whose[:-1], whose[-1:] >= 0)).nonzero()
        starts, counts = bounds[:-1], bounds[1:] - bounds[:-1]
        return cls(whose, whose[starts], starts, counts, np.arange(len(whose)) - starts.repeat(counts))
