"""A PyTorch state-dict (`.pt`, `.pth`, `.ckpt`) or `.safetensors` file as a `Network`, without torch.

The format is recognised by its content: the zip that torch.save writes, the stream that it wrote before torch 1.6, or
safetensors. float16, bfloat16 and float64 become float32. Anything but a chain of Linear layers is refused, and the error names
what does not fit.

Nothing in a file is ever executed: `unpickle` explains how.
"""

from __future__ import annotations

import io
import itertools
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from onnx_builder.network import Activation, ActivationName, Array, Dense, Float32, Network, NetworkError
from onnx_builder.unpickle import BFLOAT16, MAX_PICKLE_BYTES, DType, Storage, Tensor, expect, quote, unpickle

MAX_BYTES = 50_000_000
MAX_VALUES = MAX_BYTES // 4
MAX_ZIP_MEMBERS = 10_000
MAX_DIMENSIONS = 8
WRAPPERS = ("state_dict", "model_state_dict", "model")

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
# What the readers raise, besides their own errors, for bytes that are not what they should be.
_DAMAGE = (EOFError, LookupError, MemoryError, OSError, OverflowError, RuntimeError, TypeError, ValueError)


def is_state_dict(data: bytes) -> bool:
    """Do these bytes begin like a zip archive, a pickle or a safetensors file? An ONNX model begins like none of these."""
    return data[:4] == b"PK\x03\x04" or data[:1] == b"\x80" or data[8:9] == b"{"


def from_bytes(data: bytes, activation: ActivationName = "relu") -> Network:
    """The network in the bytes of a state-dict file, with `activation` after each dense layer except the last.

    Raises NetworkError, which says what is wrong with the file.
    """
    layers = list(dense_layers(data).values())
    steps = [step for layer in layers for step in (layer, Activation(activation))]
    return Network(layers[0].weight.shape[1], tuple(steps[:-1]))


