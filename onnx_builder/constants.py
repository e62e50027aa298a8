"""The constants of an ONNX file, which may be anybody's: parsed within limits, read from beside the file, folded.

A file of a few bytes can ask for gigabytes (many empty messages, dimensions without data, a broadcast), so that everything is
bounded before it is made: the file, what is not weights in it, each tensor, and the sum of what folding makes.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from onnx_builder.network import Array, NetworkError

MAX_BYTES = 50_000_000
"""Largest file, and largest sum of its external data or of folded constants."""
MAX_STRUCTURE_BYTES = 500_000
"""What a file may hold besides the numbers of its tensors: parsed, a byte of it can take a hundred."""
MAX_NODES = 10_000
_MAX_RANK = 8

_TYPES: dict[int, int] = {
    TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.DOUBLE: 8, TensorProto.BFLOAT16: 2,
    TensorProto.INT32: 4, TensorProto.INT64: 8, TensorProto.BOOL: 1,
}  # fmt: skip
"""The element types that a regressor's constants may have, with their bytes."""

# Where in a file messages nest that matter here, by field number: what a message of this kind holds.
_NESTED = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph"},
    "tensor": {},
}
_NUMBERS = {"tensor": {4, 9, 10}}  # float_data, raw_data, double_data
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises NetworkError where it cannot be read, is no regular file or is larger than MAX_BYTES."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise NetworkError(f"{path}: {'is a directory, not a model' if path.is_dir() else 'not a regular file'}")
        if about.st_size > MAX_BYTES:
            raise NetworkError(f"{path}: {about.st_size / 1e6:.0f} MB; a model may have at most {MAX_BYTES / 1e6:.0f}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NetworkError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise NetworkError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def parse(data: bytes) -> onnx.ModelProto:
    """A serialized ONNX model. Raises NetworkError for other bytes, and for a file beyond the limits."""
    structure = _structure_bytes(data)
    if structure > MAX_STRUCTURE_BYTES:
        raise NetworkError(f"more than {MAX_STRUCTURE_BYTES} bytes besides the numbers of its tensors: not an MLP regressor")
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError) as error:
        raise NetworkError(f"not an ONNX model: {_first_line(error)}") from error
    if not model.graph.node and not model.graph.input:
        raise NetworkError("not an ONNX model: no graph in it")
    return model


