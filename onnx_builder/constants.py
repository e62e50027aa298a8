"""The constants of an ONNX file of unknown origin: parsed within limits, read from files beside it, folded.

A file of a few bytes can ask for gigabytes (many empty messages, dimensions without data, a broadcast). So everything is
bounded before it is made: the file, what is not weights in it, each tensor, and the sum of what folding makes.
"""

from __future__ import annotations

import functools
import math
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from onnx_builder.network import Array, NetworkError

MAX_BYTES = 50_000_000
"""Largest file, and largest sum of its constants, including external data and folded ones, as float32 or wider."""
MAX_STRUCTURE_BYTES = 500_000
"""What a file may hold besides the numbers of its tensors: each byte of it can take a hundred once it is parsed."""
MAX_NODES = 10_000
MAX_RANK = 8

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_TYPES: dict[int, int] = {
    TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.DOUBLE: 8, TensorProto.BFLOAT16: 2,
    TensorProto.INT32: 4, TensorProto.INT64: 8, TensorProto.BOOL: 1,
}  # fmt: skip
"""The element types that a regressor's constants may have, with their bytes."""

# Where the messages that matter here are nested in a file: what each kind of message holds, by field number.
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
    """A file's content. Raises NetworkError if it cannot be read, is not a regular file or is larger than MAX_BYTES."""
    try:
        about = path.stat()
        if stat.S_ISREG(about.st_mode) and about.st_size <= MAX_BYTES:
            return path.read_bytes()
    except FileNotFoundError as error:
        raise NetworkError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise NetworkError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISREG(about.st_mode):
        raise NetworkError(f"{path}: {_size_refused(about.st_size)}")
    raise NetworkError(f"{path}: {'is a directory, not a model' if stat.S_ISDIR(about.st_mode) else 'not a regular file'}")


def parse(data: bytes) -> onnx.ModelProto:
    """A parsed ONNX model. Raises NetworkError for other bytes, and for a file beyond the limits."""
    if len(data) > MAX_BYTES:
        raise NetworkError(_size_refused(len(data)))
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
    """The named constants of a graph: initializers, Constant nodes, and arithmetic on these alone, evaluated on demand.

    opset: that of the graph; folder: where external data may be, None if there is no such place. `in` says whether a name is
    constant, `[name]` gives its array, in the type that the file has. Raises NetworkError for what cannot be read or evaluated.
    """

    def __init__(self, graph: onnx.GraphProto, opset: int, folder: Path | None) -> None:
        self._opset, self._folder = opset, folder
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._nodes: dict[str, onnx.NodeProto] = {}
        self._arrays: dict[str, Array] = {}
        self._bytes_left = MAX_BYTES
        for node in graph.node:  # nodes are in the order of use, so no constant is made from itself
            inputs = [name for name in node.input if name]
            folded = operator_of(node) in _FOLDED and inputs and all(name in self for name in inputs)
            if folded or (operator_of(node) == "Constant" and not inputs):
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
                waiting += inputs
                continue
            if top not in self._arrays:
                array = self._read(self._initializers[top]) if top in self._initializers else self._fold(self._nodes[top])
                self._bytes_left -= _bytes_of(array.shape, array.dtype.itemsize)
                self._arrays[top] = array
            waiting.pop()
        return self._arrays[name]

    def _read(self, tensor: onnx.TensorProto) -> Array:
        where = f"constant {tensor.name!r}"
        if tensor.data_type not in _TYPES:
            raise NetworkError(
                f"{where} is of type {type_name(tensor.data_type)}; a regressor's are float32, float16, bfloat16 or float64"
            )
        shape = list(tensor.dims)
        if len(shape) > MAX_RANK or any(size < 0 for size in shape):
            raise NetworkError(f"{where} has shape {shape[: MAX_RANK + 1]}")
        where = f"{where} of shape {shape}"
        self._require_room(where, _bytes_of(shape, _TYPES[tensor.data_type]))
        size = math.prod(shape) * _TYPES[tensor.data_type]
        if tensor.data_location == TensorProto.EXTERNAL:
            data = self._external(where, {entry.key: entry.value for entry in tensor.external_data}, size)
            tensor = TensorProto(data_type=tensor.data_type, dims=shape, raw_data=data)
        elif tensor.HasField("raw_data") and len(tensor.raw_data) != size:
            raise NetworkError(f"{where} needs {size} bytes, but the file has {len(tensor.raw_data)}")
        try:
            return _values(tensor).reshape(shape)
        except (ValueError, TypeError, OverflowError) as error:
            raise NetworkError(f"{where}: {_first_line(error)}") from error

    def _external(self, where: str, about: dict[str, str], size: int) -> bytes:
        location = about.get("location", "")
        where = f"{where} is in the file {location!r}"
        if self._folder is None:
            raise NetworkError(f"{where}, but only the model's own bytes were given")
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
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            if isinstance(error, NetworkError):
                raise
            raise NetworkError(f"{where}: {getattr(error, 'strerror', None) or error}") from error

    def _fold(self, node: onnx.NodeProto) -> Array:
        attributes = attributes_of(node, self._opset)
        try:
            if node.op_type == "Constant":
                return self._constant(attributes)
            arrays = [self._arrays[name] if name else None for name in node.input]
            return np.asarray(_FOLDED[node.op_type](self._require_room_for, arrays, attributes))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
            raise NetworkError(f"{described(node)}: cannot be evaluated: {_first_line(error)}") from error

    def _constant(self, attributes: dict[str, Any]) -> Array:
        for name, dtype in _CONSTANT_ATTRIBUTES.items():
            if name in attributes:
                return np.asarray(attributes[name], dtype=dtype)
        if "value" in attributes:
            return self._read(attributes["value"])
        raise NetworkError(f"has none of value, {', '.join(_CONSTANT_ATTRIBUTES)}")

    def _require_room_for(self, *arrays: Array) -> None:
        """Raises NetworkError if there is no room for what arrays broadcast to."""
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
        self._require_room("it", _bytes_of(shape, max(array.dtype.itemsize for array in arrays)))

    def _require_room(self, where: str, size: int) -> None:
        if size > self._bytes_left:
            raise NetworkError(f"{where} takes {size / 1e6:.0f} MB; constants may take {MAX_BYTES / 1e6:.0f} in all")


