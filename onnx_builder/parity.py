"""Does the exported graph compute what numpy computes?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import NetworkError


def parity(scores: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference between a model's scores in onnxruntime and those of a numpy forward pass.

    scores, expected: (n,), n ≥ 1, for the same rows, in score points. Raises NetworkError if one is not finite.
    """
    with np.errstate(invalid="ignore"):  # reported below
        difference = np.abs(scores.astype(np.float64) - expected)
    if not np.isfinite(difference).all():
        raise NetworkError(f"parity: {int((~np.isfinite(difference)).sum())} of {len(scores)} scores are not finite")
    return float(difference.max())
