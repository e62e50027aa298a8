"""The newest pairs of each tenant, and when its head is made from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_builder.network import Array
from sidecar.learning.tenants.whose import NOBODY, ByTenant, Whose
from sidecar.settings import MOST_TENANTS

RING_PAIRS = 256
"""A tenant's newest pairs, from which its head is made."""
FIRST_PAIRS, MADE_EVERY = 16, 512
"""A head is made from so many pairs, from twice as many, and so on; then whenever so many have come."""
ADAPTER_EVERY = 4
"""The adapter, which takes ten times as long, is made with the first so many heads, then with each of so many."""


class Rings:
    """The newest pairs of tenants, by number; each row has the features and the score.

    added (MOST_TENANTS + 1,): how many pairs of each have come; the last number is nobody's, and never few. data: the rows of
    all, those of a tenant together.
    """

    def __init__(self, width: int) -> None:
        self.added = np.zeros(MOST_TENANTS + 1, dtype=np.int64)
        self.added[NOBODY] = RING_PAIRS
        self.data = np.zeros((MOST_TENANTS * RING_PAIRS, width), dtype=np.float32)  # takes no memory until it is written to
        self._next_head = np.full(len(self.added), FIRST_PAIRS)
        """At how many pairs of each a head is due."""

    def add(self, by_tenant: ByTenant, features: Array, scores: Array) -> list[int]:
        """Take the next pairs: features (n, n_features), scores (n,). Returns the tenants for which a head is due now."""
        whose, tenants, _, counts, nth = by_tenant
        places = whose * RING_PAIRS + (self.added[whose] + nth) % RING_PAIRS
        self.data[places, :-1], self.data[places, -1] = features, scores
        added = self.added[tenants] + counts
        self.added[tenants] = added
        due: list[int] = tenants[added >= self._next_head[tenants]].tolist()
        for tenant in due:
            self._set_next_head(tenant)
        return due

    def reorder(self, tenants: int, places: Sequence[int]) -> None:
        """Take the features of the first so many tenants' pairs from these places."""
        rows = self.data[: tenants * RING_PAIRS]
        rows[:, : len(places)] = rows[:, places]

    def rows(self, tenant: int, newest: int = RING_PAIRS) -> Array:
        """A copy of a tenant's rows (n, width), or of so many of the newest, oldest first."""
        return self.data[self._places(tenant, newest)]

    def in_any_order(self, tenant: int) -> Array:
        """A tenant's rows as they lie in memory, which are not copied."""
        start = tenant * RING_PAIRS
        return self.data[start : start + min(int(self.added[tenant]), RING_PAIRS)]

    def restore(self, tenant: int, rows: Array, added: int) -> None:
        """Continue with a tenant of which so many pairs have come, and these are the newest."""
        self.added[tenant] = added
        self.data[self._places(tenant, RING_PAIRS)] = rows
        self._set_next_head(tenant)

    def heads(self, tenant: int) -> int:
        """How many heads of a tenant have been due so far."""
        pairs = int(self.added[tenant])
        return (min(pairs, MADE_EVERY - 1) // FIRST_PAIRS).bit_length() + pairs // MADE_EVERY

    def has_adapter_due(self, tenant: int) -> bool:
        """Whether a tenant's present head gets a new adapter."""
        heads = self.heads(tenant)
        return heads < ADAPTER_EVERY or heads % ADAPTER_EVERY == 0

    def _places(self, tenant: int, newest: int) -> Whose:
        added = int(self.added[tenant])
        return tenant * RING_PAIRS + np.arange(added - min(newest, added, RING_PAIRS), added) % RING_PAIRS

    def _set_next_head(self, tenant: int) -> None:
        pairs, heads = int(self.added[tenant]), self.heads(tenant)
        self._next_head[tenant] = FIRST_PAIRS << heads if pairs < MADE_EVERY else (pairs // MADE_EVERY + 1) * MADE_EVERY
