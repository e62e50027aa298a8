"""A model on trial where it is used: the pairs that are observed while it is say whether it is worse than the one before."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

import numpy as np

from onnx_builder.network import Array, Float32
from sidecar.checkpoints.judging.rollback import MINIMUM_GROUPS, MINIMUM_PAIRS, Comparison, compare
from sidecar.consumer.serving import by_numpy
from sidecar.consumer.verified import VerifiedModel

_MOST_PAIRS = 2000


class Trial:
    """Collects pairs until there are enough for one decision: the newest 2,000 at most.

    model: that is on trial. before: that was in use until then.
    """

    def __init__(self, model: VerifiedModel, before: VerifiedModel) -> None:
        self.model, self.before = model, before
        self._pairs: deque[tuple[Float32, float, Hashable]] = deque(maxlen=_MOST_PAIRS)

    def add(self, rows: Float32, true: Array, group: str | None) -> None:
        """rows: (n, n_features), true: (n,). group: of all of them; None if each is of its own. From any thread."""
        self._pairs.extend(
            (row.copy(), float(score), object() if group is None else group) for row, score in zip(rows, true, strict=True)
        )

    def decide(self, threshold: float) -> Comparison | None:
        """How the models compare, None while there are not enough pairs. threshold: see `compare`."""
        if len(self._pairs) < MINIMUM_PAIRS:
            return None
        rows, true, groups = (list(each) for each in zip(*self._pairs.copy(), strict=True))
        places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
        if len(places) < MINIMUM_GROUPS:
            return None
        low, high = self.model.interface.score_range or (min(true), max(true))
        own, other = (by_numpy(model, np.stack(rows)) for model in (self.model, self.before))
        place = np.array([places[group] for group in groups])
        return compare(place, np.array(true), own, other, threshold, high - low)
