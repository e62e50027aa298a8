"""Duplicates: a pair that a client sends again because the answer was lost."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from sidecar.pairs.pair import Pair

RECENT_PAIRS = 4096
"""A pair is a duplicate if one of the last 4096 journalled pairs has the same job_id and the same float32 values."""

_FLOAT = struct.Struct("=f")


class RecentPairs:
    """The last journalled pairs, by job_id and values. A pair without a job_id is never a duplicate."""

    def __init__(self) -> None:
        self._count = 0
        self._numbers: dict[bytes, int] = {}  # the number of each pair that has a job_id

    def add(self, pair: Pair | None) -> bool:
        """Add a pair that is about to be journalled; False, and nothing is added, if it is a duplicate.

        None stands for a forgotten pair, which keeps its number.
        """
        if pair is not None and pair.job_id:
            key, number = _key(pair), self._count
            if self._numbers.get(key, -RECENT_PAIRS - 1) >= number - RECENT_PAIRS:
                return False
            self._numbers[key] = number
        self._count += 1
        return True

    def take_back(self, pairs: Sequence[Pair]) -> None:
        """Remove the last pairs, which could not be journalled after all."""
        self._count -= len(pairs)
        for pair in pairs:
            if pair.job_id:
                del self._numbers[_key(pair)]

    def trim(self) -> None:
        """Drop pairs that are no longer recent, once they are as many as the recent ones."""
        if len(self._numbers) > 2 * RECENT_PAIRS:
            oldest = self._count - RECENT_PAIRS
            self._numbers = {key: number for key, number in self._numbers.items() if number >= oldest}


def _key(pair: Pair) -> bytes:
    return pair.features + _FLOAT.pack(pair.score) + str(pair.job_id).encode()
