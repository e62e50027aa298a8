"""PyTorch files written byte by byte, so that torch is not needed: the three formats, with whatever is to be in them."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from dataclasses import dataclass, field

import numpy as np
import pytest


@dataclass
class Global:
    name: str


@dataclass
class Call:
    function: str
    arguments: tuple
    state: object = None


class Ordered(dict):
    """A state-dict as torch makes it: an OrderedDict that lists the names of all modules, those without weights too."""

    def __init__(self, state, *modules):
        super().__init__(state)
        self.modules = modules


@dataclass(eq=False)
class Tensor:
    """A window of the given shape into a storage, all of it in C order unless told otherwise."""

    values: np.ndarray
    shape: tuple | None = None
    strides: tuple | None = None
    offset: int = 0
    kind: str = "Float"

    def __post_init__(self):
        self.shape = self.values.shape if self.shape is None else self.shape
        if self.strides is None:
            self.strides = tuple(int(np.prod(self.shape[axis + 1 :])) for axis in range(len(self.shape)))


@dataclass
class Writer:
    legacy: bool = False
    storages: dict = field(default_factory=dict)

    def pickle(self, value):
        return b"\x80\x02" + self.encode(value) + b"."

    def encode(self, value):
        match value:
            case bytes():  # opcodes as they are
                return value
            case None:
                return b"N"
            case bool():
                return b"\x88" if value else b"\x89"
            case int():
                return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)
            case float():
                return b"G" + struct.pack(">d", value)
            case str():
                return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
            case tuple():
                return b"(" + b"".join(map(self.encode, value)) + b"t"
            case list():
                return b"](" + b"".join(map(self.encode, value)) + b"e"
            case Ordered():
                items = b"".join(self.encode(part) for item in value.items() for part in item)
                modules = self.encode({"_metadata": {name: {"version": 1} for name in value.modules}})
                return self.encode(Call("collections.OrderedDict", ())) + b"(" + items + b"u" + modules + b"b"
            case dict():
                return b"}(" + b"".join(self.encode(part) for item in value.items() for part in item) + b"u"
            case Global():
                module, _, name = value.name.rpartition(".")
                return f"c{module}\n{name}\n".encode()
            case Call():
                state = b"" if value.state is None else self.encode(value.state) + b"b"
                return self.encode(Global(value.function)) + self.encode(value.arguments) + b"R" + state
            case Tensor():
                key = next((key for key, values in self.storages.items() if values is value.values), str(len(self.storages)))
                self.storages[key] = value.values
                saved = ("storage", Global(f"torch.{value.kind}Storage"), key, "cpu", value.values.size)
                storage = self.encode((*saved, None) if self.legacy else saved) + b"Q"
                hooks = Call("collections.OrderedDict", ())
                window = (storage, value.offset, value.shape, value.strides, False, hooks)
                return self.encode(Call("torch._utils._rebuild_tensor_v2", window))


def zip_file(value, byte_order="little", compression=zipfile.ZIP_STORED, **members):
    writer = Writer()
    content = {"data.pkl": writer.pickle(value), "byteorder": byte_order.encode()}
    for key, values in writer.storages.items():
        content[f"data/{key}"] = (values.byteswap() if byte_order == "big" else values).tobytes()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in (content | members).items():
            if data is not None:
                archive.writestr(f"archive/{name}", data)
    return file.getvalue()


def legacy_file(value):
    writer = Writer(legacy=True)
    object_pickle = writer.pickle(value)
    parts = [Writer().pickle(part) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    parts += [object_pickle, writer.pickle(list(writer.storages))]
    parts += [struct.pack("<q", values.size) + values.tobytes() for values in writer.storages.values()]
    return b"".join(parts)


def safetensors_file(tensors, **changes):
    """`tensors`: the dtype's name and an array, by key."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for key, (dtype, values) in sorted(tensors.items()):
        header[key] = {"dtype": dtype, "shape": values.shape, "data_offsets": [len(data), len(data) + values.nbytes]}
        data += values.tobytes()
    for key, change in changes.items():
        header[key] = header[key] | change
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


FORMS = {
    "zip": zip_file,
    "legacy": legacy_file,
    "safetensors": lambda state: safetensors_file({key: ("F32", tensor.values) for key, tensor in state.items()}),
}
every_form = pytest.mark.parametrize("form", FORMS)


def numbers(*shape, seed=0):
    """Values that are exact in float16 and bfloat16."""
    return np.random.default_rng(seed).integers(-64, 64, shape).astype(np.float32) / 16


def linears(*shapes, names=None):
    """A state-dict of Linear layers, (n_out, n_in) each, numbered as in a Sequential with activations."""
    state = {}
    for position, (n_out, n_in) in enumerate(shapes):
        name = names[position] if names else str(2 * position)
        state[f"{name}.weight"] = Tensor(numbers(n_out, n_in, seed=position))
        state[f"{name}.bias"] = Tensor(numbers(n_out, seed=position + 50))
    return state


def expected(state, x):
    """What the layers compute in the order of the dict."""
    weights = [tensor.values for key, tensor in state.items() if key.endswith("weight")]
    biases = [tensor.values for key, tensor in state.items() if key.endswith("bias")]
    for weight, bias in zip(weights, biases, strict=True):
        x = np.maximum(x, 0) if weight is not weights[0] else x
        x = x @ weight.T + bias
    return x[:, 0]


X = numbers(5, 3, seed=9)
STATE = linears((4, 3), (1, 4))
SMALL = {"weight": Tensor(np.array([[2, -1]], dtype=np.float32)), "bias": Tensor(np.array([0.5], dtype=np.float32))}
