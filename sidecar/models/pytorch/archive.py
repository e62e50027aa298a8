"""The three formats of PyTorch files: the zip that torch.save writes, its stream before torch 1.6, and safetensors."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np

from onnx_builder.network import Array, NetworkError
from sidecar.models.pytorch.unpickle import BFLOAT16, MAX_PICKLE_BYTES, Dict, DType, Storage, Tensor, expect, quote, unpickle

MAX_BYTES = 50_000_000
MAX_VALUES = MAX_BYTES // 4
MAX_ZIP_MEMBERS = 10_000
MAX_DIMENSIONS = 8
TENSORS = "tensors"

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_SAFETENSORS: dict[str, DType] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_OTHER_ARCHIVES = (
    (r"[^/]+/(constants\.pkl|code/.*)", "a TorchScript archive, not a state-dict: save model.state_dict() instead"),
    (
        r"([^/]+/)?(archive_format|serialized_exported_program\.json|models/.*\.json)",
        "an exported program of torch.export (.pt2), not a state-dict: save model.state_dict(), or export to ONNX",
    ),
    (r"model\.weights\.h5|keras_metadata\.pb", "a Keras model (.keras): convert it to ONNX with tf2onnx or model.export"),
    (r".*\.npy", "a file of numpy arrays (.npz), not a state-dict"),
    (r".*\.onnx", "a zip archive with an ONNX model in it: unpack it"),
)


class Saved(NamedTuple):
    """What a file holds. tree: the saved object; of safetensors its metadata, and a Dict of its tensors under `TENSORS`.

    in_order: the tensors are in the order in which they were saved. values: a tensor's values, given its name for messages.
    """

    tree: Any
    in_order: bool
    values: Callable[[str, Tensor], Array]


def load(data: bytes) -> Saved:
    """What the bytes of a PyTorch or safetensors file hold. Raises NetworkError, which says what is wrong with the file."""
    if len(data) > MAX_BYTES:
        raise NetworkError(f"more than {MAX_BYTES:,} bytes; a regressor is smaller")
    if data[8:9] == b"{":  # checked first: the length before it may begin like a pickle
        return _load_safetensors(data)
    if data.startswith(b"PK\x03\x04"):
        return _load_zip(data)
    if data.startswith(pickle.PROTO):
        return _load_legacy(data)
    raise NetworkError("neither a PyTorch state-dict nor safetensors")


def _load_zip(data: bytes) -> Saved:
    if data.count(b"PK\x01\x02") > MAX_ZIP_MEMBERS:  # before zipfile makes an object of each
        raise NetworkError(f"more than {MAX_ZIP_MEMBERS:,} members in the zip archive")
    archive = zipfile.ZipFile(io.BytesIO(data))
    members, names = archive.infolist(), archive.namelist()
    for pattern, words in _OTHER_ARCHIVES:
        if any(re.fullmatch(pattern, name) for name in names):
            raise NetworkError(words)
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise NetworkError("a compressed zip archive; torch.save does not compress")
    if sum(member.file_size for member in members) > MAX_BYTES:
        raise NetworkError(f"the members of the zip archive have more than {MAX_BYTES:,} bytes")
    pickles = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(pickles) != 1:
        raise NetworkError(f"a zip archive with {len(pickles)} members data.pkl; a state-dict has one")
    root = pickles[0].removesuffix("data.pkl")
    byte_order = archive.read(root + "byteorder") if root + "byteorder" in names else b"little"
    if byte_order not in (b"little", b"big"):
        raise NetworkError(f"byte order {byte_order[:20]!r}; expected little or big")
    tree = unpickle(io.BytesIO(archive.read(pickles[0])), {})
    content = functools.cache(lambda key: archive.read(f"{root}data/{key}"))
    return Saved(tree, True, lambda name, tensor: _view(name, tensor, content(tensor.storage.key), byte_order == b"big"))


def _load_legacy(data: bytes) -> Saved:
    """The format before torch 1.6: five pickles, then the length (int64) and values of each storage, little-endian."""
    stream = io.BytesIO(data)
    if unpickle(stream, {}) != _LEGACY_MAGIC:
        raise NetworkError("a pickle that torch.save did not write")
    _protocol_version, _system = unpickle(stream, {}), unpickle(stream, {})
    storages: dict[str, Storage] = {}
    tree = unpickle(stream, storages)
    keys = unpickle(stream, {})
    contents: dict[str, memoryview] = {}
    position = stream.tell()
    for key in expect(list, keys):
        if expect(str, key) not in storages:
            raise NetworkError(f"storage {quote(key)} is of no type that a regressor has")
        storage = storages[key]
        (count,) = struct.unpack_from("<q", data, position)
        if count != storage.count:
            raise NetworkError(f"storage {quote(key)} has {count} values; its tensors expect {storage.count}")
        start, position = position + 8, position + 8 + count * storage.dtype.itemsize
        contents[key] = memoryview(data)[start:position]
    return Saved(tree, True, lambda name, tensor: _view(name, tensor, contents[tensor.storage.key]))


class _SafetensorsEntry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _load_safetensors(data: bytes) -> Saved:
    """Header length (uint64), JSON header, values, all little-endian."""
    (length,) = struct.unpack_from("<Q", data)
    if length > min(MAX_PICKLE_BYTES, len(data) - 8):
        raise NetworkError(
            f"the safetensors header has {length:,} bytes, more than the file or the limit of {MAX_PICKLE_BYTES:,}"
        )
    header = msgspec.json.decode(data[8 : 8 + length], type=dict[str, msgspec.Raw])
    about = Dict(msgspec.json.decode(header.pop("__metadata__", b"{}"), type=dict[str, str]))
    for key, text in about.items():  # numbers are written as JSON, if at all
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            about[key] = msgspec.json.decode(text)
    values = memoryview(data)[8 + length :]
    contents: dict[str, memoryview] = {}
    about[TENSORS] = tensors = Dict()
    end = 0
    for key, raw in header.items():
        entry = msgspec.json.decode(raw, type=_SafetensorsEntry)
        if entry.dtype not in _SAFETENSORS:
            raise NetworkError(f"{quote(key)} has dtype {quote(entry.dtype)}; expected one of {', '.join(_SAFETENSORS)}")
        if len(entry.shape) > MAX_DIMENSIONS:
            raise NetworkError(f"{quote(key)} has {len(entry.shape)} dimensions")
        dtype, (start, stop), count = _SAFETENSORS[entry.dtype], entry.data_offsets, math.prod(entry.shape)
        if not 0 <= start <= stop <= len(values):
            raise NetworkError(f"{quote(key)} is at bytes {start} to {stop} of {len(values)}")
        if count * dtype.itemsize != stop - start:
            raise NetworkError(
                f"{quote(key)} has shape {entry.shape}, {count * dtype.itemsize} bytes, but is stored in {stop - start}"
            )
        strides = tuple(math.prod(entry.shape[axis + 1 :]) for axis in range(len(entry.shape)))
        contents[key], tensors[key] = values[start:stop], Tensor(Storage(dtype, key, count), 0, entry.shape, strides)
        end = max(end, stop)
    if end != len(values):
        raise NetworkError(f"the safetensors header describes {end} bytes of values, but there are {len(values)}")
    return Saved(about, False, lambda name, tensor: _view(name, tensor, contents[tensor.storage.key]))


def _view(name: str, tensor: Tensor, content: bytes | memoryview, big_endian: bool = False) -> Array:
    """A window into the content of a storage, without a copy.

    Raises NetworkError if a value would be outside, or there are more values than any file holds (stride 0 repeats).
    """
    storage, shape, offset, strides = tensor.storage, tensor.shape, tensor.offset, tensor.strides
    dtype = storage.dtype.newbyteorder(">") if big_endian else storage.dtype
    if len(content) != storage.count * dtype.itemsize:
        raise NetworkError(f"{quote(name)}: its storage has {len(content)} bytes for {storage.count} values of {dtype}")
    if len(shape) > MAX_DIMENSIONS:
        raise NetworkError(f"{quote(name)} has {len(shape)} dimensions")
    if len(strides) != len(shape) or not all(isinstance(n, int) and 0 <= n < 2**63 for n in (offset, *shape, *strides)):
        raise NetworkError(f"{quote(name)}: its shape, offset and strides are not natural numbers, one stride per dimension")
    if min(shape, default=1) < 1 or math.prod(shape) > MAX_VALUES:
        raise NetworkError(f"{quote(name)} has shape {shape}; expected 1 to {MAX_VALUES:,} values")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if (last + 1) * dtype.itemsize > len(content):
        raise NetworkError(f"{quote(name)}: shape {shape}, offset {offset} and strides {strides} reach beyond its storage")
    byte_strides = [stride * dtype.itemsize if size > 1 else 0 for size, stride in zip(shape, strides, strict=True)]
    return np.ndarray(shape, dtype, content, offset * dtype.itemsize, byte_strides)
