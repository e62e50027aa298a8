"""Group lasso: features that do not help lose their weights, so that they cannot mislead on unseen content."""

from __future__ import annotations

from functools import partial

import numpy as np

from onnx_builder.network import Array


class GroupLasso:
    """The proximal step of λ Σ_j ‖W_j‖₂, where W_j are all weights of feature j: W_j ← W_j · max(0, 1 − t / ‖W_j‖).

    weights: (n_units, n_features), those of the first layer, which it works on. operations: the calls of a step; threshold:
    0-d, −t, which they take.

    Yuan, Lin: Model selection and estimation in regression with grouped variables (2006); on the inputs of a network:
    Scardapane, Comminiello, Hussain, Uncini: Group sparse regularization for deep neural networks (2017),
    arXiv:1607.00485.
    """

    def __init__(self, weights: Array) -> None:
        squares, factors = np.empty_like(weights), np.empty_like(weights[0])
        self.threshold: Array = np.zeros_like(factors, shape=())
        self.operations = [
            partial(np.multiply, weights, weights, out=squares),
            partial(np.add.reduce, squares, axis=0, out=factors),
            partial(np.sqrt, factors, out=factors),
            partial(np.maximum, factors, np.finfo(factors.dtype).tiny, out=factors),
            partial(np.divide, self.threshold, factors, out=factors),
            partial(np.add, factors, 1, out=factors),
            partial(np.maximum, factors, 0, out=factors),
            partial(np.multiply, weights, factors, out=weights),
        ]

    def shrink(self, threshold: float) -> None:
        """Shorten each feature's weights by `threshold` (η λ), or to zero if they are shorter."""
        self.threshold[()] = -threshold
        for operation in self.operations:
            operation()
