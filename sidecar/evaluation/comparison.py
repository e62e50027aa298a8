"""Whether one model is better than another: their RMSE on the same pairs, and how sure the difference is.

Windows of one encode resemble each other, so groups are drawn again, not pairs, and the same ones for all models: the paired
bootstrap (Efron and Tibshirani: An introduction to the bootstrap, 1993, chapters 8 and 13). Of few groups, intervals would be
too narrow, so their percentiles lie as far out as Student's t is wider than a normal distribution (Hesterberg: What teachers
should know about the bootstrap, 2015: expanded percentile intervals).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onnx_builder.network import Array
from sidecar.evaluation.calibration import student
from sidecar.evaluation.residuals import group_of, rows_by_group
from sidecar.pairs.recorded import RecordedPairs

RESAMPLES = 2000
_INTERVAL = 0.95
_SEED = 0
FEWEST_GROUPS = 5
"""Of fewer, there are too few different resamples for an interval."""


class Difference(NamedTuple):
    """How much a model's RMSE is above the first one's, in score points; below 0 it is better.

    interval: the 95 % interval; better_in: the share of resamples in which it is better. None of fewer than five groups.
    """

    rmse_difference: float
    interval: tuple[float, float] | None
    better_in: float | None

    @property
    def in_words(self) -> str:
        if self.interval is None:
            return f"not known, of fewer than {FEWEST_GROUPS} groups"
        low, high = self.interval
        return "better" if high < 0 else "worse" if low > 0 else "not shown to differ"


class Group(NamedTuple):
    """A group: its pairs, and the RMSE of each model on them."""

    name: str
    pairs: int
    rmse: tuple[float, ...]

    @property
    def apart(self) -> float:
        """How far the models are from the first one, at most."""
        return max(abs(each - self.rmse[0]) for each in self.rmse)


class Comparison(NamedTuple):
    """Models on the same pairs. differences: of each model but the first; groups: those that differ most come first."""

    differences: list[Difference]
    groups: list[Group]

    def as_json(self, models: Sequence[str]) -> dict[str, Any]:
        """models: the names of all, the first one's first."""
        first, *others = models
        found = [{"model": name, **each._asdict()} for name, each in zip(others, self.differences, strict=True)]
        return {"with": first, "groups": len(self.groups), "resamples": RESAMPLES, "models": found}


def names_of(models: Sequence[Path]) -> list[str]:
    """What to call models: by their files' names, or their paths where two have the same."""
    names = [each.name for each in models]
    return names if len({*names}) == len({*models}) else [*map(str, models)]


def compare(predicted: Sequence[Array], pairs: RecordedPairs) -> Comparison:
    """Compare the predictions (n,) of several models for the same pairs with those of the first. Deterministic.

    Pairs without a group count as one together.
    """
    squares = np.array([np.square(np.asarray(each, np.float64) - pairs.true_score) for each in predicted])
    parts = rows_by_group(pairs.group) or [np.arange(len(pairs))]
    sums = np.array([squares[:, part].sum(axis=1) for part in parts])
    counts = np.array([len(part) for part in parts])
    groups = [
        Group(group_of(pairs, part[0]), len(part), tuple(np.sqrt(total / len(part)).tolist()))
        for part, total in zip(parts, sums, strict=True)
    ]
    own = np.sqrt(sums.sum(axis=0) / counts.sum())
    drawn = _resampled(sums, counts) if len(parts) >= FEWEST_GROUPS else None
    differences = []
    for n in range(1, len(predicted)):
        interval = better = None
        if drawn is not None:
            apart = drawn[:, n] - drawn[:, 0]
            low, high = np.quantile(apart, _percentiles(len(parts))).tolist()
            interval, better = (low, high), float((apart < 0).mean())
        differences.append(Difference(float(own[n] - own[0]), interval, better))
    return Comparison(differences, sorted(groups, key=lambda group: -group.apart))


def _percentiles(n_groups: int) -> tuple[float, float]:
    reach = student(_INTERVAL, n_groups - 1) * math.sqrt(n_groups / (n_groups - 1))
    below = math.erfc(reach / math.sqrt(2)) / 2
    return below, 1 - below


def _resampled(sums: Array, counts: Array) -> Array:
    """The RMSE of each model in each resample of groups, (RESAMPLES, models).

    sums: of squared residuals, (groups, models); counts: of pairs, (groups,).
    """
    rng, found = np.random.default_rng(_SEED), np.empty((RESAMPLES, sums.shape[1]))
    for resample in found:
        drawn = rng.integers(len(counts), size=len(counts))
        resample[:] = np.sqrt(sums[drawn].sum(axis=0) / counts[drawn].sum())
    return found
