"""Random graphs against the reader: each is refused, or read as what onnxruntime computes; some are written, too, and have to
read as the same again. Run by hand:

    python tests/fuzz/fuzz_graphs.py --graphs 100000 [--seed 1] [--failures DIRECTORY]
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from onnx_builder import NetworkError
from onnx_builder.read import from_bytes
from onnx_builder.write import to_bytes

ROWS = 24
EACH_WRITTEN = 8
"""Of so many graphs, one is also written and read again, which takes most of the time."""
TOLERANCE = 5e-4
MOST_ROWS_OFF = 0.1
"""Where a function jumps or has a pole, the last bit of a value may decide."""
_OFF_TIES = 1e-3
"""Two values that are equal but for rounding may be so in all rows; this is added to one of them before a second judgement."""

_UNARY = ["Relu", "Tanh", "Sigmoid", "Softplus", "Elu", "Selu", "LeakyRelu", "HardSigmoid", "Exp", "Abs", "Neg", "Identity"]
_UNARY += ["Softsign", "Celu", "ThresholdedRelu", "Shrink", "Erf", "Sqrt", "Log", "Reciprocal", "Sign", "HardSwish", "Mish"]
_UNARY += ["Gelu"]
_SINCE = {"Celu": 12, "Shrink": 9, "Erf": 9, "Sign": 9, "HardSwish": 14, "Mish": 18, "Gelu": 20, "GreaterOrEqual": 12}
_SINCE |= {"LessOrEqual": 12, "LayerNormalization": 17}
_WITH_NUMBERS = {"Elu": "alpha", "LeakyRelu": "alpha", "Celu": "alpha", "ThresholdedRelu": "alpha", "HardSigmoid": "beta"}
_ABOVE_ZERO = {"Sqrt", "Log", "Reciprocal", "Div", "Pow"}
"""Operators that get an operand above 0, so that few values are infinite or not a number."""
_COMPARISONS = ["Greater", "Less", "GreaterOrEqual", "LessOrEqual"]


class _Maker:
    """Nodes and constants of a graph in the making; values are names with their widths."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.numbers = np.random.default_rng(chance.getrandbits(32))
        self.opset = chance.choice([9, 11, 13, 17, 17, 18, 20, 22])
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def name(self) -> str:
        return f"v{len(self.nodes) + len(self.initializers)}"

    def constant(self, value: Any) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = self.name()
        domain = "ai.onnx.ml" if operator in ("Scaler", "ArrayFeatureExtractor") else ""
        self.nodes.append(helper.make_node(operator, inputs, [output], domain=domain, **attributes))
        return output

    def row(self, width: int) -> str:
        shape = self.chance.choice([(), (1,), (1, 1), (width,), (width,), (1, width)])
        scale = self.chance.choice([0.1, 1, 1, 1, 5])
        values = self.numbers.normal(size=shape) * scale + self.chance.choice([0, 0, 1, -1])
        if self.chance.random() < 0.2:
            values = np.round(values)
        return self.constant(np.asarray(values, dtype=np.float32))

    def axes(self, operator: str, x: str, axis: int) -> str:
        return self.add(operator, x, self.constant([axis])) if self.opset > 12 else self.add(operator, x, axes=[axis])

    def dense(self, x: str, width: int, n_out: int) -> str:
        weight = (self.numbers.normal(size=(width, n_out)) / width**0.5).astype(np.float32)
        bias = self.constant(self.numbers.normal(size=n_out).astype(np.float32))
        if self.chance.random() < 0.5:
            return self.add("Gemm", x, self.constant(weight.T.copy()), bias, transB=1)
        product = self.add("MatMul", x, self.constant(weight))
        return self.add("Add", product, bias) if self.chance.random() < 0.8 else product

    def above_zero(self, x: str) -> str:
        return self.add("Add", self.add("Abs", x), self.constant(np.float32(0.2)))

    def condition(self, x: str, y: str, width: int) -> str:
        operator = self.chance.choice(_COMPARISONS if self.opset >= 12 else _COMPARISONS[:2])
        pair = [x, self.row(width)] if self.chance.random() < 0.7 else [x, y]
        self.chance.shuffle(pair)
        return self.add(operator, *pair)

    def function(self, x: str, y: str, width: int) -> str:
        """One node or a few that do the same to each value; y: an earlier value, of the same width."""
        kind = self.chance.randrange(12)
        if kind < 4:
            operator = self.chance.choice(_UNARY)
            operator = operator if _SINCE.get(operator, 0) <= self.opset else "Tanh"
            attributes: dict[str, Any] = {}
            if operator in _WITH_NUMBERS and self.chance.random() < 0.5:
                attributes[_WITH_NUMBERS[operator]] = self.chance.choice([0.1, 0.7, 2.0])
            if operator == "Gelu" and self.chance.random() < 0.5:
                attributes["approximate"] = "tanh"
            if operator == "Shrink":
                attributes["lambd"] = 0.3
            return self.add(operator, self.above_zero(x) if operator in _ABOVE_ZERO else x, **attributes)
        if kind < 7:
            operator = self.chance.choice(["Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"])
            pair = [self.above_zero(x) if operator in _ABOVE_ZERO else x, self.row(width)]
            if self.chance.random() < 0.3:
                pair.reverse()
            return self.add(operator, *pair)
        if kind < 9:
            operator = self.chance.choice(["Add", "Sub", "Mul", "Div", "Max", "Min"])
            pair = [x, self.above_zero(y) if operator == "Div" else y]
            if operator != "Div":
                self.chance.shuffle(pair)
            return self.add(operator, *pair)
        if kind == 9:
            return self.add("PRelu", x, self.row(width))
        if kind == 10:
            condition = self.condition(x, y, width)
            if self.chance.random() < 0.3:
                second = self.condition(y, x, width)
                condition = self.add(self.chance.choice(["And", "Or"]), condition, second)
            if self.chance.random() < 0.3:
                condition = self.add("Not", condition)
            branches = [x, self.chance.choice([y, self.row(width)])]
            self.chance.shuffle(branches)
            return self.add("Where", condition, *branches)
        if self.opset > 10:
            return self.add("Clip", x, self.constant(np.float32(-1)), self.constant(np.float32(1.5)))
        return self.add("Clip", x, min=-1.0, max=1.5)

    def shape(self, x: str, width: int) -> str:
        """Nodes that change the shape, to and fro."""
        match self.chance.randrange(7):
            case 6:  # a row as a small table, with a constant that broadcasts to it
                high = self.chance.choice([size for size in range(1, width + 1) if width % size == 0])
                table = self.add("Reshape", x, self.constant([-1, high, width // high]))
                sizes = [self.chance.choice([1, size]) for size in (high, width // high)][self.chance.randrange(2) :]
                row = self.constant(self.numbers.normal(size=sizes).astype(np.float32))
                return self.add("Flatten", self.add(self.chance.choice(["Add", "Mul", "Max"]), table, row))
            case 0:
                return self.axes("Squeeze", self.axes("Unsqueeze", x, 1), 1)
            case 1:
                return self.add("Flatten", self.axes("Unsqueeze", x, 2))
            case 2:
                size = self.axes("Unsqueeze", self.add("Gather", self.add("Shape", x), self.constant(np.array(0))), 0)
                return self.add(
                    "Reshape", x, self.add("Concat", size, self.constant([self.chance.choice([-1, width])]), axis=0)
                )
            case 3:
                return self.add("Reshape", x, self.constant([self.chance.choice([0, -1]), width]))
            case 4:
                order = self.chance.choice([[1, 0, 2], [0, 1, 2], [0, 2, 1]])
                return self.add("Transpose", self.axes("Unsqueeze", x, 1), perm=order)
            case _:
                return self.add("Reshape", x, self.add("Shape", x))

    def part(self, x: str, width: int) -> tuple[str, int]:
        """Some of the values."""
        places = self.chance.sample(range(width), self.chance.randint(1, width))
        match self.chance.randrange(4):
            case 0:
                return self.add("Gather", x, self.constant(np.array(places)), axis=1), len(places)
            case 3:  # as torch's exporter spells x[:, places]
                turned = self.add("Transpose", x, perm=[1, 0])
                if self.opset >= 11 and self.chance.random() < 0.7:
                    taken = self.add("GatherND", turned, self.constant(np.array(places)[:, None]))
                else:
                    taken = self.add("Gather", turned, self.constant(np.array(places)), axis=0)
                return self.add("Transpose", taken, perm=[1, 0]), len(places)
            case 1:
                return self.add("ArrayFeatureExtractor", x, self.constant(np.array([places]))), len(places)
            case _:
                start = self.chance.randrange(width)
                if self.opset < 10:
                    return self.add("Slice", x, starts=[start], ends=[2**40], axes=[1]), width - start
                ends = [self.constant([start]), self.constant([2**40]), self.constant([1])]
                return self.add("Slice", x, *ends), width - start

    def joined(self, x: str, width: int) -> tuple[str, int]:
        """All values in another order, in two parts, each of which may be scaled or be given to a function."""
        places = self.chance.sample(range(width), width)
        cut = self.chance.randrange(1, width)
        widths, parts = [cut, width - cut], []
        if self.chance.random() < 0.3:
            apart = self.split(x, *widths)
        else:
            apart = [self.add("Gather", x, self.constant(np.array(part)), axis=1) for part in (places[:cut], places[cut:])]
        for part, taken in zip(widths, apart, strict=True):
            for operator in self.chance.sample(["Sub", "Mul", "Add", "Mul"], self.chance.choice([0, 1, 2, 2])):
                taken = self.add(operator, taken, self.row(part))
            for _ in range(self.chance.choice([0, 0, 1, 2])):
                taken = self.function(taken, taken, part)
            parts.append(taken)
        return self.add("Concat", *parts, axis=1), width

    def split(self, x: str, *sizes: int) -> list[str]:
        given = {"split": sizes} if self.opset < 13 else {}
        first = self.add("Split", x, *([] if given else [self.constant([*sizes])]), axis=1, **given)
        self.nodes[-1].output.append(f"{first}_rest")
        return [*self.nodes[-1].output]

    def normalized(self, x: str, width: int) -> str:
        def row() -> str:
            return self.constant(self.numbers.uniform(0.5, 2, width).astype(np.float32))

        kind = self.chance.randrange(4)
        if kind == 0:
            return self.add("BatchNormalization", x, row(), row(), row(), row())
        if kind == 1:
            offset, scale = (self.numbers.uniform(0.5, 2, size).tolist() for size in (width, self.chance.choice([1, width])))
            return self.add("Scaler", x, offset=offset, scale=scale)
        if kind == 2 and self.opset >= 17:
            return self.add("LayerNormalization", x, row(), row())
        means = {} if self.opset >= 18 else {"axes": [1]}
        axes = [self.constant([1])] if self.opset >= 18 else []
        centred = self.add("Sub", x, self.add("ReduceMean", x, *axes, **means))
        square = self.add("Mul", centred, centred)
        variance = self.add("Add", self.add("ReduceMean", square, *axes, **means), self.constant(np.float32(1e-3)))
        return self.add("Div", centred, self.add("Sqrt", variance))


def random_graph(chance: random.Random) -> onnx.ModelProto:
    """A graph that onnxruntime can probably load; about half of them are chains that can be read."""
    maker = _Maker(chance)
    widths = [chance.randint(1, 5) for _ in range(chance.choice([1, 1, 1, 2, 3]))]
    names = [f"in{place}" for place in range(len(widths))]
    x, width = names[0], sum(widths)
    if len(widths) > 1:
        order = [*names]
        chance.shuffle(order)
        x = maker.add("Concat", *order, axis=1)
    for n_out in (*(chance.randint(1, 5) for _ in range(chance.choice([0, 1, 1, 2]))), 1):
        earlier = x
        for _ in range(chance.choice([0, 1, 2, 3, 5])):
            kind = chance.random()
            if kind < 0.7:
                earlier, x = x, maker.function(x, chance.choice([x, earlier]), width)
            elif kind < 0.8:
                x = maker.shape(x, width)
                earlier = x
            elif kind < 0.9:
                x = maker.normalized(x, width)
                earlier = x
            else:
                x, width = maker.joined(x, width) if width > 1 and chance.random() < 0.5 else maker.part(x, width)
                earlier = x
        x, width = maker.dense(x, width, n_out), n_out
    for _ in range(chance.choice([0, 0, 1, 3])):
        x = maker.function(x, x, 1)
    x = chance.choice([lambda: x, lambda: maker.axes("Squeeze", x, 1), lambda: maker.add("Flatten", x)])()
    batch = chance.choice(["batch", "batch", "batch", 1, ROWS])
    known = len(widths) > 1 or chance.random() < 0.8
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, size if known else None])
        for name, size in zip(names, widths, strict=True)
    ]
    output = helper.make_tensor_value_info(x, TensorProto.FLOAT, None)
    graph = helper.make_graph(maker.nodes, "g", ports, [output], maker.initializers)
    opsets = [helper.make_opsetid("", maker.opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, ir_version=8, opset_imports=opsets)


def judged(model: onnx.ModelProto, numbers: np.random.Generator, also_written: bool = True) -> str:
    """What came of a graph: "read", "refused" with the reason's first words, or "not a graph" if onnxruntime refuses it.

    "NaN" is one that is read and gives no number where it compares something that is none.

    Raises AssertionError if it is read as something else.
    """
    data = model.SerializeToString()
    try:
        network = from_bytes(data)
    except NetworkError as error:
        return f"refused: {' '.join(str(error).split(': ', 1)[-1].split()[:4])}"
    features = (numbers.normal(size=(ROWS, network.n_features)) * 2).astype(np.float32)
    expected = _scores(data, features)
    if expected is None:
        return "not a graph"
    results = [network.forward(features)]
    if also_written:
        written = to_bytes(network)
        assert to_bytes(from_bytes(written)) == written, "what was written reads as another network"
        results.append(_scores(written, features))
    for scores in results:
        assert scores is not None, "onnxruntime does not load what was written"
        finite = np.isfinite(expected)
        if np.isnan(scores[finite]).any():
            return "NaN"
        off = np.abs(scores[finite] - expected[finite]) > TOLERANCE * np.abs(expected[finite]).max(initial=1)
        assert not finite.any() or np.mean(off) <= MOST_ROWS_OFF, "another function"
    return "read" if finite.any() else "infinite"


def without_ties(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with a small number added to what is compared, so that rounding decides nothing."""
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    graph, nodes = moved.graph, list[onnx.NodeProto]()
    graph.initializer.append(numpy_helper.from_array(np.float32(_OFF_TIES), "off_ties"))
    for place, node in enumerate(graph.node):
        if node.op_type in (*_COMPARISONS, "Sign", "ThresholdedRelu", "Shrink"):
            nodes.append(helper.make_node("Add", [node.input[0], "off_ties"], [f"moved{place}"]))
            node.input[0] = f"moved{place}"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return moved


def _scores(data: bytes, features: np.ndarray) -> np.ndarray | None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime raises bare subclasses of Exception
        return None
    scores, ports = [], session.get_inputs()
    count = ports[0].shape[0] if isinstance(ports[0].shape[0], int) else len(features)
    for start in range(0, len(features), count):
        feed, column = {}, 0
        for port in ports:
            width = port.shape[1] if isinstance(port.shape[1], int) else features.shape[1]
            feed[port.name] = np.ascontiguousarray(features[start : start + count, column : column + width])
            column += width
        try:
            scores.append(np.reshape(session.run(None, feed)[0], -1))
        except Exception:  # as above
            return None
    return np.concatenate(scores)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="where to save graphs that fail")
    arguments = parser.parse_args()
    chance, numbers = random.Random(arguments.seed), np.random.default_rng(arguments.seed)
    outcomes: Counter[str] = Counter()
    failures, started = 0, time.perf_counter()
    for place in range(arguments.graphs):
        model = random_graph(chance)
        also_written = place % EACH_WRITTEN == 0
        try:
            try:
                outcomes[judged(model, numbers, also_written)] += 1
            except AssertionError:
                judged(without_ties(model), numbers, also_written)
                outcomes["decided by rounding"] += 1
        except Exception as error:
            failures += 1
            arguments.failures.mkdir(parents=True, exist_ok=True)
            path = arguments.failures / f"{arguments.seed}-{place}.onnx"
            path.write_bytes(model.SerializeToString())
            print(f"{path}: {type(error).__name__}: {error}", flush=True)
    read = outcomes["read"]
    print(f"{arguments.graphs} graphs, {read} read, {failures} failures, {time.perf_counter() - started:.0f} s")
    for outcome, count in outcomes.most_common(25):
        print(f"  {count:8} {outcome}")
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())
