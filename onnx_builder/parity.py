"""Does the exported graph compute what numpy computes?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import NetworkError


def parity(scores: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference between a model's scores under onnxruntime and those of a numpy forward pass.

    scores, expected: (n,), n ≥ 1, of the same rows, in score points. Raises NetworkError where one is not finite.
    """
    with np.errstate(invalid="ignore"):  # told below
        difference = np.abs(scores.astype(np.float64) - expected)
    if not np.isfinite(difference).all():
        raise NetworkError(f"parity: {int((~np.isfinite(difference)).sum())} of {len(scores)} scores are not finite")
    return float(difference.max())
