"""Outliers: pairs whose features are so unlike all others that they are recorded and not trained on.

A node with a broken decoder or features in another unit sends vectors in which most numbers are far from anything seen. One
such pair can move the weights, and the units that they are trained in, further than thousands of good ones bring back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Array, Network
from sidecar.features.names import name_of
from sidecar.learning.drift.moving_mean import FeatureDrift
from sidecar.learning.tiled import Tiled

DEVIATIONS = 10.0
"""So many robust deviations from the median a feature is usual, and at least as far as the median is from 0."""
MOST_UNUSUAL = 0.25
"""A pair is an outlier if more than this share of its features are unusual. In the recorded pairs, measured on the first 256 of
any one clip, no pair of the others is one, with 80, 24 or 6 features; of vectors that are ten times too large, at least 95 %
are."""
STAYING, OF_PAIRS = 256, 1024
"""So many outliers among so many pairs are no outliers: other content has come to stay."""
MOST_OUTLIERS = STAYING / OF_PAIRS
_MEASURED_PAIRS = 2048
"""What is usual is measured on up to twice so many pairs."""
_NAMED = 3
_BLOCK = 8192
_TAIL = 0.1
_TAIL_DEVIATIONS = 1.2816
"""How many deviations from the median the first and the last tenth of a normal distribution begin."""
_NEARLY_CONSTANT = 1e-3


class Outliers:
    """What is usual in each feature, and what was left out because of it. At first, everything is usual.

    came: outliers that came so far; given_up: pairs that turned out to be outliers later; by_feature: (n_features,), in how
    many of all these each feature was unusual.
    """

    def __init__(self, n_features: int) -> None:
        self.usual: Array = np.array([[-np.inf], [np.inf]], dtype=np.float32) * np.ones(n_features, dtype=np.float32)
        self.came = self.given_up = 0
        self._is_given = False
        self.by_feature: NDArray[np.int64] = np.zeros(n_features, dtype=np.int64)
        self._most = int(MOST_UNUSUAL * n_features)
        self._newest: Array = np.zeros((STAYING, n_features), dtype=np.float32)
        self._arrivals = np.full(STAYING, -OF_PAIRS, dtype=np.int64)

    @property
    def usual(self) -> Array:
        """From where to where each feature is usual: (2, n_features) float32; replaced, not changed."""
        return self._usual

    @usual.setter
    def usual(self, usual: Array) -> None:
        self._usual, self._low, self._high = usual, Tiled(usual[0]), Tiled(usual[1])

    @property
    def count(self) -> int:
        """Pairs that were left out so far."""
        return self.came + self.given_up

    def in_words(self, names: Sequence[str]) -> str:
        """The features that were unusual most often, empty if none was; names: of all, empty if they have none."""
        places = [int(place) for place in (-self.by_feature).argsort(kind="stable") if self.by_feature[place]]
        named = ", ".join(name_of(names, place) for place in places[:_NAMED])
        others = len(places) - _NAMED
        return f"{named} and {others} other{'s' if others > 1 else ''}" if others > 0 else named

    def begin(self, base: Network) -> None:
        """Begin with a base model, and with none of its pairs.

        If it has a scaling of its features, this says from now on what is usual, and nothing is measured.
        """
        self._arrivals[:] = -OF_PAIRS  # those to come are counted anew
        scaling = FeatureDrift.of_network(base)
        self._is_given = scaling is not None
        if scaling is not None:
            self.usual = _around(scaling.mean, scaling.deviation)

    def among(self, features: Array) -> NDArray[np.bool_]:
        """Which pairs with these features (n, n_features) are outliers: (n,)."""
        found = np.zeros(len(features), dtype=bool)
        for start in range(0, len(features), _BLOCK):
            unusual = self._unusual(features[start : start + _BLOCK])
            if np.count_nonzero(unusual) > self._most:
                found[start : start + _BLOCK] = np.count_nonzero(unusual, axis=1) > self._most
        return found

    def leave_out(self, features: Array, trained: int) -> None:
        """Count outliers with these features (n, n_features); if there are so many of late, they are usual from now on.

        trained: how many pairs were trained on before.
        """
        self.by_feature += self._unusual(features).sum(axis=0)
        for row in features:
            place, arrival = self.came % STAYING, trained + self.came
            self._newest[place], self._arrivals[place] = row, arrival
            self.came += 1
            if arrival - int(self._arrivals[self.came % STAYING]) < OF_PAIRS:
                self.widen(self._newest)
                self._arrivals[:] = -OF_PAIRS

    def give_up(self, features: Array) -> NDArray[np.bool_]:
        """Count the outliers among pairs that had been taken, with these features (n, n_features).

        Returns which are none: (n,).
        """
        outliers = self.among(features)
        self.given_up += int(outliers.sum())
        self.by_feature += self._unusual(features[outliers]).sum(axis=0)
        return ~outliers

    def measure(self, features: Array) -> None:
        """Features (n, n_features), n ≥ 1, of which a tenth may be anything, tell what is usual, if no base model does."""
        if not self._is_given:
            self.usual = usual_range(features)

    def sort_out(self, features: Array) -> NDArray[np.bool_]:
        """Which of the first pairs, with these features (n, n_features), n ≥ 1, are no outliers (n,); counts the others.

        They tell what is usual. Where more than a quarter are outliers, these are usual, too.
        """
        self.measure(features[:: max(1, len(features) // _MEASURED_PAIRS)])
        outliers = self.among(features)
        if outliers.sum() > MOST_OUTLIERS * len(features):
            self.widen(features[outliers][:: max(1, int(outliers.sum()) // _MEASURED_PAIRS)])
        return self.give_up(features)

    def widen(self, features: Array) -> None:
        """What is usual among these features (n, n_features), n ≥ 1, is usual, too."""
        (low, high), (lowest, highest) = usual_range(features), self.usual
        self.usual = np.stack([np.minimum(low, lowest), np.maximum(high, highest)])

    def reorder(self, places: Sequence[int]) -> None:
        """Take the features from these places."""
        self.usual, self.by_feature, self._newest = self.usual[:, places], self.by_feature[places], self._newest[:, places]

    def state(self) -> dict[str, Array]:
        """Its numbers by name; `from_state` makes an equal object from them."""
        kept = min(self.came, STAYING)
        return {
            "usual": self.usual,
            "outliers": np.array([self.came, self.given_up, self._is_given]),
            "outliers_by_feature": self.by_feature.copy(),
            "newest_outliers": self._newest[:kept].copy(),
            "outlier_arrivals": self._arrivals[:kept].copy(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Outliers:
        """What this `state` came from. Raises KeyError if it is of something else."""
        outliers = cls(state["usual"].shape[1])
        outliers.usual = state["usual"]
        outliers.came, outliers.given_up, is_given = state["outliers"].tolist()
        outliers._is_given = bool(is_given)
        outliers.by_feature = state["outliers_by_feature"].copy()
        kept = len(state["newest_outliers"])
        outliers._newest[:kept], outliers._arrivals[:kept] = state["newest_outliers"], state["outlier_arrivals"]
        return outliers

    def _unusual(self, features: Array) -> NDArray[np.bool_]:
        unusual: NDArray[np.bool_] = features < self._low.like(features)
        unusual |= features > self._high.like(features)
        return unusual


def usual_range(features: Array) -> Array:
    """From where to where (2, n_features) each feature is usual, by features (n, n_features), n ≥ 1; a tenth may be anything.

    The deviation is the largest of three: the median absolute deviation and the distances of the first and of the last tenth
    from the median, each in units of a normal distribution's deviation (Hampel: The influence curve and its role in robust
    estimation, 1974). A feature that is nearly constant, such as a one-hot one, is usual as far as its largest value, or 1.
    """
    values = features.astype(np.float64)
    low, median, high = np.quantile(values, [_TAIL, 0.5, 1 - _TAIL], axis=0)
    deviation = 1.4826 * np.median(np.abs(values - median), axis=0)
    deviation = np.maximum(deviation, np.maximum(high - median, median - low) / _TAIL_DEVIATIONS)
    least = np.where(deviation > _NEARLY_CONSTANT * np.maximum(np.abs(median), 1.0), 0.0, np.abs(values).max(axis=0).clip(1.0))
    return _around(median, deviation, least)


def _around(centre: Array, deviation: Array, least: Array | float = 0.0) -> Array:
    reach = np.maximum(np.maximum(DEVIATIONS * deviation, np.abs(centre)), least)
    with np.errstate(over="ignore"):
        return np.stack([centre - reach, centre + reach]).astype(np.float32)
