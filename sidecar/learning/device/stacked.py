"""`Stacked`: an array of each of several models of one architecture, on a device; numpy's functions on it go to the device.

The passes and the optimizers are written for one model, as lists of numpy calls on buffers. numpy lets an array decide what a
function does with it (NEP 13 and NEP 18). So the same lists work on stacked arrays: a call either runs at once, or is added to
the program that the device is recording. What they see is the array of one model; the axis of the models is in `data` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import numpy as np

from onnx_builder.network import Array


@dataclass(frozen=True, eq=False)
class Call:
    """One call on arrays. name: an elementwise function as numpy calls it, or "matmul", "dot", "sum", "mean" or "take".

    inputs: stacked arrays, host arrays (the same for all models) and numbers. where: elements that are to be written, None for
    all. axis: of "sum" and "mean", counted from the end; None for the sum of all.
    """

    name: str
    inputs: tuple[Any, ...]
    out: Stacked
    where: Stacked | None = None
    axis: int | None = None


class Device(Protocol):
    """Where stacked arrays are, and their calls run. name: for the record; models: how many are stacked."""

    name: str
    models: int

    def array(self, host: Array) -> Stacked:
        """A copy of a host array, for each model the same."""

    def stack(self, hosts: Sequence[Array]) -> Stacked:
        """A copy of host arrays (one for each model) of one shape and type."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Stacked:
        """An array with any values."""

    def host(self, data: Any) -> Array:
        """A copy (models, …) on the host of an array's `data`, when all calls so far are done."""

    def call(self, call: Call) -> None:
        """Run a call, or add it to the program that is being recorded."""

    def write(self, data: Any, values: Any) -> None:
        """Write numbers or a host array into part of an array, after all calls so far."""

    def program(self, operations: Sequence[Callable[[], Any]], results: Sequence[Stacked] | None = None) -> Callable[[], Any]:
        """What runs the operations, which are called once, now, to record what they do.

        results: with these, the program need not leave any other array as the operations would, except what it reads.
        """

    def only_where(self, condition: Stacked | None, arrays: Sequence[Stacked]) -> None:
        """While recording: from now on write these arrays only in models where a condition (0-d, bool) holds; None: in all."""


class Stacked:
    """An array of each model. data: (models, *shape), of numpy or CuPy."""

    def __init__(self, device: Device, data: Any) -> None:
        self.device, self.data = device, data

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return cast(np.dtype[Any], self.data.dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=int))

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def T(self) -> Stacked:  # noqa: N802 (as numpy calls it)
        return Stacked(self.device, self.data.swapaxes(-1, -2) if self.ndim == 2 else self.data)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Stacked:
        return Stacked(self.device, self.data[_in_each(key)])

    def __setitem__(self, key: Any, values: Any) -> None:
        self.device.write(self.data[_in_each(key)], values.data if isinstance(values, Stacked) else values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if len(self.data) != 1:
            raise TypeError(f"an array of {len(self.data)} models is no single array; take them with `each`")
        return np.asarray(self.each()[0], dtype=dtype)

    def __float__(self) -> float:
        return float(np.asarray(self).reshape(()))

    def each(self) -> Array:
        """A copy on the host, (models, *shape)."""
        return self.device.host(self.data)

    def view(self, dtype: Any) -> Stacked:
        return Stacked(self.device, self.data.view(dtype))

    def reshape(self, *shape: Any) -> Stacked:
        shape = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        return Stacked(self.device, self.data.reshape(len(self.data), *shape))

    def aligned(self, ndim: int) -> Any:
        """The data, as it broadcasts with an array of each model of so many dimensions: the models' axis stays in front."""
        return self.data.reshape(len(self.data), *[1] * (ndim - self.ndim), *self.shape) if self.ndim < ndim else self.data

    def astype(self, dtype: Any) -> Stacked:
        """The array itself: all of a network's numbers have one type on a device."""
        assert dtype == self.dtype
        return self

    def copy(self) -> Stacked:
        out = self.device.empty(self.shape, self.dtype)
        _copyto(out, self)
        return out

    def fill(self, value: float) -> None:
        _copyto(self, value)

    def dot(self, other: Stacked, out: Stacked | None = None) -> Stacked:
        """The product of matrices, or of vectors."""
        name = "dot" if self.ndim == other.ndim == 1 else "matmul"
        out = self.device.empty((), self.dtype) if out is None else out
        self.device.call(Call(name, (self, other), out))
        return out

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Stacked:
        out: Stacked
        (out,) = options.pop("out")
        if method == "reduce" and ufunc is np.add:
            return _reduced("sum", inputs[0], out=out, **options)
        where = options.pop("where", True)
        assert (method, options) == ("__call__", {}), (ufunc, method, options)
        self.device.call(Call(ufunc.__name__, inputs, out, None if where is True else where))
        return out

    def __array_function__(self, function: Any, types: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
        return _FUNCTIONS[function](*args, **options)


def _in_each(key: Any) -> tuple[Any, ...]:
    return (slice(None), *(key if isinstance(key, tuple) else (key,)))


def _empty_like(like: Stacked, dtype: Any = None, shape: tuple[int, ...] | None = None) -> Stacked:
    return like.device.empty(like.shape if shape is None else shape, dtype or like.dtype)


def _filled(value: float, like: Stacked, dtype: Any = None, shape: tuple[int, ...] | None = None) -> Stacked:
    array = _empty_like(like, dtype, shape)
    array.device.write(array.data, value)
    return array


def _full_like(like: Stacked, value: float) -> Array:
    """One number on the host: what `np.full_like` makes here is read and never written, and kernels hold such a number."""
    return np.array(value, dtype=like.dtype)


def _copyto(to: Stacked, values: Any, where: Any = True) -> None:
    to.device.call(Call("copyto", (values,), to, None if where is True else where))


def _reduced(name: str, values: Stacked, axis: int | None = None, out: Stacked | None = None, **options: Any) -> Stacked:
    assert out is not None
    assert options.keys() <= {"keepdims"}
    place = None if axis is None or values.ndim == 1 else axis % values.ndim - values.ndim
    if place is not None and out.ndim < values.ndim:  # as if with keepdims
        shape = [*out.data.shape]
        shape.insert(len(shape) + 1 + place, 1)
        out = Stacked(out.device, out.data.reshape(shape))
    values.device.call(Call(name, (values,), out, axis=place))
    return out


def _take(values: Stacked, places: Stacked, axis: int, out: Stacked, mode: str) -> Stacked:
    assert (axis, mode) == (0, "clip")
    values.device.call(Call("take", (values, places), out))
    return out


def _broadcast_to(values: Stacked, shape: tuple[int, ...]) -> Stacked:
    """The array itself: a device broadcasts as it calculates."""
    return values


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.empty_like: _empty_like,
    np.full_like: _full_like,
    np.zeros_like: partial(_filled, 0),
    np.ones_like: partial(_filled, 1),
    np.broadcast_to: _broadcast_to,
    np.copyto: _copyto,
    np.putmask: lambda to, mask, values: _copyto(to, values, mask),
    np.sum: lambda values, **options: _reduced("sum", values, **options),
    np.mean: lambda values, **options: _reduced("mean", values, **options),
    np.take: _take,
}
