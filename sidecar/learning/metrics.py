"""How good predictions are: PLCC, SROCC and RMSE, as video-quality work reports them (ITU-T P.1401), and winsorized RMSE,
which a few wrong scores do not change."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Array

LARGEST_ERROR = 20
"""As a multiple of the median error, in winsorized RMSE. On right scores the median is a tenth to a half of the RMSE, and few
errors are so large."""


class Metrics(NamedTuple):
    """plcc and srocc are NaN if undefined: for fewer than two pairs, or if one side is constant. Both RMSE: in score points."""

    plcc: float
    srocc: float
    rmse: float
    winsorized_rmse: float
    pairs: int

    def as_json(self) -> dict[str, float | int]:
        """A dictionary without the values that are undefined."""
        return {name: value for name, value in self._asdict().items() if not math.isnan(value)}


def metrics(predicted: Array, true: Array) -> Metrics:
    """All figures for predictions (n,) and true scores (n,)."""
    errors = rmse(predicted, true), winsorized_rmse(predicted, true)
    return Metrics(plcc(predicted, true), srocc(predicted, true), *errors, len(true))


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


def mean_absolute_error(predicted: Array, true: Array) -> float:
    """Mean of the absolute differences of two vectors (n,), NaN if they are empty."""
    difference = np.asarray(predicted, dtype=np.float64) - np.asarray(true, dtype=np.float64)
    return float(np.abs(difference).mean()) if len(difference) else math.nan


def winsorized_rmse(predicted: Array, true: Array) -> float:
    """RMSE with each error counted as at most twenty times the median error, NaN if there is none.

    Metrical winsorizing (Huber, Robust Statistics, 1981): a wrong score counts for no more than a large error does, and the
    ratio of two models' figures does not depend on their unit. Errors of zero, which clips make in any number, are left out
    of the median. `benchmarks/gate.py` compares it with other robust figures.
    """
    error = np.abs(np.asarray(predicted, dtype=np.float64) - np.asarray(true, dtype=np.float64))
    wrong = error[error > 0]
    if len(wrong):
        error = np.minimum(error, LARGEST_ERROR * np.median(wrong))
    return rmse(error, np.zeros_like(error))


def _ranks(values: Array) -> NDArray[np.float64]:
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2)[group])
