"""Reads the pickle inside a PyTorch file: what tensors need of it, and nothing else.

Nothing is ever executed: a global is only a name on a short list. The standard library's Unpickler would not be safe even with
such a list, since it has no hook for dict keys and the memo: one key of nested tuples can crash the process or hang it, and
five bytes can ask for gigabytes.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from onnx_builder.network import NetworkError

MAX_PICKLE_BYTES = 1_000_000
"""A pickle holds names and shapes, about a hundred bytes per tensor; the numbers are stored beside it."""

DType = np.dtype[Any]
_T = TypeVar("_T")
BFLOAT16 = np.dtype([("bfloat16", "<u2")])  # the upper half of a float32; numpy has no such type
_STORAGES: dict[str, DType] = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": BFLOAT16,
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
    "collections.Counter",
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
}


@dataclass(frozen=True, eq=False, slots=True)
class _Global:
    name: str


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """`count` values of one type that are stored beside the pickle."""

    dtype: DType
    key: str
    count: int


@dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """A window into a storage; offset and strides count values."""

    storage: Storage
    offset: int
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]


# For each opcode: its value, the bytes of its integer or of the length of its text, or the length of its tuple.
_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}
_INTEGER_BYTES = {pickle.BININT1: 1, pickle.BININT2: 2}
_LENGTH_BYTES = {pickle.SHORT_BINUNICODE: 1, pickle.BINUNICODE: 4}
_MEMO_BYTES = {pickle.BINPUT: 1, pickle.LONG_BINPUT: 4, pickle.BINGET: 1, pickle.LONG_BINGET: 4}
_TUPLE_LENGTHS = {pickle.EMPTY_TUPLE: 0, pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}


def unpickle(stream: io.BytesIO, storages: dict[str, Storage]) -> Any:
    """One pickled object, made of dict, list, tuple, text, numbers and Tensor; adds the storages that it names.

    Work and memory are linear in the bytes read. Raises NetworkError for anything that a state-dict does not need, by name;
    IndexError, KeyError, struct.error and UnicodeDecodeError if the bytes are damaged.
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
        target = expect(dict, stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Other keys may be slow to hash, and so may integers that are chosen to collide.
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
            case pickle.NONE | pickle.NEWTRUE | pickle.NEWFALSE:
                stack.append(_CONSTANTS[opcode])
            case pickle.BININT:
                stack.append(integer(4, signed=True))
            case pickle.BININT1 | pickle.BININT2:
                stack.append(integer(_INTEGER_BYTES[opcode]))
            case pickle.LONG1:
                stack.append(integer(integer(1), signed=True))
            case pickle.BINFLOAT:
                stack.append(struct.unpack(">d", take(8))[0])
            case pickle.BINUNICODE | pickle.SHORT_BINUNICODE:
                stack.append(take(integer(_LENGTH_BYTES[opcode])).decode())
            case pickle.EMPTY_TUPLE | pickle.TUPLE1 | pickle.TUPLE2 | pickle.TUPLE3:
                stack.append(tuple(pop(_TUPLE_LENGTHS[opcode])))
            case pickle.TUPLE:
                stack.append(tuple(pop_to_mark()))
            case pickle.EMPTY_LIST:
                stack.append([])
            case pickle.APPEND | pickle.APPENDS:
                values = pop(1) if opcode == pickle.APPEND else pop_to_mark()
                expect(list, stack[-1]).extend(values)
            case pickle.EMPTY_DICT:
                stack.append({})
            case pickle.SETITEM | pickle.SETITEMS:
                set_items(pop(2) if opcode == pickle.SETITEM else pop_to_mark())
            case pickle.MEMOIZE:
                memo[len(memo)] = stack[-1]
            case pickle.BINPUT | pickle.LONG_BINPUT:
                memo[integer(_MEMO_BYTES[opcode])] = stack[-1]
            case pickle.BINGET | pickle.LONG_BINGET:
                stack.append(memo[integer(_MEMO_BYTES[opcode])])
            case pickle.GLOBAL:
                stack.append(_global(f"{line()}.{line()}"))
            case pickle.STACK_GLOBAL:
                module, name = pop(2)
                stack.append(_global(f"{expect(str, module)}.{expect(str, name)}"))
            case pickle.REDUCE:
                function, arguments = pop(2)
                stack.append(_call(expect(_Global, function), expect(tuple, arguments)))
            case pickle.BUILD:  # attributes (OrderedDict._metadata, or hooks), which a network does not need
                pop(1)
                expect(dict, stack[-1])
            case pickle.BINPERSID:
                stack.append(_storage(stack.pop(), storages))
            case _:
                raise NetworkError(f"the pickle has opcode {opcode!r}, which no state-dict needs; nothing was executed")


def _global(name: str) -> _Global:
    if name in _STORAGES or name in _CALLS:
        return _Global(name)
    if name.startswith("torch.nn.modules."):
        reason = "a whole pickled module, not a state-dict: save model.state_dict() instead"
    elif re.match(r"torch\.(_utils\._rebuild_qtensor|q\w+|Q\w+Storage|per_\w+_affine)$", name):
        reason = "quantized tensors are not supported"
    else:
        reason = "a state-dict does not need this: save model.state_dict() alone"
    raise NetworkError(f"the pickle names {quote(name)}: {reason}; nothing was executed")


def _call(function: _Global, arguments: tuple[Any, ...]) -> Any:
    match function.name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "collections.Counter", (dict(counts),):  # milestones of a learning rate schedule
            return counts
        case "torch.Size", (tuple(shape),):
            return shape
        case "torch.device", (str(), *_):
            return None
        case "torch._utils._rebuild_tensor", (Storage() as storage, offset, tuple(shape), tuple(strides)):
            return Tensor(storage, offset, shape, strides)
        # The flag and the hooks are for training. A seventh argument would say that the values are stored negated.
        case "torch._utils._rebuild_tensor_v2", (Storage() as storage, offset, tuple(shape), tuple(strides), _flag, _hooks):
            return Tensor(storage, offset, shape, strides)
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", (Tensor() as tensor, *_):
            return tensor
    raise NetworkError(f"the pickle calls {function.name} with {len(arguments)} arguments that torch.save would not write")


def _storage(saved: Any, storages: dict[str, Storage]) -> Storage:
    match saved:
        case ("storage", _Global(name), str(key), str(), int(count), *view) if view in ([], [None]):
            storage = Storage(_STORAGES[name], key, count)
        case _:
            raise NetworkError("the pickle refers to a storage in a way that torch.save does not use")
    first = storages.setdefault(key, storage)
    if (first.dtype, first.count) != (storage.dtype, storage.count):
        raise NetworkError(f"storage {quote(key)} has two types or lengths")
    return first


def expect(kind: type[_T], value: object) -> _T:
    if not isinstance(value, kind):
        raise NetworkError(f"the pickle has a {type(value).__name__.lstrip('_')} where a {kind.__name__.lstrip('_')} belongs")
    return value


def quote(text: object) -> str:
    return repr(text if len(str(text)) <= 80 else f"{str(text)[:80]}…")
