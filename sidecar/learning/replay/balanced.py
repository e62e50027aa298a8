"""A replay buffer that keeps pairs of all scores, however rare some of them have become."""

from __future__ import annotations

from collections import deque
from itertools import chain

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
        self._fullest: list[int] = []  # the bins of that size, the lowest last; empty where they have to be found again
        self._bins: list[deque[int]] = [deque() for _ in range(BINS)]
        """Each bin's rows, oldest first, one number each: how many had come before it, times the capacity, plus its place."""

    def places(self) -> Places:
        return np.array(sorted(chain(*self._bins)), dtype=np.intp) % self.capacity

    def _find_places(self, rows: Array) -> Places:
        bins, sizes, most, size, capacity, places = self._bins, self._sizes, self._most, self._size, self.capacity, []
        for before, own in enumerate(self._bins_of(rows), self.added):
            count = sizes[own]
            if size < capacity:
                place = size
                size += 1
                sizes[own] = count + 1
                most = max(most, count + 1)
            elif count and count + 1 >= most:
                place = bins[own].popleft() % capacity
            else:
                if not self._fullest:
                    self._fullest = [number for number in reversed(range(BINS)) if sizes[number] == most]
                fullest = self._fullest.pop()
                place = bins[fullest].popleft() % capacity
                sizes[own] = count + 1
                sizes[fullest] = most - 1
                if count + 1 == most:  # one of the fullest now: its only row, where no bin has more
                    self._fullest.clear()
                if not self._fullest:
                    most = max(sizes)
            bins[own].append(before * capacity + place)
            places.append(place)
        self._size, self._most = size, most
        return np.array(places, dtype=np.intp)

    def _put(self, places: Places) -> None:
        self._size = len(places)
        bins = zip(self._bins_of(self.data[places]), places.tolist(), strict=True)
        for before, (own, place) in enumerate(bins, self.added - len(places)):
            self._bins[own].append(before * self.capacity + place)
        self._sizes = [*map(len, self._bins)]
        self._most = max(self._sizes)

    def _clear(self) -> None:
        super()._clear()
        self._sizes, self._most, self._fullest = [0] * BINS, 0, []
        for places in self._bins:
            places.clear()

    def _bins_of(self, rows: Array) -> list[int]:
        numbers: list[int] = self._edges.searchsorted(rows[:, -1], side="right").tolist()
        return numbers
