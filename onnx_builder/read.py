"""Reads an ONNX file as a `Network`: computes its graph once, with terms in place of features, and takes the steps from these.

The graph must be a chain of layers. Between two layers it may do to each value whatever `terms.py` knows, and select, reorder
and join values. Operators that move values are followed by computing them on the places of the values, in a batch of a few
rows. Everything else is refused, with the node, its operator and the reason. Opsets 7 to the newest that `onnx` has can be
read. Whatever the precision in the file, the network computes in float32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray

from onnx_builder.constants import (
    FLOATS,
    FOLDED,
    MAX_BYTES,
    MAX_NODES,
    MAX_RANK,
    MAX_STRUCTURE_BYTES,
    MOVES,
    OPEN,
    Constants,
    attributes_of,
    axes_of,
    described,
    operator_of,
    parse,
    read_bytes,
    slices_of,
    type_name,
)
from onnx_builder.elementwise import OPERATORS, Array, Float32, Function
from onnx_builder.network import Dense, Elementwise, LayerNormalization, Network, NetworkError, Port, Step, first_line
from onnx_builder.terms import CONDITIONS, SPELLED, Term, Terms, spelled, steps_of

OLDEST_OPSET, NEWEST_OPSET = 7, onnx.defs.onnx_opset_version()
MAX_STEPS = 500
MAX_VALUES = (MAX_BYTES - MAX_STRUCTURE_BYTES) // 4
"""The most values that all steps may have together, so that a file written from the network can be read again."""
MAX_PLACES = 1_000_000
"""The most features, in all rows that a graph takes at a time."""
_ROWS = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31)
"""The graph is followed for so many rows: the first number that it does not name as a size, which is then that of the batch."""
_UNTOLD_WIDTH = 997
_TO_THE_END = 2**31 - 1
_MOST_NESTED = 30
_QUANTISED = {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul", "com.microsoft.QGemm"}

Shape = tuple[int, ...]
Columns = NDArray[np.intp]


def read(path: Path) -> Network:
    """The network in an ONNX file; external data is read from the folder of the file, or of what it links to, and nowhere else.

    Raises NetworkError, which names the file and the reason, like `from_bytes`.
    """
    try:
        return from_bytes(read_bytes(path), path)
    except NetworkError as error:
        raise NetworkError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def from_bytes(data: bytes, file: Path | None = None) -> Network:
    """The network in a serialized ONNX model. file: where it is from, beside which its external data is, if it has any.

    Weights of any float type become float32. Raises NetworkError, which names the node, its operator and the reason, if the
    graph is not a chain of what a regressor is made of, or the bytes are not an ONNX model.
    """
    try:
        model = _inlined(parse(data))
        del data  # up to MAX_BYTES, which nobody else holds if they were read from a file
        width = 0
        for rows in (_ROWS[0], *_ROWS):
            try:
                return _Reader(model, file, rows, width).network()
            except _WidthFoundError as found:
                width = found.args[0]
            except _RowsNamedError:
                pass
        raise NetworkError("names so many sizes that none is left for the batch")
    except NetworkError as error:
        raise NetworkError(_printable(str(error))) from error


class _WidthFoundError(Exception):
    """A weight tells how many features the input has, which itself does not say."""


class _RowsNamedError(Exception):
    """The graph names the number of rows that it is followed for."""


@dataclass(frozen=True)
class _Value:
    """What depends on the features: a term of the last layer's results, with all values of a row, row after row.

    columns: which of the layer's results it has, None for all in order. is_condition: it is true or false. is_turned: it has
    rows and columns the other way round, as a Transpose before a selection of features makes it.
    """

    term: Term
    shape: Shape
    columns: Columns | None = None
    is_condition: bool = False
    is_turned: bool = False


@dataclass(frozen=True)
class _Call:
    """A node with what it gets."""

    node: onnx.NodeProto
    inputs: Sequence[_Value | Array | None]
    attributes: dict[str, Any]

    def array(self, place: int) -> Array | None:
        value = self.inputs[place] if place < len(self.inputs) else None
        assert not isinstance(value, _Value)
        return value

    def finite(self, place: int) -> Float32:
        """A constant input as float32. Raises NetworkError if it is absent or not finite in float32."""
        value = self.array(place)
        if value is None:
            raise NetworkError(f"input {place} is missing")
        return _finite(self.node.input[place], value)

    def number(self, place: int, name: str, default: float) -> float:
        """An input, or the attribute that was there in its place before. Raises NetworkError if it is not one number."""
        value = self.array(place)
        if value is None:
            return float(self.attributes.get(name, default))
        if value.size != 1:
            raise NetworkError(f"{self.node.input[place]!r} has shape {value.shape}; expected one number")
        with np.errstate(over="ignore"):
            return float(value.astype(np.float32).reshape(-1)[0])


class _Reader:
    """Follows a graph for a number of rows; `steps` are those up to the last layer, whose results `leaf` and `width` are.

    untold: the number of features of an input that does not say it; 0 if it is still to be found.
    """

    def __init__(self, model: onnx.ModelProto, file: Path | None, rows: int, untold: int) -> None:
        graph = model.graph
        self.opsets = _opsets(model)
        results = sum(len(node.output) or 1 for node in graph.node)
        if results > MAX_NODES:
            raise NetworkError(f"{results} results of nodes; a regressor has at most {MAX_NODES}")
        if len(graph.output) != 1:
            names = ", ".join(repr(value.name) for value in graph.output[:4])
            raise NetworkError(f"{len(graph.output)} outputs ({names}); expected one, the score")
        self.output = graph.output[0].name
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.sparse = {tensor.values.name for tensor in graph.sparse_initializer}
        inputs = [value for value in graph.input if value.name not in self.initializers]  # below IR 4, both list a constant
        self.inputs = {value.name: value for value in inputs}
        if len(self.initializers) < len(graph.initializer) or len(self.inputs) < len(inputs) or "" in self.inputs:
            raise NetworkError("two initializers or two inputs have the same name, or an input has none")
        if self.output in self.inputs:
            raise NetworkError(f"output {self.output!r} is an input; nothing is computed")
        self.producers: dict[str, onnx.NodeProto] = {}
        for node in graph.node:
            for name in filter(None, node.output):
                if name in self.initializers or name in self.inputs or name in self.producers:
                    raise NetworkError(f"{described(node)}: {name!r} exists already")
                self.producers[name] = node
        self.constants = Constants(file)
        self.terms = Terms(self.constants.require_room)
        self.leaf, self.width = self.terms.leaf(), 0
        self.rows, self.has_fixed_batch = rows, False
        self.untold, self.is_untold = untold, False
        self.steps: list[Step] = []
        self.values: dict[str, _Value | Array] = {}
        self.bias_is_open = False  # the last step is a MatMul, whose bias an Add may bring
        self._room = MAX_VALUES

    def network(self) -> Network:
        nodes = self._needed_nodes()
        used = {name for node in nodes for name in node.input}
        unused = [name for name in self.inputs if name not in used]
        if unused:
            raise NetworkError(f"input {unused[0]!r} is not used")
        ports = [self._input_port(value) for value in self.inputs.values()]
        self._begin(ports)
        for node in nodes:
            result = self._result(node)
            self.values.update(zip(node.output, result if isinstance(result, list) else [result], strict=False))
        score = self.values.get(self.output)
        if not isinstance(score, _Value):
            raise NetworkError(f"output {self.output!r} is constant: it does not depend on an input")
        columns = self._commit(score)
        if self.is_untold and not self.untold:
            raise NetworkError(f"input {ports[0].name!r} does not say how many features it takes, and no weight tells it")
        if math.prod(score.shape) != self.rows or columns is not None or score.is_condition:
            raise NetworkError(f"output {self.output!r} has {self.shown(score.shape)} values; expected one score per row")
        output = tuple(ports[0].shape[0] if size == self.rows else size for size in score.shape)
        return Network(sum(port.width for port in ports), tuple(self.steps), tuple(ports), Port(self.output, output))

    def _needed_nodes(self) -> list[onnx.NodeProto]:
        """The nodes that the output needs, each after those whose results it takes."""
        nodes: dict[int, onnx.NodeProto] = {}
        fault, begun = "", set()
        waiting: list[tuple[str, onnx.NodeProto | None, bool]] = [(self.output, None, False)]
        while waiting:
            name, user, done = waiting.pop()
            node = self.producers.get(name)
            if node is None:
                if name not in self.inputs and name not in self.initializers:
                    kind = "a sparse initializer: store it dense" if name in self.sparse else ""
                    kind = kind or "neither an input, a constant nor made by a node"
                    fault = f"{described(user)}: {name!r} is {kind}" if user else f"output {name!r} is not made by a node"
            elif done:
                nodes[id(node)] = node
            elif id(node) not in nodes:
                if name != node.output[0] and operator_of(node) != "Split":
                    raise NetworkError(f"{described(node)}: its second output {name!r} is used")
                if id(node) in begun:
                    fault = fault or f"{described(node)}: the graph has a cycle"
                    continue
                begun.add(id(node))
                waiting += [(name, user, True), *((each, node, False) for each in reversed(node.input) if each)]
        _require_known_operators(nodes.values())
        if fault or not nodes:
            raise NetworkError(fault or f"output {self.output!r} is constant: it does not depend on an input")
        return list(nodes.values())

    def _input_port(self, value: onnx.ValueInfoProto) -> Port:
        kind = value.type.tensor_type
        if kind.elem_type not in FLOATS:
            raise NetworkError(f"input {value.name!r} is of type {type_name(kind.elem_type)}; features are floats")
        sizes = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in kind.shape.dim]
        if any(isinstance(name, bytes) for name in (value.name, self.output, *sizes)):
            raise NetworkError(f"input {value.name!r} or output {self.output!r} has a name that is not UTF-8")
        told = [isinstance(size, int) and size > 0 for size in sizes[1:]]
        widths = [size if known else self.untold or _UNTOLD_WIDTH for size, known in zip(sizes[1:], told, strict=True)]
        self.is_untold = self.is_untold or not all(told)
        if not 1 <= len(widths) < MAX_RANK or sum(size != 1 for size in widths) > 1:
            shown = "(" + ", ".join(str(size) or "?" for size in sizes[: MAX_RANK + 1]) + ")"
            raise NetworkError(f"input {value.name!r} has shape {shown}; expected the batch and one dimension of features")
        batch = sizes[0] or "batch"
        if isinstance(batch, int) and batch < 1:
            batch = "batch"
        return Port(value.name, (batch, *widths), type_name(kind.elem_type))

    def _begin(self, ports: list[Port]) -> None:
        """Let each input stand for its features, in the order of the inputs."""
        if not ports:
            raise NetworkError("no input: it has none, or all have their values in the file; expected one that takes features")
        shapes = ", ".join(str(port.shape) for port in ports)
        if len({port.fixed_batch for port in ports}) != 1:
            raise NetworkError(f"inputs of different batch: {shapes}")
        if len(ports) > 1 and (self.is_untold or any(len(port.shape) != 2 for port in ports)):
            raise NetworkError(f"inputs {shapes}: several must be (batch, width)")
        self.has_fixed_batch, self.rows = ports[0].fixed_batch is not None, ports[0].fixed_batch or self.rows
        self.width = sum(port.width for port in ports)
        if self.rows * self.width > MAX_PLACES:
            raise NetworkError(f"takes {self.rows} rows of {self.width} features at a time, more than {MAX_PLACES} values")
        start = 0
        for port in ports:
            columns = np.arange(start, start + port.width) if len(ports) > 1 else None
            shape = (self.rows, *(int(size) for size in port.shape[1:]))
            self.values[port.name] = _Value(self.leaf, shape, columns)
            start += port.width

    def _result(self, node: onnx.NodeProto) -> _Value | Array | list[_Value]:
        try:
            inputs = [self._value(name) if name else None for name in node.input]
            return self._computed(_Call(node, inputs, attributes_of(node, self.opsets)))
        except NetworkError as error:
            text = str(error)
            raise error if text.startswith("node ") else NetworkError(f"{described(node)}: {text}") from error
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise NetworkError(f"{described(node)}: cannot be evaluated: {first_line(error)}") from error

    def _value(self, name: str) -> _Value | Array:
        if name not in self.values:
            self.values[name] = self.constants.read(self.initializers[name])
        return self.values[name]

    def _computed(self, call: _Call) -> _Value | Array | list[_Value]:
        operator, inputs = operator_of(call.node), call.inputs
        values = [value for value in inputs if isinstance(value, _Value)]
        for value in values:
            if value.is_turned and (operator not in MOVES or operator == "Concat"):
                raise NetworkError(f"takes {self.shown(value.shape)}; expected a row for each encode")
        if operator in _EACH_VALUE:
            return self._each_value(call, values)
        if not values:
            if operator in FOLDED or operator == "Constant":
                return self.constants.fold(call.node, [call.array(place) for place in range(len(inputs))], call.attributes)
            raise NetworkError("takes constants alone; expected what depends on an input")
        if any(value.is_condition for value in values) and operator not in ("Cast", "Identity"):
            raise NetworkError("takes what is true or false")
        if operator == "Concat":
            return self._joined(call)
        names = [name for name, value in zip(call.node.input, inputs, strict=True) if isinstance(value, _Value)]
        if operator not in _HANDLERS and operator not in MOVES:
            raise NetworkError(f"{names[0]!r} is not constant")
        for name in names if inputs[0] is not values[0] else names[1:]:
            kind = "an input of the graph" if name in self.inputs else "computed from the features"
            raise NetworkError(f"{name!r} is {kind}, not constant")
        result = _HANDLERS[operator](self, values[0], call) if operator in _HANDLERS else self.moved(values[0], call)
        assert isinstance(result, _Value | np.ndarray | list)
        return result

    def _each_value(self, call: _Call, values: list[_Value]) -> _Value | Array:
        """An operator that does the same to each value."""
        node, operator = call.node, operator_of(call.node)
        if values:
            shape = self._common_shape(call, values)
            if any(not _same(values[0].columns, value.columns) for value in values):
                raise NetworkError("computes with one feature and another")
        operands: list[Any] = []
        for place, each in enumerate(call.inputs):
            if isinstance(each, _Value):
                if each.is_condition != (operator in ("And", "Or", "Not") or (operator == "Where" and place == 0)):
                    raise NetworkError(f"{node.input[place]!r} is {'true or false' if each.is_condition else 'a number'}")
                operands.append(each.term)
            elif values:
                if each is None:
                    raise NetworkError("an input is missing")
                kinds = "fbiu" if operator == "Pow" else "fb"  # the type of an exponent is its own
                operands.append(self._of_row(_finite(node.input[place], each, kinds), shape))
            else:
                operands.append(each)
        result = spelled(self.terms, operator, call.attributes, operands)
        if isinstance(result, Term):
            return _Value(result, shape, values[0].columns, operator in CONDITIONS)
        return np.asarray(result)

    def _common_shape(self, call: _Call, values: list[_Value]) -> Shape:
        """The shape that inputs broadcast to. Leading ones may be added, and a row's mean may go to each of its values."""
        rank = max(len(each.shape) for each in call.inputs if each is not None)
        padded = [(1,) * (rank - len(each.shape)) + each.shape if each is not None else () for each in call.inputs]
        common = max(
            (shape for shape, each in zip(padded, call.inputs, strict=True) if isinstance(each, _Value)), key=math.prod
        )
        if all(value.term.per_row for value in values) and common[-1:] == (1,):
            common = (*common[:-1], max(shape[-1] for shape in padded if shape))
        batch = common.index(self.rows) if self.rows in common else -1
        for place, (each, shape) in enumerate(zip(call.inputs, padded, strict=True)):
            if isinstance(each, _Value):
                fits = shape == common or (each.term.per_row and shape == (*common[:-1], 1))
            else:
                pairs = enumerate(zip(shape, common, strict=True)) if shape else ()
                fits = all(size == 1 or (size == wanted and at != batch) for at, (size, wanted) in pairs)
                fits = fits or (self.rows == 1 and shape == common)
            if not fits:
                self.tell_width(math.prod(shape))
                name, kind = call.node.input[place], "" if isinstance(each, _Value) else "constant "
                its = self.shown(shape) if isinstance(each, _Value) else str(shape)
                raise NetworkError(f"{kind}{name!r} of shape {its} does not fit {self.shown(common)}")
        return common

    def _of_row(self, constant: Float32, shape: Shape) -> Float32:
        """A constant that broadcasts to values of a shape: one number, or one for each of a row's values."""
        if constant.size == 1 and not (constant.ndim and self._width_of(shape) == 1):
            return constant.reshape(())
        if constant.size < self._width_of(shape):
            self.require_room(self._width_of(shape))
            sizes = [*shape]
            if self.rows > 1:
                sizes[shape.index(self.rows)] = 1
            constant = np.broadcast_to(constant, sizes)
        return constant.reshape(-1)

    def _width_of(self, shape: Shape) -> int:
        return math.prod(shape) // self.rows

    def tell_width(self, width: int) -> None:
        """Begin again if this is the first to tell how many features the input has."""
        if self.is_untold and not self.untold and not self.steps and width > 1:
            raise _WidthFoundError(width)

    def moved(self, value: _Value, call: _Call) -> _Value:
        """An operator that moves values, by what it does to their places."""
        width = self._width_of(value.shape)
        others = [call.array(place) for place in range(1, len(call.inputs))]
        numbers = [array for array in others if array is not None]
        numbers += [np.array(value) for value in call.attributes.values() if isinstance(value, list)]
        if call.node.op_type == "Reshape" and numbers[0].size:
            self.tell_width(int(numbers[0].reshape(-1)[-1]))
        if (
            not self.has_fixed_batch
            and call.node.op_type in ("Reshape", "Expand")
            and any(self.rows in each for each in numbers)
        ):
            raise _RowsNamedError
        to = ", ".join(str(each.tolist()).replace(str(OPEN), "batch") for each in numbers if each.size <= MAX_RANK)
        places = np.arange(math.prod(value.shape)).reshape(self.rows, width)
        places = (places.T if value.is_turned else places).reshape(value.shape)
        arrays = [places, *(array if array is None else np.where(array == OPEN, self.rows, array) for array in others)]
        try:
            moved = self.constants.fold(call.node, arrays, call.attributes)
        except NetworkError:
            raise
        except (ValueError, IndexError) as error:
            raise NetworkError(f"takes {self.shown(value.shape)} to {to}, which does not fit") from error
        count = moved.size // self.rows
        before = moved.shape[: [*moved.shape, self.rows].index(self.rows)]
        is_turned = self.rows > 1 and math.prod(before) != 1 and moved.shape[-1] == self.rows
        rows = moved.reshape(count, self.rows).T if is_turned else moved.reshape(-1)
        places = rows.reshape(-1)[:count]
        in_rows = np.array_equal(rows.reshape(-1), (np.arange(self.rows)[:, None] * width + places).reshape(-1))
        if not count or not in_rows or (self.rows > 1 and math.prod(before) != 1 and not is_turned):
            if not self.has_fixed_batch and moved.shape[-1:] == (self.rows,) == value.shape[-1:]:
                raise _RowsNamedError  # which is the batch?
            raise NetworkError(f"takes {self.shown(value.shape)} to {to or 'other places'}, which mixes rows or loses some")
        value = replace(value, shape=moved.shape, is_turned=is_turned)
        if np.array_equal(places, np.arange(width)) or (value.term.per_row and not places.any()):
            return value
        if len(set(places.tolist())) < count:
            raise NetworkError("takes a value twice")
        columns = (np.arange(width) if value.columns is None else value.columns)[places]
        return replace(value, term=self.terms.selected(value.term, places), columns=columns)

    def _joined(self, call: _Call) -> _Value:
        """Concat of features, or of a layer's results, with whatever is done to the values of each part."""
        values: list[_Value] = []
        for name, value in zip(call.node.input, call.inputs, strict=True):
            if not isinstance(value, _Value):
                raise NetworkError(f"joins features with the constant {name!r}")
            if call.attributes["axis"] not in (-1, len(value.shape) - 1) or value.shape[-1] != self._width_of(value.shape):
                raise NetworkError(f"joins {self.shown(value.shape)} along axis {call.attributes['axis']}; expected rows")
            self._require_last_layer(value)
            values.append(value)
        widths = [value.shape[-1] for value in values]
        self.require_room(sum(widths))
        columns = np.concatenate([np.arange(value.shape[-1]) if value.columns is None else value.columns for value in values])
        if len({value.shape[:-1] for value in values}) > 1 or np.bincount(columns).max() > 1:
            raise NetworkError("joins rows of different shapes, or a feature twice")
        term = self.terms.joined([value.term for value in values], widths)
        return _Value(term, (*values[0].shape[:-1], len(columns)), columns)

    def _require_last_layer(self, value: _Value) -> None:
        if value.term.leaf is not self.leaf:
            raise NetworkError(
                "a skip connection or a second branch: it takes values from before another layer; a regressor is a chain"
            )

    def _commit(self, value: _Value) -> Columns | None:
        """Add the steps of a value. Returns its columns if they are still to be selected, by the layer that follows."""
        self._require_last_layer(value)
        columns = value.columns
        if columns is not None and np.array_equal(columns, np.arange(self.width)):
            columns = None
        last = self.steps[-1] if self.steps else None
        if columns is not None and isinstance(last, Dense):
            self.steps[-1] = Dense(np.ascontiguousarray(last.weight[columns]), last.bias[columns])
            self.width, columns = len(columns), None
        term = value.term if columns is None else self.terms.spread(value.term, columns, self.width)
        for step in steps_of(term, self.width):
            last = self.steps[-1] if self.steps else None
            if self.bias_is_open and isinstance(step, Elementwise) and step.operator == "Add" and isinstance(last, Dense):
                self.steps[-1] = Dense(last.weight, np.ascontiguousarray(np.broadcast_to(step.value, last.bias.shape)))
            else:
                self.add(step)
            self.bias_is_open = False
        return columns

    def add(self, step: Step, size: int = 0) -> None:
        """Append a step of so many values. Raises NetworkError if a network may not have more steps or values."""
        match step:
            case Elementwise():
                size = step.value.size
            case Function():
                size = sum(constant.size for constant in step.constants)
        self.require_room(size)
        if len(self.steps) == MAX_STEPS:
            raise NetworkError(f"is beyond step {MAX_STEPS}, the last that a network may have")
        self.steps.append(step)

    def require_room(self, size: int) -> None:
        """Reserve room for the values of a step before they are made. Raises NetworkError if there is none."""
        self._room -= size
        if self._room < 0:
            raise NetworkError(f"takes {size} values; a network has at most {MAX_VALUES} in all")

    def dense(self, value: _Value, weight: Float32, bias: Float32, bias_is_open: bool = False) -> _Value:
        """A dense layer with weight (n_out, n_in)."""
        self.tell_width(weight.shape[1])
        if value.shape[-1:] != (weight.shape[1],) or self._width_of(value.shape) != weight.shape[1]:
            raise NetworkError(f"a weight for {weight.shape[1]} values gets {self.shown(value.shape)}")
        columns = self._commit(value)
        self.require_room(len(weight) * self.width + bias.size)
        all_weights = np.zeros((len(weight), self.width), dtype=np.float32)
        all_weights[:, slice(None) if columns is None else columns] = weight
        self.add(Dense(all_weights, bias))
        self.leaf, self.width, self.bias_is_open = self.terms.leaf(), len(weight), bias_is_open
        return _Value(self.leaf, (*value.shape[:-1], len(weight)))

    def normalized(self, value: _Value, call: _Call, epsilon: float) -> _Value:
        """A layer normalisation."""
        self.tell_width(call.finite(1).size)
        width = self._width_of(value.shape)
        scale, bias = self.row(call, 1, width), self.row(call, 2, width)
        columns = self._commit(value)
        if columns is not None:
            if width < self.width:
                raise NetworkError(f"normalises only {width} of {self.width} features: give the model these alone")
            scale, bias = scale[np.argsort(columns)], bias[np.argsort(columns)]
        self.add(LayerNormalization(scale, bias, epsilon))
        self.leaf = self.terms.leaf()
        return _Value(self.leaf, value.shape, columns)

    def row(self, call: _Call, place: int, width: int) -> Float32:
        """A constant with one number for each of a row's values; zeros if it is absent."""
        self.require_room(width)
        if place > 1 and call.array(place) is None:
            return np.zeros(width, dtype=np.float32)
        value = call.finite(place)
        if value.size not in (1, width) or value.shape[-1:] not in ((), (value.size,)):
            raise NetworkError(f"{call.node.input[place]!r} has shape {value.shape}; expected ({width},)")
        return np.broadcast_to(value.reshape(-1), (width,)).copy()

    def with_constants(self, value: _Value, *pairs: tuple[str, Any]) -> _Value:
        """Operators with constants, one for all or one for each value."""
        term = value.term
        for operator, numbers in pairs:
            constant = _finite(operator, np.asarray(numbers, dtype=np.float64)).reshape(-1)
            self.tell_width(constant.size)
            if constant.size not in (1, self._width_of(value.shape)):
                raise NetworkError(f"{constant.size} constants for {self.shown(value.shape)}")
            term = self.terms(operator, term, constant if constant.size > 1 else constant.reshape(()))
        return replace(value, term=term)

    def shown(self, shape: Shape) -> str:
        """A shape with the batch in place of the rows that it is followed for."""
        sizes = [str(size) for size in shape]
        if not self.has_fixed_batch and self.rows in shape:
            sizes[shape.index(self.rows)] = "batch"
        return f"({', '.join(sizes)})"


