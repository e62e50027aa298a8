"""An ONNX file as a `Network`: its graph is followed from the output back to the inputs, then turned into steps.

What fits is a chain: every node has one input that is not constant, the operators are those of an MLP regressor, and what
changes the shape moves only the batch or dimensions of 1. Everything else is refused with the node, its operator and the
reason. Opsets 7 to the newest that `onnx` has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from onnx_builder.constants import MAX_NODES, Constants, attributes_of, axes_of, parse, read_bytes, unsqueezed
from onnx_builder.network import (
    LEAKY_RELU_SLOPE,
    Activation,
    Array,
    Clip,
    Dense,
    Elementwise,
    Float32,
    LayerNormalization,
    Network,
    NetworkError,
    Port,
    Step,
)

OLDEST_OPSET, NEWEST_OPSET = 7, onnx.defs.onnx_opset_version()
BATCH = -1
"""Stands for the batch in a shape, where that is not fixed at 1."""

Shape = tuple[int, ...]


def read(path: Path) -> Network:
    """The network of an ONNX file; external data is read from the file's folder and nowhere else.

    Raises NetworkError naming the file and the reason, as `from_bytes`.
    """
    data = read_bytes(path)
    try:
        return from_bytes(data, path.parent)
    except NetworkError as error:
        raise NetworkError(f"{path}: {error}") from error


def from_bytes(data: bytes, folder: Path | None = None) -> Network:
    """The network of a serialized ONNX model. folder: where its external data lies, where it has such.

    Weights of any float type become float32. Raises NetworkError naming the node, its operator and the reason where the
    graph is not a chain of what a regressor is made of, and for bytes that are no ONNX model.
    """
    model = parse(data)
    return _Reader(model, folder).network()


@dataclass(frozen=True)
class _Link:
    """A node of the chain and the name of the one input that is not constant; gelu: the node ends a GELU of that input."""

    node: onnx.NodeProto
    data: str
    gelu_factor: float | None = None

    def __str__(self) -> str:
        return _described(self.node)


class _Reader:
    def __init__(self, model: onnx.ModelProto, folder: Path | None) -> None:
        graph = model.graph
        self.opset = _opset(model)
        if len(graph.node) > MAX_NODES:
            raise NetworkError(f"{len(graph.node)} nodes; a regressor has at most {MAX_NODES}")
        self.constants = Constants(graph, folder)
        self.inputs = {value.name: value for value in graph.input if value.name not in self.constants}
        if len(graph.output) != 1:
            names = ", ".join(repr(value.name) for value in graph.output[:4])
            raise NetworkError(f"{len(graph.output)} outputs ({names}); expected one, the score")
        self.output = graph.output[0].name
        self.producers: dict[str, onnx.NodeProto] = {}
        for node in graph.node:
            for name in node.output:
                if name and self.producers.setdefault(name, node) is not node:
                    raise NetworkError(f"{_described(node)}: {name!r} is made twice")

    def network(self) -> Network:
        self._require_known_operators()
        links, sources = self._chain()
        unused = [name for name in self.inputs if name not in sources]
        if unused:
            raise NetworkError(f"input {unused[0]!r} is not part of the chain from {sources[0]!r} to the output")
        ports = [self._input_port(value) for value in self.inputs.values()]
        batches = {port.shape[0] for port in ports}
        if len({batch if isinstance(batch, int) else "open" for batch in batches}) != 1:
            raise NetworkError(f"inputs of different batch: {', '.join(str(port.shape) for port in ports)}")
        if len(ports) > 1 and any(len(port.shape) != 2 for port in ports):
            raise NetworkError(f"inputs {', '.join(str(port.shape) for port in ports)}: several must be (batch, width)")
        batch = ports[0].shape[0]
        n_features = sum(port.width for port in ports)
        shape = (n_features,) if len(ports) > 1 else tuple(int(size) for size in ports[0].shape[1:])
        chain = _Chain(self.constants, self.opset, (1 if batch == 1 else BATCH, *shape))
        for link in links:
            chain.append(link)
        if math.prod(abs(size) for size in chain.shape) != 1 or (BATCH not in chain.shape and batch != 1):
            raise NetworkError(f"output {self.output!r} has {_shown(chain.shape)} values; a score is one a row")
        output = tuple(batch if size == BATCH else size for size in chain.shape)
        columns = _columns(ports, sources)
        steps = chain.steps if columns is None else _with_columns(chain.steps, columns)
        return Network(n_features, tuple(steps), tuple(ports), Port(self.output, output))

    def _require_known_operators(self) -> None:
        """All that the output depends on is known: said before anything else, since it says what kind of model this is."""
        unknown: dict[str, onnx.NodeProto] = {}
        seen, waiting = set(), [self.output]
        while waiting:
            name = waiting.pop()
            node = self.producers.get(name)
            if node is None or id(node) in seen or name in self.constants:
                continue
            seen.add(id(node))
            waiting += node.input
            operator = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
            if operator not in _HANDLERS and operator not in ("Concat", "Erf"):
                unknown[operator] = node
        if unknown:
            names = [f"{operator} (node {node.name or node.output[0]!r})" for operator, node in reversed(unknown.items())]
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            verb = "is" if len(names) == 1 else "are"
            raise NetworkError(f"{', '.join(names[:6])}{more} {verb} not part of an MLP regressor")

    def _chain(self) -> tuple[list[_Link], list[str]]:
        """The nodes from input to output, and the names of the inputs that go in, in order."""
        links: list[_Link] = []
        name = self.output
        while name not in self.inputs:
            if name in self.constants:
                raise NetworkError(f"output {self.output!r} comes from the constant {name!r}, not from an input")
            node = self.producers.get(name)
            if node is None:
                raise NetworkError(f"{name!r} is neither an input, a constant nor made by a node")
            if len(links) > MAX_NODES:
                raise NetworkError(f"{_described(node)}: the graph has a cycle")
            if node.output[0] != name:
                raise NetworkError(f"{_described(node)}: its second output {name!r} is used")
            if node.op_type == "Concat":
                links.reverse()
                return links, self._concatenated(node)
            links.append(self._gelu(node) or _Link(node, self._data_input(node)))
            name = links[-1].data
        links.reverse()
        return links, [name]

    def _data_input(self, node: onnx.NodeProto) -> str:
        data: list[str] = [name for name in node.input if name and name not in self.constants]
        if not data:
            raise NetworkError(f"{_described(node)}: has no input")
        for name in data[1:] if node.input[0] in data else data:
            if node.op_type in ("Gemm", "MatMul") and name in self.inputs:
                raise NetworkError(f"{_described(node)}: weight {name!r} is an input, not constant")
        if len(data) > 1:
            joined = " and ".join(repr(name) for name in data[:3])
            raise NetworkError(f"branch joins at {_described(node)}: {joined} are both not constant")
        return data[0]

    def _concatenated(self, node: onnx.NodeProto) -> list[str]:
        names = list(node.input)
        axis = attributes_of(node).get("axis")
        others = [name for name in names if name not in self.inputs]
        if others:
            raise NetworkError(f"branch joins at {_described(node)}: {others[0]!r} is not an input of the graph")
        if axis not in (1, -1) or len(set(names)) != len(names):
            raise NetworkError(f"{_described(node)}: expected each input once, along axis 1, got {names} along {axis}")
        return names

    def _gelu(self, node: onnx.NodeProto) -> _Link | None:
        """Is this the last Mul of `x · (1 + erf(x / √2)) · ½`, its factors in any order? What is over is a factor more."""
        if node.op_type != "Mul" or len(node.input) != 2:
            return None
        factor, products, waiting = 1.0, 0, [node.output[0]]
        factors: list[tuple[str, onnx.NodeProto | None]] = []
        while waiting and products < 4:
            name = waiting.pop()
            if name in self.constants:
                factor *= self._number(name)
                continue
            product = self.producers.get(name)
            if product is not None and product.op_type == "Mul" and len(factors) < 2:
                products += 1
                waiting += product.input
            else:
                factors.append((name, product))
        if waiting or len(factors) != 2 or not math.isfinite(factor):
            return None
        for (x, _), (_, add) in (factors, factors[::-1]):
            if self._is_one_plus_erf(add, x):
                return _Link(node, x, 2 * factor)
        return None

    def _is_one_plus_erf(self, add: onnx.NodeProto | None, x: str) -> bool:
        if add is None or add.op_type != "Add" or len(add.input) != 2:
            return False
        erf, one = (self.producers.get(add.input[0]), add.input[1])
        if add.input[0] in self.constants:
            erf, one = (self.producers.get(add.input[1]), add.input[0])
        if erf is None or erf.op_type != "Erf" or one not in self.constants or self._number(one) != 1:
            return False
        scaled = self.producers.get(erf.input[0]) if erf.input else None
        if scaled is None or scaled.op_type not in ("Div", "Mul") or len(scaled.input) != 2:
            return False
        a, b = scaled.input
        if scaled.op_type == "Mul" and b == x:
            a, b = b, a
        expected = math.sqrt(2) if scaled.op_type == "Div" else math.sqrt(0.5)
        return a == x and b in self.constants and math.isclose(self._number(b), expected, rel_tol=1e-3)

    def _number(self, name: str) -> float:
        """A constant of one element as a number; not a number for others."""
        array = self.constants[name]
        return float(array.reshape(-1)[0]) if array.size == 1 else math.nan

    def _input_port(self, value: onnx.ValueInfoProto) -> Port:
        kind = value.type.tensor_type
        if kind.elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            known = kind.elem_type in TensorProto.DataType.values()
            name = TensorProto.DataType.Name(kind.elem_type) if known else str(kind.elem_type)
            raise NetworkError(f"input {value.name!r} is of type {name}; features are floats")
        sizes = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in kind.shape.dim]
        widths = sizes[1:]
        if not widths or any(not isinstance(size, int) or size < 1 for size in widths) or sum(w != 1 for w in widths) > 1:
            shown = "(" + ", ".join(str(size) or "?" for size in sizes[:8]) + ")"
            raise NetworkError(
                f"input {value.name!r} has shape {shown}; expected (batch, features) with a known number of them"
            )
        batch = sizes[0] or "batch"
        if isinstance(batch, int) and batch < 1:
            batch = "batch"
        return Port(value.name, (batch, *widths))


class _Chain:
    """Steps so far, and the shape of what comes out of them; `append` takes a link to the next step."""

    def __init__(self, constants: Constants, opset: int, shape: Shape) -> None:
        self.constants, self.opset, self.shape = constants, opset, shape
        self.steps: list[Step] = []
        self.bias_is_open = False  # the last step is a MatMul, whose bias an Add may bring

    @property
    def width(self) -> int:
        return math.prod(size for size in self.shape if size != BATCH)

    def append(self, link: _Link) -> None:
        bias_was_open = self.bias_is_open
        if link.gelu_factor is not None:
            self.steps.append(Activation("gelu"))
            if not math.isclose(link.gelu_factor, 1, rel_tol=1e-6):
                self.steps.append(Elementwise("Mul", np.asarray(link.gelu_factor, dtype=np.float32)))
            self.bias_is_open = False
            return
        try:
            _HANDLERS[link.node.op_type](self, link, attributes_of(link.node))
        except NetworkError as error:
            if str(error).startswith("node "):
                raise
            raise NetworkError(f"{link}: {error}") from error
        except (ValueError, IndexError, TypeError, OverflowError) as error:
            raise NetworkError(f"{link}: {error}") from error
        if link.node.op_type in _KEEP_BIAS_OPEN:
            self.bias_is_open = bias_was_open
        else:
            self.bias_is_open = link.node.op_type == "MatMul"

    def input(self, link: _Link, place: int) -> Array | None:
        """A constant input of a node, None where it is absent."""
        names = link.node.input
        return self.constants[names[place]] if place < len(names) and names[place] else None

    def finite(self, link: _Link, place: int) -> Float32:
        """A constant input of a node as float32. Raises NetworkError where it is absent or not finite in float32."""
        value = self.input(link, place)
        if value is None:
            raise NetworkError(f"input {place} is missing")
        return _finite(link.node.input[place], value)

    def number(self, link: _Link, place: int, default: float) -> float:
        value = self.input(link, place)
        if value is None:
            return default
        if value.size != 1:
            raise NetworkError(f"{link.node.input[place]!r} has shape {value.shape}; expected one number")
        return float(value.reshape(-1)[0])


def _gemm(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    if link.node.input[0] != link.data:
        raise NetworkError("the features are its weight, not its first input")
    if attributes.get("transA", 0):
        raise NetworkError("transA is 1; expected 0, a row for each encode")
    if len(chain.shape) != 2 or chain.shape[0] not in (BATCH, 1):
        raise NetworkError(f"takes (batch, width), gets {_shown(chain.shape)}")
    weight = chain.finite(link, 1)
    if weight.ndim != 2:
        raise NetworkError(f"weight {link.node.input[1]!r} has shape {weight.shape}; expected two dimensions")
    weight = weight if attributes.get("transB", 0) else weight.T
    weight = _finite(link.node.input[1], weight * np.float32(attributes.get("alpha", 1.0)))
    bias = np.zeros(len(weight), dtype=np.float32)
    if chain.input(link, 2) is not None:
        beta = np.float32(attributes.get("beta", 1.0))
        bias = _as_row(link.node.input[2], chain.finite(link, 2), len(weight)) * beta
    _add_dense(chain, weight, bias)


def _matmul(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    if link.node.input[0] != link.data:
        raise NetworkError("the features are its second input; expected them to be its first")
    weight = chain.finite(link, 1)
    if weight.ndim != 2:
        raise NetworkError(f"weight {link.node.input[1]!r} has shape {weight.shape}; expected two dimensions")
    _add_dense(chain, weight.T, np.zeros(weight.shape[1], dtype=np.float32))


def _add_dense(chain: _Chain, weight: Float32, bias: Float32) -> None:
    if not chain.shape or chain.shape[-1] != chain.width or chain.shape[-1] == BATCH or weight.shape[1] != chain.width:
        raise NetworkError(f"a weight for {weight.shape[1]} values gets {_shown(chain.shape)}")
    if not weight.size:
        raise NetworkError(f"a weight of shape {weight.shape} is empty")
    chain.steps.append(Dense(np.ascontiguousarray(weight), np.ascontiguousarray(bias)))
    chain.shape = (*chain.shape[:-1], len(weight))


def _elementwise(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    operator = link.node.op_type
    if len(link.node.input) != 2:
        raise NetworkError(f"has {len(link.node.input)} inputs; expected two")
    place = 1 if link.node.input[0] == link.data else 0
    value, chain.shape = _broadcast(link.node.input[place], chain.finite(link, place), chain.shape)
    if place == 0 and operator == "Div":
        raise NetworkError("divides a constant by the features; only the other way round is supported")
    if operator == "Div" and not value.all():
        raise NetworkError(f"divides by {link.node.input[place]!r}, which has zeros")
    if operator == "Add" and chain.bias_is_open:
        last = chain.steps[-1]
        assert isinstance(last, Dense)
        chain.steps[-1] = Dense(last.weight, np.ascontiguousarray(np.broadcast_to(value, last.bias.shape)))
    elif place == 0 and operator == "Sub":
        chain.steps += [Elementwise("Mul", np.asarray(-1, dtype=np.float32)), Elementwise("Add", value)]
    else:
        chain.steps.append(Elementwise(operator, value))  # type: ignore[arg-type]


def _clip(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    if chain.opset < 11:
        low, high = float(attributes.get("min", -math.inf)), float(attributes.get("max", math.inf))
    else:
        low, high = chain.number(link, 1, -math.inf), chain.number(link, 2, math.inf)
    chain.steps.append(Clip(low, high))


def _activation(name: Any) -> Any:
    def append(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
        chain.steps.append(Activation(name))

    return append


def _leaky_relu(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    slope = float(attributes.get("alpha", LEAKY_RELU_SLOPE))
    if not math.isfinite(slope):
        raise NetworkError(f"alpha is {slope}")
    chain.steps.append(Activation("leaky_relu", slope))


def _gelu_operator(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    if attributes.get("approximate", b"none") != b"none":
        raise NetworkError(f"approximate is {attributes['approximate']!r}; only the exact GELU is supported")
    chain.steps.append(Activation("gelu"))


def _layer_normalization(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    axis = attributes.get("axis", -1)
    if link.node.input[0] != link.data:
        raise NetworkError("the features are not its first input")
    if axis not in (-1, len(chain.shape) - 1) or not chain.shape or chain.shape[-1] != chain.width:
        raise NetworkError(f"normalises {_shown(chain.shape)} along axis {axis}; expected along a row's values")
    scale = _as_row(link.node.input[1], chain.finite(link, 1), chain.width)
    bias = np.zeros_like(scale)
    if chain.input(link, 2) is not None:
        bias = _as_row(link.node.input[2], chain.finite(link, 2), chain.width)
    epsilon = float(attributes.get("epsilon", 1e-5))
    if not 0 <= epsilon < math.inf:
        raise NetworkError(f"epsilon is {epsilon}")
    chain.steps.append(LayerNormalization(scale, bias, epsilon))


def _identity(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    pass


def _dropout(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    training = chain.input(link, 2)
    if training is not None and training.any():
        raise NetworkError("is in training mode")


def _cast(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    if attributes.get("to") not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        raise NetworkError(f"casts the features to type {attributes.get('to')}; expected float32 or float64")


def _squeeze(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    axes = axes_of([np.empty(0), chain.input(link, 1)], attributes)
    rank = len(chain.shape)
    if axes is None:
        chain.shape = tuple(size for size in chain.shape if size != 1)
        return
    if any(not -rank <= axis < rank for axis in axes) or any(chain.shape[axis] != 1 for axis in axes):
        raise NetworkError(f"takes axes {axes} out of {_shown(chain.shape)}; only dimensions of 1 can go")
    gone = {axis % rank for axis in axes}
    chain.shape = tuple(size for place, size in enumerate(chain.shape) if place not in gone)


def _unsqueeze(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    axes = axes_of([np.empty(0), chain.input(link, 1)], attributes)
    if axes is None or len(axes) > 8:
        raise NetworkError("has no axes, or more than 8")
    chain.shape = unsqueezed(chain.shape, axes)


def _flatten(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    axis = int(attributes.get("axis", 1))
    if axis < 0:
        axis += len(chain.shape)
    if not 0 <= axis <= len(chain.shape):
        raise NetworkError(f"axis {axis} of {_shown(chain.shape)}")
    chain.shape = (_merged(chain.shape[:axis]), _merged(chain.shape[axis:]))


def _merged(sizes: Shape) -> int:
    """The product of dimensions. Raises NetworkError where it would mix the batch with features."""
    product = math.prod(size for size in sizes if size != BATCH)
    if BATCH in sizes and product != 1:
        raise NetworkError(f"mixes the batch with features: {_shown(sizes)} become one dimension")
    return BATCH if BATCH in sizes else product


def _reshape(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    target_array = chain.input(link, 1)
    if link.node.input[0] != link.data or target_array is None or target_array.size > 8:
        raise NetworkError("expected the features and a constant shape")
    target = [int(size) for size in target_array.reshape(-1)]
    copies = not attributes.get("allowzero", 0)
    sizes = [chain.shape[place] if size == 0 and copies else size for place, size in enumerate(target)]
    copied_batch = any(size == 0 and copies and chain.shape[place] == BATCH for place, size in enumerate(target))
    inferred = [place for place, size in enumerate(target) if size == -1]
    if len(inferred) > 1 or any(size < -1 for size in target):
        raise NetworkError(f"to {target}")
    known = math.prod(size for place, size in enumerate(sizes) if place not in inferred and size != BATCH)
    if BATCH in chain.shape and not copied_batch:
        if not inferred or known != chain.width:
            raise NetworkError(f"takes {_shown(chain.shape)} to {target}: the batch does not stay what it is")
        sizes[inferred[0]] = BATCH
    elif inferred:
        if not known or chain.width % known:
            raise NetworkError(f"takes {_shown(chain.shape)} to {target}")
        sizes[inferred[0]] = chain.width // known
    if math.prod(size for size in sizes if size != BATCH) != chain.width:
        raise NetworkError(f"takes {_shown(chain.shape)} to {target}")
    if sum(size not in (1, BATCH) for size in sizes) > 1:
        raise NetworkError(f"spreads the values of a row over two dimensions: {target}")
    chain.shape = tuple(sizes)


def _columns(ports: list[Port], order: list[str]) -> NDArray[np.intp] | None:
    """Where the features, in the order of the inputs, stand in their concatenation; None where that order is the same."""
    if [port.name for port in ports] == order:
        return None
    widths = {port.name: port.width for port in ports}
    starts = dict(zip(order, np.cumsum([0, *(widths[name] for name in order)]).tolist(), strict=False))
    return np.concatenate([starts[port.name] + np.arange(port.width) for port in ports])


def _with_columns(steps: list[Step], columns: NDArray[np.intp]) -> list[Step]:
    """The steps for features in another order: what has a number for each feature is put in that order, up to the first
    layer that mixes them."""
    moved = list(steps)
    for place, step in enumerate(steps):
        match step:
            case Elementwise() if step.value.ndim:
                moved[place] = Elementwise(step.operator, step.value[columns])
            case LayerNormalization():
                moved[place] = LayerNormalization(step.scale[columns], step.bias[columns], step.epsilon)
            case Dense():
                moved[place] = Dense(np.ascontiguousarray(step.weight[:, columns]), step.bias)
                break
    return moved


_HANDLERS = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _elementwise,
    "Sub": _elementwise,
    "Mul": _elementwise,
    "Div": _elementwise,
    "Clip": _clip,
    "Relu": _activation("relu"),
    "Tanh": _activation("tanh"),
    "Sigmoid": _activation("sigmoid"),
    "LeakyRelu": _leaky_relu,
    "Gelu": _gelu_operator,
    "LayerNormalization": _layer_normalization,
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Flatten": _flatten,
    "Reshape": _reshape,
}
_KEEP_BIAS_OPEN = {"Identity", "Dropout", "Cast", "Squeeze", "Unsqueeze", "Flatten", "Reshape"}


def _broadcast(name: str, value: Float32, shape: Shape) -> tuple[Float32, Shape]:
    """A constant as one number or one a feature, and the shape that it gives: ones may be put in front, nothing else."""
    rank = max(value.ndim, len(shape))
    sizes = (1,) * (rank - len(shape)) + shape
    others = (1,) * (rank - value.ndim) + value.shape
    if any(other not in (1, size) for size, other in zip(sizes, others, strict=True)):
        raise NetworkError(f"constant {name!r} of shape {value.shape} does not go with {_shown(shape)}")
    width = math.prod(size for size in shape if size != BATCH)
    return value.reshape(-1) if value.ndim and value.size == width else value.reshape(()), sizes


def _as_row(name: str, value: Float32, width: int) -> Float32:
    if value.size not in (1, width) or value.shape[-1:] not in ((), (1,), (width,)):
        raise NetworkError(f"{name!r} has shape {value.shape}; expected ({width},)")
    return np.broadcast_to(value.reshape(-1), (width,)).copy()


def _finite(name: str, value: Array) -> Float32:
    with np.errstate(over="ignore", invalid="ignore"):
        converted = value.astype(np.float32)
    bad = int(converted.size - np.isfinite(converted).sum())
    if bad:
        raise NetworkError(f"weight {name!r} has {bad} values that are not finite")
    return converted


def _described(node: onnx.NodeProto) -> str:
    return f"node {node.name or (node.output[0] if node.output else '')!r} ({node.op_type})"


def _shown(shape: Shape) -> str:
    return "(" + ", ".join("batch" if size == BATCH else str(size) for size in shape) + ")"


def _opset(model: onnx.ModelProto) -> int:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise NetworkError(f"opset {opset}; expected {OLDEST_OPSET} to {NEWEST_OPSET}")
    return opset
