"""Duplicates: a pair that is sent again after its answer was lost."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from sidecar.pairs.pair import Pair

RECENT_PAIRS = 4096
"""A pair that is equal to one of the last so many, with the same job_id, is a duplicate."""


class RecentPairs:
    """The last journalled pairs by name and content, to tell a duplicate: equal non-empty job_id and float32 values."""

    def __init__(self) -> None:
        self._count = 0
        self._numbers: dict[bytes, int] = {}  # of each pair that has a job_id

    def key(self, pair: Pair, packed: bytes) -> bytes | None:
        """What two duplicates have in common; None for a pair without a job_id. packed: its float32 features."""
        return packed + _FLOAT.pack(pair.true_score) + pair.job_id.encode() if pair.job_id else None

    def __contains__(self, key: bytes | None) -> bool:
        return key is not None and self._numbers.get(key, -RECENT_PAIRS - 1) >= self._count - RECENT_PAIRS

    def add(self, key: bytes | None) -> None:
        """A pair is to be journalled."""
        if key is not None:
            self._numbers[key] = self._count
        self._count += 1

    def take_back(self, keys: Sequence[bytes | None]) -> None:
        """The last pairs, of these keys, were not journalled after all."""
        self._count -= len(keys)
        for key in keys:
            if key is not None:
                del self._numbers[key]

    def trim(self) -> None:
        """What was added stays: let go of what is no longer recent, once that is as much again."""
        if len(self._numbers) > 2 * RECENT_PAIRS:
            oldest = self._count - RECENT_PAIRS
            self._numbers = {key: number for key, number in self._numbers.items() if number >= oldest}


_FLOAT = struct.Struct("=f")