def dense_layers(data: bytes) -> dict[str, Dense]:
    """The dense layers in the bytes of a state-dict file by the key of their weight, in the order in which they run.

    Raises NetworkError, which names the key or global, and the reason.
    """
    if len(data) > MAX_BYTES:
        raise NetworkError(f"more than {MAX_BYTES:,} bytes; a regressor is smaller")
    try:
        if data[8:9] == b"{":  # checked first: the length before it may begin like a pickle
            return _chain(_linear(_read_safetensors(data)), in_order_of_definition=False)
        if data.startswith(b"PK\x03\x04"):
            return _chain(_linear(_read_zip(data)), in_order_of_definition=True)
        if data.startswith(pickle.PROTO):
            return _chain(_linear(_read_legacy(data)), in_order_of_definition=True)
    except NetworkError:
        raise
    except (*_DAMAGE, struct.error, zipfile.BadZipFile, msgspec.DecodeError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise NetworkError(f"damaged or truncated: {type(error).__name__}: {reason}") from error
    raise NetworkError("neither a PyTorch state-dict nor safetensors")


# The three formats; each reader returns the tensors by key.


def _read_zip(data: bytes) -> dict[str, Array]:
    if data.count(b"PK\x01\x02") > MAX_ZIP_MEMBERS:  # before zipfile makes an object of each
        raise NetworkError(f"more than {MAX_ZIP_MEMBERS:,} members in the zip archive")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members, names = archive.infolist(), archive.namelist()
        if any(re.match(r"[^/]+/(constants\.pkl|code/)", name) for name in names):
            raise NetworkError("a TorchScript archive, not a state-dict: save model.state_dict() instead")
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
        state = _state_dict(unpickle(io.BytesIO(archive.read(pickles[0])), {}))
        contents = {key: archive.read(f"{root}data/{key}") for key in {tensor.storage.key for tensor in state.values()}}
    return {key: _tensor_view(key, tensor, contents, byte_order == b"big") for key, tensor in state.items()}


def _read_legacy(data: bytes) -> dict[str, Array]:
    """The format before torch 1.6: five pickles, then the length (int64) and values of each storage, little-endian."""
    stream = io.BytesIO(data)
    if unpickle(stream, {}) != _LEGACY_MAGIC:
        raise NetworkError("a pickle that torch.save did not write")
    _protocol_version, _system = unpickle(stream, {}), unpickle(stream, {})
    storages: dict[str, Storage] = {}
    state = _state_dict(unpickle(stream, storages))
    keys = unpickle(stream, {})
    contents: dict[str, memoryview] = {}
    position = stream.tell()
    for key in expect(list, keys):
        storage = storages[expect(str, key)]
        (count,) = struct.unpack_from("<q", data, position)
        if count != storage.count:
            raise NetworkError(f"storage {quote(key)} has {count} values; its tensors expect {storage.count}")
        start, position = position + 8, position + 8 + count * storage.dtype.itemsize
        contents[key] = memoryview(data)[start:position]
    return {key: _tensor_view(key, tensor, contents) for key, tensor in state.items()}


class _SafetensorsEntry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _read_safetensors(data: bytes) -> dict[str, Array]:
    """Header length (uint64), JSON header, values, all little-endian."""
    (length,) = struct.unpack_from("<Q", data)
    if length > min(MAX_PICKLE_BYTES, len(data) - 8):
        raise NetworkError(
            f"the safetensors header has {length:,} bytes, more than the file or the limit of {MAX_PICKLE_BYTES:,}"
        )
    header = msgspec.json.decode(data[8 : 8 + length], type=dict[str, msgspec.Raw])
    header.pop("__metadata__", None)
    values = memoryview(data)[8 + length :]
    state: dict[str, Array] = {}
    end = 0
    for key, raw in header.items():
        entry = msgspec.json.decode(raw, type=_SafetensorsEntry)
        if entry.dtype not in _SAFETENSORS:
            raise NetworkError(f"{quote(key)} has dtype {quote(entry.dtype)}; expected one of {', '.join(_SAFETENSORS)}")
        dtype, (start, stop) = _SAFETENSORS[entry.dtype], entry.data_offsets
        if not 0 <= start <= stop <= len(values):
            raise NetworkError(f"{quote(key)} is at bytes {start} to {stop} of {len(values)}")
        state[key] = _view(key, dtype, values[start:stop], entry.shape)
        if state[key].nbytes != stop - start:
            raise NetworkError(
                f"{quote(key)} has shape {entry.shape}, {state[key].nbytes} bytes, but is stored in {stop - start}"
            )
        end = max(end, stop)
    if end != len(values):
        raise NetworkError(f"the safetensors header describes {end} bytes of values, but there are {len(values)}")
    return state


# From the pickled object to arrays.


def _state_dict(saved: Any) -> dict[str, Tensor]:
    """The tensors of a state-dict, or of the state-dict inside a training checkpoint."""
    if not isinstance(saved, dict):
        raise NetworkError(f"holds a {type(saved).__name__.lstrip('_')}; expected a state-dict")
    inner = next((saved[name] for name in WRAPPERS if isinstance(saved.get(name), dict)), saved)
    state = {key: value for key, value in inner.items() if isinstance(value, Tensor)}
    if not state:
        found = ", ".join(quote(key) for key in list(saved)[:8]) or "nothing"
        raise NetworkError(f"no tensors, neither directly nor in a dict named {', '.join(WRAPPERS)}; it holds {found}")
    for key in state:
        if not isinstance(key, str):
            raise NetworkError(f"a tensor has the key {key!r}; expected text")
    return state


def _tensor_view(key: str, tensor: Tensor, contents: Mapping[str, bytes | memoryview], big_endian: bool = False) -> Array:
    storage, content = tensor.storage, contents[tensor.storage.key]
    if len(content) != storage.count * storage.dtype.itemsize:
        raise NetworkError(f"{quote(key)}: its storage has {len(content)} bytes for {storage.count} values of {storage.dtype}")
    dtype = storage.dtype.newbyteorder(">") if big_endian else storage.dtype
    return _view(key, dtype, content, tensor.shape, tensor.offset, tensor.strides)


def _view(
    key: str,
    dtype: DType,
    content: bytes | memoryview,
    shape: tuple[int, ...],
    offset: int = 0,
    strides: tuple[int, ...] | None = None,
) -> Array:
    """A window into the content, without a copy. offset and strides count values; without strides, values are contiguous.

    Raises NetworkError if a value would be outside, or there are more values than any file holds (stride 0 repeats).
    """
    if len(shape) > MAX_DIMENSIONS:
        raise NetworkError(f"{quote(key)} has {len(shape)} dimensions")
    if strides is None:
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if len(strides) != len(shape) or not all(isinstance(n, int) and 0 <= n < 2**63 for n in (offset, *shape, *strides)):
        raise NetworkError(f"{quote(key)}: its shape, offset and strides are not natural numbers, one stride per dimension")
    if min(shape, default=1) < 1 or math.prod(shape) > MAX_VALUES:
        raise NetworkError(f"{quote(key)} has shape {shape}; expected 1 to {MAX_VALUES:,} values")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if (last + 1) * dtype.itemsize > len(content):
        raise NetworkError(f"{quote(key)}: shape {shape}, offset {offset} and strides {strides} reach beyond its storage")
    byte_strides = [stride * dtype.itemsize if size > 1 else 0 for size, stride in zip(shape, strides, strict=True)]
    return np.ndarray(shape, dtype, content, offset * dtype.itemsize, byte_strides)


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.names == BFLOAT16.names


def _float32(key: str, array: Array) -> Float32:
    if not _is_float(array):
        raise NetworkError(f"{quote(key)} holds {array.dtype.name}; a trained layer holds floating-point numbers")
    with np.errstate(all="ignore"):
        if array.dtype.names:
            values = (array["bfloat16"].astype(np.uint32, order="C") << 16).view(np.float32)
        else:
            values = array.astype(np.float32, order="C")
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise NetworkError(f"{quote(key)}: {bad} of {values.size} values are not finite in float32")
    return values


# From arrays to layers.


def _linear(state: dict[str, Array]) -> dict[str, Dense]:
    """The Linear layers by the key of their weight, in the order of the dict.

    Raises NetworkError if a floating-point tensor belongs to no Linear layer: the output would depend on it.
    """
    for key in state:
        if key.rpartition(".")[2] == "running_mean":
            raise NetworkError(f"{quote(key)}: BatchNorm is not supported")
    if sum(array.size for array in state.values() if _is_float(array)) > MAX_VALUES:
        raise NetworkError(f"more than {MAX_VALUES:,} values")
    layers: dict[str, Dense] = {}
    for key, array in state.items():
        name, dot, part = key.rpartition(".")
        weight_key, bias_key = f"{name}{dot}weight", f"{name}{dot}bias"
        if part == "weight":
            if array.ndim != 2:
                kind = "Conv" if array.ndim > 2 else "a normalisation layer or PReLU"
                raise NetworkError(f"{quote(key)} has shape {array.shape}: {kind} is not part of an MLP regressor")
            bias = state.get(bias_key, np.zeros(len(array), dtype=np.float32))
            if bias.shape != array.shape[:1]:
                raise NetworkError(f"{quote(bias_key)} has shape {bias.shape}; expected {array.shape[:1]}")
            layers[key] = Dense(_float32(key, array), _float32(bias_key, bias))
        elif _is_float(array) and not (part == "bias" and weight_key in state):
            raise NetworkError(f"{quote(key)} of shape {array.shape} is neither weight nor bias of a Linear layer")
    if not layers:
        raise NetworkError("no weight of a Linear layer")
    return layers


def _chain(layers: dict[str, Dense], in_order_of_definition: bool) -> dict[str, Dense]:
    """The layers in the order in which they run.

    That is the order of their numbers if the keys differ in nothing else (`net.2` before `net.10`), else the order of
    definition, which a pickled dict keeps. safetensors sorts by name, so there the widths decide.
    Raises NetworkError if the widths do not fit together in that order, or fit in several.
    """
    keys = list(layers)
    if len({_unnumbered(key) for key in keys}) == 1:
        keys.sort(key=_numbers)
    elif not in_order_of_definition:
        keys = _order_by_widths(layers)
    for key, following in itertools.pairwise(keys):
        n_out, n_in = layers[key].weight.shape[0], layers[following].weight.shape[1]
        if n_out != n_in:
            raise NetworkError(f"{quote(key)} gives {n_out} values, but {quote(following)}, the next, takes {n_in}")
    if layers[keys[-1]].weight.shape[0] != 1:
        raise NetworkError(
            f"{quote(keys[-1])}, the last, gives {layers[keys[-1]].weight.shape[0]} values per row; expected one, the score"
        )
    return {key: layers[key] for key in keys}


def _order_by_widths(layers: dict[str, Dense]) -> list[str]:
    """The only order in which the widths fit, down to one score; the given one if there is none."""
    if len(layers) > 7:
        raise NetworkError(f"safetensors keeps no order, and the names of its {len(layers)} layers do not number them")

    def fits(order: tuple[str, ...]) -> bool:
        widths = [layers[key].weight.shape for key in order]
        return (
            widths[-1][0] == 1
            and all(n_out == n_in for (n_out, _), (_, n_in) in itertools.pairwise(widths))
            and not any(
                _unnumbered(a) == _unnumbered(b) and _numbers(a) > _numbers(b) for a, b in itertools.combinations(order, 2)
            )
        )

    orders = [order for order in itertools.permutations(layers) if fits(order)]
    if len(orders) > 1:
        raise NetworkError(
            f"safetensors keeps no order, and the widths of {', '.join(map(quote, layers))} fit in {len(orders)}: number them"
        )
    return list(orders[0] if orders else layers)


def _unnumbered(key: str) -> str:
    return re.sub("[0-9]+", "#", key)


def _numbers(key: str) -> list[int]:
    return [int(number) for number in re.findall("[0-9]+", key)]
