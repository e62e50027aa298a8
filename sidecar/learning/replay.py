"""The replay buffer: past pairs, drawn again so that new ones do not make the head forget them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Array


class ReplayBuffer:
    """A ring of at most `capacity` rows of `width` float32 values in one array made once; the oldest rows drop out.

    Lin: Self-improving reactive agents based on reinforcement learning, planning and teaching (1992).
    """

    def __init__(self, capacity: int, width: int) -> None:
        if capacity < 1 or width < 1:
            raise ValueError(f"a replay buffer needs room for at least one row of one value, got {capacity} × {width}")
        self.capacity, self.width = capacity, width
        self.added = 0
        self.data: NDArray[np.float32] = np.zeros((capacity, width), dtype=np.float32)

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    @property
    def evictions(self) -> int:
        """Rows that have dropped out so far."""
        return max(0, self.added - self.capacity)

    def add(self, rows: Array) -> None:
        """Append rows (n, width), any n, in order."""
        start = max(0, len(rows) - self.capacity)
        kept = rows[start:]
        at = (self.added + start) % self.capacity
        until_end = min(len(kept), self.capacity - at)
        self.data[at : at + until_end] = kept[:until_end]
        self.data[: len(kept) - until_end] = kept[until_end:]
        self.added += len(rows)

    def sample(self, generator: np.random.Generator, out: Array) -> int:
        """Fill `out` (k, width) with up to k rows drawn uniformly without replacement; gives how many."""
        size = len(self)
        count = min(len(out), size)
        if count:
            chosen = generator.choice(size, count, replace=False, shuffle=False)
            self.data.take(chosen, axis=0, out=out[:count], mode="clip")
        return count

    def rows(self) -> NDArray[np.float32]:
        """A copy of all rows (len(self), width), oldest first."""
        at = self.added % self.capacity if self.added > self.capacity else 0
        return np.concatenate([self.data[at : len(self)], self.data[:at]])

    def restore(self, rows: Array, added: int) -> None:
        """Go on as a buffer that was given `added` rows so far and holds `rows`, oldest first."""
        self.added = added - len(rows)
        self.add(rows)
