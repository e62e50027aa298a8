"""What a scatter plot of many pairs shows: how many there are where they overlap, and each one where they do not."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from onnx_builder.network import Array
from sidecar.learning.recipe import Rows

CROWDED = 5
"""So many pairs in a cell are shown as one shaded cell, whatever their marks would hide."""
_CELLS = 50


class Axis(NamedTuple):
    """Equal cells along an axis: the first begins at `low`, and each is `step` wide, 1, 2 or 5 times a power of ten."""

    low: float
    step: float
    cells: int

    @classmethod
    def over(cls, *values: Array) -> Axis:
        """At most fifty-one cells that hold all values, the last one its upper edge too; one of width 1 if all are the same."""
        low, high = min(float(each.min()) for each in values), max(float(each.max()) for each in values)
        if low == high:
            return cls(low - 0.5, 1.0, 1)
        least = (high - low) / _CELLS
        power = 10.0 ** math.floor(math.log10(least))
        step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least)
        first = math.floor(low / step)
        return cls(first * step, step, math.ceil(high / step) - first)

    def place(self, values: Array) -> Rows:
        """The cell of each value, (n,)."""
        return np.clip(np.floor((np.asarray(values, np.float64) - self.low) / self.step), 0, self.cells - 1).astype(np.intp)


class Scatter(NamedTuple):
    """cells: (place on x, place on y, pairs) of each crowded one. alone: the others, ascending; shown: some of them."""

    x: Axis
    y: Axis
    cells: list[tuple[int, int, int]]
    alone: Rows
    shown: Rows

    def as_json(self) -> dict[str, Any]:
        """Without the pairs: `x`, `y`, `cells`, and how many pairs are not shown."""
        cells = [[*each] for each in self.cells]
        return {"x": [*self.x], "y": [*self.y], "cells": cells, "left_out": len(self.alone) - len(self.shown)}


def scatter(x: Array, y: Array, axes: tuple[Axis, Axis], kept: Rows, most: int) -> Scatter:
    """Pairs (n,), by the cells they are in. Of those alone, about `most`, evenly spread, and all in `kept` are shown."""
    places = axes[0].place(x) * axes[1].cells + axes[1].place(y)
    used, index, counts = np.unique(places, return_inverse=True, return_counts=True)
    crowded = counts >= CROWDED
    at_x, at_y = np.divmod(used[crowded], axes[1].cells)
    cells = [*zip(at_x.tolist(), at_y.tolist(), counts[crowded].tolist(), strict=True)]
    alone = np.flatnonzero(~crowded[index])
    some = alone[:: max(1, math.ceil(len(alone) / most))]
    return Scatter(*axes, cells, alone, np.union1d(some, np.intersect1d(alone, kept)))
