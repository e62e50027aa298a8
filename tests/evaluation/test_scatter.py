"""Which pairs a scatter plot shows one by one, and which as a shaded cell."""

from __future__ import annotations

import numpy as np
import pytest

from sidecar.evaluation.scatter import CROWDED, Axis, scatter

NOTHING = np.empty(0, dtype=np.intp)


@pytest.mark.parametrize(
    ("values", "axis"),
    [
        ([0, 100], (0, 2, 50)),
        ([3.3, 99.2], (2, 2, 49)),
        ([-2.7, 0.9], (-2.7, 0.1, 36)),
        ([5, 5], (4.5, 1, 1)),
        ([0, 1e-3], (0, 2e-5, 50)),
        ([1e6, 1e6 + 60], (1e6, 2, 30)),
    ],
)
def test_cells_are_round_and_hold_all_values(values, axis):
    found = Axis.over(np.array(values, np.float64))
    assert found == pytest.approx(axis)
    assert found.place(np.array(values)).tolist() == [0, found.cells - 1]


def test_every_pair_is_in_a_crowded_cell_or_alone():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(50, 5, 4000), rng.uniform(0, 100, 200)])
    y = x + rng.normal(size=len(x))
    axis = Axis.over(x, y)
    found = scatter(x, y, (axis, axis), NOTHING, most=10_000)
    assert found.shown.tolist() == found.alone.tolist()
    assert sum(pairs for _, _, pairs in found.cells) + len(found.alone) == len(x)
    assert 0 < len(found.alone) < 1000
    counts = np.zeros((axis.cells, axis.cells), dtype=int)
    np.add.at(counts, (axis.place(x), axis.place(y)), 1)
    assert {(i, j): pairs for i, j, pairs in found.cells} == {
        (i, j): counts[i, j] for i, j in np.argwhere(counts >= CROWDED).tolist()
    }


def test_of_many_that_are_alone_some_are_shown_and_those_that_must_be():
    x = np.repeat(np.arange(51.0), 51)
    y = np.tile(np.arange(51.0), 51)
    axis = Axis.over(x, y)
    found = scatter(x, y, (axis, axis), np.array([7, 11]), most=100)
    assert found.as_json()["left_out"] == len(found.alone) - len(found.shown) > 2000
    assert len(found.shown) <= 102
    assert {7, 11} <= set(found.shown.tolist())
