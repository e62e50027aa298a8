"""The error function, which GELU needs and numpy does not have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 7.1.26: absolute error at most 1.5e-7, to which
# float32 arithmetic adds its rounding.
_P = 0.3275911
_A = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_SATURATED = 10.0
_exact = np.vectorize(math.erf, otypes=[np.float64])


def erf(x: Array, out: Array | None = None, scratch: Array | None = None) -> Array:
    """The error function, elementwise.

    x: any shape. For float32 it is a polynomial with absolute error under 6e-7 that allocates nothing if `out` and
    `scratch` (both shaped like x, distinct from it and from each other) are given; float64 is exact and slow, for checks.
    """
    out = np.empty_like(x) if out is None else out
    if x.dtype == np.float64:
        out[...] = _exact(x)
        return out
    t = np.empty_like(x) if scratch is None else scratch
    np.abs(x, out=t)
    np.multiply(t, _P, out=t)
    np.add(t, 1, out=t)
    np.reciprocal(t, out=t)
    np.multiply(t, _A[0], out=out)
    for coefficient in _A[1:]:
        np.add(out, coefficient, out=out)
        np.multiply(out, t, out=out)
    np.minimum(x, _SATURATED, out=t)
    np.maximum(t, -_SATURATED, out=t)  # the square of this does not overflow
    np.multiply(t, t, out=t)
    np.negative(t, out=t)
    np.exp(t, out=t)
    np.multiply(out, t, out=out)
    np.subtract(1, out, out=out)
    np.copysign(out, x, out=out)
    return out
