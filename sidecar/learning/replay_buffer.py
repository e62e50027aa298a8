"""The replay buffer: past pairs, drawn again so that new ones do not make the head forget them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Array


class ReplayBuffer:
    """A ring of at most `capacity` rows of `width` numbers in one array made once; the oldest rows drop out.

    Lin: Self-improving reactive agents based on reinforcement learning, planning and teaching (1992).
    """

    def __init__(self, capacity: int, width: int, dtype: type[np.floating[Any]] = np.float32) -> None:
        if capacity < 1 or width < 1:
            raise ValueError(f"a replay buffer needs room for at least one row of one value, got {capacity} × {width}")
        self.capacity, self.width = capacity, width
        self.added = 0
        self.data: Array = np.zeros((capacity, width), dtype=dtype)

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
        """Fill `out` (k, width) with up to k rows drawn uniformly without replacement; returns how many."""
        count = min(len(out), len(self))
        for places in self.draw(generator, 1, count):
            self.data.take(places, axis=0, out=out[:count], mode="clip")
        return count

    def draw(self, generator: np.random.Generator, times: int, count: int) -> list[NDArray[np.intp]]:
        """Draw the places of `count` rows, at most len(self), uniformly without replacement, and this several `times`.

        A few places in a large buffer are mostly distinct; drawing until they are takes a fraction of the time that
        `Generator.choice` takes.
        """
        size = len(self)
        if not count:
            return []
        if count * count > size:
            return [generator.choice(size, count, replace=False, shuffle=False) for _ in range(times)]
        drawn = [*(generator.random((times, count)) * size).astype(np.intp)]  # twice as fast as `Generator.integers`
        for time, places in enumerate(drawn):
            while len(set(places.tolist())) < count:
                places = drawn[time] = (generator.random(count) * size).astype(np.intp)
        return drawn

    def rows(self, newest: int | None = None) -> Array:
        """A copy of all rows (len(self), width), or of a number of the newest, oldest first."""
        at = self.added % self.capacity if self.added > self.capacity else 0
        skip = 0 if newest is None else max(0, len(self) - newest)
        return np.concatenate([self.data[at + skip : len(self)], self.data[max(0, at + skip - len(self)) : at]])

    def restore(self, rows: Array, added: int) -> None:
        """Continue as a buffer that has been given `added` rows so far and holds `rows`, oldest first."""
        self.added = added - len(rows)
        self.add(rows)