def _gemm(reader: _Reader, value: _Value, call: _Call) -> _Value:
    """Gemm, MatMul, and what onnxruntime makes of them."""
    attributes, is_gemm = call.attributes, "Gemm" in call.node.op_type
    if any(attributes.get(name, 0) for name in ("transA", "transBatchA", "transBatchB")):
        raise NetworkError("transposes the features; expected a row for each encode")
    if is_gemm and len(value.shape) != 2:
        raise NetworkError(f"takes (batch, width), gets {reader.shown(value.shape)}")
    weight = call.finite(1)
    is_vector = weight.ndim == 1 and not is_gemm
    if is_vector:
        weight = weight.reshape(-1, 1)
    if weight.ndim != 2 or not weight.size:
        raise NetworkError(f"weight {call.node.input[1]!r} has shape {weight.shape}; expected two dimensions, not empty")
    weight = _scaled(weight if attributes.get("transB", 0) else weight.T, "alpha", attributes)
    bias = _scaled(reader.row(call, 2, len(weight)), "beta", attributes)
    result = reader.dense(value, weight, bias, bias_is_open=not is_gemm)
    if is_vector:
        result = replace(result, shape=result.shape[:-1])
    activation = attributes.get("activation", b"").decode(errors="replace")
    if not activation:
        return result
    if activation not in OPERATORS:
        raise NetworkError(f"its activation {activation!r} is not supported")
    numbers = {name: attributes[f"activation_{name}"] for name in ("alpha", "beta") if f"activation_{name}" in attributes}
    return replace(result, term=spelled(reader.terms, activation, numbers, [result.term]))


