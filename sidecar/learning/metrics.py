"""How good predictions are: PLCC, SROCC and RMSE, as video-quality work reports them (ITU-T P.1401)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Array


class Metrics(NamedTuple):
    """plcc and srocc are NaN if undefined: for fewer than two pairs, or if one side is constant. rmse: in score points."""

    plcc: float
    srocc: float
    rmse: float
    pairs: int

    def as_json(self) -> dict[str, float | int]:
        """A dictionary without the values that are undefined."""
        return {name: value for name, value in self._asdict().items() if not math.isnan(value)}


def metrics(predicted: Array, true: Array) -> Metrics:
    """All three figures for predictions (n,) and true scores (n,)."""
    return Metrics(plcc(predicted, true), srocc(predicted, true), rmse(predicted, true), len(true))


def plcc(predicted: Array, true: Array) -> float:
    """Pearson's linear correlation coefficient of two vectors (n,), NaN if undefined."""
    x = np.asarray(predicted, dtype=np.float64)
    y = np.asarray(true, dtype=np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / math.sqrt((x @ x) * (y @ y)), -1, 1))


def srocc(predicted: Array, true: Array) -> float:
    """Spearman's rank correlation coefficient of two vectors (n,): PLCC of ranks; equal values share their mean rank."""
    return plcc(_ranks(predicted), _ranks(true))


def rmse(predicted: Array, true: Array) -> float:
    """Root of the mean squared difference of two vectors (n,), NaN if they are empty."""
    difference = np.asarray(predicted, dtype=np.float64) - np.asarray(true, dtype=np.float64)
    return math.sqrt(float(difference @ difference) / len(difference)) if len(difference) else math.nan


def _ranks(values: Array) -> NDArray[np.float64]:
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2)[group])
