"""Reads an ONNX file as a `Network`: follows its graph from the output back to the inputs, then turns it into steps.

The graph must be a chain: every node has one input that is not constant, the operators are those of an MLP regressor, and
changes of shape move only the batch or dimensions of 1. Everything else is refused, with the node, its operator and the reason.
Opsets 7 to the newest that `onnx` has can be read. Whatever the precision in the file, the network computes in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_builder.constants import (
    FLOATS,
    MAX_BYTES,
    MAX_NODES,
    MAX_RANK,
    MAX_STRUCTURE_BYTES,
    Constants,
    attributes_of,
    axes_of,
    described,
    integers,
    operator_of,
    parse,
    read_bytes,
    reshaped,
    type_name,
    unsqueezed,
)
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
MAX_STEPS = 500
MAX_VALUES = (MAX_BYTES - MAX_STRUCTURE_BYTES) // 4
"""The most values that all steps may have together, so that a file written from the network can be read again."""
BATCH = -1
"""Stands for the batch in a shape, if that is not fixed at 1."""
_HALF_PRECISION = 2e-4
"""How far off √2 may be in a GELU, since float16 rounds it."""

Shape = tuple[int, ...]


def read(path: Path) -> Network:
    """The network in an ONNX file; external data is read from the file's folder and nowhere else.

    Raises NetworkError, which names the file and the reason, like `from_bytes`.
    """
    try:
        return from_bytes(read_bytes(path), path.parent)
    except NetworkError as error:
        raise NetworkError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def from_bytes(data: bytes, folder: Path | None = None) -> Network:
    """The network in a serialized ONNX model. folder: where its external data is, if it has any.

    Weights of any float type become float32. Raises NetworkError, which names the node, its operator and the reason, if the
    graph is not a chain of what a regressor is made of, or the bytes are not an ONNX model.
    """
    try:
        model = parse(data)
        del data  # up to MAX_BYTES, which nobody else holds if they were read from a file
        return _Reader(model, folder).network()
    except NetworkError as error:
        raise NetworkError(_printable(str(error))) from error


@dataclass(frozen=True)
class _Link:
    """A node of the chain and the name of the one input that is not constant.

    gelu_factor: if the node ends a GELU of that input, what the GELU is multiplied by.
    """

    node: onnx.NodeProto
    data: str
    gelu_factor: float | None = None


class _Reader:
    def __init__(self, model: onnx.ModelProto, folder: Path | None) -> None:
        graph = model.graph
        self.opset = _opset(model)
        if len(graph.node) > MAX_NODES:
            raise NetworkError(f"{len(graph.node)} nodes; a regressor has at most {MAX_NODES}")
        if len(graph.output) != 1:
            names = ", ".join(repr(value.name) for value in graph.output[:4])
            raise NetworkError(f"{len(graph.output)} outputs ({names}); expected one, the score")
        self.output = graph.output[0].name
        initializers = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in initializers]  # below IR 4, both list a constant
        self.inputs = {value.name: value for value in inputs}
        if len(initializers) < len(graph.initializer) or len(self.inputs) < len(inputs) or "" in self.inputs:
            raise NetworkError("two initializers or two inputs have the same name, or an input has none")
        if self.output in self.inputs:
            raise NetworkError(f"output {self.output!r} is an input; nothing is computed")
        self.producers: dict[str, onnx.NodeProto] = {}
        for node in graph.node:
            for name in filter(None, node.output):
                if name in initializers or name in self.inputs or name in self.producers:
                    raise NetworkError(f"{described(node)}: {name!r} exists already")
                self.producers[name] = node
        self.constants = Constants(graph, self.opset, folder)

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
        if isinstance(batch, int) and batch * n_features > MAX_VALUES:
            raise NetworkError(f"takes {batch} rows of {n_features} features at a time, more than {MAX_VALUES} values")
        shape = (n_features,) if len(ports) > 1 else tuple(int(size) for size in ports[0].shape[1:])
        chain = _Chain(self.constants, self.opset, (1 if batch == 1 else BATCH, *shape))
        for link in links:
            chain.follow(link)
        if math.prod(abs(size) for size in chain.shape) != 1 or (BATCH not in chain.shape and batch != 1):
            raise NetworkError(f"output {self.output!r} has {_shown(chain.shape)} values; expected one score per row")
        output = tuple(batch if size == BATCH else size for size in chain.shape)
        columns = _columns(ports, sources)
        steps = chain.steps if columns is None else _with_columns(chain.steps, columns)
        return Network(n_features, tuple(steps), tuple(ports), Port(self.output, output))

    def _require_known_operators(self) -> None:
        """Raises NetworkError for unknown operators. This comes first, since it shows what kind of model this is."""
        unknown: dict[str, onnx.NodeProto] = {}
        seen, waiting = set(), [self.output]
        while waiting:
            name = waiting.pop()
            node = self.producers.get(name)
            if node is None or id(node) in seen or name in self.constants:
                continue
            seen.add(id(node))
            waiting += node.input
            if operator_of(node) not in _HANDLERS and operator_of(node) not in ("Concat", "Erf"):
                unknown[operator_of(node)] = node
        if unknown:
            names = [f"{operator} (node {node.name or node.output[0]!r})" for operator, node in reversed(unknown.items())]
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            verb = "is" if len(names) == 1 else "are"
            raise NetworkError(f"{', '.join(names[:6])}{more} {verb} not part of an MLP regressor")

    def _chain(self) -> tuple[list[_Link], list[str]]:
        """The nodes from input to output, and the names of the graph's inputs that they take, in order."""
        links: list[_Link] = []
        name = self.output
        while name not in self.inputs:
            if name in self.constants:
                raise NetworkError(f"output {self.output!r} comes from the constant {name!r}, not from an input")
            node = self.producers.get(name)
            if node is None:
                raise NetworkError(f"output {name!r} is not made by a node")
            if len(links) > MAX_NODES:
                raise NetworkError(f"{described(node)}: the graph has a cycle")
            if node.output[0] != name:
                raise NetworkError(f"{described(node)}: its second output {name!r} is used")
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
            raise NetworkError(f"{described(node)}: has no input")
        absent = [name for name in data if name not in self.inputs and name not in self.producers]
        if absent:
            raise NetworkError(f"{described(node)}: {absent[0]!r} is neither an input, a constant nor made by a node")
        for name in data[1:] if node.input[0] in data else data:
            if node.op_type in ("Gemm", "MatMul") and name in self.inputs:
                raise NetworkError(f"{described(node)}: weight {name!r} is an input, not constant")
        if len(data) > 1:
            joined = " and ".join(repr(name) for name in data[:3])
            raise NetworkError(f"branch joins at {described(node)}: {joined} are not constant")
        return data[0]

    def _concatenated(self, node: onnx.NodeProto) -> list[str]:
        names = list(node.input)
        axis = attributes_of(node, self.opset).get("axis")
        others = [name for name in names if name not in self.inputs]
        if others:
            raise NetworkError(f"branch joins at {described(node)}: {others[0]!r} is not an input of the graph")
        if axis not in (1, -1) or len(set(names)) != len(names):
            raise NetworkError(f"{described(node)}: expected each input once, along axis 1, got {names} along {axis}")
        return names

    def _gelu(self, node: onnx.NodeProto) -> _Link | None:
        """Is this the last Mul of `x · (1 + erf(x / √2)) · ½`, with its factors in any order?

        A constant that comes last and is not needed for the GELU becomes a step of its own.
        """
        if node.op_type != "Mul":
            return None
        arguments = [self._erf_argument(factor) for factor in self._factors(node.output[0])]
        for x in filter(None, arguments):  # several if x is a GELU, too
            factors = list(self._factors(node.output[0], x))
            others = [factor for factor in factors if factor not in self.constants]
            if len(others) == 2 and x in others and x in map(self._erf_argument, others):
                factor = 2 * math.prod(self._number(name) for name in factors if name in self.constants)
                last = [self._number(name) for name in node.input if name in self.constants]
                apart = last and not (_is_one(factor) and not _is_one(last[0]))
                return _Link(node, x, factor) if math.isfinite(factor) and not apart else None
        return None

    def _factors(self, name: str, x: str = "", depth: int = 3) -> Iterator[str]:
        """The factors of `name`, through at most `depth` nodes; x is not taken apart."""
        product = self.producers.get(name)
        if product is None or product.op_type != "Mul" or len(product.input) != 2 or name == x or not depth:
            yield name
        else:
            for factor in product.input:
                yield from self._factors(factor, x, depth - 1)

    def _erf_argument(self, name: str) -> str | None:
        """The x of `1 + erf(x / √2)`; None if `name` is anything else."""
        erf = self._operand(name, "Add", 1, tolerance=0)
        scaled = self.producers.get(erf) if erf else None
        if scaled is None or scaled.op_type != "Erf" or len(scaled.input) != 1:
            return None
        x = self._operand(scaled.input[0], "Div", math.sqrt(2))
        return x or self._operand(scaled.input[0], "Mul", math.sqrt(0.5))

    def _operand(self, name: str, operator: str, constant: float, tolerance: float = _HALF_PRECISION) -> str | None:
        """The other operand, if `name` is the result of this operator on about this constant and a tensor."""
        node = self.producers.get(name)
        if node is None or node.op_type != operator or len(node.input) != 2:
            return None
        a, b = node.input if node.input[1] in self.constants or operator == "Div" else node.input[::-1]
        fits = b in self.constants and math.isclose(self._number(b), constant, rel_tol=tolerance)
        return a if fits and a not in self.constants else None

    def _number(self, name: str) -> float:
        """A constant with one element as a number; NaN for others."""
        array = self.constants[name]
        return float(array.reshape(-1)[0]) if array.size == 1 and array.ndim < 2 else math.nan

    def _input_port(self, value: onnx.ValueInfoProto) -> Port:
        kind = value.type.tensor_type
        if kind.elem_type not in FLOATS:
            raise NetworkError(f"input {value.name!r} is of type {type_name(kind.elem_type)}; features are floats")
        sizes = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in kind.shape.dim]
        if any(isinstance(name, bytes) for name in (value.name, self.output, *sizes)):
            raise NetworkError(f"input {value.name!r} or output {self.output!r} has a name that is not UTF-8")
        widths = sizes[1:]
        known = all(isinstance(size, int) and size > 0 for size in widths)
        if not known or not 1 <= len(widths) < MAX_RANK or sum(size != 1 for size in widths) > 1:
            shown = "(" + ", ".join(str(size) or "?" for size in sizes[: MAX_RANK + 1]) + ")"
            raise NetworkError(
                f"input {value.name!r} has shape {shown}; expected (batch, features) with a known number of features"
            )
        batch = sizes[0] or "batch"
        if isinstance(batch, int) and batch < 1:
            batch = "batch"
        return Port(value.name, (batch, *widths), type_name(kind.elem_type))


