"""Does the exported graph compute what numpy computes?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import NetworkError
from onnx_builder.runtime import Scorer


def parity(model: bytes, features: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference between a model's scores under onnxruntime and those of a numpy forward pass.

    model: serialized ONNX; features: (n, n_features), n ≥ 1; expected: (n,), in score points. Raises NetworkError where
    onnxruntime does not run the model, or either side gives a number that is not finite.
    """
    scores = Scorer(model).predict(features)
    with np.errstate(invalid="ignore"):  # told below
        difference = np.abs(scores.astype(np.float64) - expected)
    if not np.isfinite(difference).all():
        raise NetworkError(f"parity: {int((~np.isfinite(difference)).sum())} of {len(scores)} scores are not finite")
    return float(difference.max())