def _linear_regressor(reader: _Reader, value: _Value, call: _Call) -> _Value:
    attributes = call.attributes
    if attributes.get("post_transform", b"NONE") != b"NONE":
        raise NetworkError(f"post_transform is {attributes['post_transform']!r}; expected NONE")
    weight = np.array(attributes["coefficients"], dtype=np.float64).reshape(attributes.get("targets", 1), -1)
    bias = np.array(attributes.get("intercepts") or [0.0] * len(weight))
    if bias.shape != weight.shape[:1] or not weight.size:
        raise NetworkError(f"{bias.size} intercepts for {len(weight)} targets")
    return reader.dense(value, _finite("coefficients", weight), _finite("intercepts", bias))


def _scaler(reader: _Reader, value: _Value, call: _Call) -> _Value:
    pairs = [("Sub", call.attributes.get("offset")), ("Mul", call.attributes.get("scale"))]
    return reader.with_constants(value, *((operator, numbers) for operator, numbers in pairs if numbers))


def _batch_normalization(reader: _Reader, value: _Value, call: _Call) -> _Value:
    if call.attributes.get("training_mode", 0):
        raise NetworkError("is in training mode")
    if len(value.shape) < 2 or math.prod(value.shape[2:]) != 1:
        raise NetworkError(f"normalises {reader.shown(value.shape)}; expected features in the second dimension")
    scale, bias, mean, variance = (call.finite(place).astype(np.float64) for place in (1, 2, 3, 4))
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + call.attributes.get("epsilon", 1e-5))
    return reader.with_constants(value, ("Mul", factor), ("Add", bias - mean * factor))