def operator_of(node: onnx.NodeProto) -> str:
    """A node's operator, with its domain if that is not ONNX's own."""
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def described(node: onnx.NodeProto) -> str:
    """A node in an error message: its name, or that of its output, and its operator."""
    return f"node {node.name or (node.output[0] if node.output else '')!r} ({operator_of(node)})"


def type_name(data_type: int) -> str:
    """The name of an element type, or its number if it has none."""
    known = data_type in TensorProto.DataType.values()
    return TensorProto.DataType.Name(data_type) if known else str(data_type)


def attributes_of(node: onnx.NodeProto, opset: int) -> dict[str, Any]:
    """A node's attributes by name, each of the type that its operator declares.

    Raises NetworkError if the opset does not have the operator, or the operator not these attributes or this many inputs.
    """
    schema = _schema(node.op_type, opset)
    if schema is None:
        raise NetworkError(f"{described(node)}: opset {opset} has no such operator")
    least, most = schema.min_input, schema.max_input
    if not least <= len(node.input) <= most:
        raise NetworkError(f"{described(node)}: has {len(node.input)} inputs; expected {least} to {most}")
    values = {}
    for attribute in node.attribute:
        declared: Any = schema.attributes.get(attribute.name)
        if declared is None:
            raise NetworkError(f"{described(node)}: has no attribute {attribute.name!r} in opset {opset}")
        if attribute.type != declared.type.value or attribute.ref_attr_name:
            raise NetworkError(f"{described(node)}: attribute {attribute.name!r} has another type than {declared.type.name}")
        values[attribute.name] = helper.get_attribute_value(attribute)
    return values


@functools.cache
def _schema(operator: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(operator, opset)
    except onnx.defs.SchemaError:
        return None


_CONSTANT_ATTRIBUTES = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def _bytes_of(shape: Sequence[int], item_size: int) -> int:
    """The bytes that a constant counts as; half precision counts as float32, which it becomes."""
    return math.prod(shape) * max(item_size, 4)


def _values(tensor: onnx.TensorProto) -> Array:
    """The numbers of a tensor. Those in a field are taken one by one, since a list would need 32 bytes for each."""
    if not tensor.HasField("raw_data") and tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE):
        numbers = tensor.float_data if tensor.data_type == TensorProto.FLOAT else tensor.double_data
        return np.fromiter(numbers, dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type), count=len(numbers))
    return np.asarray(numpy_helper.to_array(tensor))


