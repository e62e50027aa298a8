"""Scaling of features and scores, so that one learning rate works for numbers from 0.001 to 60 and scores up to 100."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Array, Float32

_BLOCK = 8192
_NOISE = 1e-6
"""A feature whose spread is below this share of its largest value varies only by float32 rounding."""


class Scaling(NamedTuple):
    """scaled feature = (feature − offset) · factor; scaled score = (score − score_offset) / score_scale.

    offset, factor: (n_features,) float32; varying: (n_features,) bool, False for features that are constant in the
    measured pairs. These keep a factor near one unit, so that they can be learned when they first move.
    """

    offset: Float32
    factor: Float32
    varying: NDArray[np.bool_]
    score_offset: float
    score_scale: float


def measure_scaling(features: Array, scores: Array, rows: NDArray[np.intp]) -> Scaling:
    """Mean and standard deviation of the chosen pairs, in float64 and in blocks.

    features: (n, n_features); scores: (n,); rows: indices of the pairs to measure, at least one. A constant score gets
    scale 1.
    """
    count = len(rows)
    blocks = [rows[start : start + _BLOCK] for start in range(0, count, _BLOCK)]
    total = np.zeros(features.shape[1])
    largest = np.zeros(features.shape[1])
    for block in blocks:
        values = features[block].astype(np.float64)
        total += values.sum(axis=0)
        np.maximum(largest, np.abs(values).max(axis=0), out=largest)
    mean = total / count
    squares = np.zeros(features.shape[1])
    for block in blocks:
        deviations = features[block] - mean
        squares += np.einsum("ij,ij->j", deviations, deviations)
    deviation = np.sqrt(squares / count)
    varying = (deviation > _NOISE * largest) & (deviation > np.finfo(np.float32).tiny)
    unit = np.where(varying, deviation, np.maximum(largest, 1.0))
    return Scaling(mean.astype(np.float32), (1 / unit).astype(np.float32), varying, *score_scaling(scores[rows]))


def score_scaling(scores: Array) -> tuple[float, float]:
    """Mean and standard deviation of scores (n,), n ≥ 1; 1 for the deviation of constant ones."""
    true = scores.astype(np.float64)
    scale = float(true.std())
    varies = scale > 1e-6 * max(1.0, float(np.abs(true).max()))
    return float(np.float32(true.mean())), float(np.float32(scale)) if varies else 1.0
