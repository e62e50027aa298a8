"""A PyTorch state-dict (`.pt`, `.pth`, `.ckpt`) or `.safetensors` file as a `Network`, without torch.

The form is told from the content: the zip that torch.save writes, the stream that it wrote before torch 1.6, or
safetensors. float16, bfloat16 and float64 become float32. What is no chain of Linear layers is refused by name.

Nothing in a file is ever executed. A pickle is read by `_unpickle`, to which a global is only a name on a short list; the
standard library's Unpickler would not do even with such a list, since no hook of it sees dict keys and the memo: one key of
nested tuples crashes the process or hangs it, and five bytes ask for gigabytes.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from onnx_builder.network import Activation, ActivationName, Array, Dense, Float32, Network, NetworkError

MAX_BYTES = 50_000_000
MAX_VALUES = MAX_BYTES // 4
MAX_PICKLE_BYTES = 1_000_000  # a pickle holds names and shapes, some hundred bytes a tensor; the numbers lie beside it
MAX_ZIP_MEMBERS = 10_000
MAX_DIMENSIONS = 8
WRAPPERS = ("state_dict", "model_state_dict", "model")

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DType = np.dtype[Any]
_BFLOAT16 = np.dtype([("bfloat16", "<u2")])  # the upper half of a float32; numpy has no such type
_STORAGES: dict[str, _DType] = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": _BFLOAT16,
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
    "torch.ComplexFloatStorage": np.dtype("<c8"),
    "torch.ComplexDoubleStorage": np.dtype("<c16"),
}
_CALLS = {
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
}
_SAFETENSORS: dict[str, _DType] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "F16": np.dtype("<f2"),
    "BF16": _BFLOAT16,
    **{name: np.dtype(f"<{name[0].lower()}{int(name[1:]) // 8}") for name in "I64 I32 I16 I8 U64 U32 U16 U8".split()},
    "BOOL": np.dtype("?"),
}


def read_state_dict(path: Path, activation: ActivationName = "relu") -> Network:
    """The network of a state-dict file, with `activation` after each dense layer but the last.

    Raises NetworkError saying what is wrong in the file, OSError if it cannot be read.
    """
    with path.open("rb") as file:
        return from_bytes(file.read(MAX_BYTES + 1), activation)


def from_bytes(data: bytes, activation: ActivationName = "relu") -> Network:
    """The network of the bytes of a state-dict file; raises NetworkError."""
    steps: list[Dense | Activation] = []
    for layer in dense_layers(data).values():
        steps += [layer, Activation(activation)]
    return Network(steps[0].weight.shape[1] if isinstance(steps[0], Dense) else 0, tuple(steps[:-1]))


def dense_layers(data: bytes) -> dict[str, Dense]:
    """The dense layers of the bytes of a state-dict file by the key of their weight, in the order in which they run.

    Raises NetworkError naming the key or global, and the reason.
    """
    if len(data) > MAX_BYTES:
        raise NetworkError(f"more than {MAX_BYTES:,} bytes; a regressor is smaller")
    try:
        if data.startswith(b"PK\x03\x04"):
            return _chain(_linear(_read_zip(data)), in_order_of_definition=True)
        if data.startswith(pickle.PROTO):
            return _chain(_linear(_read_legacy(data)), in_order_of_definition=True)
        if data[8:9] == b"{":
            return _chain(_linear(_read_safetensors(data)), in_order_of_definition=False)
    except NetworkError:
        raise
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise NetworkError(f"damaged or truncated: {type(error).__name__}: {reason}") from error
    raise NetworkError("neither a PyTorch state-dict nor safetensors")


# What zipfile, struct, msgspec, numpy and lookups raise for bytes that are not what they should be.
_DAMAGE = (
    *(EOFError, LookupError, MemoryError, OSError, OverflowError, RuntimeError, TypeError, ValueError),
    *(struct.error, zipfile.BadZipFile, msgspec.DecodeError),
)


# The three forms, each giving its tensors by key.


def _read_zip(data: bytes) -> dict[str, Array]:
    if data.count(b"PK\x01\x02") > MAX_ZIP_MEMBERS:  # before zipfile makes an object of each
        raise NetworkError(f"more than {MAX_ZIP_MEMBERS:,} members in the zip archive")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise NetworkError("a compressed zip archive; torch.save does not compress")
        if sum(member.file_size for member in members) > MAX_BYTES:
            raise NetworkError(f"the members of the zip archive have more than {MAX_BYTES:,} bytes")
        names = archive.namelist()
        if any(re.match(r"[^/]+/(constants\.pkl|code/)", name) for name in names):
            raise NetworkError("a TorchScript archive, not a state-dict: save model.state_dict() instead")
        pickles = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise NetworkError(f"a zip archive with {len(pickles)} members data.pkl; a state-dict has one")
        root = pickles[0].removesuffix("data.pkl")
        byte_order = archive.read(root + "byteorder") if root + "byteorder" in names else b"little"
        if byte_order not in (b"little", b"big"):
            raise NetworkError(f"byte order {byte_order[:20]!r}; expected little or big")
        storages: dict[str, _Storage] = {}
        state = _state_dict(_unpickle(io.BytesIO(archive.read(pickles[0])), storages))
        contents = {key: archive.read(f"{root}data/{key}") for key in storages}
    return {key: _view(key, tensor, contents[tensor.storage.key], byte_order == b"big") for key, tensor in state.items()}


def _read_legacy(data: bytes) -> dict[str, Array]:
    """The form before torch 1.6: five pickles, then of each storage its length (int64) and values, in little endian."""
    stream = io.BytesIO(data)
    if _unpickle(stream, {}) != _LEGACY_MAGIC:
        raise NetworkError("a pickle that torch.save did not write")
    _protocol_version, _system = _unpickle(stream, {}), _unpickle(stream, {})
    storages: dict[str, _Storage] = {}
    state = _state_dict(_unpickle(stream, storages))
    keys = _unpickle(stream, {})
    contents: dict[str, memoryview] = {}
    position = stream.tell()
    for key in keys:
        storage = storages[key]
        (count,) = struct.unpack_from("<q", data, position)
        if count != storage.count:
            raise NetworkError(f"storage {_quote(key)} has {count} values; its tensors expect {storage.count}")
        start, position = position + 8, position + 8 + count * storage.dtype.itemsize
        contents[key] = memoryview(data)[start:position]
    return {key: _view(key, tensor, contents[tensor.storage.key]) for key, tensor in state.items()}


class _SafetensorsEntry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _read_safetensors(data: bytes) -> dict[str, Array]:
    """Header length (uint64), JSON header, values, all in little endian."""
    (length,) = struct.unpack_from("<Q", data)
    if length > min(MAX_PICKLE_BYTES, len(data) - 8):
        raise NetworkError(f"the safetensors header has {length:,} bytes; the file or the limit {MAX_PICKLE_BYTES:,} ends before")
    header = msgspec.json.decode(data[8 : 8 + length], type=dict[str, msgspec.Raw])
    header.pop("__metadata__", None)
    values = memoryview(data)[8 + length :]
    state: dict[str, Array] = {}
    end = 0
    for key, raw in header.items():
        entry = msgspec.json.decode(raw, type=_SafetensorsEntry)
        if entry.dtype not in _SAFETENSORS:
            raise NetworkError(f"{_quote(key)} has dtype {_quote(entry.dtype)}; expected one of {', '.join(_SAFETENSORS)}")
        dtype, (start, stop) = _SAFETENSORS[entry.dtype], entry.data_offsets
        if not 0 <= start <= stop <= len(values):
            raise NetworkError(f"{_quote(key)} lies at bytes {start} to {stop} of {len(values)}")
        count = (stop - start) // dtype.itemsize
        strides = tuple(math.prod(entry.shape[axis + 1 :]) for axis in range(min(len(entry.shape), MAX_DIMENSIONS + 1)))
        tensor = _Tensor(_Storage(dtype, key, count), 0, entry.shape, strides)
        state[key] = _view(key, tensor, values[start:stop])
        if state[key].nbytes != stop - start:
            raise NetworkError(f"{_quote(key)} of shape {entry.shape} has {stop - start} bytes")
        end = max(end, stop)
    if end != len(values):
        raise NetworkError(f"the safetensors header describes {end} bytes of values; there are {len(values)}")
    return state


# The pickle: what tensors need of it, and nothing else.


@dataclass(frozen=True, eq=False, slots=True)
class _Global:
    name: str


@dataclass(frozen=True, eq=False, slots=True)
class _Storage:
    """`count` values of one type that lie beside the pickle."""

    dtype: _DType
    key: str
    count: int


@dataclass(frozen=True, eq=False, slots=True)
class _Tensor:
    """A window into a storage; offset and strides count values."""

    storage: _Storage
    offset: int
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]


def _unpickle(stream: io.BytesIO, storages: dict[str, _Storage]) -> Any:
    """One pickled object, made of dict, list, tuple, text, numbers and _Tensor; adds what storages it names.

    Work and memory are linear in the bytes read.
    """
    end = stream.tell() + MAX_PICKLE_BYTES
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def take(count: int) -> bytes:
        taken = stream.read(count)
        if len(taken) < count or stream.tell() > end:
            raise NetworkError(f"the pickle does not end within the file or the limit of {MAX_PICKLE_BYTES:,} bytes")
        return taken

    def integer(count: int, signed: bool = False) -> int:
        return int.from_bytes(take(count), "little", signed=signed)

    def line() -> str:
        return stream.readline(200).decode().rstrip("\n")

    def pop(count: int) -> list[Any]:
        if count > len(stack):
            raise NetworkError("the pickle takes more values than it gives")
        taken = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return taken

    def pop_to_mark() -> list[Any]:
        return pop(max(0, len(stack) - marks.pop()))

    def set_items(items: list[Any]) -> None:
        target = _expect(dict, stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Other keys may be slow to hash, and so may integers that are made to collide.
            if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < 2**60):
                raise NetworkError(f"a dict has a key of type {type(key).__name__}; expected text")
            target[key] = value

    while True:
        match opcode := take(1):
            case pickle.PROTO:
                take(1)
            case pickle.FRAME:
                take(8)
            case pickle.STOP:
                return stack.pop()
            case pickle.MARK:
                marks.append(len(stack))
            case pickle.NONE:
                stack.append(None)
            case pickle.NEWTRUE:
                stack.append(True)
            case pickle.NEWFALSE:
                stack.append(False)
            case pickle.BININT:
                stack.append(integer(4, signed=True))
            case pickle.BININT1:
                stack.append(integer(1))
            case pickle.BININT2:
                stack.append(integer(2))
            case pickle.LONG1:
                stack.append(integer(integer(1), signed=True))
            case pickle.BINFLOAT:
                stack.append(struct.unpack(">d", take(8))[0])
            case pickle.BINUNICODE:
                stack.append(take(integer(4)).decode())
            case pickle.SHORT_BINUNICODE:
                stack.append(take(integer(1)).decode())
            case pickle.EMPTY_TUPLE:
                stack.append(())
            case pickle.TUPLE1:
                stack.append(tuple(pop(1)))
            case pickle.TUPLE2:
                stack.append(tuple(pop(2)))
            case pickle.TUPLE3:
                stack.append(tuple(pop(3)))
            case pickle.TUPLE:
                stack.append(tuple(pop_to_mark()))
            case pickle.EMPTY_LIST:
                stack.append([])
            case pickle.APPEND:
                values = pop(1)
                _expect(list, stack[-1]).extend(values)
            case pickle.APPENDS:
                values = pop_to_mark()
                _expect(list, stack[-1]).extend(values)
            case pickle.EMPTY_DICT:
                stack.append({})
            case pickle.SETITEM:
                set_items(pop(2))
            case pickle.SETITEMS:
                set_items(pop_to_mark())
            case pickle.BINPUT:
                memo[integer(1)] = stack[-1]
            case pickle.LONG_BINPUT:
                memo[integer(4)] = stack[-1]
            case pickle.MEMOIZE:
                memo[len(memo)] = stack[-1]
            case pickle.BINGET:
                stack.append(memo[integer(1)])
            case pickle.LONG_BINGET:
                stack.append(memo[integer(4)])
            case pickle.GLOBAL:
                stack.append(_global(f"{line()}.{line()}"))
            case pickle.STACK_GLOBAL:
                module, name = pop(2)
                stack.append(_global(f"{_expect(str, module)}.{_expect(str, name)}"))
            case pickle.REDUCE:
                function, arguments = pop(2)
                stack.append(_call(_expect(_Global, function), _expect(tuple, arguments)))
            case pickle.BUILD:  # OrderedDict._metadata, or hooks: attributes, of which a network needs none
                pop(1)
                _expect(dict, stack[-1])
            case pickle.BINPERSID:
                storage = _storage(stack.pop())
                stack.append(storages.setdefault(storage.key, storage))
            case _:
                raise NetworkError(f"the pickle has opcode {opcode!r}, which no state-dict needs; nothing was executed")


def _expect[T](kind: type[T], value: object) -> T: ...


def _global(name: str) -> _Global:
    if name in _STORAGES or name in _CALLS:
        return _Global(name)
    if name.startswith("torch.nn.modules."):
        reason = "a whole pickled module, not a state-dict: save model.state_dict() instead"
    elif re.match(r"torch\.(_utils\._rebuild_qtensor|q\w+|Q\w+Storage|per_\w+_affine)$", name):
        reason = "quantized tensors are not supported"
    else:
        reason = "a state-dict needs no such thing: save model.state_dict() alone"
    raise NetworkError(f"the pickle names {_quote(name)}: {reason}; nothing was executed")
