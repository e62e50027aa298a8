"""Mutated ONNX files against the reader: every one is read or refused with NetworkError, quickly and in little memory, and
what is read can be written and read again. Run by hand:

    python tests/fuzz/fuzz_read.py --inputs 100000 [--seed 1] [--failures DIRECTORY] [FILE.onnx ...]
"""

from __future__ import annotations

import argparse
import random
import resource
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import helper, numpy_helper

from onnx_builder import NetworkError
from onnx_builder.read import from_bytes
from onnx_builder.write import to_bytes

MEGABYTES = 200
SECONDS = 10.0

_GRAPHS = [
    (17, "float[N,3] x", "a = Sub(x, c3) b = Div(a, c13) h = Gemm <transB = 1> (b, w43, c4) r = Relu(h) y = Gemm(r, w41)"),
    (17, "float[N,3] x", """h = Gemm <alpha = 0.5> (x, w34, c4) s = Div(h, two) e = Erf(s) a = Add(e, one) p = Mul(h, a)
        g = Mul(p, half) z = Gemm <beta = 2.0> (g, w41, c1) y = Squeeze(z, i1)"""),
    (17, "float[N,2] u, float[N,1] v", """x = Concat <axis = 1> (v, u) n = LayerNormalization <epsilon = 0.1> (x, c3, c3)
        m = MatMul(n, w34) h = Add(m, c4) t = LeakyRelu <alpha = 0.2> (h) z = MatMul(t, w41) s = Sigmoid(z) q = Mul(s, c)
        o = Sub(one, q) y = Clip(o, half, two)"""),
    (11, "float[1,3,1] x", """k = Constant <value = float[3] {1.0, 2.0, 3.0}> () n = Neg(k) f = Flatten(x) a = Add(f, n)
        t = Transpose(w43) h = Gemm(a, t) d = Dropout <ratio = 0.5> (h) u = Unsqueeze <axes = [1]> (d) r = Reshape(u, row)
        g = Tanh(r) z = Gemm(g, w41) y = Squeeze(z)"""),
    (20, "float[N,1] x", "l = Cast <to = 1> (half64) h = Mul(x, l) g = Gelu(h) i = Identity(g) y = Relu(i)"),
    (9, "float[N,1] x", """m = Mul(c, two) h = Pow(m, two) v = Sqrt(h) g = Add(v, x) a = Clip <min = 0.0> (g)
        y = Reshape(a, flat)"""),
    (17, "float[N,3] x", """u = Slice(x, i0, i1, i1) v = Gather <axis = 1> (x, last) n = Div(v, half)
        j = Concat <axis = 1> (n, u) b = BatchNormalization(j, c3, c3, c3, c3) h = MatMul(b, w34) p = Greater(h, half)
        e = Exp(h) m = Sub(e, one) q = Not(p) a = Where(q, m, h) f = PRelu(a, c4) g = HardSwish(f) z = Gemm(g, w41, c1)
        s = Shape(x) k = Slice(s, i0, i1) y = Reshape(z, k)"""),
    (13, "float[N,M] x", """h = Gemm <transB = 1> (x, w43, c4) m = ReduceMean <axes = [1]> (h) d = Sub(h, m) q = Mul(d, d)
        v = ReduceMean <axes = [-1]> (q) e = Add(v, half) r = Sqrt(e) n = Div(d, r) l = Mul(n, c4) o = Add(l, c4)
        s = Softplus(o) t = Tanh(s) g = Mul(t, o) y = MatMul(g, w41)"""),
    (18, "float[2,3] x", """a = ai.onnx.ml.Scaler <offset = [1.0], scale = [1.0, 2.0, 3.0]> (x) h = Gemm(a, w34, c4)
        p = LessOrEqual(h, one) q = GreaterOrEqual(h, half) o = And(p, q) c = Cast <to = 1> (o) m = Mish(h) g = Max(c, m, h)
        k = Mul(i1, rows_rest) r = Reshape(g, k) z = ai.onnx.ml.LinearRegressor <coefficients = [1.0, 2.0, 3.0, 4.0]> (r)
        y = Reshape(z, two_rows)"""),
    (17, "float[N,3] x", """h = local.Block(x, w34) g = com.microsoft.QuickGelu(h)
        k = com.microsoft.FusedGemm <activation = "Relu"> (g, w41, c1) d = DequantizeLinear(q1, half) y = Pow(k, d)"""),
]  # fmt: skip
"""Opset, inputs and nodes of graphs that between them have every operator that the reader knows."""


_BLOCK = '<opset_import: ["" : 17], domain: "local"> Block (a, w) => (r) { h = MatMul(a, w) r = Sigmoid(h) }'


