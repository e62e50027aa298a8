"""A network as tenants share it: the trunk, which gives the last dense layer its inputs, and what may be each tenant's own.

With several dense layers the trunk is all but the last one; with one it is the scaling of the features. What follows the last
layer, be it a sigmoid, is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from onnx_builder.network import Activation, Array, Clip, Dense, Elementwise, LayerNormalization, Step, apply
from sidecar.learning.head import output_range, scaling

_STEP = 1e-3
"""Of numerical derivatives."""


class Own(NamedTuple):
    """What heads add to the shared weights; any dimensions come before these.

    row: (n_hidden + 1,), to the last layer's weights and its bias. up, down: (n_units, rank) and (rank, n_inputs + 1), whose
    product is added to the hidden layer's.
    """

    row: Array
    up: Array
    down: Array

    def of(self, places: int | Array) -> Own:
        """The same of some of several heads."""
        if isinstance(places, int) or self.down.size:
            return Own(*(each.take(places, axis=0) for each in self))
        return self._replace(row=self.row.take(places, axis=0))  # there are no adapters


class Hidden(NamedTuple):
    """What the trunk makes of n rows of features.

    inputs: those of the hidden layer (n, n_inputs); units: what it makes of them (n, n_units); values: the last layer's inputs
    and 1 (n, n_hidden + 1). If there is no hidden layer, all are the last layer's inputs and 1.
    """

    inputs: Array
    units: Array
    values: Array


@dataclass(frozen=True, eq=False)
class Trunk:
    """A network in its parts.

    before: the steps up to the hidden layer, which adapters are on; between: those from there to the last dense layer, `last`;
    after: the others, without `limits`, what scores are clipped to in the end. hidden is None if there is one dense layer, or
    if what is between is not elementwise.
    """

    before: tuple[Step, ...]
    hidden: Dense | None
    between: tuple[Step, ...]
    last: Dense
    after: tuple[Step, ...]
    limits: tuple[float, float]

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Trunk:
        """The parts of the steps of a network with a dense layer."""
        steps = tuple(steps)
        dense = [(place, step) for place, step in enumerate(steps) if isinstance(step, Dense)]
        end, last = dense[-1]
        after, limits = steps[end + 1 :], (-np.inf, np.inf)
        if after and isinstance(final := after[-1], Clip):
            after, limits = after[:-1], (final.low, final.high)
        start, hidden = dense[-2] if len(dense) > 1 else (end, None)
        between = steps[start + 1 : end]
        if not all(isinstance(step, Activation | Clip | Elementwise) for step in between):
            start, hidden, between = end, None, ()
        return cls(steps[:start], hidden, between, last, after, limits)

    @property
    def row(self) -> Array:
        """The last layer's weights and bias (n_hidden + 1,)."""
        return np.concatenate((self.last.weight[0], self.last.bias))

    @cached_property
    def _scaling_and_rest(self) -> tuple[list[Callable[[Array], Any]], tuple[Step, ...]]:
        """The steps before any layer, merged, as functions that change rows in place; and the others up to the hidden layer."""
        steps = (*self.before, self.hidden or self.last)
        layers = ((place, step) for place, step in enumerate(steps) if isinstance(step, Dense | LayerNormalization))
        first, layer = next(layers)
        n_features = layer.weight.shape[1] if isinstance(layer, Dense) else len(layer.scale)
        return scaling(steps[:first], n_features), steps[first:-1]

    @cached_property
    def _affine(self) -> tuple[float, float] | None:
        """Offset and scale, if that is all that follows the last layer."""
        if not all(isinstance(step, Elementwise) for step in self.after):
            return None
        offset, scale, *_ = output_range(self.after)
        return offset, scale

    def nothing(self, rank: int, heads: int) -> Own:
        """Several heads that add nothing. rank: 0 where there is no hidden layer."""
        units, inputs = self.hidden.weight.shape if self.hidden else (0, 0)
        rank = rank if self.hidden else 0
        return Own(
            np.zeros((heads, self.last.weight.shape[1] + 1), dtype=np.float32),
            np.zeros((heads, units, rank), dtype=np.float32),
            np.zeros((heads, rank, inputs + 1), dtype=np.float32),
        )

    def see(self, features: Array) -> Hidden:
        """What it makes of raw features (n, n_features)."""
        inputs: Array = np.array(features, dtype=np.float32)
        scaling, rest = self._scaling_and_rest
        for operation in scaling:
            operation(inputs)
        for step in rest:
            inputs = apply(step, inputs)
        if self.hidden is None:
            inputs = _with_ones(inputs)
            return Hidden(inputs, inputs, inputs)
        units = apply(self.hidden, inputs)
        return Hidden(inputs, units, self.values(units))

    def values(self, units: Array) -> Array:
        """The last layer's inputs and 1 (n, n_hidden + 1) that come of the hidden layer's `units`."""
        for step in self.between:
            units = apply(step, units)
        return _with_ones(units)

    def adapted(self, hidden: Hidden, own: Own) -> Array:
        """The last layer's inputs and 1 (n, n_hidden + 1) with one head's adapter, or with that of each row's own head."""
        if not own.down.size:
            return hidden.values
        inner = np.einsum("...ri,...i->...r", own.down, _with_ones(hidden.inputs))
        return self.values(hidden.units + np.einsum("...ur,...r->...u", own.up, inner))

    def outputs(self, hidden: Hidden, own: Own | None = None) -> Array:
        """What the last layer makes of them (n,): with the shared weights, or with one head's, or each row's own head's."""
        shared = np.asarray(hidden.values @ self.row)
        return shared if own is None else shared + self.added(hidden, own)

    def added(self, hidden: Hidden, own: Own) -> Array:
        """What one head adds to the outputs of the shared weights (n,), or each row's own head."""
        added: Array = np.einsum("...i,...i->...", hidden.values, own.row)
        if own.down.size:
            added += np.einsum("...i,...i->...", self.adapted(hidden, own) - hidden.values, self.row + own.row)
        return added

    def scores(self, outputs: Array) -> Array:
        """The scores (n,) that come of the last layer's outputs (n,), without limits."""
        if self._affine:
            offset, scale = self._affine
            return np.asarray(outputs * scale + offset)
        values = outputs.reshape(-1, 1)
        for step in self.after:
            values = apply(step, values)
        return values.reshape(outputs.shape)

    def errors(self, predicted: Array, scores: Array) -> Array:
        """True scores less predicted ones, of one shape; 0 for one at a limit that the prediction is beyond."""
        low, high = self.limits
        errors = scores - predicted
        errors[np.minimum(np.maximum(predicted, low), high) == scores] = 0
        return errors

    def score_slopes(self, outputs: Array) -> Array:
        """The derivative (n,) of `scores` by the outputs."""
        if self._affine:
            return np.full(len(outputs), self._affine[1])
        return (self.scores(outputs + _STEP) - self.scores(outputs - _STEP)) / (2 * _STEP)

    def unit_slopes(self, units: Array) -> Array:
        """The derivative (n, n_units) of each of the `values` by the unit that it comes of."""
        units = units.astype(np.float64)
        return (self.values(units + _STEP) - self.values(units - _STEP))[:, :-1] / (2 * _STEP)

    def with_own(self, own: Own) -> tuple[Step, ...]:
        """The steps with what a head adds merged into their weights."""
        limits = (Clip(*self.limits),) if np.isfinite(self.limits).any() else ()
        hidden = (_plus(self.hidden, own.up @ own.down),) if self.hidden else ()
        return (*self.before, *hidden, *self.between, _plus(self.last, own.row[None]), *self.after, *limits)


def _with_ones(values: Array) -> Array:
    extended = np.empty((values.shape[0], values.shape[1] + 1), dtype=values.dtype)
    extended[:, :-1], extended[:, -1] = values, 1
    return extended


def _plus(dense: Dense, weights: Array) -> Dense:
    return Dense((dense.weight + weights[:, :-1]).astype(np.float32), (dense.bias + weights[:, -1]).astype(np.float32))
