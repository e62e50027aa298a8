"""Feature drift: how far arriving features have moved from those that the head was made for.

If a node sends its features in another order, or one of them in another unit, this shows at once; slow drift of the content
shows as a slow rise.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnx_builder.network import Array, Dense, Elementwise, LayerNormalization, Network
from sidecar.learning.scaler import measure_scaling
from sidecar.learning.tiled import Tiled

HORIZON_PAIRS = 1000
_MOST_DEVIATIONS = 10.0
"""With this limit, one wild pair moves a mean by at most a hundredth of a deviation."""


class FeatureDrift:
    """The exponential moving mean of each standardised feature; it begins at 0, which means no drift.

    mean, deviation: (n_features,), those of the features that the head was made for.
    """

    def __init__(self, mean: Array, deviation: Array) -> None:
        self.mean, self.deviation = np.asarray(mean, dtype=np.float64), np.asarray(deviation, dtype=np.float64)
        self.moving: Array = np.zeros_like(self.mean)
        reach = _MOST_DEVIATIONS * self.deviation
        with np.errstate(over="ignore"):
            self._low, self._high = (Tiled(limit.astype(np.float32)) for limit in (self.mean - reach, self.mean + reach))
        self._shares: Array = np.empty(0)  # 1/n, n times

    @classmethod
    def of_pairs(cls, features: Array) -> FeatureDrift:
        """Drift away from these features (n, n_features), n ≥ 1; the unit of a constant feature is its own size."""
        scaling = measure_scaling(features, np.zeros(len(features)), np.arange(len(features)))
        return cls(scaling.offset, 1 / scaling.factor.astype(np.float64))

    @classmethod
    def of_network(cls, network: Network) -> FeatureDrift | None:
        """Drift away from what a network's own input scaling expects; None if it has none."""
        slope, shift = np.ones(network.n_features), np.zeros(network.n_features)
        scaled = False
        for step in network.steps:
            if isinstance(step, Dense | LayerNormalization) or not isinstance(step, Elementwise):
                break
            function = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[step.operator]
            scaled = True
            with np.errstate(all="ignore"):
                shift = function(shift, step.value)
                slope = function(slope, step.value) if step.operator in ("Mul", "Div") else slope
        if not scaled or not np.isfinite(slope).all() or not np.isfinite(shift).all() or not slope.all():
            return None
        return cls(-shift / slope, np.abs(1 / slope))

    def add(self, features: Array) -> None:
        """Add the features (n, n_features) of the next pairs."""
        near = np.maximum(features, self._low.like(features))
        np.minimum(near, self._high.like(near), out=near)
        if len(self._shares) != len(near):
            self._shares = np.full(len(near), 1 / len(near))
        mean = self._shares.dot(near.astype(np.float64))  # a third of the time that `near.mean` takes
        moved = (mean - self.mean) / self.deviation
        self.moving += (1 - (1 - 1 / HORIZON_PAIRS) ** len(features)) * (moved - self.moving)

    @property
    def largest(self) -> tuple[float, int]:
        """The largest moving mean of a feature, in standard deviations, and the place of that feature."""
        sizes = np.abs(self.moving)
        place = int(sizes.argmax())
        return float(sizes[place]), place

    def state(self) -> dict[str, Array]:
        """Its numbers by name; `from_state` makes an equal object from them."""
        return {"drift": np.stack([self.mean, self.deviation, self.moving])}

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> FeatureDrift:
        """The drift that this `state` came from."""
        mean, deviation, moving = state["drift"]
        drift = cls(mean, deviation)
        drift.moving = moving.copy()
        return drift
