"""The device that numpy is: it runs each call at once. What runs on a GPU runs here too, but for the kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from onnx_builder.network import Array
from sidecar.learning.device.recorder import Recorder
from sidecar.learning.device.stacked import Call, Stacked


class HostDevice:
    """Stacked arrays in numpy, for one or several models."""

    name = "numpy"

    def __init__(self, models: int = 1) -> None:
        self.models = models
        self._recorder = Recorder()
        self.only_where = self._recorder.only_where

    def array(self, host: Array) -> Stacked:
        return self.stack([host] * self.models)

    def stack(self, hosts: Sequence[Array]) -> Stacked:
        return Stacked(self, np.stack(hosts))

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Stacked:
        return Stacked(self, np.empty((self.models, *shape), dtype=dtype))

    def host(self, data: Any) -> Array:
        return np.array(data)

    def write(self, data: Any, values: Any) -> None:
        data[...] = values

    def call(self, call: Call) -> None:
        if not self._recorder.takes(call):
            _run(call)

    def program(self, operations: Sequence[Callable[[], Any]], results: Sequence[Stacked] | None = None) -> Callable[[], Any]:
        return partial(_run_all, self._recorder.record(operations))


def _run_all(calls: Sequence[Call]) -> None:
    with np.errstate(over="ignore", invalid="ignore"):  # as on a GPU: a step that is not finite is left out
        for call in calls:
            _run(call)


def _run(call: Call) -> None:
    out, ndim = call.out.data, call.out.ndim
    inputs = [each.aligned(ndim) if isinstance(each, Stacked) else each for each in call.inputs]
    where = True if call.where is None else call.where.aligned(ndim)
    match call.name:
        case "matmul":
            np.matmul(inputs[0], inputs[1], out=out)
        case "dot":
            out[...] = [a.dot(b) for a, b in zip(call.inputs[0].data, call.inputs[1].data, strict=True)]
        case "sum" | "mean":
            values = call.inputs[0].data
            axis = tuple(range(1, values.ndim)) if call.axis is None else call.axis
            result = getattr(np, call.name)(values, axis=axis, keepdims=call.axis is not None)
            out[...] = result.reshape(out.shape)
        case "take":
            source, places = (each.data for each in call.inputs)
            for each, rows, chosen in zip(out, source, places, strict=True):
                each[...] = rows[chosen]
        case "copyto":
            np.copyto(out, inputs[0], where=where)
        case name:
            getattr(np, name)(*inputs, out=out, where=where)