def seeds() -> list[bytes]:
    """Good models, small: their constants are few and short."""
    numbers = np.random.default_rng(0)
    constants: dict[str, Any] = {
        "w34": numbers.normal(size=(3, 4)), "w43": numbers.normal(size=(4, 3)), "w41": numbers.normal(size=(4, 1)),
        "c3": [1.0, 2, 3], "c13": [[3.0, 2, 4]], "c4": [1.0, 2, 3, 4], "c1": [5.0], "c": 7.0,
        "one": 1.0, "half": 0.5, "two": 2**0.5, "half64": 0.5, "i1": [1], "row": [-1, 4], "flat": [-1],
        "i0": [0], "last": [2, 1], "two_rows": [2], "rows_rest": [2, -1], "q1": np.int8([4]),
    }  # fmt: skip
    models = []
    for place, (opset, inputs, body) in enumerate(_GRAPHS):
        header = f'<ir_version: 8, opset_import: ["" : {opset}, "ai.onnx.ml" : 3, "com.microsoft" : 1, "local" : 1]>'
        model = onnx.parser.parse_model(f"{header} g ({inputs}) => (float[N] y) {{ {body} }}")
        made = {value.name for value in model.graph.input} | {name for node in model.graph.node for name in node.output}
        used = [name for node in model.graph.node for name in node.input if name not in made]
        for name in dict.fromkeys(used):
            array = np.asarray(constants[name])
            kind = np.float32 if array.dtype.kind == "f" else array.dtype
            kind = {"half64": np.float64, "c4": np.float16}.get(name, kind)
            tensor = numpy_helper.from_array(array.astype(kind), name)
            if place % 2:  # in half of them, the numbers are in the field of their type
                tensor = helper.make_tensor(name, tensor.data_type, tensor.dims, array.ravel())
            model.graph.initializer.append(tensor)
        if "local.Block" in body:
            block = onnx.parser.parse_function(_BLOCK)
            model.functions.append(block)
        models.append(model.SerializeToString())
    return models


_OPERATORS = [
    *("Add", "Sub", "Mul", "Div", "Neg", "Sqrt", "Pow", "Cast", "Identity", "Dropout", "Constant", "Transpose", "Reshape"),
    *("Squeeze", "Unsqueeze", "Flatten", "Concat", "Erf", "Gemm", "MatMul", "Relu", "LeakyRelu", "Tanh", "Sigmoid", "Gelu"),
    *(
        "Clip",
        "LayerNormalization",
        "Conv",
        "Slice",
        "Gather",
        "Shape",
        "Expand",
        "Where",
        "Greater",
        "And",
        "Exp",
        "Log",
        "Max",
    ),
    *("PRelu", "Elu", "HardSigmoid", "ReduceMean", "ReduceSum", "BatchNormalization", "Block", "Scaler"),
]
_NUMBERS = [-(2**63), -(2**31), -9, -2, -1, 0, 1, 2, 3, 4, 7, 10, 11, 16, 20, 99, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1]
_FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-45, 1e-5, 1e30, 3.4e38, float("inf"), float("-inf"), float("nan")]


def mutated(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """A model's bytes, changed in one to four places: in what they mean, or as bytes."""
    if chance.random() < 0.75:
        try:
            model = onnx.ModelProto.FromString(data)
        except Exception:  # not every file given has to be a model
            return changed_bytes(data, others, chance)
        for _ in range(chance.choice([1, 1, 2, 3, 4])):
            _change_field(model, chance)
        data = model.SerializeToString()
    if chance.random() < 0.3:
        data = changed_bytes(data, others, chance)
    return data


def changed_bytes(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4])):
        start, end = sorted(chance.randrange(len(changed) + 1) for _ in range(2))
        match chance.randrange(6):
            case 0 | 1 if changed:
                changed[min(start, len(changed) - 1)] ^= 1 << chance.randrange(8)
            case 2 if changed:
                changed[min(start, len(changed) - 1)] = chance.randrange(256)
            case 3:
                del changed[start : min(end, start + chance.choice([1, 4, 100_000]))]
            case 4:
                other = chance.choice(others)
                place = chance.randrange(len(other))
                changed[start : min(end, start + 64)] = other[place : place + chance.choice([1, 8, 64, 4096])]
            case _:
                changed[start:start] = changed[start : min(end, start + chance.choice([8, 64, 512]))]
    return bytes(changed)


def _change_field(model: onnx.ModelProto, chance: random.Random) -> None:
    """Change one field somewhere in a message: another value, one more or fewer of it, or none."""
    message: Any = model
    texts = [value.name for value in (*model.graph.initializer, *model.graph.input, *model.graph.output)]
    texts += [name for node in model.graph.node for name in (*node.input, *node.output)] + _OPERATORS + ["", "N"]
    while True:
        present = [descriptor for descriptor, _ in message.ListFields()]
        absent = chance.random() < 0.1 or not present
        descriptor = chance.choice(message.DESCRIPTOR.fields if absent else present)
        value = getattr(message, descriptor.name)
        repeated = hasattr(value, "append")
        is_message = descriptor.message_type is not None
        if is_message and chance.random() < 0.9 and (not repeated or len(value)):
            message = chance.choice(value) if repeated else value
            continue
        if repeated:
            _change_repeated(value, is_message, descriptor, texts, chance)
        elif is_message or chance.random() < 0.1:
            message.ClearField(descriptor.name)
        else:
            _assign(lambda new, to=message, name=descriptor.name: setattr(to, name, new), value, descriptor, texts, chance)
        return


