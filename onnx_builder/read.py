"""An ONNX file as a `Network`: the graph is walked from its input to its output.

Reads what `write` writes: a chain of Gemm, activations (GELU in its erf spelling), Clip, and Add, Sub, Mul, Div with
constants. Anything else is refused by name.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from onnx_builder.network import Activation, Array, Clip, Dense, Elementwise, Network, NetworkError, Step

_ACTIVATIONS = {"Relu": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid"}


def from_bytes(data: bytes) -> Network:
    """The network of a serialized ONNX model.

    Raises NetworkError naming the node, its operator and the reason where the graph is not such a chain.
    """
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        raise NetworkError(f"not a valid ONNX model: {str(error).splitlines()[0] if str(error) else error!r}") from error
    return _Walk(model.graph).network()


class _Walk:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        inputs = [node for node in graph.input if node.name not in self.constants]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise NetworkError(f"{len(inputs)} inputs and {len(graph.output)} outputs; expected one of each")
        self.input, self.output = inputs[0], graph.output[0]
        self.nodes = list(graph.node)

    def network(self) -> Network:
        dims = self.input.type.tensor_type.shape.dim
        if len(dims) != 2 or dims[1].dim_value < 1:
            raise NetworkError(f"input {self.input.name!r}: expected shape (batch, n_features)")
        steps: list[Step] = []
        current, position = self.input.name, 0
        while position < len(self.nodes):
            gelu = self._gelu(position, current)
            step = gelu or self._step(self.nodes[position], current)
            if step is not None:
                steps.append(step)
            position += 5 if gelu else 1
            current = self.nodes[position - 1].output[0]
        if current != self.output.name:
            raise NetworkError(f"output {self.output.name!r} is not the end of the chain, {current!r}")
        return Network(dims[1].dim_value, tuple(steps), self.input.name, self.output.name)

    def _gelu(self, position: int, current: str) -> Activation | None:
        nodes = self.nodes[position : position + 5]
        if [node.op_type for node in nodes] != ["Div", "Erf", "Add", "Mul", "Mul"]:
            return None
        div, erf, add, mul, half = nodes
        chained = div.input[0] == current and set(mul.input) == {current, add.output[0]} and erf.input[0] == div.output[0]
        constants = [float(self._constant(n, n.input[1]).reshape(-1)[0]) for n in (div, add, half)]
        return Activation("gelu") if chained and np.allclose(constants, [math.sqrt(2), 1, 0.5], rtol=1e-6) else None

    def _step(self, node: onnx.NodeProto, current: str) -> Step | None:
        where = f"node {node.name!r} ({node.op_type})"
        if not node.input or node.input[0] != current:
            raise NetworkError(f"{where}: does not continue the chain at {current!r}")
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        match node.op_type:
            case "Identity":
                return None
            case "Add" | "Sub" | "Mul" | "Div":
                return Elementwise(node.op_type, self._constant(node, node.input[1]))
            case "Clip":
                return Clip(*(float(self._constant(node, name)) for name in node.input[1:3]))
            case "Gemm":
                if attributes.pop("transB", 0) != 1 or attributes:
                    raise NetworkError(f"{where}: expected transB=1 and no other attribute, got {sorted(attributes)}")
                return Dense(self._constant(node, node.input[1]), self._constant(node, node.input[2]))
            case "LeakyRelu":
                return Activation("leaky_relu", float(attributes.get("alpha", 0.01)))
            case "Relu" | "Tanh" | "Sigmoid":
                return Activation(_ACTIVATIONS[node.op_type])  # type: ignore[arg-type]
            case _:
                raise NetworkError(f"{where}: not part of a chain of dense layers")

    def _constant(self, node: onnx.NodeProto, name: str) -> Array:
        if name not in self.constants:
            raise NetworkError(f"node {node.name!r} ({node.op_type}): {name!r} is not a constant of the graph")
        value = self.constants[name]
        if value.dtype != np.float32:
            raise NetworkError(f"node {node.name!r} ({node.op_type}): {name!r} is {value.dtype}; expected float32")
        return value
