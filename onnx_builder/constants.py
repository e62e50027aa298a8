"""The constants of an ONNX file of unknown origin: parsed within limits, read from files beside it, folded.

A file of a few bytes can ask for gigabytes (many empty messages, dimensions without data, a broadcast). So everything is
bounded before it is made: the file, what is not weights in it, each tensor, and the sum of what folding makes.

That is why constants are folded here, and not by onnx's reference evaluator, which bounds nothing (docs/architecture.md has
figures). The same few functions show the reader where an operator moves values.
"""

from __future__ import annotations

import functools
import math
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from onnx_builder.network import Array, NetworkError, first_line

MAX_BYTES = 50_000_000
"""Largest file, and largest sum of its constants, including external data and folded ones, as float32 or wider."""
MAX_STRUCTURE_BYTES = 500_000
"""What a file may hold besides the numbers of its tensors: each byte of it can take a hundred once it is parsed."""
MAX_NODES = 10_000
MAX_RANK = 8
OPEN = -(2**62)
"""Stands for the size of the batch in a shape that a graph computes with."""

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_TYPES: dict[int, int] = {
    TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.DOUBLE: 8, TensorProto.BFLOAT16: 2,
    TensorProto.INT32: 4, TensorProto.INT64: 8, TensorProto.BOOL: 1, TensorProto.INT8: 1, TensorProto.UINT8: 1,
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
        raise NetworkError(f"not an ONNX model: {first_line(error)}") from error
    if not model.graph.node and not model.graph.input:
        raise NetworkError("not an ONNX model: no graph in it")
    return model


class Constants:
    """Makes the arrays of a graph's constants, and of what is folded from these, within a limit on all of them together.

    file: that of the model, beside which external data may be; None if there is none. Raises NetworkError for what cannot be
    read or made.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._bytes_left = MAX_BYTES

    def read(self, tensor: TensorProto) -> Array:
        """A tensor's numbers, in the type that the file has."""
        array = self._read(tensor)
        self._bytes_left -= _bytes_of(array.shape, array.dtype.itemsize)
        return array

    def require_room(self, *arrays: Array) -> None:
        """Reserve room for what arrays broadcast to, before arithmetic on them. Raises NetworkError if there is none."""
        if any(OPEN in array for array in arrays if array.dtype.kind == "i"):
            raise NetworkError("computes with the size of the batch")
        self._reserve(np.broadcast_shapes(*(array.shape for array in arrays)), max(array.dtype.itemsize for array in arrays))

    def fold(self, node: onnx.NodeProto, arrays: Sequence[Array | None], attributes: dict[str, Any]) -> Array:
        """What an operator of FOLDED, or Constant, makes of constants."""
        if node.op_type == "Constant":
            return self._constant(attributes)
        array = np.asarray(FOLDED[operator_of(node)](self._reserve, arrays, attributes))
        self._reserve(array.shape, array.dtype.itemsize)
        return array

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
            raise NetworkError(f"{where}: {first_line(error)}") from error

    def _external(self, where: str, about: dict[str, str], size: int) -> bytes:
        location = about.get("location", "")
        where = f"{where} is in the file {location!r}"
        if self._file is None:
            raise NetworkError(f"{where}, but only the model's own bytes were given")
        try:
            offset, length = int(about.get("offset") or 0), int(about.get("length") or size)
            folder = self._file.parent.resolve()
            path = (folder / location).resolve()
            own = folder, self._file.resolve().parent  # in the cache of a hub, the model and its data are links into one folder
            if not location or not any(path.is_relative_to(each) for each in own):
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

    def _constant(self, attributes: dict[str, Any]) -> Array:
        for name, dtype in _CONSTANT_ATTRIBUTES.items():
            if name in attributes:
                return np.asarray(attributes[name], dtype=dtype)
        if "value" in attributes:
            return self.read(attributes["value"])
        raise NetworkError(f"has none of value, {', '.join(_CONSTANT_ATTRIBUTES)}")

    def _reserve(self, shape: Sequence[int], item_size: int) -> None:
        self._require_room("it", _bytes_of(shape, item_size))
        self._bytes_left -= _bytes_of(shape, item_size)

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


def attributes_of(node: onnx.NodeProto, opsets: Mapping[str, int]) -> dict[str, Any]:
    """A node's attributes by name, each of the type that its operator declares.

    opsets: the version of each domain. Raises NetworkError if that does not have the operator, or the operator not these
    attributes or this many inputs.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    opset = opsets.get(domain, 0)
    if domain == "com.microsoft":
        types, least, most = _MICROSOFT[node.op_type]
    else:
        schema = _schema(node.op_type, opset, domain)
        if schema is None:
            raise NetworkError(f"{described(node)}: opset {opset} has no such operator")
        types = {name: int(attribute.type.value) for name, attribute in schema.attributes.items()}  # type: ignore[attr-defined]
        least, most = schema.min_input, schema.max_input
    if not least <= len(node.input) <= most:
        raise NetworkError(f"{described(node)}: has {len(node.input)} inputs; expected {least} to {most}")
    values = {}
    for attribute in node.attribute:
        declared = types.get(attribute.name)
        if declared is None:
            raise NetworkError(f"{described(node)}: has no attribute {attribute.name!r} in opset {opset}")
        if attribute.type != declared or attribute.ref_attr_name:
            expected = AttributeProto.AttributeType.Name(declared)
            raise NetworkError(f"{described(node)}: attribute {attribute.name!r} has another type than {expected}")
        values[attribute.name] = helper.get_attribute_value(attribute)
    return values


@functools.cache
def _schema(operator: str, opset: int, domain: str) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(operator, opset, domain)
    except onnx.defs.SchemaError:
        return None


_I, _F, _S = AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.STRING
_PRODUCT = {"alpha": _F, "transA": _I, "transB": _I}
_ACTIVATED = {"activation": _S, "activation_alpha": _F, "activation_beta": _F, "activation_gamma": _F}
_MICROSOFT: dict[str, tuple[dict[str, int], int, int]] = {
    "FusedGemm": ({**_PRODUCT, "beta": _F, **_ACTIVATED}, 2, 3),
    "FusedMatMul": ({**_PRODUCT, "transBatchA": _I, "transBatchB": _I}, 2, 2),
    "Gelu": ({}, 1, 1),
    "BiasGelu": ({}, 2, 2),
    "FastGelu": ({}, 1, 2),
    "QuickGelu": ({"alpha": _F}, 1, 1),
}
"""What onnxruntime's optimizer makes of a regressor: attributes with their types, fewest and most inputs."""


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


def _cast(reserve: Callable[..., None], arrays: Sequence[Any], attributes: dict[str, Any]) -> Array:
    if attributes.get("to") not in _TYPES:
        raise NetworkError(f"to type {type_name(attributes.get('to', 0))}")
    array, dtype = arrays[0], helper.tensor_dtype_to_np_dtype(attributes["to"])
    if array.dtype.kind == "i" and OPEN in array and dtype != np.int64:
        raise NetworkError("computes with the size of the batch")
    reserve(array.shape, dtype.itemsize)
    with np.errstate(all="ignore"):
        return np.asarray(array.astype(dtype))


def _squeeze(reserve: Callable[..., None], arrays: Sequence[Any], attributes: dict[str, Any]) -> Array:
    axes = axes_of(arrays, attributes)
    return np.asarray(arrays[0].squeeze(None if axes is None else tuple(axes)))


def _reshape(reserve: Callable[..., None], arrays: Sequence[Any], attributes: dict[str, Any]) -> Array:
    shape, target = arrays[0].shape, integers(arrays[1])
    if not attributes.get("allowzero", 0):
        target = [shape[place] if size == 0 else size for place, size in enumerate(target)]
    return np.asarray(arrays[0].reshape(target))


def _slice(reserve: Callable[..., None], arrays: Sequence[Any], attributes: dict[str, Any]) -> Array:
    array = arrays[0]
    for axis, part in slices_of(arrays, attributes, array.ndim):
        array = array[(slice(None),) * axis + (part,)]
    return np.asarray(array)


def _gather(reserve: Callable[..., None], arrays: Sequence[Any], attributes: dict[str, Any]) -> Array:
    (array, places), axis = arrays, attributes.get("axis", 0)
    reserve((array.size // max(array.shape[axis], 1), places.size), array.dtype.itemsize)
    return np.asarray(np.take(array, places, axis=axis))


def _gather_nd(reserve: Callable[..., None], arrays: Sequence[Any], attributes: dict[str, Any]) -> Array:
    array, places = arrays
    if attributes.get("batch_dims", 0):
        raise NetworkError("gathers within batches; expected batch_dims 0")
    reserve((*places.shape[:-1], *array.shape[places.shape[-1] :]), array.dtype.itemsize)
    return np.asarray(array[tuple(np.moveaxis(places, -1, 0))])


def _unsqueeze(reserve: Callable[..., None], arrays: Sequence[Any], attributes: dict[str, Any]) -> Array:
    axes = axes_of(arrays, attributes) or []
    if arrays[0].ndim + len(axes) > MAX_RANK:
        raise NetworkError(f"{arrays[0].ndim + len(axes)} dimensions; at most {MAX_RANK} are supported")
    return np.expand_dims(arrays[0], tuple(axes))


def _flatten(reserve: Callable[..., None], arrays: Sequence[Any], attributes: dict[str, Any]) -> Array:
    axis, shape = attributes.get("axis", 1), arrays[0].shape
    if not -len(shape) <= axis <= len(shape):
        raise NetworkError(f"axis {axis} of {len(shape)} dimensions")
    return np.asarray(arrays[0].reshape(math.prod(shape[:axis]), math.prod(shape[axis:])))


def _extract(reserve: Callable[..., None], arrays: Sequence[Any], attributes: dict[str, Any]) -> Array:
    return _gather(reserve, (arrays[0], arrays[1].reshape(-1)), {"axis": -1})


def _concat(reserve: Callable[..., None], arrays: Sequence[Any], attributes: dict[str, Any]) -> Array:
    return np.concatenate(arrays, axis=attributes["axis"])


def _expand(reserve: Callable[..., None], arrays: Sequence[Any], attributes: dict[str, Any]) -> Array:
    shape = [1 if size == OPEN else size for size in integers(arrays[1])]  # what is the same for all rows is kept once
    return np.broadcast_to(arrays[0], np.broadcast_shapes(arrays[0].shape, tuple(shape)))


def _of_shape(reserve: Callable[..., None], arrays: Sequence[Any], attributes: dict[str, Any]) -> Array:
    shape = [1 if size == OPEN else size for size in integers(arrays[0])]
    value = numpy_helper.to_array(attributes["value"]) if "value" in attributes else np.zeros(1, np.float32)
    reserve(shape, value.dtype.itemsize)
    return np.full(shape, value.reshape(()))


def _dequantized(reserve: Callable[..., None], arrays: Sequence[Any], attributes: dict[str, Any]) -> Array:
    array, scale, *zero = arrays
    if attributes.get("block_size", 0):
        raise NetworkError("is quantised in blocks: use the float original")
    shape = [1] * array.ndim
    if scale.size > 1:
        shape[attributes.get("axis", 1)] = scale.size
    reserve(array.shape, 8)
    shifted = array.astype(np.float64) - (zero[0].reshape(shape) if zero and zero[0] is not None else 0)
    return np.asarray(shifted * scale.reshape(shape), dtype=scale.dtype)


def integers(array: Array | None) -> list[int]:
    """The numbers of a shape or of axes. Raises NetworkError if they are not whole, or more than a shape may have."""
    if array is None or array.dtype.kind != "i" or array.size > MAX_RANK:
        what = "none" if array is None else f"{array.size} of type {array.dtype}"
        raise NetworkError(f"expected up to {MAX_RANK} whole numbers, got {what}")
    return [int(number) for number in array.reshape(-1)]


def slices_of(arrays: Sequence[Array | None], attributes: dict[str, Any], rank: int) -> list[tuple[int, slice]]:
    """The axes of Slice with the parts that it takes: attributes below opset 10, inputs from then on."""
    if "starts" in attributes:
        starts, ends, steps = attributes["starts"], attributes.get("ends", []), None
        axes = attributes.get("axes")
    else:
        given = [*arrays[1:], None, None][:4]
        starts, ends = integers(given[0]), integers(given[1])
        axes, steps = (None if array is None else integers(array) for array in given[2:])
    axes = [*range(len(starts))] if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or any(not -rank <= axis < rank for axis in axes):
        raise NetworkError(f"starts {starts}, ends {ends}, axes {axes} of {rank} dimensions")
    return [(axis % rank, slice(*part)) for axis, *part in zip(axes, starts, ends, steps, strict=True)]


def axes_of(arrays: Sequence[Array | None], attributes: dict[str, Any]) -> list[int] | None:
    """The axes of Squeeze and Unsqueeze: an attribute below opset 13, an input from then on."""
    if len(arrays) > 1 and arrays[1] is not None:
        return integers(arrays[1])
    return attributes.get("axes")


MOVES: dict[str, Callable[..., Any]] = {
    "Identity": lambda reserve, arrays, attributes: arrays[0],
    "Transpose": lambda reserve, arrays, attributes: arrays[0].transpose(attributes.get("perm")),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Slice": _slice,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "ai.onnx.ml.ArrayFeatureExtractor": _extract,
    "Expand": _expand,
}
"""Operators that move values. reserve: called with a shape and the bytes of an item before more is made than there was."""
FOLDED = {
    **MOVES,
    "Cast": _cast,
    "Shape": lambda reserve, arrays, attributes: np.array(arrays[0].shape, dtype=np.int64),
    "ConstantOfShape": _of_shape,
    "DequantizeLinear": _dequantized,
}
"""Operators that are evaluated if all their inputs are constants, besides arithmetic."""


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
