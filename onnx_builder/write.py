"""A `Network` as an ONNX graph, node by node.

Opset 17, IR version 8, float32, with the inputs and the output that the network declares. The file holds no time, path or
version of anything: equal networks give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_builder.elementwise import ATTRIBUTES, Function
from onnx_builder.network import Activation, Clip, Dense, Elementwise, LayerNormalization, Network, NetworkError

OPSET = 17
IR_VERSION = 8
OPERATORS = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Gemm", "MatMul", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Erf", "Clip"),
        *("Concat", "Slice", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "LayerNormalization", "Constant"),
        *("Softplus", "Elu", "Selu", "PRelu", "HardSigmoid", "Exp", "Log", "Max", "Min", "Neg", "Abs", "Sqrt", "Pow"),
    )
)
"""The only operators that a published graph contains."""

_ACTIVATION_OPERATORS = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}


def to_bytes(network: Network, metadata: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """The serialized ONNX model of a network, checked: the same network and metadata give the same bytes.

    metadata: what goes into the file's `metadata_props`.

    Raises NetworkError if `onnx.checker` in full mode (with shape inference) does not accept the graph.
    """
    model = to_model(network)
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise NetworkError(f"the graph does not pass onnx.checker: {error}") from error
    return bytes(model.SerializeToString(deterministic=True))


def to_model(network: Network) -> onnx.ModelProto:
    """The graph of a network as an unchecked `onnx.ModelProto`."""
    graph = _Graph({port.name for port in (*network.inputs, network.output)})
    graph.begin(network)
    for step in network.steps:
        match step:
            case Elementwise():
                graph.add(step.operator, graph.constant("constant", step.value))
            case Clip():
                graph.add("Clip", *graph.bounds(step.low, step.high))
            case Dense():
                graph.add("Gemm", graph.constant("weight", step.weight), graph.constant("bias", step.bias), transB=1)
            case LayerNormalization():
                scale, bias = graph.constant("scale", step.scale), graph.constant("bias", step.bias)
                graph.add("LayerNormalization", scale, bias, epsilon=float(step.epsilon))
            case Function():
                _add_function(graph, step)
            case Activation("leaky_relu"):
                graph.add("LeakyRelu", alpha=float(step.slope))
            case Activation("gelu"):
                _add_gelu(graph)
            case Activation():
                graph.add(_ACTIVATION_OPERATORS[step.name])
    graph.end(network)
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "vmafx_regressor",
            [helper.make_tensor_value_info(port.name, TensorProto.FLOAT, port.shape) for port in network.inputs],
            [helper.make_tensor_value_info(network.output.name, TensorProto.FLOAT, network.output.shape)],
            graph.initializers,
        ),
        producer_name="vmafx-sidecar",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )


class _Graph:
    """The nodes and initializers of a chain. result: the tensor that the next node reads; taken: names that are in use."""

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.result = ""

    def begin(self, network: Network) -> None:
        """Turn the inputs into one matrix (batch, n_features)."""
        self.result = network.inputs[0].name
        if len(network.inputs) > 1:
            self.append("Concat", [port.name for port in network.inputs], axis=1)
        elif len(network.inputs[0].shape) != 2:
            self.add("Reshape", self.shape(-1, network.n_features))

    def end(self, network: Network) -> None:
        """Give the scores (batch, 1) the shape and name of the output."""
        shape = network.output.shape
        if len(shape) == 1 and len(network.inputs[0].shape) == 2:
            self.add("Squeeze", self.shape(1))
        elif len(shape) != 2 or shape[1] != 1:
            self.add("Reshape", self.shape(*(1 if size == 1 else -1 for size in shape)))
        elif not self.nodes:
            self.append("Identity", [self.result])
        self.nodes[-1].output[0] = network.output.name

    def name(self, role: str) -> str:
        """A name made from the position of the next node and a role."""
        name = f"{len(self.nodes)}.{role}"
        while name in self.taken:
            name += "_"
        return name

    def constant(self, role: str, value: np.ndarray | np.generic) -> str:
        name = self.name(role)
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype=np.float32), name))
        return name

    def bounds(self, low: float, high: float) -> tuple[str, str]:
        return self.constant("low", np.float32(low)), self.constant("high", np.float32(high))

    def shape(self, *sizes: int) -> str:
        name = self.name("shape")
        self.initializers.append(numpy_helper.from_array(np.array(sizes, dtype=np.int64), name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> None:
        """Append a node that reads the present result and then `inputs`."""
        self.append(operator, [self.result, *inputs], **attributes)

    def append(self, operator: str, inputs: list[str], **attributes: Any) -> None:
        name = self.name(operator)
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        self.result = name


def _add_gelu(graph: _Graph) -> None:
    """x · (1 + erf(x / √2)) / 2, written as torch exports it below opset 20, the first with the operator."""
    x = graph.result
    graph.add("Div", graph.constant("sqrt2", np.float32(math.sqrt(2))))
    graph.add("Erf")
    graph.add("Add", graph.constant("one", np.float32(1)))
    graph.append("Mul", [x, graph.result])
    graph.add("Mul", graph.constant("half", np.float32(0.5)))


def _add_function(graph: _Graph, function: Function) -> None:
    results = [graph.result, *("" for _ in function.constants)]
    for node in function.nodes:
        for place in node.operands:
            if 0 < place <= len(function.constants):
                results[place] = graph.constant(f"constant{place}", function.constants[place - 1])
        inputs, names = [results[place] for place in node.operands], ATTRIBUTES.get(node.operator, {})
        if node.operator == "Clip":
            inputs += graph.bounds(*node.numbers)
        graph.append(node.operator, inputs, **dict(zip(names, node.numbers, strict=False)))
        results.append(graph.result)
