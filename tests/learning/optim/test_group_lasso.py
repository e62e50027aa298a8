"""The proximal step of the group lasso."""

from __future__ import annotations

import numpy as np

from sidecar.learning.optim.group_lasso import GroupLasso


def test_group_lasso_shortens_the_weights_of_each_feature():
    weights = np.array([[3.0, 0.1, 0.0], [4.0, 0.0, 0.0]])
    GroupLasso(weights).shrink(0.5)
    assert np.allclose(weights, [[2.7, 0, 0], [3.6, 0, 0]])
