"""A replay buffer that keeps the newest pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Array

Places = NDArray[np.intp]


class ReplayBuffer:
    """At most `capacity` rows of `width` numbers in one array made once; when it is full, the oldest rows drop out.

    data: the rows, in the places 0 to len(self) - 1; added: how many rows have come, whether they are still there or not.
    upcoming: the places that will be drawn next from a full buffer, in order; then all places are shuffled again.

    Lin: Self-improving reactive agents based on reinforcement learning, planning and teaching (1992).
    """

    def __init__(self, capacity: int, width: int, dtype: type[np.floating[Any]] = np.float32) -> None:
        if capacity < 1 or width < 1:
            raise ValueError(f"a replay buffer needs room for at least one row of one value, got {capacity} × {width}")
        self.capacity, self.width = capacity, width
        self.added = self._size = 0
        self._next = 0  # the place of the next row
        self.upcoming: Places = np.empty(0, dtype=np.intp)
        self.data: Array = np.zeros((capacity, width), dtype=dtype)

    def __len__(self) -> int:
        return self._size

    @property
    def evictions(self) -> int:
        """Rows that have left so far."""
        return self.added - self._size

    def add(self, rows: Array) -> Places | slice:
        """Take rows (n, width), any n, in order. Returns the places (n,) that they were put into; later rows may share them."""
        places = self._find_places(rows)
        self.data[places] = rows
        self.added += len(rows)
        return places

    def draw(self, generator: np.random.Generator, times: int, count: int) -> list[Places]:
        """Draw the places of `count` rows, at most len(self), uniformly without replacement, and this several `times`.

        As long as the buffer grows, a few places in a large one are mostly distinct, and drawing until they are takes a
        fraction of the time that `Generator.choice` takes. In a full one all places are shuffled, and each draw takes the next
        of them, which is faster still, and takes all pairs equally often (Bottou: Curiously fast convergence of some stochastic
        gradient descent algorithms, 2009).
        """
        size = len(self)
        if not count:
            return []
        if size == self.capacity:
            return [self._next_of_shuffled(generator, count) for _ in range(times)]
        if count * count > size:
            return [generator.choice(size, count, replace=False, shuffle=False) for _ in range(times)]
        drawn = (generator.random((times, count)) * size).astype(np.intp)  # twice as fast as `Generator.integers`
        for time, places in enumerate(drawn.tolist()):
            while len(set(places)) < count:
                drawn[time] = (generator.random(count) * size).astype(np.intp)
                places = drawn[time].tolist()
        return [*drawn]

    def _next_of_shuffled(self, generator: np.random.Generator, count: int) -> Places:
        if len(self.upcoming) < count:
            self.upcoming = generator.permutation(self.capacity)
        drawn, self.upcoming = self.upcoming[:count], self.upcoming[count:]
        return drawn

    def places(self) -> Places:
        """The places of all rows (len(self),), oldest first."""
        start = self._next if self._size == self.capacity else 0
        return (start + np.arange(self._size)) % self.capacity

    def rows(self, newest: int | None = None) -> Array:
        """A copy of all rows (len(self), width), or of a number of the newest, oldest first."""
        places = self.places()
        return self.data[places if newest is None else places[max(0, len(places) - newest) :]]

    def restore(self, rows: Array, added: int, places: Places | None = None) -> None:
        """Continue as a buffer that has been given `added` rows so far and holds `rows`, oldest first.

        places: where they were in a buffer of this kind and capacity, so that equal draws give equal rows; None: anywhere.
        """
        self._clear()
        self.added = added - len(rows)
        if places is None:
            self.add(rows)
        else:
            self.data[places] = rows
            self.added = added
            self._put(places)

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """Remove the rows for which mask (len(self),) is False; it is in the order of `rows`. Those left get other places."""
        self.restore(self.rows()[mask], self.added)

    def _find_places(self, rows: Array) -> Places | slice:
        start, stop = self._next, self._next + len(rows)
        if stop <= self.capacity:  # a slice, which takes a fraction of the time
            self._next = stop % self.capacity
            self._size = max(self._size, stop)
            return slice(start, stop)
        places = (self._next + np.arange(len(rows))) % self.capacity
        self._next = (self._next + len(rows)) % self.capacity
        self._size = min(self.capacity, self._size + len(rows))
        return places

    def _put(self, places: Places) -> None:
        """Take the rows in these places, oldest first, for all there are."""
        self._size = len(places)
        self._next = (int(places[-1]) + 1) % self.capacity if len(places) else 0

    def _clear(self) -> None:
        self._size = self._next = 0
        self.upcoming = self.upcoming[:0]