def _clip(reader: _Reader, value: _Value, call: _Call) -> _Value:
    low, high = call.number(1, "min", -math.inf), call.number(2, "max", math.inf)
    if not low <= high:
        raise NetworkError(f"low {low} is above high {high}")
    return replace(value, term=reader.terms("Clip", value.term, numbers=(low, high)))


def _layer_normalization(reader: _Reader, value: _Value, call: _Call) -> _Value:
    _require_rows(reader, value, [call.attributes.get("axis", -1)])
    epsilon = float(call.attributes.get("epsilon", 1e-5))
    if not 0 <= epsilon < math.inf:
        raise NetworkError(f"epsilon is {epsilon}")
    return reader.normalized(value, call, epsilon)


def _mean(reader: _Reader, value: _Value, call: _Call) -> _Value:
    """ReduceMean and ReduceSum."""
    _require_rows(reader, value, axes_of([None, call.array(1)], call.attributes) or [])
    width = value.shape[-1]
    term = reader.terms("ReduceMean", value.term) if width > 1 else value.term
    if call.node.op_type == "ReduceSum":
        if reader.is_untold and not reader.untold:
            raise NetworkError("sums features, of which the input does not say how many it takes")
        term = reader.terms("Mul", term, np.asarray(width, dtype=np.float32))
    return replace(value, term=term, shape=(*value.shape[:-1], *((1,) if call.attributes.get("keepdims", 1) else ())))