class Constants:
    """The named constants of a graph: initializers, Constant nodes, and arithmetic on these alone, worked out when asked for.

    folder: where external data may lie, None where nothing is beside the model. `in` says whether a name is constant,
    `[name]` gives its array, in the type that the file has. Raises NetworkError for what cannot be read or worked out.
    """

    def __init__(self, graph: onnx.GraphProto, folder: Path | None) -> None:
        self._folder = folder
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._nodes: dict[str, onnx.NodeProto] = {}
        self._arrays: dict[str, Array] = {}
        self._bytes_left = MAX_BYTES
        for node in graph.node:
            if node.op_type == "Constant" or (node.op_type in _FOLDED and all(name in self for name in node.input if name)):
                for name in node.output[:1]:
                    self._nodes.setdefault(name, node)

    def __contains__(self, name: object) -> bool:
        return name in self._initializers or name in self._nodes

    def __getitem__(self, name: str) -> Array:
        waiting = [name]
        while waiting:  # not by recursion: a chain of nodes may be longer than Python's stack
            top = waiting[-1]
            inputs = [] if top in self._initializers else [n for n in self._nodes[top].input if n and n not in self._arrays]
            if top not in self._arrays and inputs:
                if len(waiting) > MAX_NODES:
                    raise NetworkError(f"constant {top!r} is made from itself")
                waiting += inputs
                continue
            if top not in self._arrays:
                array = self._read(self._initializers[top]) if top in self._initializers else self._fold(self._nodes[top])
                self._bytes_left -= array.nbytes
                self._arrays[top] = array
            waiting.pop()
        return self._arrays[name]

    def _read(self, tensor: onnx.TensorProto) -> Array:
        where = f"constant {tensor.name!r}"
        if tensor.data_type not in _TYPES:
            known = tensor.data_type in TensorProto.DataType.values()
            name = TensorProto.DataType.Name(tensor.data_type) if known else str(tensor.data_type)
            raise NetworkError(f"{where} is of type {name}; a regressor's are float32, float16, bfloat16 or float64")
        shape = list(tensor.dims)
        if len(shape) > _MAX_RANK or any(size < 0 for size in shape):
            raise NetworkError(f"{where} has shape {shape[: _MAX_RANK + 1]}")
        size = math.prod(shape) * _TYPES[tensor.data_type]
        self._require_room(where, size)
        if tensor.data_location == TensorProto.EXTERNAL:
            data = self._external(where, {entry.key: entry.value for entry in tensor.external_data}, size)
            tensor = TensorProto(data_type=tensor.data_type, dims=shape, raw_data=data)
        elif tensor.HasField("raw_data") and len(tensor.raw_data) != size:
            raise NetworkError(f"{where} of shape {shape} needs {size} bytes, the file has {len(tensor.raw_data)}")
        try:
            return np.asarray(numpy_helper.to_array(tensor))
        except (ValueError, TypeError, OverflowError) as error:
            raise NetworkError(f"{where} of shape {shape}: {_first_line(error)}") from error

    def _external(self, where: str, about: dict[str, str], size: int) -> bytes:
        location = about.get("location", "")
        where = f"{where} lies in the file {location!r}"
        if self._folder is None:
            raise NetworkError(f"{where}, and only the model's own bytes are at hand")
        try:
            offset, length = int(about.get("offset") or 0), int(about.get("length") or size)
            folder = self._folder.resolve()
            path = (folder / location).resolve()
            if not location or not path.is_relative_to(folder):
                raise NetworkError(f"{where}, which is not in the model's folder")
            if not path.is_file():
                raise NetworkError(f"{where}, which is not beside the model")
            if offset < 0 or length != size or offset + length > path.stat().st_size:
                raise NetworkError(
                    f"{where}, bytes {offset} to {offset + length}; {size} are needed, it has {path.stat().st_size}"
                )
            with path.open("rb") as stream:
                stream.seek(offset)
                return stream.read(length)
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, NetworkError):
                raise
            raise NetworkError(f"{where}: {getattr(error, 'strerror', None) or error}") from error

    def _fold(self, node: onnx.NodeProto) -> Array:
        where = f"node {node.name or node.output[0]!r} ({node.op_type})"
        attributes = attributes_of(node)
        if node.op_type == "Constant":
            return self._constant(where, attributes)
        arrays = [self._arrays[name] if name else None for name in node.input]
        try:
            return np.asarray(_FOLDED[node.op_type](self._room_for(where), arrays, attributes))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
            if isinstance(error, NetworkError):
                raise
            raise NetworkError(f"{where}: cannot be worked out: {_first_line(error)}") from error

    def _constant(self, where: str, attributes: dict[str, Any]) -> Array:
        for name, dtype in _CONSTANT_ATTRIBUTES.items():
            if name in attributes:
                return np.asarray(attributes[name], dtype=dtype)
        if isinstance(attributes.get("value"), TensorProto):
            return self._read(attributes["value"])
        raise NetworkError(f"{where}: has none of value, {', '.join(_CONSTANT_ATTRIBUTES)}")

    def _room_for(self, where: str) -> Callable[..., None]:
        """A check that arrays broadcast to something that there is room for."""

        def check(*arrays: Array) -> None:
            self._require_room(where, math.prod(np.broadcast_shapes(*(a.shape for a in arrays))) * 8)

        return check

    def _require_room(self, where: str, size: int) -> None:
        if size > self._bytes_left:
            raise NetworkError(f"{where} takes {size / 1e6:.0f} MB; constants may take {MAX_BYTES / 1e6:.0f} in all")


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name. Raises NetworkError for one without a value."""
    try:
        return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    except ValueError as error:
        raise NetworkError(f"node {node.name!r} ({node.op_type}): {_first_line(error)}") from error


_CONSTANT_ATTRIBUTES = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def _arithmetic(function: Callable[..., Any]) -> Callable[..., Any]:
    def fold(check: Callable[..., None], arrays: list[Array], attributes: dict[str, Any]) -> Array:
        check(*arrays)
        if any(array.dtype.kind in "iub" for array in arrays) and function in (np.divide, np.sqrt, np.power):
            raise NetworkError(f"{function.__name__} of whole numbers is not folded")
        with np.errstate(all="ignore"):
            return np.asarray(function(*arrays), dtype=arrays[0].dtype)

    return fold


def _cast(check: Callable[..., None], arrays: list[Array], attributes: dict[str, Any]) -> Array:
    check(arrays[0])
    if attributes.get("to") not in _TYPES:
        raise NetworkError(f"Cast to type {attributes.get('to')}")
    with np.errstate(all="ignore"):
        return arrays[0].astype(helper.tensor_dtype_to_np_dtype(attributes["to"]))


def axes_of(arrays: list[Array | None], attributes: dict[str, Any]) -> tuple[int, ...] | None:
    """The axes of Squeeze and Unsqueeze: an attribute below opset 13, an input from there."""
    if len(arrays) > 1 and arrays[1] is not None:
        return tuple(int(axis) for axis in arrays[1].reshape(-1))
    return tuple(attributes["axes"]) if "axes" in attributes else None


def unsqueezed(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """A shape with ones put in at the given axes of the result. Raises ValueError for axes that it does not have."""
    rank = len(shape) + len(axes)
    places = {axis % rank for axis in axes if -rank <= axis < rank}
    if len(places) < len(axes):
        raise ValueError(f"axes {axes} for a result of {rank} dimensions")
    rest = iter(shape)
    return tuple(1 if place in places else next(rest) for place in range(rank))


_FOLDED: dict[str, Callable[..., Any]] = {
    "Identity": lambda check, arrays, attributes: arrays[0],
    "Cast": _cast,
    "Add": _arithmetic(np.add),
    "Sub": _arithmetic(np.subtract),
    "Mul": _arithmetic(np.multiply),
    "Div": _arithmetic(np.divide),
    "Neg": _arithmetic(np.negative),
    "Sqrt": _arithmetic(np.sqrt),
    "Pow": _arithmetic(np.power),
    "Transpose": lambda check, arrays, attributes: arrays[0].transpose(attributes.get("perm")),
    "Reshape": lambda check, arrays, attributes: arrays[0].reshape([int(size) for size in arrays[1]]),
    "Squeeze": lambda check, arrays, attributes: arrays[0].squeeze(axes_of(arrays, attributes)),
    "Unsqueeze": lambda check, arrays, attributes: arrays[0].reshape(
        unsqueezed(arrays[0].shape, axes_of(arrays, attributes) or ())
    ),
}
"""What is worked out where all inputs are constants."""


def _structure_bytes(data: bytes) -> int:
    """Bytes of a serialized model that are not the numbers of a tensor, without parsing it; stops counting at the limit.

    Raises NetworkError for bytes that are no protocol buffer.
    """
    structure, waiting = 0, [("model", 0, len(data))]
    while waiting and structure <= MAX_STRUCTURE_BYTES:
        kind, position, end = waiting.pop()
        while position < end and structure <= MAX_STRUCTURE_BYTES:
            start = position
            tag, position = _varint(data, position, end)
            number, wire = tag >> 3, tag & 7
            length = 0
            if wire == _VARINT:
                _, position = _varint(data, position, end)
            elif wire == _BYTES:
                length, position = _varint(data, position, end)
                if number in _NESTED.get(kind, {}):
                    waiting.append((_NESTED[kind][number], position, position + length))
                    structure -= length
                elif number in _NUMBERS.get(kind, ()):
                    structure -= length
                position += length
            elif wire in (_FIXED64, _FIXED32):
                position += 8 if wire == _FIXED64 else 4
            else:
                raise NetworkError("not an ONNX model: not a protocol buffer")
            if position > end:
                raise NetworkError("not an ONNX model: it ends early, or is no protocol buffer")
            structure += position - start
    return structure


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise NetworkError("not an ONNX model: it ends early, or is no protocol buffer")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
