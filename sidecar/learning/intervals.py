"""Prediction intervals: how far true scores are from predictions, by the residuals of pairs that were left out of training.

Split-conformal prediction with a width that depends on the predicted score (Lei, G'Sell, Rinaldo, Tibshirani, Wasserman:
Distribution-free predictive inference for regression, J. Am. Stat. Assoc. 113, 2018), on residuals of whole groups that were
left out, as in CV+ (Barber, Candès, Ramdas, Tibshirani: Predictive inference with the jackknife+, Ann. Stat. 49, 2021). Pairs
of one group resemble each other, so that what is exchangeable is groups, and all groups weigh the same. K of them can guarantee
nothing above K / (K + 1) for another one, and the guarantee costs intervals far too wide. Instead the level is calibrated
(Beran: Calibrating prediction regions, J. Am. Stat. Assoc. 85, 1990): it is raised until tables made without a group cover as
much of it as they should, on average over the groups. `benchmarks/intervals.py` measures what such tables cover.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Array

LEVELS = (0.5, 0.9)
"""Shares of true scores that intervals are made to cover."""
_BINS = 8
"""Into so many parts of equal weight predictions are divided by their score, to see where residuals are large."""
_SMALLEST = 0.1
"""Residuals are nowhere taken to be smaller than this share of their mean, however well some scores are predicted."""
_UNSEEN = "77% instead of 90%, and 36% instead of 50%"
"""What tables of held-out encodes covered of the pairs of sources that were left out, in `benchmarks/intervals.py`."""
_FOLDS = 20
"""The level is calibrated by leaving out each group, or each of so many lots of groups if there are more."""
_LEVEL_STEPS = 200
_MOST_PAIRS = 65536
"""A table is made of all pairs, or of at most so many that are evenly spread."""
_MOST_SCORES, _MOST_LEVELS, _MOST_CHARACTERS = 256, 16, 256
"""Limits of a table that is read."""

Kind = Literal["left-out", "held-out"]
ScoreRange = tuple[float, float] | None
_Doubles = NDArray[np.float64]


class IntervalError(ValueError):
    """An interval that there is not, or a table of intervals that cannot be used; the message says why."""


class Coverage(NamedTuple):
    """How many true scores lie in their intervals.

    covered: the share of all pairs; by_group: the mean of the groups' shares; lowest: the lowest of these; width: the mean, in
    score points; pairs: how many there are.
    """

    covered: float
    by_group: float
    lowest: float
    width: float
    pairs: int


@dataclass(frozen=True)
class Intervals:
    """A table of half-widths by predicted score.

    kind: `left-out` if each group was predicted by a model that was trained on the others, `held-out` if the model itself was
    not trained on them. by: the field of the pairs that says what a group is, such as `source`, or `encode`. groups: how many
    there were, with how many pairs. predicted: (k,) scores, ascending. half_widths: for each level, (k,) score points.
    """

    kind: Kind
    by: str
    groups: int
    pairs: int
    predicted: _Doubles
    half_widths: Mapping[float, _Doubles]

    def bounds(self, level: float, predicted: Array, score_range: ScoreRange = None) -> tuple[_Doubles, _Doubles]:
        """The lower and upper bounds (n,), (n,) for predicted scores (n,), in score points, clipped to the range of scores.

        Half-widths are interpolated between the scores of the table; below and above them they are those of its ends. Raises
        IntervalError for a level that the table does not have.
        """
        if level not in self.half_widths:
            raise IntervalError(f"interval={level!r}: expected one of {', '.join(f'{each:g}' for each in self.half_widths)}")
        scores = np.asarray(predicted, dtype=np.float64)
        half = np.interp(scores, self.predicted, self.half_widths[level])
        low, high = score_range or (-math.inf, math.inf)
        return np.clip(scores - half, low, high), np.clip(scores + half, low, high)

    def coverage(
        self, level: float, predicted: Array, true: Array, group: NDArray[Any], score_range: ScoreRange = None
    ) -> Coverage:
        """How many of the true scores (n,), n ≥ 1, lie in the intervals of their predictions. group: (n,), of each pair."""
        low, high = self.bounds(level, predicted, score_range)
        inside = (low <= true) & (true <= high)
        _, index, counts = np.unique(group, return_inverse=True, return_counts=True)
        shares = np.bincount(index, weights=inside) / counts
        return Coverage(
            float(inside.mean()), float(shares.mean()), float(shares.min()), float((high - low).mean()), len(inside)
        )

    def in_words(self) -> str:
        """What the table comes from, and what that is worth, for people."""
        pairs = f"{self.pairs:,} pairs of {self.groups:,}"
        if self.kind == "left-out":
            said = f"{pairs} groups by {self.by}, each predicted by a model that was trained on the others"
        else:
            said = f"{pairs} held-out {self.by}s; on unseen clips, such tables covered {_UNSEEN}"
        most = self.groups / (self.groups + 1)
        return f"{said}; so few can guarantee {most:.0%} at most" if most < max(self.half_widths) else said

    def as_json(self) -> dict[str, Any]:
        """As it stands in the JSON beside a model, in less than 2 KiB."""
        return {
            "kind": self.kind,
            "by": self.by,
            "groups": self.groups,
            "pairs": self.pairs,
            "predicted": self.predicted.tolist(),
            "half_widths": {f"{level:g}": widths.tolist() for level, widths in self.half_widths.items()},
        }

    @classmethod
    def from_json(cls, found: Any) -> Intervals:
        """The table that the JSON beside a model has under `intervals`. Raises IntervalError that names what is wrong in it."""
        if not isinstance(found, dict):
            raise IntervalError(f"intervals: expected a JSON object, got {type(found).__name__}")
        kind, by, widths = found.get("kind"), found.get("by"), found.get("half_widths")
        if kind not in ("left-out", "held-out"):
            raise IntervalError(f"intervals: kind {str(kind)[:64]!r}: expected 'left-out' or 'held-out'")
        if not isinstance(by, str) or len(by) > _MOST_CHARACTERS:
            raise IntervalError(f"intervals: by {str(by)[:64]!r}: expected a text of at most {_MOST_CHARACTERS} characters")
        groups, pairs = (_count(name, found.get(name)) for name in ("groups", "pairs"))
        predicted = _numbers("predicted", found.get("predicted"))
        if not 1 <= len(predicted) <= _MOST_SCORES or not (np.diff(predicted) > 0).all():
            raise IntervalError(f"intervals: predicted: expected 1 to {_MOST_SCORES} numbers, each above the one before")
        if not isinstance(widths, dict) or not 1 <= len(widths) <= _MOST_LEVELS:
            raise IntervalError(
                f"intervals: half_widths: expected an object with lists of numbers for 1 to {_MOST_LEVELS} levels"
            )
        table = {_level(name): _numbers(f"half_widths of {name[:64]}", each) for name, each in widths.items()}
        for level, each in table.items():
            if len(each) != len(predicted) or (each < 0).any():
                raise IntervalError(f"intervals: half_widths of {level:g}: expected {len(predicted)} numbers from 0")
        return cls(kind, by, groups, pairs, predicted, table)


def intervals_of(about: Mapping[str, Any]) -> Intervals | None:
    """The intervals of a model, given the JSON beside it; None if that has none. Raises IntervalError as `from_json`."""
    return Intervals.from_json(about["intervals"]) if "intervals" in about else None


def calibrate(predicted: Array, true: Array, group: NDArray[Any], kind: Kind, by: str) -> Intervals | None:
    """The table for predictions (n,) of pairs whose groups were left out, with their true scores (n,).

    group: (n,), whatever tells groups apart. None for fewer than two groups. The same pairs give the same table.
    """
    every = max(1, -(-len(true) // _MOST_PAIRS))
    scores = np.asarray(predicted[::every], dtype=np.float64)
    residuals = np.abs(np.asarray(true[::every], dtype=np.float64) - scores)
    _, index, counts = np.unique(group[::every], return_inverse=True, return_counts=True)
    groups = len(counts)
    if groups < 2:
        return None
    weights = 1 / counts[index]
    knots, sizes = _sizes(scores, residuals, weights)
    ratios = residuals / np.interp(scores, knots, sizes)
    levels = _calibrated(scores, residuals, weights, index % _FOLDS)
    half_widths = {
        level: _rounded(sizes * factor, 4) for level, factor in zip(LEVELS, _quantiles(ratios, weights, levels), strict=True)
    }
    return Intervals(kind, by, groups, len(scores), _rounded(knots, 6), half_widths)


def _sizes(scores: _Doubles, residuals: _Doubles, weights: _Doubles) -> tuple[_Doubles, _Doubles]:
    """The mean residual by predicted score: scores (k,), ascending, and the mean residual around each."""
    edges = np.unique(_quantiles(scores, weights, np.arange(1, _BINS) / _BINS))
    index = np.searchsorted(edges, scores, side="right")
    weight, score, residual = (np.bincount(index, weights=weights * each) for each in (np.ones_like(scores), scores, residuals))
    some = weight > 0
    smallest = _SMALLEST * residual.sum() / weight.sum() or 1.0  # all predictions are right: any size will do
    return score[some] / weight[some], np.maximum(residual[some] / weight[some], smallest)


def _calibrated(scores: _Doubles, residuals: _Doubles, weights: _Doubles, fold: NDArray[np.intp]) -> _Doubles:
    """For each of LEVELS the lowest level at which tables without a fold cover that share of it; 1 if none does."""
    grid = np.linspace(LEVELS, 1, _LEVEL_STEPS + 1, axis=1)
    covered = np.zeros_like(grid)
    for number in range(fold.max() + 1):
        rest, out = fold != number, fold == number
        ratios = residuals / np.interp(scores, *_sizes(scores[rest], residuals[rest], weights[rest]))
        reached = _quantiles(ratios[rest], weights[rest], grid.ravel()).reshape(grid.shape)
        order = np.argsort(ratios[out], kind="stable")
        share = np.cumsum([0.0, *weights[out][order]])
        covered += share[np.searchsorted(ratios[out][order], reached, side="right")]
    enough = covered >= (np.array(LEVELS) * weights.sum() * (1 - 1e-12))[:, None]
    enough[:, -1] = True
    return np.array([levels[first] for levels, first in zip(grid, enough.argmax(axis=1), strict=True)])


def _quantiles(values: _Doubles, weights: _Doubles, levels: _Doubles) -> _Doubles:
    """For each level the lowest of the values (n,) up to which that share of the weights lies."""
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weights[order])
    places = np.searchsorted(share, levels * share[-1] * (1 - 1e-12))
    return np.asarray(values[order][np.minimum(places, len(values) - 1)])


def _rounded(values: _Doubles, digits: int) -> _Doubles:
    return np.array([float(f"{value:.{digits}g}") for value in values])


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise IntervalError(f"intervals: {name} {str(value)[:64]}: expected a count from 1")
    return value


def _level(name: str) -> float:
    try:
        level = float(name)
    except ValueError:
        level = math.nan
    if not 0 < level < 1:
        raise IntervalError(f"intervals: half_widths of {name[:64]!r}: expected a level between 0 and 1")
    return level


def _numbers(name: str, values: Any) -> _Doubles:
    try:
        if not isinstance(values, list) or not {*map(type, values)} <= {int, float}:
            raise ValueError
        found = np.array(values, dtype=np.float64)
        if not np.isfinite(found).all():
            raise ValueError
    except (ValueError, OverflowError):
        raise IntervalError(f"intervals: {name}: expected a list of finite numbers") from None
    return found
