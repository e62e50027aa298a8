"""Two samples: whether the features of the latest groups are distributed as those of the first ones were.

For each feature, the two-sample Kolmogorov–Smirnov test (Smirnov, 1948) of the latest groups against a reference. Each group
counts once, with its first pair: the pairs of one encode resemble each other, and a test that takes them for independent ones
alarms on any stream. The limit is for all features and all looks together (Bonferroni's correction), from the asymptotic
distribution, which for so few groups is on the safe side. `benchmarks/drift.py` compares it with other detectors.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Array

REFERENCE_GROUPS = 128
LATEST_GROUPS = 64
LOOK_GROUPS, LOOK_PAIRS = 16, 512
"""A look comes after so many new groups, and so many pairs."""
FALSE_ALARMS = 1e-5
"""The chance of one at any look, if the groups come from one distribution in any order."""
STAYED_GROUPS = 512
"""Groups after which what came has come to stay: the latest ones are the reference then."""
_MOST_KNOWN = 256
_STEP = 8
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def distances(reference: Array, latest: Array) -> Array:
    """The Kolmogorov–Smirnov statistic (n_features,) of two samples (m, n_features) and (n, n_features), the first one sorted.

    It is the largest difference between the shares of both that are at most x, for any x.
    """
    m, n = len(reference), len(latest)
    values = np.sort(latest, axis=0).T
    below, up_to = np.empty(values.shape), np.empty(values.shape)  # of the reference
    for feature, (column, sorted_values) in enumerate(zip(np.ascontiguousarray(reference.T), values, strict=True)):
        below[feature] = column.searchsorted(sorted_values, "left")
        up_to[feature] = column.searchsorted(sorted_values, "right")
    share = np.arange(1, n + 1) / n
    return np.asarray(np.maximum((share - up_to / m).max(axis=1), (below / m - share + 1 / n).max(axis=1)))


def limit(n_features: int) -> float:
    """What the statistic of no feature is above, except by chance once in 1/FALSE_ALARMS looks."""
    return math.sqrt(math.log(2 * n_features / FALSE_ALARMS) / 2 * (1 / REFERENCE_GROUPS + 1 / LATEST_GROUPS))


def over_limit(reference: Array, latest: Array) -> NDArray[np.bool_]:
    """Whether the distance of each feature is over the limit (n_features,), of samples as for `distances`, at most 255 latest.

    Most features are settled in a fraction of the time that their distance takes: both shares are compared at every eighth
    value of the reference. Between two of these its share rises by at most 8/m, and so the distance is at most larger by that.
    """
    m, most = len(reference), limit(reference.shape[1])
    values = reference[_STEP - 1 :: _STEP]
    up_to = (latest[:, np.newaxis] <= values).view(np.uint8).sum(axis=0, dtype=np.uint8)
    above = up_to / len(latest) - np.arange(_STEP, m + 1, _STEP)[:, np.newaxis] / m
    next_is_larger = reference[_STEP::_STEP] > values[:-1]  # else more of the reference are at most this value
    over = np.asarray((-above > most).any(axis=0) | ((above[:-1] > most) & next_is_larger).any(axis=0))
    unsettled = np.flatnonzero(~over & (np.abs(above).max(axis=0) > most - _STEP / m)).tolist()
    if unsettled:
        over[unsettled] = distances(reference[:, unsettled], latest[:, unsettled]) > most
    return over


@dataclass(frozen=True)
class Comparison:
    """What the last look has seen. reference, latest: (groups, n_features), never written to again; in the reference, the
    values of each feature are sorted.

    since: (n_features,), the pairs that had been seen when that feature was first over the limit, -1 where it is not.
    """

    since: Array
    reference: Array
    latest: Array

    @cached_property
    def distance(self) -> Array:
        """(n_features,), calculated when it is first asked for."""
        return distances(self.reference, self.latest)

    @property
    def limit(self) -> float:
        """Above which the distance of a feature is told."""
        return limit(len(self.since))

    @property
    def over(self) -> list[int]:
        """The features over the limit, the farthest first."""
        order = np.argsort(-self.distance, kind="stable")
        return [int(place) for place in order if self.since[place] >= 0]

    def quantiles(self) -> tuple[Array, Array]:
        """QUANTILES of the reference and of the latest groups, both (n_features, 5)."""
        reference, latest = (np.quantile(part, QUANTILES, axis=0).T for part in (self.reference, self.latest))
        return np.asarray(reference), np.asarray(latest)


class TwoSamples:
    """Takes pairs in their order. comparison: what the last look has seen, None until there are enough groups."""

    def __init__(self, n_features: int) -> None:
        self.comparison: Comparison | None = None
        self._reference = np.empty((REFERENCE_GROUPS, n_features), dtype=np.float32)
        self._recent = np.empty_like(self._reference)  # a ring
        self._since = np.full(n_features, -1, dtype=np.int64)
        self._known = OrderedDict[float, None]()  # keys of the latest groups, the newest last
        self._last = math.nan
        self.pairs = self.groups = 0
        self._looked = 0, 0  # pairs and groups at the last look
        self._over_from = -1  # groups at the look since which some feature has been over the limit at each

    def add(self, features: Array, keys: Sequence[float]) -> None:
        """Take pairs (n, n_features); keys: (n,), by which their groups are told apart, none below 0."""
        before, new = self.pairs, self._first_of_groups(keys)
        while new:
            pairs, groups = self._looked
            due = max(bisect_left(new, pairs + LOOK_PAIRS - before - 1) + 1, groups + LOOK_GROUPS - self.groups)
            self._take(features[new[:due]])
            if due <= len(new):
                self.pairs = before + new[due - 1] + 1
                self._look()
            new = new[due:]
        self.pairs = before + len(keys)

    def reorder(self, places: Sequence[int]) -> None:
        """Take the features in another order from now on: `places` is where each was."""
        self._reference, self._recent, self._since = self._reference[:, places], self._recent[:, places], self._since[places]
        if (seen := self.comparison) is not None:
            self.comparison = Comparison(self._since.copy(), self._reference, seen.latest[:, places])

    def _first_of_groups(self, keys: Sequence[float]) -> list[int]:
        """The places of the first pairs of groups that are new, in order."""
        new, known, last = [], self._known, self._last
        for place, key in enumerate(keys):
            if key != last and key not in known:
                new.append(place)
                known[key] = None
                if len(known) > _MOST_KNOWN:
                    known.popitem(last=False)
            last = key
        self._last = last
        return new

    def _take(self, rows: Array) -> None:
        """Take the first pairs of groups, (n, n_features)."""
        room = max(0, REFERENCE_GROUPS - self.groups)
        if room:
            self._reference[self.groups : REFERENCE_GROUPS][: len(rows)] = rows[:room]
            if len(rows) >= room:
                self._reference.sort(axis=0)
        start, self.groups = self.groups + room, self.groups + len(rows)
        if start < self.groups:
            self._recent[np.arange(start, self.groups) % REFERENCE_GROUPS] = rows[room:]

    def _look(self) -> None:
        self._looked = self.pairs, self.groups
        if self.groups < REFERENCE_GROUPS + LATEST_GROUPS:
            return
        latest = self._latest()
        over = over_limit(self._reference, latest)
        self._since[~over] = -1
        self._since[over & (self._since < 0)] = self.pairs
        self.comparison = Comparison(self._since.copy(), self._reference, latest)
        if not over.any():
            self._over_from = -1
        elif self._over_from < 0:
            self._over_from = self.groups
        elif self.groups - self._over_from >= STAYED_GROUPS:
            self._reference, self._over_from = np.sort(self._recent, axis=0), -1

    def _latest(self) -> Array:
        return self._recent[np.arange(self.groups - LATEST_GROUPS, self.groups) % REFERENCE_GROUPS]

    def state(self) -> dict[str, Array]:
        """Its numbers by name, as copies; `from_state` makes an equal object from them."""
        counts = [self.pairs, self.groups, *self._looked, self._over_from]
        filled = min(self.groups, REFERENCE_GROUPS), min(max(self.groups - REFERENCE_GROUPS, 0), REFERENCE_GROUPS)
        seen = self.comparison
        return {
            "samples_compared": seen.latest if seen else self._reference[:0],
            "samples_reference": self._reference[: filled[0]].copy(),
            "samples_recent": self._recent[: filled[1]].copy(),
            "samples_since": self._since.copy(),
            "samples_keys": np.array([*self._known, self._last]),
            "samples_counts": np.array(counts, dtype=np.int64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> TwoSamples:
        """The object that this `state` came from. Raises KeyError or ValueError for another one."""
        reference, recent = state["samples_reference"], state["samples_recent"]
        made = cls(reference.shape[1])
        made._reference[: len(reference)], made._recent[: len(recent)] = reference, recent
        made._since[:] = state["samples_since"]
        *keys, made._last = state["samples_keys"].tolist()
        made._known = OrderedDict.fromkeys(keys)
        made.pairs, made.groups, *looked, made._over_from = state["samples_counts"].tolist()
        made._looked = looked[0], looked[1]
        if len(compared := state.get("samples_compared", made._reference[:0])):
            made.comparison = Comparison(made._since.copy(), made._reference, compared)
        return made
