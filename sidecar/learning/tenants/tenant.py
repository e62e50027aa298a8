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
HELD_PAIRS = 128
"""A tenant's first pairs train the shared weights when so many are there, and its head knows how they differ. Measured in
`benchmarks/tenants.py`: tenants of a good base model whose scores contradict each other would spoil it before."""


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
