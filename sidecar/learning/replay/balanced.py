"""A replay buffer that keeps pairs of all scores, however rare some of them have become."""

from __future__ import annotations

from collections import deque

import numpy as np

from onnx_builder.network import Array
from sidecar.learning.replay.ring import Places, ReplayBuffer

BINS = 20


class BalancedReplayBuffer(ReplayBuffer):
    """When it is full, the oldest row of the fullest bin drops out; bins of equal width divide the scores from low to high.

    The last number of a row is its score; one outside low and high belongs to the nearest bin. The new row counts as one of its
    bin. Of several fullest bins it is the new row's own, else the lowest.

    Chrysakis, Moens: Online continual learning from imbalanced data (2020), with the oldest in place of a random one, so that
    pairs of every score are given up in time if scores change their meaning.
    """

    def __init__(self, capacity: int, width: int, low: float, high: float) -> None:
        super().__init__(capacity, width)
        self._edges = np.linspace(low, high, BINS + 1, dtype=np.float32)[1:-1]
        self._sizes = [0] * BINS
        self._most = 0  # the largest of them
        self._bins: list[deque[int]] = [deque() for _ in range(BINS)]
        """The places of each bin's rows, oldest first."""
        self._arrivals = np.zeros(capacity, dtype=np.int64)
        """How many rows had come before the one in each place."""

    def places(self) -> Places:
        return np.argsort(self._arrivals[: self._size], kind="stable")

    def _find_places(self, rows: Array) -> Places:
        bins, sizes, most, size, places = self._bins, self._sizes, self._most, self._size, []
        for own in self._bins_of(rows):
            count = sizes[own]
            if size < self.capacity:
                place = size
                size += 1
                sizes[own] = count + 1
                most = max(most, count + 1)
            elif count and count + 1 >= most:
                places.append(bins[own][0])
                bins[own].rotate(-1)
                continue
            else:
                fullest = sizes.index(most)
                place = bins[fullest].popleft()
                sizes[fullest] -= 1
                sizes[own] = count + 1
                if most not in sizes:
                    most -= 1
            bins[own].append(place)
            places.append(place)
        self._size = size
        self._most = most
        found = np.array(places, dtype=np.intp)
        self._arrivals[found] = np.arange(self.added, self.added + len(rows))
        return found

    def _put(self, places: Places) -> None:
        self._size = len(places)
        self._arrivals[places] = self.added - len(places) + np.arange(len(places))
        for number, place in zip(self._bins_of(self.data[places]), places.tolist(), strict=True):
            self._bins[number].append(place)
        self._sizes = [*map(len, self._bins)]
        self._most = max(self._sizes)

    def _clear(self) -> None:
        super()._clear()
        self._sizes, self._most = [0] * BINS, 0
        for places in self._bins:
            places.clear()

    def _bins_of(self, rows: Array) -> list[int]:
        numbers: list[int] = self._edges.searchsorted(rows[:, -1], side="right").tolist()
        return numbers