def _arithmetic(function: Callable[..., Any]) -> Callable[..., Any]:
    def fold(require_room: Callable[..., None], arrays: list[Array], attributes: dict[str, Any]) -> Array:
        require_room(*arrays)
        if any(array.dtype.kind in "iub" for array in arrays) and function in (np.divide, np.sqrt, np.power):
            raise NetworkError(f"{function.__name__} of whole numbers is not folded")
        with np.errstate(all="ignore"):
            return np.asarray(function(*arrays), dtype=arrays[0].dtype)

    return fold


def _cast(require_room: Callable[..., None], arrays: list[Array], attributes: dict[str, Any]) -> Array:
    if attributes.get("to") not in _TYPES:
        raise NetworkError(f"to type {type_name(attributes.get('to', 0))}")
    dtype = helper.tensor_dtype_to_np_dtype(attributes["to"])
    require_room(arrays[0], np.empty((), dtype=dtype))
    with np.errstate(all="ignore"):
        return arrays[0].astype(dtype)


def _squeeze(require_room: Callable[..., None], arrays: list[Array], attributes: dict[str, Any]) -> Array:
    axes = axes_of(arrays, attributes)
    return arrays[0].squeeze(None if axes is None else tuple(axes))


def integers(array: Array) -> list[int]:
    """The numbers of a shape or of axes. Raises NetworkError if they are not whole, or more than a shape may have."""
    if array.dtype.kind != "i" or array.size > MAX_RANK:
        raise NetworkError(f"expected up to {MAX_RANK} whole numbers, got {array.size} of type {array.dtype}")
    return [int(number) for number in array.reshape(-1)]


def axes_of(arrays: Sequence[Array | None], attributes: dict[str, Any]) -> list[int] | None:
    """The axes of Squeeze and Unsqueeze: an attribute below opset 13, an input from then on."""
    if len(arrays) > 1 and arrays[1] is not None:
        return integers(arrays[1])
    return attributes.get("axes")


def unsqueezed(shape: tuple[int, ...], axes: list[int] | None) -> tuple[int, ...]:
    """A shape with ones inserted at the given axes of the result. Raises NetworkError for axes that it does not have."""
    rank = len(shape) + len(axes or ())
    places = {axis % rank for axis in axes or () if -rank <= axis < rank}
    if not axes or rank > MAX_RANK or len(places) < len(axes):
        raise NetworkError(f"axes {axes} for a result of {rank} dimensions")
    rest = iter(shape)
    return tuple(1 if place in places else next(rest) for place in range(rank))


def reshaped(shape: tuple[int, ...], target: list[int], attributes: dict[str, Any]) -> list[int]:
    """The target of Reshape with each zero replaced by the dimension in its place; -1 stays."""
    if attributes.get("allowzero", 0):
        return target
    if any(size == 0 and place >= len(shape) for place, size in enumerate(target)):
        raise NetworkError(f"to {target} from {len(shape)} dimensions")
    return [shape[place] if size == 0 else size for place, size in enumerate(target)]


_FOLDED: dict[str, Callable[..., Any]] = {
    "Identity": lambda require_room, arrays, attributes: arrays[0],
    "Cast": _cast,
    "Add": _arithmetic(np.add),
    "Sub": _arithmetic(np.subtract),
    "Mul": _arithmetic(np.multiply),
    "Div": _arithmetic(np.divide),
    "Neg": _arithmetic(np.negative),
    "Sqrt": _arithmetic(np.sqrt),
    "Pow": _arithmetic(np.power),
    "Transpose": lambda require_room, arrays, attributes: arrays[0].transpose(attributes.get("perm")),
    "Reshape": lambda require_room, arrays, attributes: arrays[0].reshape(
        reshaped(arrays[0].shape, integers(arrays[1]), attributes)
    ),
    "Squeeze": _squeeze,
    "Unsqueeze": lambda require_room, arrays, attributes: arrays[0].reshape(
        unsqueezed(arrays[0].shape, axes_of(arrays, attributes))
    ),
}
"""The operators that are evaluated if all their inputs are constants."""


def _structure_bytes(data: bytes) -> int:
    """Counts the bytes of a serialized model that are not the numbers of a tensor, without parsing it, up to the limit.

    Raises NetworkError for bytes that are not a protocol buffer.
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
                raise NetworkError("not an ONNX model: it ends early, or is not a protocol buffer")
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
    raise NetworkError("not an ONNX model: it ends early, or is not a protocol buffer")


def _size_refused(size: int) -> str:
    return f"{size / 1e6:.1f} MB; a model may have at most {MAX_BYTES / 1e6:.0f}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
