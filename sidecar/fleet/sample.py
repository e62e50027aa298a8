"""A sample of pairs that depends on the pairs alone, not on how they were divided or in which order they came.

Each pair has a key, the BLAKE2b-64 of its group and its numbers. Of each group at most so many pairs of a stratum are eligible,
those with the smallest keys. Each eligible pair has a rank among those of its stratum, by key, and the sample is the pairs with
the smallest (rank, key): strata share it evenly, and what a small one does not need goes to the others (max-min fairness).

Within a stratum this is a bottom-k sketch (Cohen, Kaplan: Summarizing data using bottom-k sketches, PODC 2007), with the same
weight for all pairs. Such sketches can be merged: a pair's rank only grows as other pairs come, and the largest (rank, key) in
the sample only falls. So what a part of the pairs has no place for, all pairs have none for either, and the sample of some
samples is the sample of all the pairs that they are of. Whoever samples a part is told the ranks and keys from which on there
is no place, and hands on little that has none: of strata that nobody has seen before, too.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Float32
from sidecar.fleet.shared import SharedArray

_BLOCK = 8192
_FEATURES_AT_A_TIME = 4
_SLACK = 1 << 16


class Limits(NamedTuple):
    """most: pairs in the sample; per_group: pairs of a group and a stratum. Both are at least 1."""

    most: int
    per_group: int


class Sampled(NamedTuple):
    """Pairs as columns of n rows.

    features: (n, k) float32; true_score: (n,) float32; key: (n,) uint64; group: (n,) uint64, the group's hash; stratum: (n,)
    int64; label: (n,) int32, what else is known of each pair, which decides nothing.
    """

    features: Float32
    true_score: Float32
    key: NDArray[np.uint64]
    group: NDArray[np.uint64]
    stratum: NDArray[np.int64]
    label: NDArray[np.int32]

    def only(self, rows: slice) -> Sampled:
        return Sampled._make(column[rows] for column in self)

    def blocks(self) -> Iterator[Sampled]:
        return (self.only(slice(start, start + _BLOCK)) for start in range(0, len(self.key), _BLOCK))


class Bounds(NamedTuple):
    """Which pairs have no place any more, in any part of them all.

    stratum: (n,), in order, of which pairs had none; key: (n,), the smallest key of these: larger ones have none either; rank:
    from which on no pair has one, in no stratum.
    """

    stratum: NDArray[np.int64]
    key: NDArray[np.uint64]
    rank: int


def keys(features: Float32, true_score: Float32, group: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """BLAKE2b-64 of each pair's group, features and score, in native bytes."""
    rows = (group[:, None].view(np.uint8), features.view(np.uint8), true_score[:, None].view(np.uint8))
    joined = np.concatenate(rows, axis=1)
    data, size, blake2b = joined.tobytes(), joined.shape[1], hashlib.blake2b
    digests = [blake2b(data[at : at + size], digest_size=8).digest() for at in range(0, len(data), size)]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


