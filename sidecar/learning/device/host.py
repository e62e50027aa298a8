"""The device that numpy is: it runs each call at once. It is what the tests have, and what a GPU is compared with."""

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
    out, inputs = call.out.data, [aligned(each, call.out.ndim) for each in call.inputs]
    where = True if call.where is None else aligned(call.where, call.out.ndim)
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


def aligned(value: Any, ndim: int) -> Any:
    """What numpy broadcasts with an array of each model of so many dimensions: the axis of the models stays in front."""
    if not isinstance(value, Stacked):
        return value
    data = value.data
    return data.reshape(len(data), *[1] * (ndim - value.ndim), *value.shape) if value.ndim < ndim else data