class _Chain:
    """The steps so far, and the shape of their result; `follow` turns a link into the next step."""

    def __init__(self, constants: Constants, opset: int, shape: Shape) -> None:
        self.constants, self.opset, self.shape = constants, opset, shape
        self.steps: list[Step] = []
        self.bias_is_open = False  # the last step is a MatMul, whose bias an Add may bring
        self._values_left = MAX_VALUES

    @property
    def width(self) -> int:
        return math.prod(size for size in self.shape if size != BATCH)

    def follow(self, link: _Link) -> None:
        node = link.node
        try:
            if link.gelu_factor is not None:
                _gelu(self, link.gelu_factor)
            elif node.op_type not in _HANDLERS:
                raise NetworkError("is supported only as part of a GELU")
            elif node.input[0] != link.data and node.op_type not in _EITHER_ORDER:
                raise NetworkError("the features are not its first input")
            else:
                _HANDLERS[node.op_type](self, link, attributes_of(node, self.opset))
        except NetworkError as error:
            if str(error).startswith("node "):
                raise
            raise NetworkError(f"{described(node)}: {error}") from error
        self.bias_is_open = node.op_type == "MatMul" or (self.bias_is_open and node.op_type in _KEEP_BIAS_OPEN)

    def add(self, step: Step) -> None:
        """Append a step. Raises NetworkError if there are more than a network may have."""
        if len(self.steps) == MAX_STEPS:
            raise NetworkError(f"is beyond step {MAX_STEPS}, the last that a network may have")
        self.steps.append(step)

    def require_room(self, count: int) -> None:
        """Reserve room for the values of a step before they are made. Raises NetworkError if there is none."""
        self._values_left -= count
        if self._values_left < 0:
            raise NetworkError(f"takes {count} values; a network has at most {MAX_VALUES} in all")

    def input(self, link: _Link, place: int) -> Array | None:
        """A constant input of a node, None if it is absent."""
        names = link.node.input
        return self.constants[names[place]] if place < len(names) and names[place] else None

    def finite(self, link: _Link, place: int) -> Float32:
        """A constant input of a node as float32. Raises NetworkError if it is absent or not finite in float32."""
        value = self.input(link, place)
        if value is None:
            raise NetworkError(f"input {place} is missing")
        return _finite(link.node.input[place], value)

    def row(self, link: _Link, place: int, width: int) -> Float32:
        """Like `finite`, with one number for each of a row's values."""
        value = self.finite(link, place)
        if value.size not in (1, width) or value.shape[-1:] not in ((), (value.size,)):
            raise NetworkError(f"{link.node.input[place]!r} has shape {value.shape}; expected ({width},)")
        return np.broadcast_to(value.reshape(-1), (width,)).copy()

    def bias(self, link: _Link, width: int) -> Float32:
        """The third input of Gemm or LayerNormalization, zeros if it is absent."""
        return np.zeros(width, dtype=np.float32) if self.input(link, 2) is None else self.row(link, 2, width)

    def weight(self, link: _Link) -> Float32:
        """The second input of Gemm or MatMul: two dimensions, not empty."""
        weight = self.finite(link, 1)
        if weight.ndim != 2 or not weight.size:
            raise NetworkError(f"weight {link.node.input[1]!r} has shape {weight.shape}; expected two dimensions, not empty")
        return weight

    def number(self, link: _Link, place: int, default: float) -> float:
        """A constant input of a node as a float32 number. Raises NetworkError if it does not have one element."""
        value = self.input(link, place)
        if value is None:
            return default
        if value.size != 1:
            raise NetworkError(f"{link.node.input[place]!r} has shape {value.shape}; expected one number")
        with np.errstate(over="ignore"):
            return float(value.astype(np.float32).reshape(-1)[0])