class Sample:
    """Collects the sample of all pairs that are added.

    What it takes in memory depends on the limits and on the width of the pairs, not on how many are added. bounds: those of the
    sample that this one will be added to, or of an earlier state of it.
    """

    def __init__(self, width: int, limits: Limits, bounds: Bounds | None = None) -> None:
        self._limits = limits
        capacity = limits.most + max(_SLACK, limits.most // 16)
        self._features = SharedArray((capacity, width), np.float32)
        self._columns = Sampled(
            self._features.array,
            np.empty(capacity, np.float32),
            np.empty(capacity, np.uint64),
            np.empty(capacity, np.uint64),
            np.empty(capacity, np.int64),
            np.empty(capacity, np.int32),
        )
        self._count = 0
        self.bounds = bounds or Bounds(np.empty(0, np.int64), np.empty(0, np.uint64), sys.maxsize)

    def add(self, rows: Sampled) -> None:
        """Add pairs, or the sample of some."""
        strata, bound, _ = self.bounds
        hopeless = np.zeros(len(rows.key), dtype=np.bool_)
        if len(strata):
            place = np.minimum(np.searchsorted(strata, rows.stratum), len(strata) - 1)
            hopeless = (strata[place] == rows.stratum) & (rows.key > bound[place])
        chosen = np.flatnonzero(~hopeless)
        capacity = len(self._columns.key)
        while len(chosen):
            if self._count == capacity:
                self._reduce()
            some, chosen = np.split(chosen, [min(_BLOCK, capacity - self._count)])
            free = self._columns.only(slice(self._count, self._count + len(some)))
            pairs_of: Iterator[tuple[NDArray[Any], NDArray[Any]]] = zip(free, rows, strict=True)
            for column, values in pairs_of:
                column[:] = values[some]
            self._count += len(some)

    def rows(self) -> Sampled:
        """The sample, in the order of keys; those are views that are good until more is added."""
        self._reduce()
        columns = self._rows()
        order = np.lexsort((columns.stratum, columns.key))
        for start in range(0, columns.features.shape[1], _FEATURES_AT_A_TIME):
            some = columns.features[:, start : start + _FEATURES_AT_A_TIME]
            some[:] = some[order]
        for column in columns[1:]:
            column[:] = column[order]
        return columns

    def shared_features(self) -> SharedArray:
        """What the features of `rows` are the first rows of."""
        return self._features

    def _rows(self) -> Sampled:
        return self._columns.only(slice(self._count))

    def _reduce(self) -> None:
        """Leave those that have a place."""
        columns, (most, per_group) = self._rows(), self._limits
        strata = np.unique(columns.stratum)
        code = np.searchsorted(strata, columns.stratum)
        code = code.astype(np.uint16 if len(strata) <= 1 << 16 else np.uint32)  # those are sorted fastest
        order = np.argsort(columns.key).astype(np.int32)
        order = order[np.argsort(code[order], kind="stable")]
        if _has_crowded_cell(columns, per_group):
            by_cell = np.lexsort((columns.group[order], code[order]))  # in each, still by key
            eligible = np.empty(len(order), dtype=np.bool_)
            eligible[by_cell] = _ranks(code[order[by_cell]], columns.group[order[by_cell]]) < per_group
            order = order[eligible]
        rank, end = _ranks(code[order]), self.bounds.rank
        kept = rank < end
        if np.count_nonzero(kept) > most:
            up_to = np.cumsum(np.bincount(rank))
            level = int(np.searchsorted(up_to, most, side="right"))  # of ranks below it, all have a place
            kept, end = rank < level, level + 1
            last = np.flatnonzero(rank == level)
            last = last[np.lexsort((code[order[last]], columns.key[order[last]]))]
            kept[last[: most - (int(up_to[level - 1]) if level else 0)]] = True
        self._lower_bounds(columns.stratum[order[~kept]], columns.key[order[~kept]], end)
        order = order[kept]
        self._keep(order)

    def _lower_bounds(self, stratum: NDArray[np.int64], key: NDArray[np.uint64], rank: int) -> None:
        stratum, key = np.append(self.bounds.stratum, stratum), np.append(self.bounds.key, key)
        order = np.lexsort((key, stratum))
        strata, first = np.unique(stratum[order], return_index=True)
        self.bounds = Bounds(strata, key[order][first], rank)

    def _keep(self, rows: NDArray[np.integer[Any]]) -> None:
        """Leave these rows: those that lie behind the end of what is left move into the places of those that go."""
        stays = np.zeros(self._count, dtype=np.bool_)
        stays[rows] = True
        free, movers = np.flatnonzero(~stays[: len(rows)]), np.flatnonzero(stays[len(rows) :]) + len(rows)
        for start in range(0, len(free), _BLOCK):
            into, out_of = free[start : start + _BLOCK], movers[start : start + _BLOCK]
            for column in self._columns:
                column[into] = column[out_of]
        self._count = len(rows)


def _has_crowded_cell(rows: Sampled, per_group: int) -> bool:
    """Whether any group may have more pairs than that in a stratum. It is seldom so, and this is quickly seen."""
    cells = rows.stratum.astype(np.uint64)
    cells *= np.uint64(0x9E3779B97F4A7C15)
    cells ^= rows.group
    cells.sort()
    return bool((cells[per_group:] == cells[:-per_group]).any())


def _ranks(*columns: NDArray[np.generic]) -> NDArray[np.int32]:
    """Of sorted rows, each one's place among those that are equal to it, from 0."""
    count = len(columns[0])
    new = np.ones(count, dtype=np.bool_)
    if count:
        new[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    starts = np.flatnonzero(new)
    ranks = np.arange(count, dtype=np.int32)
    ranks -= np.repeat(starts.astype(np.int32), np.diff(np.append(starts, count)))
    return ranks
