"""How far predictions are off on average, by the score that is predicted, and how sure that is.

Windows of one encode resemble each other, so groups are what is drawn at random, not pairs. The band is the mean ± its standard
error by the jackknife that leaves out one group at a time (Efron and Tibshirani: An introduction to the bootstrap, 1993,
chapter 11; MacKinnon, Nielsen and Webb: Fast and reliable jackknife and bootstrap methods for cluster-robust inference, 2023),
times Student's t with one degree of freedom less than there are groups.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Array
from sidecar.evaluation.residuals import Judged, bins

BAND = 0.9


def calibration(judged: Judged, low: float, high: float) -> list[dict[str, Any]]:
    """The mean residual of each tenth of the score range from low to high that predictions are in.

    `groups`: of how many groups the pairs are; `band`: the 90 % band, null where it is not known, as there is but one group.
    Pairs without a group count as one together.
    """
    group = np.zeros(len(judged.rows), np.int32) if judged.pairs.group is None else judged.pairs.group[judged.rows]
    found = []
    for start, stop, part in bins(judged.predicted, low, high):
        residuals, (_, place) = judged.residuals[part], np.unique(group[part], return_inverse=True)
        mean, n_groups = float(residuals.mean()), int(place.max()) + 1
        reach = half_width(residuals, place)
        band = None if reach is None else [mean - reach, mean + reach]
        found.append({"low": start, "high": stop, "pairs": len(part), "groups": n_groups, "mean": mean, "band": band})
    return found


def half_width(values: Array, group: NDArray[np.intp], share: float = BAND) -> float | None:
    """Half the width of the interval that holds the mean of values (n,) with a probability of `share`; None for one group.

    group: (n,), from 0 to the number of groups less one, each at least once.
    """
    pairs = np.bincount(group)
    if len(pairs) < 2:
        return None
    moved = np.bincount(group, weights=values - values.mean()) / (len(values) - pairs)  # of the mean, where a group is left out
    return student(share, len(pairs) - 1) * math.sqrt((1 - 1 / len(pairs)) * float(moved @ moved))


def student(share: float, freedom: int) -> float:
    """The t so that Student's distribution, of so many degrees of freedom, is within −t and t with a probability of `share`.

    t = √freedom · tan θ, where the density of θ is proportional to cos^(freedom − 1).
    """
    angle = np.linspace(0, min(math.pi / 2, 20 / math.sqrt(freedom)), 1 << 14)
    density = np.cos(angle) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(share, below / below[-1], angle)))
