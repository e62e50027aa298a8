"""Group lasso: features that do not help lose their weights, so that they cannot mislead on unseen content."""

from __future__ import annotations

import numpy as np

from onnx_builder.network import Array


class GroupLasso:
    """The proximal step of λ Σ_j ‖W_j‖₂, where W_j are all weights of feature j: W_j ← W_j · max(0, 1 − t / ‖W_j‖).

    weights: (n_units, n_features), those of the first layer, which it works on.

    Yuan, Lin: Model selection and estimation in regression with grouped variables (2006); on the inputs of a network:
    Scardapane, Comminiello, Hussain, Uncini: Group sparse regularization for deep neural networks (2017),
    arXiv:1607.00485.
    """

    def __init__(self, weights: Array) -> None:
        self._weights = weights
        self._squares = np.empty_like(weights)
        self._factors = np.empty_like(weights[0])

    def shrink(self, threshold: float) -> None:
        """Shorten each feature's weights by `threshold` (η λ), or to zero if they are shorter."""
        factors = self._factors
        np.multiply(self._weights, self._weights, out=self._squares)
        np.add.reduce(self._squares, axis=0, out=factors)
        np.sqrt(factors, out=factors)
        np.maximum(factors, np.finfo(factors.dtype).tiny, out=factors)
        np.divide(-threshold, factors, out=factors)
        np.add(factors, 1, out=factors)
        np.maximum(factors, 0, out=factors)
        np.multiply(self._weights, factors, out=self._weights)
