"""A head whose parameters are on a device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Array, Network, Step
from sidecar.learning.device.stacked import Device, Stacked
from sidecar.learning.head import Head
from sidecar.learning.passes import Pass, parameter_views


class DeviceHead(Head):
    """Like `Head`, but `parameters` and `gradient` are on a device, and so is what `loss_and_gradient` does.

    Rows are made on the host. What is not part of a step (predictions, the network) the host calculates with a copy.
    """

    def __init__(self, network: Network, device: Device) -> None:
        super().__init__(network)
        self._begin(Head(network), cast(Array, device.array(self.parameters)))

    def at(self, parameters: Array) -> Self:
        head = super().at(parameters)
        head._begin(self._on_host.at(self._on_host.parameters.copy()), parameters)
        return head

    def _begin(self, on_host: Head, parameters: Array) -> None:
        self._on_host, self.parameters, self.gradient = on_host, parameters, np.zeros_like(parameters)
        self._squares: Stacked = np.zeros_like(parameters, shape=())  # type: ignore[assignment]
        self._programs: dict[int, tuple[Pass, Callable[[], Any]]] = {}

    def bound_errors(self, limit: float) -> None:
        if self.limits is None:
            self._programs = {}
        super().bound_errors(limit)

    def steps(self, shared: bool = False) -> tuple[Step, ...]:
        return self._copied().steps(shared)

    def refresh(self) -> None:
        self._copied()

    def batch(self, n: int) -> Array:
        return self._on_host.batch(n)

    def loss_and_gradient(self, rows: Array) -> float:
        n = len(rows)
        if n not in self._programs:
            self._programs[n] = self._program(n)
        work, run = self._programs[n]
        work.batch[:] = rows
        run()
        return float(self._squares) / n

    def predict(self, features: Array) -> NDArray[np.float32]:
        return self._copied().predict(features)

    def predict_rows(self, rows: Array) -> Array:
        return self._copied().predict_rows(rows)

    def _copied(self) -> Head:
        self._on_host.parameters[:] = self.parameters
        return self._on_host

    def _program(self, n: int) -> tuple[Pass, Callable[[], Any]]:
        parameters, gradients = (parameter_views(self.body, vector) for vector in (self.parameters, self.gradient))
        work = Pass(self.body, self.n_features, parameters, gradients, self.bounds, self.limits, n)
        squares = partial(work.error.dot, work.error, cast(Array, self._squares))
        gradient = cast(Stacked, self.gradient)
        program = gradient.device.program([*work.forward_to_error, squares, *work.backward], [gradient, self._squares])
        return work, program
