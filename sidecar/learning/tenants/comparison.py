"""Whether a tenant's head is used: only while it is better than the shared model on the tenant's own pairs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from onnx_builder.network import Array
from sidecar.learning.tenants.whose import ByTenant, Whose

HORIZON_PAIRS, LEAST_PAIRS = 256, 50
"""The pairs over which both are compared, and the least that decide."""
CLEARLY_BETTER = 0.85
"""A head comes into use once its RMSE is this share of the shared model's, and goes out of it once it is no better. Measured in
`benchmarks/tenants.py`: at 0.95 chance decides where tenants differ in their content only."""
_DECAY = 1 - 1 / HORIZON_PAIRS


class Compared(NamedTuple):
    """Two models of one tenant. pairs: that both have predicted; used: whether the head is used; rmse_of_shared, rmse: of the
    shared model and of the head, in score points, of which the newest pairs weigh most; 0 before any."""

    pairs: int
    used: bool
    rmse_of_shared: float
    rmse: float


class Comparisons:
    """The errors of the shared model and of each tenant's head on the same pairs, predicted by both before they train.

    pairs (n_tenants,): how many there were; used (n_tenants,): whether the head is used.
    """

    def __init__(self, tenants: int) -> None:
        self.pairs = np.zeros(tenants, dtype=np.intp)
        self.used = np.zeros(tenants, dtype=bool)
        self._sums = np.zeros((2, tenants))  # of squares, of which the older ones weigh less

    def add(self, by_tenant: ByTenant, errors: Array) -> None:
        """Take errors of both models, in score points (2, n), in these pairs; such as are not finite tell nothing."""
        finite = np.isfinite(errors[0] * errors[1])
        if np.count_nonzero(finite) < len(finite):
            by_tenant, errors = ByTenant.of(by_tenant.whose[finite]), errors[:, finite]
        if not len(by_tenant.tenants):
            return
        _, tenants, starts, counts, nth = by_tenant
        later = counts.repeat(counts) - 1 - nth
        squares = errors * errors.astype(np.float64) * _DECAY**later
        sums = self._sums[:, tenants] * _DECAY**counts + np.add.reduceat(squares, starts, axis=1)
        pairs, (shared, own) = self.pairs[tenants] + counts, sums
        shared = np.where(self.used[tenants], shared, CLEARLY_BETTER**2 * shared)
        self.pairs[tenants], self._sums[:, tenants], self.used[tenants] = pairs, sums, (pairs >= LEAST_PAIRS) & (own < shared)

    def rmse(self, tenants: int | Whose) -> Array:
        """RMSE of the shared model and of the heads of some tenants (2, …), in score points."""
        weight = (1 - _DECAY ** self.pairs[tenants]) / (1 - _DECAY)
        return np.asarray(np.sqrt(self._sums[:, tenants] / np.maximum(weight, 1.0)))

    def surely_explain(self, tenants: Whose, error: float) -> bool:
        """Whether one of the two has an RMSE of at most so many score points, for each tenant; False also if that is close."""
        return not np.count_nonzero(self._sums[:, tenants].min(axis=0) > error * error)

    def of(self, tenant: int) -> Compared:
        """What is known of one tenant."""
        return Compared(int(self.pairs[tenant]), bool(self.used[tenant]), *self.rmse(tenant).tolist())

    def state(self) -> Array:
        """Its numbers (n_tenants, 4); `load` continues from them."""
        return np.column_stack([self.pairs, self.used, *self._sums])

    def load(self, state: Array) -> None:
        """Continue from a `state`, which may be of fewer tenants."""
        count = len(state)
        self.pairs[:count], self.used[:count], self._sums[:, :count] = state[:, 0], state[:, 1], state[:, 2:].T