def _gemm(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    if attributes.get("transA", 0):
        raise NetworkError("transA is 1; expected 0, with a row for each encode")
    if len(chain.shape) != 2 or chain.shape[0] not in (BATCH, 1):
        raise NetworkError(f"takes (batch, width), gets {_shown(chain.shape)}")
    weight = chain.weight(link)
    weight = _scaled(weight if attributes.get("transB", 0) else weight.T, "alpha", attributes)
    _add_dense(chain, weight, _scaled(chain.bias(link, len(weight)), "beta", attributes))


def _matmul(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    weight = chain.weight(link).T
    _add_dense(chain, weight, np.zeros(len(weight), dtype=np.float32))


def _add_dense(chain: _Chain, weight: Float32, bias: Float32) -> None:
    if not chain.shape or chain.shape[-1] != chain.width or weight.shape[1] != chain.width:
        raise NetworkError(f"a weight for {weight.shape[1]} values gets {_shown(chain.shape)}")
    chain.require_room(weight.size + bias.size)
    chain.add(Dense(np.array(weight, order="C"), bias))
    chain.shape = (*chain.shape[:-1], len(weight))


def _elementwise(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    operator = link.node.op_type
    place = 1 if link.node.input[0] == link.data else 0
    value, chain.shape = _broadcast(link.node.input[place], chain.finite(link, place), chain.shape)
    chain.require_room(value.size)
    if operator == "Div" and not value.all():
        raise NetworkError(f"divides by {link.node.input[place]!r}, which has zeros")
    if operator == "Add" and chain.bias_is_open:
        last = chain.steps[-1]
        assert isinstance(last, Dense)
        chain.steps[-1] = Dense(last.weight, np.ascontiguousarray(np.broadcast_to(value, last.bias.shape)))
    elif place == 0 and operator == "Sub":
        chain.add(Elementwise("Mul", np.asarray(-1, dtype=np.float32)))
        chain.add(Elementwise("Add", value))
    else:
        chain.add(Elementwise(operator, value))  # type: ignore[arg-type]


def _clip(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    low = chain.number(link, 1, attributes.get("min", -math.inf))
    high = chain.number(link, 2, attributes.get("max", math.inf))
    if not low <= high:
        raise NetworkError(f"low {low} is above high {high}")
    chain.add(Clip(low, high))


def _activation(name: Any) -> Any:
    def add(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
        chain.add(Activation(name))

    return add


def _leaky_relu(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    slope = float(attributes.get("alpha", LEAKY_RELU_SLOPE))
    if not math.isfinite(slope):
        raise NetworkError(f"alpha is {slope}")
    chain.add(Activation("leaky_relu", slope))


def _gelu_operator(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    if attributes.get("approximate", b"none") != b"none":
        raise NetworkError(f"approximate is {attributes['approximate']!r}; only the exact GELU is supported")
    chain.add(Activation("gelu"))


def _gelu(chain: _Chain, factor: float) -> None:
    chain.add(Activation("gelu"))
    if not _is_one(factor):
        chain.add(Elementwise("Mul", _finite("factor of GELU", np.asarray(factor))))


def _is_one(factor: float) -> bool:
    return math.isclose(factor, 1, rel_tol=1e-6)


def _layer_normalization(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    axis = attributes.get("axis", -1)
    if axis not in (-1, len(chain.shape) - 1) or not chain.shape or chain.shape[-1] != chain.width:
        raise NetworkError(f"normalises {_shown(chain.shape)} along axis {axis}; expected along a row's values")
    chain.require_room(2 * chain.width)
    scale, bias = chain.row(link, 1, chain.width), chain.bias(link, chain.width)
    epsilon = float(attributes.get("epsilon", 1e-5))
    if not 0 <= epsilon < math.inf:
        raise NetworkError(f"epsilon is {epsilon}")
    chain.add(LayerNormalization(scale, bias, epsilon))


def _identity(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    pass


def _dropout(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    training = chain.input(link, 2)
    if training is not None and training.any():
        raise NetworkError("is in training mode")


def _cast(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    if attributes.get("to") not in FLOATS:
        raise NetworkError(f"casts the features to type {type_name(attributes.get('to', 0))}; expected a float")


def _squeeze(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    axes = axes_of([None, chain.input(link, 1)], attributes)
    rank = len(chain.shape)
    if axes is None:
        axes = [place for place, size in enumerate(chain.shape) if size == 1]
    if any(not -rank <= axis < rank or chain.shape[axis] != 1 for axis in axes):
        raise NetworkError(f"takes axes {axes} out of {_shown(chain.shape)}; only dimensions of 1 can go")
    gone = {axis % rank for axis in axes}
    chain.shape = tuple(size for place, size in enumerate(chain.shape) if place not in gone)


def _unsqueeze(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    chain.shape = unsqueezed(chain.shape, axes_of([None, chain.input(link, 1)], attributes))


def _flatten(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    axis, rank = attributes.get("axis", 1), len(chain.shape)
    if not -rank <= axis <= rank:
        raise NetworkError(f"axis {axis} of {_shown(chain.shape)}")
    chain.shape = (_merged(chain.shape[:axis]), _merged(chain.shape[axis:]))


def _merged(sizes: Shape) -> int:
    """The product of dimensions. Raises NetworkError if it would mix the batch with features."""
    product = math.prod(size for size in sizes if size != BATCH)
    if BATCH in sizes and product != 1:
        raise NetworkError(f"mixes the batch with features: {_shown(sizes)} become one dimension")
    return BATCH if BATCH in sizes else product


def _reshape(chain: _Chain, link: _Link, attributes: dict[str, Any]) -> None:
    given = chain.input(link, 1)
    if given is None:
        raise NetworkError("has no shape")
    target = integers(given)
    sizes = reshaped(chain.shape, target, attributes)
    if -1 in target:
        place = target.index(-1)
        rest = [size for other, size in enumerate(sizes) if other != place]
        open_batch = BATCH in chain.shape and BATCH not in rest
        sizes[place] = BATCH if open_batch else chain.width // (math.prod(size for size in rest if size != BATCH) or 1)
    if [size for size in sizes if size != 1] != [size for size in chain.shape if size != 1] or target.count(-1) > 1:
        raise NetworkError(f"takes {_shown(chain.shape)} to {target}; only the batch and dimensions of 1 may move")
    chain.shape = tuple(sizes)


def _columns(ports: list[Port], order: list[str]) -> NDArray[np.intp] | None:
    """For each feature in the order of the inputs, its column in their concatenation; None if the order is the same."""
    if [port.name for port in ports] == order:
        return None
    widths = {port.name: port.width for port in ports}
    starts = dict(zip(order, np.cumsum([0, *(widths[name] for name in order)]).tolist(), strict=False))
    return np.concatenate([starts[port.name] + np.arange(port.width) for port in ports])


def _with_columns(steps: list[Step], columns: NDArray[np.intp]) -> list[Step]:
    """The steps for features in another order: values for each feature are put in that order, up to the first layer that
    mixes features."""
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
_EITHER_ORDER = {"Add", "Sub", "Mul"}
_KEEP_BIAS_OPEN = {"Identity", "Dropout", "Cast", "Squeeze", "Unsqueeze", "Flatten", "Reshape"}


def _broadcast(name: str, value: Float32, shape: Shape) -> tuple[Float32, Shape]:
    """A constant as one number or one per feature, and the shape of the result: only leading ones may be added."""
    rank = max(value.ndim, len(shape))
    sizes = (1,) * (rank - len(shape)) + shape
    others = (1,) * (rank - value.ndim) + value.shape
    if any(other not in (1, size) for size, other in zip(sizes, others, strict=True)):
        raise NetworkError(f"constant {name!r} of shape {value.shape} does not fit {_shown(shape)}")
    width = math.prod(size for size in shape if size != BATCH)
    return value.reshape(-1) if value.ndim and value.size == width else value.reshape(()), sizes


def _finite(name: str, value: Array) -> Float32:
    with np.errstate(over="ignore", invalid="ignore"):
        converted = value.astype(np.float32, copy=False)
    bad = int(converted.size - np.isfinite(converted).sum())
    if bad:
        raise NetworkError(f"weight {name!r} has {bad} values that are not finite")
    return converted


def _scaled(value: Float32, name: str, attributes: dict[str, Any]) -> Float32:
    """A value multiplied by an attribute, which is 1 if it is absent. Raises NetworkError if the result is not finite."""
    factor = attributes.get(name, 1.0)
    if factor == 1:
        return value
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = value * np.float32(factor)
    if not np.isfinite(scaled).all():
        raise NetworkError(f"{name} is {factor}: not all of what it multiplies stays finite")
    return scaled


def _shown(shape: Shape) -> str:
    return "(" + ", ".join("batch" if size == BATCH else str(size) for size in shape) + ")"


def _printable(message: str) -> str:
    """A message with names from a file, without control characters and not much longer than a screen."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message[:1000])


def _opset(model: onnx.ModelProto) -> int:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise NetworkError(f"opset {opset}; expected {OLDEST_OPSET} to {NEWEST_OPSET}")
    return opset
