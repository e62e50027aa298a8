"""A tenant's head in closed form, from its newest pairs and the trunk as it is."""

from __future__ import annotations

import numpy as np

from onnx_builder.network import Array
from sidecar.learning.conditioning import SCORE_UNITS
from sidecar.learning.tenants.trunk import Hidden, Own, Trunk

SHRINKAGE, BIAS_SHRINKAGE = 3.0, 0.01
"""How strongly the last layer's weights, and its bias, are held at the shared ones: as by so many pairs, in the units of
`learning/conditioning.py`."""
ADAPTER_SHRINKAGE = 30.0
"""The same of an adapter."""
_USUAL_ERRORS, _NEGLIGIBLE = 3.0, 0.01
"""An error counts as it is up to so many times the median one, and at least up to this share of the range of scores."""


def row_of(trunk: Trunk, own: Own, seen: Hidden, scores: Array, span: float, iterations: int = 2) -> Array:
    """The row of a head with an adapter as in `own`, from what the trunk makes of n pairs, and their scores (n,) in points.

    span: of the range of scores. It is found by ridge regression on the trunk's hidden values, shrunk towards the shared row,
    with Huber's weights; the Gauss-Newton method does the same where scores are not linear in these values. iterations: one is
    enough if the row of `own` is good already.

    Hoerl, Kennard: Ridge regression (1970).
    """
    values, row, unit = trunk.adapted(seen, own), own.row, span / SCORE_UNITS
    if not len(scores):
        return row
    if not np.isfinite(np.vdot(values, values)):
        values = values.astype(np.float64)  # in which no square of a float32 overflows
    shared, shrinkage = values @ trunk.row, np.diag(np.append(np.full(len(row) - 1, SHRINKAGE), BIAS_SHRINKAGE))
    for _ in range(iterations):
        added = values @ row.astype(values.dtype)
        outputs = shared + added
        errors, weights = _errors_and_weights(trunk, outputs, scores, unit)
        slopes = trunk.score_slopes(outputs) / unit
        weights = (weights * slopes).astype(values.dtype)
        gram = (values * (weights * slopes).astype(values.dtype)[:, None]).T @ values
        row = np.linalg.solve(gram + shrinkage, (weights * (errors + slopes * added)).astype(values.dtype) @ values)
    return row


def adapter_of(trunk: Trunk, own: Own, seen: Hidden, scores: Array, span: float) -> tuple[Array, Array]:
    """An adapter of the rank of `own`, up and down, beside its row; the rest as in `row_of`.

    It is found by ridge regression on all weights of the hidden layer, with the network taken as linear in them; the largest
    singular values of the result are kept. So no descent is needed for what LoRA learns.

    Hu et al.: LoRA (2021), arXiv:2106.09685. Jacot, Gabriel, Hongler: Neural tangent kernel (2018), arXiv:1806.07572.
    """
    unit, rank, row = span / SCORE_UNITS, len(own.down), (trunk.row + own.row).astype(np.float64)
    if not len(scores):
        return own.up, own.down
    outputs = seen.values @ row
    errors, weights = _errors_and_weights(trunk, outputs, scores, unit)
    slopes = trunk.unit_slopes(seen.units) * row[:-1] * (trunk.score_slopes(outputs) / unit)[:, None]
    root = np.sqrt(weights)
    inputs = np.column_stack([seen.inputs, np.ones(len(slopes))])
    kernel = (inputs @ inputs.T) * (slopes @ slopes.T) * np.outer(root, root)
    dual = root * np.linalg.solve(kernel + ADAPTER_SHRINKAGE * np.eye(len(kernel)), root * errors)
    up, sizes, down = np.linalg.svd((slopes * dual[:, None]).T @ inputs, full_matrices=False)
    return up[:, :rank] * sizes[:rank], down[:rank]


def _errors_and_weights(trunk: Trunk, outputs: Array, scores: Array, unit: float) -> tuple[Array, Array]:
    """Errors (n,), in units, and how much each pair counts: less if its error is large, nothing for a score at a limit that the
    prediction is beyond."""
    predicted = trunk.scores(outputs)
    errors = trunk.errors(predicted, scores) / unit
    size = np.abs(errors)
    middle = len(size) // 2
    usual = max(_USUAL_ERRORS * float(np.partition(size, middle)[middle]), _NEGLIGIBLE * SCORE_UNITS)
    beyond = (errors == 0) & (predicted != scores)
    return errors, np.where(beyond, 0.0, usual / np.maximum(size, usual))
