"""What is kept of one tenant: its newest pairs, and which of two models predicts them better."""

from __future__ import annotations

from sidecar.learning.replay.ring import ReplayBuffer
from sidecar.learning.tenants.comparison import Comparison

RING_PAIRS = 256
"""A tenant's newest pairs, from which its head is made."""
FIRST_PAIRS, MADE_EVERY = 16, 256
"""A head is made from so many pairs, from twice as many, and so on; then whenever so many have come."""
ADAPTER_EVERY = 4
"""The adapter, which takes ten times as long, is made with the first so many heads, then with each of so many."""
HELD_PAIRS, HELD_ERROR = 64, 0.01
"""While a tenant has sent fewer pairs, and the RMSE of the shared weights on them is more than this share of the range of
scores, its pairs wait to train these: they may contradict those of others, which its head is to show. Measured in
`benchmarks/tenants.py`: tenants of a good base model whose scores contradict each other would spoil it in 50 pairs each, and
where tenants differ in their content only, waiting costs."""
FAR_OFF = 0.1
"""If neither the shared weights nor the head predict a tenant's pairs with an RMSE of at most this share, they wait until the
ring is full, and train no shared weights from then on, as long as another tenant's are predicted. Measured there, too: one
tenant with random scores would spoil all."""


class Tenant:
    """What is kept of a tenant.

    number: its place among all; pairs: its newest ones, each row the features and the score; `pairs.added`: how many have come.
    comparison: of the shared model and its head. held: how many of the newest pairs wait to train the shared weights.
    """

    def __init__(self, number: int, n_features: int) -> None:
        self.number = number
        self.pairs = ReplayBuffer(RING_PAIRS, n_features + 1)
        self.comparison = Comparison()
        self.held = 0

    @property
    def heads(self) -> int:
        """How many heads have been due so far."""
        pairs = self.pairs.added
        return (min(pairs, MADE_EVERY - 1) // FIRST_PAIRS).bit_length() + pairs // MADE_EVERY

    @property
    def has_adapter_due(self) -> bool:
        """Whether the present head gets a new adapter."""
        return self.heads < ADAPTER_EVERY or self.heads % ADAPTER_EVERY == 0