def _change_repeated(values: Any, is_message: bool, descriptor: Any, texts: list[str], chance: random.Random) -> None:
    place = chance.randrange(len(values)) if len(values) else 0
    match chance.randrange(4):
        case 0 if len(values):
            del values[place]
        case 1 if len(values) and is_message:
            values.add().CopyFrom(values[place])
        case 2 if len(values) > 1 and is_message:
            first, second = values[0].__deepcopy__(), values[place].__deepcopy__()
            values[0].CopyFrom(second)
            values[place].CopyFrom(first)
        case _ if is_message:
            values.add()
        case 1:
            _assign(values.append, None, descriptor, texts, chance)
        case _ if len(values):
            _assign(lambda new: values.__setitem__(place, new), values[place], descriptor, texts, chance)


def _assign(assign: Any, value: Any, descriptor: Any, texts: list[str], chance: random.Random) -> None:
    kind = descriptor.cpp_type
    if kind == descriptor.CPPTYPE_STRING and descriptor.type == descriptor.TYPE_BYTES:
        value = value or b""
        assign(chance.choice([value[:-1], value + b"\0", value * 2, value[: len(value) // 2], _with_float(value, chance)]))
    elif kind == descriptor.CPPTYPE_STRING:
        assign(chance.choice(texts))
    elif kind in (descriptor.CPPTYPE_FLOAT, descriptor.CPPTYPE_DOUBLE):
        assign(chance.choice(_FLOATS))
    elif kind == descriptor.CPPTYPE_ENUM:
        assign(chance.choice(list(descriptor.enum_type.values_by_number)))
    else:
        number = chance.choice([*_NUMBERS, (value or 0) + chance.choice([-1, 1])])
        bits = 31 if kind in (descriptor.CPPTYPE_INT32, descriptor.CPPTYPE_UINT32) else 63
        unsigned = kind in (descriptor.CPPTYPE_UINT32, descriptor.CPPTYPE_UINT64)
        assign(min(max(number, 0 if unsigned else -(2**bits)), 2**bits - 1))


def _with_float(value: bytes, chance: random.Random) -> bytes:
    place = 4 * chance.randrange(len(value) // 4 + 1)
    return value[:place] + np.float32(chance.choice(_FLOATS)).tobytes() + value[place + 4 :]


@dataclass
class Result:
    """What came of it. failures: an input and what was wrong with it."""

    tried: int = 0
    networks: int = 0
    slowest: float = 0.0  # CPU seconds
    slowest_input: bytes = b""
    failures: list[tuple[bytes, str]] = field(default_factory=list)


def fuzz(models: Sequence[bytes], inputs: int, seed: int) -> Result:
    """Read so many mutations of models; reproducible by the seed."""
    chance, result = random.Random(seed), Result()
    for _ in range(inputs):
        data = mutated(chance.choice(models), models, chance)
        start = time.process_time()
        try:
            result.networks += _reads(data)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            result.failures.append((data, "".join(traceback.format_exception(error)[-3:])))
        seconds = time.process_time() - start
        if seconds > result.slowest:
            result.slowest, result.slowest_input = seconds, data
        if seconds > SECONDS:
            result.failures.append((data, f"took {seconds:.1f} s"))
        result.tried += 1
    return result


def _reads(data: bytes) -> bool:
    """Is it read, and not refused? What is read is written, and reads as the same again."""
    try:
        network = from_bytes(data)
    except NetworkError:
        return False
    written = to_bytes(network)
    if to_bytes(from_bytes(written)) != written:
        raise AssertionError("what was written reads as another network")
    return True


def bound_memory(megabytes: int) -> None:
    """Let the process have so much more than now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="where to save inputs that fail")
    parser.add_argument("files", type=Path, nargs="*", help="more models to start from")
    arguments = parser.parse_args()
    models = seeds() + [path.read_bytes() for path in arguments.files]
    fuzz(models, 100, arguments.seed)  # so that what Python and onnx load once is there before memory is bounded
    bound_memory(MEGABYTES)
    result = fuzz(models, arguments.inputs, arguments.seed)
    for number, (data, message) in enumerate(result.failures):
        arguments.failures.mkdir(parents=True, exist_ok=True)
        path = arguments.failures / f"{arguments.seed}-{number}.onnx"
        path.write_bytes(data)
        print(f"{path}: {message}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f"{result.tried} inputs, {result.networks} networks, {len(result.failures)} failures")
    print(f"slowest {result.slowest * 1000:.0f} ms, of {len(result.slowest_input)} bytes; peak memory {peak:.0f} MB")
    return bool(result.failures)


if __name__ == "__main__":
    raise SystemExit(main())
