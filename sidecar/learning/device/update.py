"""A step's second half on a device: clip the gradient, leave the step out where that is not finite, step, and average."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import numpy as np

from onnx_builder.network import Array
from sidecar.learning.device.stacked import Stacked
from sidecar.learning.optim import Optimizer
from sidecar.learning.optim.polyak import PolyakAverage
from sidecar.learning.passes import Operation


class Update:
    """The calls of it. What they take is set by `prepare` of the optimizer and of the average.

    norm: 0-d, the gradient's norm before clipping. A model for which this is not below `limit` (0-d, infinity at first) keeps
    its parameters, moments and average; taken: 0-d, bool, whether the step was taken.
    """

    def __init__(
        self, parameters: Stacked, gradient: Stacked, max_norm: float, optimizer: Optimizer, average: PolyakAverage
    ) -> None:
        number = partial(np.zeros_like, cast(Array, gradient), shape=())
        norm, limit, factor, taken = number(), number(), number(), number(dtype=bool)
        limit[()] = np.inf
        self.norm, self.limit, self.taken = (cast(Stacked, each) for each in (norm, limit, taken))
        self._clipping: list[Operation] = [
            partial(gradient.dot, gradient, self.norm),
            partial(np.sqrt, norm, out=norm),
            partial(np.less, norm, limit, out=taken),
            partial(np.add, norm, 1e-6, out=factor),
            partial(np.divide, max_norm, factor, out=factor),
            partial(np.minimum, factor, 1, out=factor),
            partial(np.multiply, cast(Array, gradient), factor, out=cast(Array, gradient)),
        ]
        stepped = [parameters, *cast(tuple[Stacked, ...], optimizer.moments), cast(Stacked, average.parameters)]
        self._begin = partial(gradient.device.only_where, self.taken, stepped)
        self._end = partial(gradient.device.only_where, None, [])
        self._optimizer, self._average = optimizer, average

    def operations(self, between: Sequence[Operation] = ()) -> list[Operation]:
        """The calls in order. between: further ones, after the step and before the parameters are averaged."""
        stepping: list[Operation] = [self._begin, *self._optimizer.operations, *between, *self._average.operations, self._end]
        return [*self._clipping, *stepping]