def _require_rows(reader: _Reader, value: _Value, axes: list[int]) -> None:
    if axes not in ([-1], [len(value.shape) - 1]) or value.shape[-1] * reader.rows != math.prod(value.shape):
        raise NetworkError(f"takes axes {axes} of {reader.shown(value.shape)}; expected a row's values")


def _dropout(reader: _Reader, value: _Value, call: _Call) -> _Value:
    training = call.array(2)
    if training is not None and training.any():
        raise NetworkError("is in training mode")
    return value


def _cast(reader: _Reader, value: _Value, call: _Call) -> _Value:
    to = call.attributes.get("to", 0)
    if to not in FLOATS and not (to == onnx.TensorProto.BOOL and value.is_condition):
        raise NetworkError(f"casts the features to type {type_name(to)}; expected a float")
    return replace(value, is_condition=to == onnx.TensorProto.BOOL)


def _shape(reader: _Reader, value: _Value, call: _Call) -> Array:
    """Shape; the size of the batch is only known if it is fixed."""
    if reader.is_untold and not reader.untold:
        raise NetworkError("takes the shape of an input that does not say how many features it takes")
    sizes = list(value.shape)
    if not reader.has_fixed_batch and reader.rows in sizes:
        sizes[sizes.index(reader.rows)] = OPEN
    return np.array(sizes, dtype=np.int64)[call.attributes.get("start") : call.attributes.get("end")]


