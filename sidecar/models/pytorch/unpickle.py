"""Reads the pickle inside a PyTorch file: tensors, plain values, and placeholders for everything else.

Nothing is ever executed: a global is only a name, and what is made of one is a `Placeholder` that keeps its parts. The standard
library's Unpickler would not be safe even with a list of names, since it has no hook for dict keys and the memo: one key of
nested tuples can crash the process or hang it, and five bytes can ask for gigabytes.
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
_NO_VALUES = (  # tensors of these kinds have no plain values
    (r"torch\._utils\._rebuild_sparse\w*", "a sparse tensor: save it as .to_dense()"),
    (r"torch\.(_utils\._rebuild_qtensor|q\w+|Q\w+Storage|per_\w+_affine)", "a quantised tensor: use the float original"),
)


@dataclass(frozen=True, eq=False, slots=True, repr=False)  # its parts may take for ever to print, or to compare
class Placeholder:
    """A class, a function, or what was made with it, by its full name. parts: arguments, attributes and items, in order."""

    name: str
    parts: list[Any]

    def __str__(self) -> str:
        return self.name


class Dict(dict[Any, Any]):
    """A dict with the names of the modules that torch lists beside a state-dict (`_metadata`), those without weights too.

    Its keys are text and small integers; others may be slow to hash, and are Placeholders.
    """

    modules: tuple[str, ...] = ()


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
_LENGTH_BYTES = {pickle.SHORT_BINUNICODE: 1, pickle.BINUNICODE: 4, pickle.BINUNICODE8: 8}
_BYTES_LENGTH_BYTES = {
    pickle.SHORT_BINBYTES: 1,
    pickle.BINBYTES: 4,
    pickle.BINBYTES8: 8,
    pickle.BYTEARRAY8: 8,
    pickle.SHORT_BINSTRING: 1,  # text of Python 2
    pickle.BINSTRING: 4,
}
_MEMO_BYTES = {pickle.BINPUT: 1, pickle.LONG_BINPUT: 4, pickle.BINGET: 1, pickle.LONG_BINGET: 4}
_TUPLE_LENGTHS = {pickle.EMPTY_TUPLE: 0, pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}


def unpickle(stream: io.BytesIO, storages: dict[str, Storage]) -> Any:
    """One pickled object, made of Dict, list (also for sets), tuple, text, bytes, numbers, Tensor and Placeholder.

    Adds the storages that it names. It may refer to itself, and be nested as deeply as it has bytes. Work and memory are linear
    in the bytes read. Raises NetworkError for tensors without plain values and for opcodes that torch.save does not write;
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
        target = stack[-1]
        if isinstance(target, Placeholder):
            items_of, target = target, Dict()
            items_of.parts.append(target)
        for key, value in zip(items[::2], items[1::2], strict=True):
            plain = isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**60)  # longer ones may be chosen to collide
            expect(Dict, target)[key if plain else Placeholder(type(key).__name__, [key])] = value

    def extend(values: list[Any]) -> None:
        target = stack[-1].parts if isinstance(stack[-1], Placeholder) else expect(list, stack[-1])
        target.extend(values)

    def called(function: Any, *arguments: Any) -> Placeholder:
        return Placeholder(expect(Placeholder, function).name, [*arguments])

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
            case pickle.LONG1 | pickle.LONG4:
                stack.append(integer(integer(1 if opcode == pickle.LONG1 else 4), signed=True))
            case pickle.BINFLOAT:
                stack.append(struct.unpack(">d", take(8))[0])
            case pickle.BINUNICODE | pickle.SHORT_BINUNICODE | pickle.BINUNICODE8:
                stack.append(take(integer(_LENGTH_BYTES[opcode])).decode())
            case pickle.SHORT_BINSTRING | pickle.BINSTRING:
                stack.append(take(integer(_BYTES_LENGTH_BYTES[opcode])).decode("latin-1"))
            case pickle.SHORT_BINBYTES | pickle.BINBYTES | pickle.BINBYTES8 | pickle.BYTEARRAY8:
                stack.append(take(integer(_BYTES_LENGTH_BYTES[opcode])))
            case pickle.EMPTY_TUPLE | pickle.TUPLE1 | pickle.TUPLE2 | pickle.TUPLE3:
                stack.append(tuple(pop(_TUPLE_LENGTHS[opcode])))
            case pickle.TUPLE:
                stack.append(tuple(pop_to_mark()))
            case pickle.EMPTY_LIST | pickle.EMPTY_SET:
                stack.append([])
            case pickle.FROZENSET:
                stack.append(pop_to_mark())
            case pickle.APPEND:
                extend(pop(1))
            case pickle.APPENDS | pickle.ADDITEMS:
                extend(pop_to_mark())
            case pickle.EMPTY_DICT:
                stack.append(Dict())
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
                stack.append(_call(expect(Placeholder, function), expect(tuple, arguments)))
            case pickle.NEWOBJ:
                stack.append(called(*pop(2)))
            case pickle.NEWOBJ_EX:
                stack.append(called(*pop(3)))
            case pickle.BUILD:
                (attributes,) = pop(1)
                _set_attributes(stack[-1], attributes)
            case pickle.POP:
                pop(1)
            case pickle.POP_MARK:
                pop_to_mark()
            case pickle.DUP:
                stack.append(stack[-1])
            case pickle.BINPERSID:
                stack.append(_storage(stack.pop(), storages))
            case _:
                raise NetworkError(f"the pickle has opcode {opcode!r}, which torch.save does not write; nothing was executed")


def _global(name: str) -> Placeholder:
    for pattern, reason in _NO_VALUES:
        if re.fullmatch(pattern, name):
            raise NetworkError(f"the pickle names {quote(name)}, {reason}; nothing was executed")
    return Placeholder(name, [])


def _set_attributes(target: Any, attributes: Any) -> None:
    if isinstance(target, Placeholder):
        target.parts.append(attributes)
    elif isinstance(attributes, Dict) and isinstance(modules := attributes.get("_metadata"), Dict):
        expect(Dict, target).modules = tuple(name for name in modules if isinstance(name, str))
    else:  # hooks, which a network does not need
        expect(Dict, target)


def _call(function: Placeholder, arguments: tuple[Any, ...]) -> Any:
    match function.name, arguments:
        case "collections.OrderedDict", ():
            return Dict()
        case "_codecs.encode", (str(text), "latin1"):  # bytes, as protocol 2 writes them
            return text.encode("latin-1")
        case "collections.Counter", (Dict() as counts,):  # milestones of a learning rate schedule
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
        case str(), (Placeholder() as storage, *_) if function.name.startswith("torch._utils._rebuild_tensor"):
            return Placeholder(storage.name, [])
    return Placeholder(function.name, [*arguments])


def _storage(saved: Any, storages: dict[str, Storage]) -> Storage | Placeholder:
    match saved:
        case ("storage", Placeholder(name), str(key), str(), int(count), *view) if view in ([], [None]) and name in _STORAGES:
            storage = Storage(_STORAGES[name], key, count)
        case ("storage" | "module", Placeholder(name), *_) if name not in _STORAGES:
            return Placeholder(name, [])
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