def _part(reader: _Reader, value: _Value, call: _Call) -> _Value:
    """Slice and Gather, of a row's values; of the rows, Slice may take all."""
    rank = len(value.shape)
    batch = value.shape.index(reader.rows) if reader.rows in value.shape and not reader.has_fixed_batch else None
    if call.node.op_type == "Gather":
        of_rows = call.attributes.get("axis", 0) % rank == batch
    else:
        arrays = [None, *(call.array(place) for place in range(1, len(call.inputs)))]
        taken = [part for axis, part in slices_of(arrays, call.attributes, rank) if axis == batch]
        of_rows = any(part.start != 0 or part.step != 1 or part.stop < _TO_THE_END for part in taken)
    if of_rows:
        raise NetworkError(f"takes some rows of {reader.shown(value.shape)}")
    return reader.moved(value, call)


def _split(reader: _Reader, value: _Value, call: _Call) -> list[_Value]:
    """Split, as a Slice for each output."""
    axis, given = call.attributes.get("axis", 0), call.array(1)
    sizes = call.attributes.get("split", []) if given is None else [int(size) for size in given.reshape(-1)]
    if sizes:
        reader.tell_width(sum(sizes))
    elif reader.is_untold and not reader.untold:
        raise NetworkError("splits an input that does not say how many features it takes")
    size = value.shape[axis]
    sizes = sizes or [math.ceil(size / len(call.node.output))] * len(call.node.output)
    starts = [min(start, size) for start in itertools.accumulate(sizes, initial=0)]
    if len(sizes) != len(call.node.output) or starts[-1] != size:
        raise NetworkError(f"makes {len(call.node.output)} parts of sizes {sizes[:8]} of {reader.shown(value.shape)}")
    node, whole = onnx.NodeProto(op_type="Slice"), np.array([axis])
    calls = [_Call(node, [value, np.array([a]), np.array([b]), whole], {}) for a, b in itertools.pairwise(starts)]
    return [_part(reader, value, each) for each in calls]


_HANDLERS: dict[str, Callable[..., Any]] = {
    "Gemm": _gemm,
    "MatMul": _gemm,
    "com.microsoft.FusedGemm": _gemm,
    "com.microsoft.FusedMatMul": _gemm,
    "ai.onnx.ml.LinearRegressor": _linear_regressor,
    "ai.onnx.ml.Scaler": _scaler,
    "BatchNormalization": _batch_normalization,
    "LayerNormalization": _layer_normalization,
    "ReduceMean": _mean,
    "ReduceSum": _mean,
    "Clip": _clip,
    "Dropout": _dropout,
    "Cast": _cast,
    "Shape": _shape,
    "Slice": _part,
    "Split": _split,
    "Gather": _part,
}
"""Operators that neither do the same to each value nor only move values."""
_EACH_VALUE = (SPELLED.keys() | OPERATORS.keys()) - _HANDLERS.keys()


def _same(a: Columns | None, b: Columns | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def _finite(name: str, value: Array, kinds: str = "f") -> Float32:
    if value.dtype.kind in {*"biu"} - {*kinds}:
        raise NetworkError(f"{name!r} is of type {value.dtype}; expected floats")
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


def _require_known_operators(nodes: Collection[onnx.NodeProto]) -> None:
    """Raises NetworkError for unknown operators. This comes first, since it shows what kind of model this is."""
    known = _EACH_VALUE | _HANDLERS.keys() | FOLDED.keys() | {"Constant"}
    unknown = {operator_of(node): node for node in nodes if operator_of(node) not in known}
    if unknown:
        names = [f"{operator} (node {node.name or node.output[0]!r})" for operator, node in unknown.items()]
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        verb = "is" if len(names) == 1 else "are"
        why = ": a quantised model cannot be trained; use the float original" if _QUANTISED & unknown.keys() else ""
        foreign = [name for name, node in unknown.items() if name == node.op_type and not onnx.defs.has(str(name))]
        if foreign:
            why = f": ONNX has no {foreign[0]}, which the exporter has left as it was; spell that layer in other operators"
        raise NetworkError(f"{', '.join(names[:6])}{more} {verb} not part of an MLP regressor{why}")


def _printable(message: str) -> str:
    """A message with names from a file, without control characters and not much longer than a screen."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message[:1000])


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    opsets = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in reversed(model.opset_import)}
    if not OLDEST_OPSET <= opsets.get("", 0) <= NEWEST_OPSET:
        raise NetworkError(f"opset {opsets.get('', 0)}; expected {OLDEST_OPSET} to {NEWEST_OPSET}")
    return opsets


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model with the bodies of its own functions in place of their calls, if they are not too many."""
    bodies = {(function.domain, function.name): function.node for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size_of(nodes: Sequence[onnx.NodeProto], depth: int) -> int:
        if depth > _MOST_NESTED:
            raise NetworkError("its functions call each other too deeply, or themselves")
        for call in {(node.domain, node.op_type) for node in nodes} & bodies.keys() - sizes.keys():
            sizes[call] = size_of(bodies[call], depth + 1)
        return sum(sizes.get((node.domain, node.op_type), 1) for node in nodes)

    if not bodies:
        return model
    if known := next((name for domain, name in bodies if onnx.defs.has(name, domain)), None):
        raise NetworkError(f"its function {known!r} has the name of an operator; ONNX does not say which of them counts")
    if size_of(model.graph.node, 0) > MAX_NODES:
        raise NetworkError(f"its functions make more than {MAX_NODES} nodes")
    try:
        return onnx.inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise NetworkError(f"its functions cannot be inlined: {first_line(error)}") from error
