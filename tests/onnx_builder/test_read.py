"""The ONNX reader: whatever is a chain of a regressor's operators reads as the function that the file computes; everything
else is refused with its reason, within bounded time and memory."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnx_builder import Activation, Clip, Dense, Elementwise, LayerNormalization, Network, NetworkError, Port
from onnx_builder.constants import MAX_BYTES
from onnx_builder.read import MAX_STEPS, NEWEST_OPSET, from_bytes, read
from onnx_builder.runtime import Scorer
from onnx_builder.write import to_bytes
from sidecar.pairs.recorded import read_pairs
from tests.conftest import ROOT, SHARED
from tests.fuzz.fuzz_read import fuzz, seeds

rng = np.random.default_rng(20)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def positive(*shape):
    return (abs(rng.normal(size=shape)) + 0.5).astype(np.float32)


# The constants that graphs here may name: of three features, a hidden layer of four values and a score.
CONSTANTS = {
    "w34": normal(3, 4), "w43": normal(4, 3), "w41": normal(4, 1), "w14": normal(1, 4), "w31": normal(3, 1),
    "b4": normal(4), "b14": normal(1, 4), "b1": normal(1), "b11": normal(1, 1), "bias": normal(),
    "c": positive(), "c1": positive(1), "c11": positive(1, 1), "c3": positive(3), "c13": positive(1, 3),
    "c4": positive(4), "c113": positive(1, 1, 3), "c31": positive(3, 1), "c5": positive(5),
    "hundred": np.float32(100), "half": np.float32(0.5), "half1": np.float32([0.5]), "one": np.float32(1),
    "near_one": np.float32(1.0001),
    "two": np.float32(2), "third": np.float32(0.3), "sqrt2": np.float32(2**0.5), "sqrt_half": np.float32(0.5**0.5),
    "rough_sqrt2": np.float32(1.41), "sqrt_half4": np.float32(0.7071), "zero": np.float32(0),
    "nan3": np.float32([[np.nan], [np.inf], [-np.inf]]), "huge": np.float64(1e300), "huge31": np.full((3, 1), 1e30),
    "w34_16": normal(3, 4).astype(np.float16), "b4_16": normal(4).astype(np.float16),
    "w34_64": rng.normal(size=(3, 4)), "b4_64": rng.normal(size=4), "empty": np.zeros((0, 3), np.float32),
    "yes": np.array(True), "no": np.array(False), "w234": normal(2, 3, 4), "many": np.arange(9), "whole": np.arange(3),
    "i00": np.array([[0, 0]]), "i0_": np.array([[0]]),
    **{f"i{number}".replace("-", "_"): np.array([number]) for number in (-2, -1, 0, 1, 2, 3)},
    "to_row": np.array([-1, 3]), "copy_row": np.array([0, 3]), "keep_batch": np.array([0, -1]), "flat": np.array([-1]),
    "swapped": np.array([4, -1]), "one_row": np.array([1, 3]), "two_open": np.array([-1, -1]),
    "to_column": np.array([-1, 1]), "to_cube": np.array([-1, 1, 1]), "none": np.zeros(0, np.int64),
    "copy_fourth": np.array([-1, 3, 0, 0]), "of_two": np.array([-1, 2]),
    "w33": normal(3, 3), "w61": normal(6, 1), "w64": normal(6, 4), "w21": normal(2, 1),
}  # fmt: skip


def graph(body, inputs="float[batch,3] x", opset=17, ir=8, **constants):
    """A model in ONNX's text syntax, with the CONSTANTS that it names and does not make; its output has no declared shape."""
    header = f'<ir_version: {ir}, opset_import: ["" : {opset}, "com.microsoft" : 1, "ai.onnx.ml" : 3]>'
    model = onnx.parser.parse_model(f"{header} g ({inputs}) => (float y) {{ {body} }}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    made = {value.name for value in model.graph.input} | {name for node in model.graph.node for name in node.output}
    values = CONSTANTS | constants
    for name in dict.fromkeys(name for node in model.graph.node for name in node.input):
        if name not in made and name in values:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(values[name]), name))
    return model


def scores_of(model, features):
    """Scores and output shape of a model (bytes or path) under onnxruntime, or, where that lacks the opset or a type, under
    onnx's own evaluator. A fixed batch is fed so many rows at a time."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        run = onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options).run
    except Exception:
        run = ReferenceEvaluator(onnx.load_from_string(model)).run
    about = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model, load_external_data=False)
    initializers = {tensor.name for tensor in about.graph.initializer}
    ports = [value for value in about.graph.input if value.name not in initializers]
    scores, count = [], ports[0].type.tensor_type.shape.dim[0].dim_value or len(features)
    for start in range(0, len(features), count):
        feed, column = {}, 0
        for port in ports:
            kind = port.type.tensor_type
            shape = [dim.dim_value for dim in kind.shape.dim][1:]
            width = int(np.prod(shape))
            values = features[start : start + count, column : column + width].reshape(count, *shape)
            feed[port.name] = values.astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
            column += width
        (output,) = run(None, feed)
        scores.append(np.asarray(output, dtype=np.float32).reshape(-1))
    return np.concatenate(scores), np.shape(output)


def assert_same_function(model, network, features=None, tolerance=1e-5):
    """The network, its file as declared and its canonical file compute what the model does, to a part of its range."""
    if features is None:
        features = np.random.default_rng(1).normal(size=(48, network.n_features)).astype(np.float32)
    expected, shape = scores_of(model, features)
    assert np.isfinite(expected).all()
    assert np.ptp(expected) > 0
    written, written_shape = scores_of(to_bytes(network), features)
    assert written_shape == shape
    for scores in (network.forward(features), written, Scorer(to_bytes(network.canonical())).predict(features)):
        np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance * np.ptp(expected))
    assert to_bytes(from_bytes(to_bytes(network))) == to_bytes(network)


def assert_reads(model, tolerance=1e-5):
    data = model.SerializeToString()
    network = from_bytes(data)
    assert_same_function(data, network, tolerance=tolerance)
    return network


HIDDEN = "h = Gemm(x, w34, b4) "
HEAD = " y = Gemm(g, w41, b1)"


@pytest.mark.parametrize(
    "body",
    [
        "y = Gemm(x, w31, b1)",
        "h = Gemm <transB = 1> (x, w43, b4) y = Gemm <transB = 0, transA = 0> (h, w41, b11)",
        "h = Gemm <alpha = 0.5, beta = -2.0> (x, w34, b14) y = Gemm <alpha = 2.0, beta = 0.0, transB = 1> (h, w14, bias)",
        "y = MatMul(x, w31)",
        "m = MatMul(x, w34) h = Add(m, b4) n = MatMul(h, w41) y = Add(b1, n)",
        "m = MatMul(x, w34) h = Add(m, b4) g = Add(h, c4) n = MatMul(g, w41) y = Mul(n, c1)",
        "m = MatMul(x, w34) i = Identity(m) h = Add(i, b14) d = Dropout(h) y = MatMul(d, w41)",
        "m = MatMul(x, w34) h = Sub(m, b4) y = MatMul(h, w41)",
        "n = MatMul(x, w31) s = Squeeze(n, i1) y = Add(s, b1)",
    ],
)  # fmt: skip
def test_dense_layers(body):
    assert_reads(graph(body))


@pytest.mark.parametrize("operator", ["Relu", "LeakyRelu", "LeakyRelu <alpha = 0.3>", "Tanh", "Sigmoid", "Identity", "Dropout"])
def test_activations(operator):
    assert_reads(graph(HIDDEN + f"g = {operator} (h)" + HEAD))


@pytest.mark.parametrize("approximate", ["", ' <approximate = "none">'])
def test_gelu_operator(approximate):
    assert_reads(graph(HIDDEN + f"g = Gelu{approximate} (h)" + HEAD, opset=20))


SCALED = ["Div(h, sqrt2)", "Mul(h, sqrt_half)", "Mul(sqrt_half, h)"]
PLUS_ONE = ["Add(e, one)", "Add(one, e)"]
PRODUCTS = [
    "p = Mul(h, a) g = Mul(p, half)", "p = Mul(a, h) g = Mul(half, p)", "p = Mul(h, half) g = Mul(p, a)",
    "p = Mul(half, h) g = Mul(a, p)", "p = Mul(a, half) g = Mul(p, h)", "p = Mul(half1, a) g = Mul(h, p)",
]  # fmt: skip


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("plus_one", PLUS_ONE)
@pytest.mark.parametrize("scaled", SCALED)
def test_gelu_in_every_order_of_its_factors(scaled, plus_one, product):
    network = from_bytes(graph(HIDDEN + f"s = {scaled} e = Erf(s) a = {plus_one} {product}" + HEAD).SerializeToString())
    assert [getattr(step, "name", "dense") for step in network.steps] == ["dense", "gelu", "dense"]


GELU_OF_GELU = " t = Mul(i, sqrt_half) f = Erf(t) b_ = Add(one, f) j = Mul(b_, half) g = Mul(i, j)"
ERF = "s = Div(h, sqrt2) e = Erf(s) a = Add(e, one) "


@pytest.mark.parametrize(
    ("body", "steps"),
    [
        (HIDDEN + ERF + PRODUCTS[0] + HEAD, "Dense gelu Dense"),
        (HIDDEN + ERF + PRODUCTS[2] + HEAD, "Dense gelu Dense"),
        (HIDDEN + ERF + PRODUCTS[5] + HEAD, "Dense gelu Dense"),
        (HIDDEN + "s = Mul(h, sqrt_half4) e = Erf(s) a = Add(e, one)" + PRODUCTS[3] + HEAD, "Dense gelu Dense"),
        (HIDDEN + ERF + "g = Mul(h, a)" + HEAD, "Dense gelu Mul Dense"),
        (HIDDEN + ERF + "p = Mul(h, a) g = Div(p, two)" + HEAD, "Dense gelu Mul Div Dense"),
        (HIDDEN + ERF + "p = Mul(h, third) g = Mul(p, a)" + HEAD, "Dense gelu Mul Dense"),
        (HIDDEN + ERF + "p = Mul(h, a) q = Mul(p, half) g = Mul(q, c4)" + HEAD, "Dense gelu Mul Dense"),
        (HIDDEN + ERF + "p = Mul(h, a) q = Mul(c4, p) g = Mul(half, q)" + HEAD, "Dense gelu Mul Mul Mul Dense"),
        (HIDDEN + ERF + "p = Mul(h, a) q = Mul(p, half) g = Mul(q, one)" + HEAD, "Dense gelu Mul Dense"),
        (HIDDEN + ERF + "p = Mul(h, a) q = Mul(p, half) r = Mul(q, two) g = Mul(r, half)" + HEAD, "Dense gelu Mul Mul Dense"),
        ("m = Gemm(x, w34, b4) h = Mul(m, c4)" + ERF + PRODUCTS[0] + HEAD, "Dense Mul gelu Dense"),
        ("m = Gemm(x, w34, b4) h = Mul(half, m)" + ERF + PRODUCTS[4] + HEAD, "Dense Mul gelu Dense"),
        ("m = Gemm(x, w34, b4) h = Div(m, c)" + ERF + PRODUCTS[1] + HEAD, "Dense Div gelu Dense"),
        (HIDDEN + ERF + PRODUCTS[0].replace("g =", "i =") + GELU_OF_GELU + HEAD, "Dense gelu gelu Dense"),
        (ERF.replace("h", "x") + "p = Mul(x, a) q = Mul(p, half) y = Gemm(q, w31, b1)", "gelu Dense"),
    ],
)  # fmt: skip
def test_gelu_and_the_scaling_around_it(body, steps):
    network = assert_reads(graph(body))
    assert " ".join(getattr(s, "name", getattr(s, "operator", type(s).__name__)) for s in network.steps) == steps


@pytest.mark.parametrize(
    "body",
    [
        "a = Sub(x, c3) h = Div(a, c13) y = Gemm(h, w31, b1)",
        "a = Sub(c3, x) h = Sub(c, a) y = Gemm(h, w31, b1)",
        "a = Add(c3, x) b_ = Mul(c1, a) h = Mul(b_, c) y = Gemm(h, w31, b1)",
        "h = Gemm(x, w31, b1) s = Sigmoid(h) m = Mul(s, hundred) y = Add(m, c11)",
        "h = Gemm(x, w31, b1) y = Clip(h, third, two)",
        "h = Gemm(x, w31, b1) y = Clip(h, zero)",
        "h = Gemm(x, w31, b1) y = Clip(h, , half1)",
        "h = Gemm(x, w31, b1) y = Clip(h)",
        HIDDEN + "r = Relu(h) g = Div(r, c4)" + HEAD,
        HIDDEN + "s = Sub(c4, h) g = LayerNormalization(s, c4, b4)" + HEAD,
        "n = LayerNormalization <axis = 1, epsilon = 0.01> (x, c3) y = Gemm(n, w31)",
        "n = LayerNormalization <axis = -1, stash_type = 1> (x, c1, b1) y = Gemm(n, w31)",
        "n, mean, deviation = LayerNormalization(x, c3, c3) y = Gemm(n, w31)",
        HIDDEN + "c_ = Cast <to = 11> (h) d = Cast <to = 1> (c_) g = Relu(d)" + HEAD,
    ],
)
def test_scaling_normalization_and_output_ranges(body):
    assert_reads(graph(body))


MEAN, VARIANCE = "m = ReduceMean <axes = [-1]> (h) d = Sub(h, m) ", "v = Mul(d, d) w = ReduceMean <axes = [1]> (v) "


@pytest.mark.parametrize(
    "body",
    [  # as torch's exporters below opset 17, Keras and flax have it
        MEAN + "v = Pow(d, two) w = ReduceMean <axes = [1]> (v) e = Add(w, eps) r = Sqrt(e) n = Div(d, r)",
        MEAN + VARIANCE + "e = Add(w, eps) r = Sqrt(e) i = Reciprocal(r) n = Mul(d, i)",
        MEAN + VARIANCE + "e = Add(eps, w) i = Pow(e, minus_half) n = Mul(i, d)",
        """m = ReduceMean <axes = [1]> (h) s = Mul(h, h) t = ReduceMean <axes = [1]> (s) q = Mul(m, m) u = Sub(t, q)
        v = Max(zero, u) d = Sub(h, m) e = Add(v, eps) r = Sqrt(e) i = Reciprocal(r) f = Mul(i, c4) n = Mul(d, f)""",
        """u = ReduceSum(h, i1) m = Div(u, four) d = Sub(h, m) v = Mul(d, d) w = ReduceSum(v, i1) z = Div(w, four)
        e = Add(z, eps) r = Sqrt(e) n = Div(d, r)""",
        f"""u = ReduceMean <axes = [1], keepdims = 0> (h) m = Unsqueeze(u, i1) o = Expand(m, row_of_4) d = Sub(h, o)
        {VARIANCE} e = Add(w, eps) r = Sqrt(e) n = Div(d, r)""",
    ],
)
@pytest.mark.parametrize("scale", ["g = Identity(n)", "s_ = Mul(n, c4) g = Add(s_, b4)", "s_ = Add(b4, n) g = Relu(s_)"])
def test_layer_normalization_spelled_out(body, scale):
    constants = {"eps": np.float32(1e-5), "minus_half": np.float32(-0.5), "four": np.float32(4), "row_of_4": np.array([1, 4])}
    network = assert_reads(graph(f"{HIDDEN} {body} {scale} {HEAD}", **constants))
    (step,) = (step for step in network.steps if isinstance(step, LayerNormalization))
    assert step.epsilon == pytest.approx(1e-5, rel=1e-6)
    assert not any(isinstance(step, Elementwise) for step in network.steps)


@pytest.mark.parametrize(
    ("body", "steps"),
    [
        (HIDDEN + "n = BatchNormalization(h, c4, b4, m4, c4) g = Relu(n)" + HEAD, "Dense Mul Add relu Dense"),
        ("n = BatchNormalization <epsilon = 0.1> (x, c3, m3, m3, c3) y = Gemm(n, w31, b1)", "Mul Add Dense"),
        ("n = ai.onnx.ml.Scaler <offset = [1.0, 2.0, 3.0], scale = [0.5, 2.0, 1.0]> (x) y = Gemm(n, w31, b1)", "Sub Mul Dense"),
        ("n = ai.onnx.ml.Scaler <offset = [1.0], scale = [0.5]> (x) y = Gemm(n, w31, b1)", "Sub Mul Dense"),
        ("y = ai.onnx.ml.LinearRegressor <coefficients = [1.0, 2.0, -3.0], intercepts = [7.0]> (x)", "Dense"),
        ("r = Reciprocal(c3) h = Mul(x, r) y = Gemm(h, w31, b1)", "Mul Dense"),
        ("e = Exp(c3) l = Log(e) a = Abs(l) h = Div(x, a) y = Gemm(h, w31, b1)", "Div Dense"),
        ("h = com.microsoft.FusedGemm <activation = \"Relu\"> (x, w34, b4) y = Gemm(h, w41, b1)", "Dense relu Dense"),
        (
            """h = com.microsoft.FusedGemm <activation = "LeakyRelu", activation_alpha = 0.2> (x, w34, b4)
            y = Gemm(h, w41, b1)""",
            "Dense leaky_relu Dense",
        ),
        # parts of the features
        ("s = Slice(x, i0, i2, i1) y = Gemm(s, w21, b1)", "Dense"),
        ("s = Slice(x, i1, i9, i_1, i1) y = Gemm(s, w21, b1)", "Dense"),
        ("s = Slice(x, i2, i_9, i1, i_1) y = Gemm(s, w31, b1)", "Dense"),
        ("n = Sub(x, c3) s = Gather <axis = 1> (n, two_of_three) m = Mul(s, c2) y = Gemm(m, w21, b1)", "Sub Mul Dense"),
        ("s = ai.onnx.ml.ArrayFeatureExtractor(x, two_of_three) y = Gemm(s, w21, b1)", "Dense"),
        (HIDDEN + "r = Relu(h) s = Slice(r, i0, i2, i1) y = Gemm(s, w21, b1)", "Dense relu Dense"),
        (HIDDEN + "r = Mul(h, c4) s = Gather <axis = 1> (r, two_of_three) y = Gemm(s, w21, b1)", "Dense Mul Dense"),
        ("h = Gemm(x, w34, b4) y = Gather <axis = 1> (h, i2)", "Dense"),
        ("t = Transpose(x) g = GatherND(t, two_rows) s = Transpose(g) y = Gemm(s, w21, b1)", "Dense"),
        ("t = Transpose(x) g = Gather(t, two_of_three) s = Transpose(g) m = Mul(s, c2) y = Gemm(m, w21)", "Mul Dense"),
        ("t = Transpose(x) i = Identity(t) s = Transpose(i) y = Gemm(s, w31, b1)", "Dense"),
        # constants that broadcast to parts of a row
        (HIDDEN + "r = Reshape(h, to_square) d = Mul(r, c22) f = Flatten(d) y = Gemm(f, w41, b1)", "Dense Mul Dense"),
        (HIDDEN + "r = Reshape(h, to_square) d = Add(c2, r) f = Flatten(d) y = Gemm(f, w41, b1)", "Dense Add Dense"),
        (HIDDEN + "r = Reshape(h, to_square) d = Max(r, c21) f = Flatten(d) y = Gemm(f, w41, b1)", "Dense Function Dense"),
        ("h = MatMul(x, c3) y = Add(h, b1)", "Dense"),
        (HIDDEN + "r = Relu(h) y = MatMul(r, c4)", "Dense relu Dense"),
        (HIDDEN + "r = Pow(h, i2) y = Gemm(r, w41, b1)", "Dense Function Dense"),
        ("h = Gemm(x, w34, b4) s = Gather <axis = 1> (h, place) y = Add(s, c)", "Dense Add"),
        ("h = Gemm(x, w31, b1) y = Gather <axis = 1> (h, zeroth)", "Dense"),
        (
            """u = Slice(x, i0, i1, i1) v = Slice(x, i1, i9, i1)
            n = ai.onnx.ml.Scaler <offset = [1.0, 2.0], scale = [0.5, 2.0]> (v) j = Concat <axis = 1> (n, u)
            y = Gemm(j, w31, b1)""",
            "Sub Mul Dense",
        ),
        (
            """u = Gather <axis = 1> (x, two_of_three) v = Slice(x, i1, i2, i1) n = Div(u, c2) m = Sub(v, c1)
            j = Concat <axis = -1> (n, m) y = Gemm(j, w31, b1)""",
            "Div Sub Dense",
        ),
        # shapes that are computed
        (
            """s = Shape(x) n = Gather(s, zeroth) u = Unsqueeze(n, i0) t = Concat <axis = 0> (u, i_1) r = Reshape(x, t)
            y = Gemm(r, w31)""",
            "Dense",
        ),
        ("h = Gemm(x, w31, b1) s = Shape <end = 1> (h) y = Reshape(h, s)", "Dense"),
        (
            """s = Shape(x) e = Slice(s, i0, i1) c_ = Cast <to = 7> (e) t = Concat <axis = 0> (c_, i3) r = Reshape(x, t)
            y = Gemm(r, w31)""",
            "Dense",
        ),
        ("s = Shape(x) e = Expand(c13, s) h = Mul(x, e) y = Gemm(h, w31)", "Mul Dense"),
        ("s = Shape(x) e = ConstantOfShape(s) h = Add(x, e) y = Gemm(h, w31)", "Add Dense"),
        ("u = Unsqueeze(x, i2) t = Transpose <perm = [0, 2, 1]> (u) s = Squeeze(t, i1) y = Gemm(s, w31)", "Dense"),
        ("u, v, w = Split <axis = -1> (x) m = Mul(u, c) j = Concat <axis = 1> (w, m, v) y = Gemm(j, w31)", "Mul Dense"),
    ],
)  # fmt: skip
def test_what_folds_away(body, steps):
    constants = {
        "m4": normal(4), "m3": normal(3), "c2": positive(2), "i9": np.array([9]), "i_9": np.array([-9]), "place": np.array(3),
        "zeroth": np.array(0), "two_of_three": np.array([2, 0]), "two_rows": np.array([[2], [0]]),
        "to_square": np.array([-1, 2, 2]), "c22": positive(2, 2), "c21": positive(2, 1),
    }  # fmt: skip
    network = assert_reads(graph(body, **constants))
    assert " ".join(getattr(s, "name", getattr(s, "operator", type(s).__name__)) for s in network.steps) == steps


@pytest.mark.parametrize(
    "body",
    [
        "y = Gemm(x, w31, b1)",
        "h = MatMul(x, w31) y = Add(h, b1)",
        "h = Sub(x, c) g = Div(h, c3) y = Gemm(g, w31)",
        "h = Cast <to = 1> (x) n = ai.onnx.ml.Scaler <offset = [1.0, 2.0, 3.0], scale = [1.0, 2.0, 1.0]> (h) y = Gemm(n, w31)",
        "r = Reshape(x, to_row) y = Gemm(r, w31)",
        "n = LayerNormalization(x, c3) y = Gemm(n, w31)",
        "n = BatchNormalization(x, c3, c3, c3, c3) t = Tanh(n) y = Gemm(t, w31)",
    ],
)
def test_a_weight_tells_how_many_features_an_input_has(body):
    features = rng.normal(size=(20, 3)).astype(np.float32)
    for shape in (["n", "m"], ["n", None], ["n", 0], ["n", -3], [4, None]):
        model = graph(body)
        set_input(model, "x", shape=shape)
        network = from_bytes(model.SerializeToString())
        assert network.inputs == (Port("x", (shape[0], 3)),)
        expected, _ = scores_of(graph(body).SerializeToString(), features)
        np.testing.assert_allclose(network.forward(features), expected, rtol=0, atol=1e-5 * np.ptp(expected))
    set_input(model, "x", shape=["n", "m"])
    del model.graph.node[:]
    model.graph.node.add(op_type="Relu", input=["x"], output=["y"])
    with pytest.raises(NetworkError, match="input 'x' does not say how many features it takes, and no weight tells it"):
        from_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    "quantised", [f"DequantizeLinear {each}" for each in ("(q31, c)", "<axis = 1> (q31, c1, z1)", "<axis = 0> (q31, c3)")]
)
def test_quantised_weights_are_read_as_what_they_stand_for(quantised):
    """As onnx itself computes it: onnxruntime may quantise the features, too."""
    model = graph(f"q = {quantised} y = Gemm(x, q, b1)", opset=19, q31=np.int8([[3], [-128], [100]]), z1=np.int8([4]))
    features = rng.normal(size=(20, 3)).astype(np.float32)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": features})
    network = from_bytes(model.SerializeToString())
    np.testing.assert_allclose(network.forward(features), expected[:, 0], rtol=1e-5)


@pytest.mark.parametrize("batch", [2, 3, 8])
@pytest.mark.parametrize(
    "body",
    [
        "h = Gemm(x, w31, b1) y = Reshape(h, rows)",
        "h = Gemm(x, w31, b1) y = Reshape(h, rows_and_one)",
        "s = Shape(x) r = Reshape(x, s) y = Gemm(r, w31, b1)",
        "s = Shape(x) p = Mul(s, i1) r = Reshape(x, p) y = Gemm(r, w31, b1)",
        "r = Reshape(x, rows_and_rest) y = Gemm(r, w31, b1)",
    ],
)
def test_a_fixed_batch_may_be_named(body, batch):
    sizes = {"rows": np.array([batch]), "rows_and_one": np.array([batch, 1]), "rows_and_rest": np.array([batch, -1])}
    assert_reads(graph(body, inputs=f"float[{batch},3] x", **sizes))


def test_functions_of_the_model_itself_are_read():
    block = onnx.parser.parse_function("""<opset_import: ["" : 17, "local" : 1], domain: "local">
        Block (a, w, b) => (r) { h = Gemm(a, w, b) i = local.Silu(h) r = Identity(i) }""")
    silu = onnx.parser.parse_function("""<opset_import: ["" : 17], domain: "local">
        Silu (a) => (r) { s = Sigmoid(a) r = Mul(a, s) }""")
    model = graph("h = local.Block(x, w34, b4) g = local.Silu(h) y = Gemm(g, w41, b1)")
    model.functions.extend([block, silu])
    model.opset_import.add(domain="local", version=1)
    assert len(assert_reads(model).steps) == 4
    deep = graph("h = local.F0(x) y = Gemm(h, w31, b1)")
    deep.opset_import.add(domain="local", version=1)
    for place in range(20):
        body = f"h = local.F{place + 1}(a) r = local.F{place + 1}(h)" if place < 19 else "r = Relu(a)"
        deep.functions.append(
            onnx.parser.parse_function(
                f'<opset_import: ["" : 17, "local" : 1], domain: "local"> F{place} (a) => (r) {{ {body} }}'
            )
        )
    with pytest.raises(NetworkError, match="its functions make more than 10000 nodes"):
        from_bytes(deep.SerializeToString())
    deep.functions[19].node[0].CopyFrom(helper.make_node("F0", ["a"], ["r"], domain="local"))
    with pytest.raises(NetworkError, match="its functions call each other too deeply, or themselves"):
        from_bytes(deep.SerializeToString())


def test_a_function_with_the_name_of_an_operator_is_refused():
    model = graph("h = Relu(x) y = Gemm(h, w31, b1)")
    model.functions.append(onnx.parser.parse_function('<opset_import: ["" : 17], domain: ""> Relu (a) => (r) { r = Neg(a) }'))
    with pytest.raises(NetworkError, match="its function 'Relu' has the name of an operator"):
        from_bytes(model.SerializeToString())


def test_an_input_that_has_its_value_in_the_file_is_none():
    model = graph("y = Gemm(x, w31, b1)", x=normal(5, 3))
    model.graph.initializer.append(numpy_helper.from_array(normal(5, 3), "x"))
    with pytest.raises(NetworkError, match="no input: it has none, or all have their values in the file"):
        from_bytes(model.SerializeToString())


def test_a_sparse_initializer_is_named():
    model = graph("y = Gemm(x, w31_, b1)")
    values = helper.make_tensor("w31_", TensorProto.FLOAT, [1], [1.0])
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, helper.make_tensor("", TensorProto.INT64, [1], [0]), [3, 1])
    )
    with pytest.raises(NetworkError, match="'w31_' is a sparse initializer: store it dense"):
        from_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("opset", "split"),
    [(9, "<axis = 1, split = [2, 1]> (x)"), (13, "<axis = 1> (x, i21)"), (18, "<axis = 1, num_outputs = 2> (x)")],
)
def test_features_may_be_split(opset, split):
    body = f"u, v = Split {split} j = Concat <axis = 1> (v, u) y = MatMul(j, w31)"
    assert_reads(graph(body, opset=opset, i21=np.array([2, 1])))


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, NEWEST_OPSET])
def test_every_opset(opset):
    axes = ["<axes = [1]> (", "("] if opset < 13 else ["(", ", i1)"]
    start, end = (axes[0], ")") if opset < 13 else axes
    clip = "Clip <min = 0.5, max = 2.5> (n)" if opset < 11 else "Clip(n, half, c5_5)"
    bias = ", b4" if opset < 11 else ""
    dropout = "Dropout <ratio = 0.5> (r)" if opset < 12 else "Dropout(r, half, no)"
    body = f"""u = Unsqueeze {start}x{end} v = Squeeze {start}u{end} f = Flatten(v) s = Reshape(f, keep_batch)
        h = Gemm(s, w34{bias}) r = LeakyRelu <alpha = 0.2> (h) d = {dropout} i = Identity(d)
        k = Constant <value = float[4] {{1.0, -2.0, 3.0, 0.5}}> () a = Add(i, k) m = MatMul(a, w41) n = Add(m, b1)
        q = {clip} y = Squeeze {start}q{end}"""
    assert_reads(graph(body, opset=opset, c5_5=np.float32(2.5)))


@pytest.mark.parametrize(
    ("opset", "body"),
    [
        (12, "k = Constant <value_float = 2.5> () h = Mul(x, k) y = Gemm(h, w31, b1)"),
        (12, "k = Constant <value_floats = [1.0, 2.0, -3.0]> () h = Add(x, k) y = Gemm(h, w31, b1)"),
        (13, "k = Constant <value_ints = [1]> () h = Gemm(x, w31, b1) y = Squeeze(h, k)"),
        (13, "k = Constant <value_ints = [-1, 1]> () h = Gemm(x, w31, b1) y = Reshape(h, k)"),
        (13, "k = Constant <value_int = 2> () f = Cast <to = 1> (k) h = Mul(x, f) y = Gemm(h, w31, b1)"),
        (17, "t = Transpose(w43) h = Gemm(x, t, b4) y = Gemm(h, w41, b1)"),
        (17, "t = Transpose <perm = [1, 0]> (w43) i = Identity(t) m = MatMul(x, i) y = Gemm(m, w41, b1)"),
        (17, "s = Sub(c3, c) d = Div(s, c3) n = Neg(d) q = Mul(n, c3) h = Add(x, q) y = Gemm(h, w31, b1)"),
        (17, "v = Add(c3, c) d = Sqrt(v) p = Pow(d, two) h = Div(x, p) y = Gemm(h, w31, b1)"),
        (17, "s = Squeeze(w31, i1) u = Unsqueeze(s, i1) y = Gemm(x, u, b1)"),
        (11, "s = Squeeze <axes = [-1]> (w31) u = Unsqueeze <axes = [1]> (s) y = Gemm(x, u, b1)"),
        (17, "s = Squeeze(w31) u = Reshape(s, to_column) y = Gemm(x, u, b1)"),
        (17, "s = Reshape(w31, keep_batch) y = Gemm(x, s, b1)"),
        (17, "w = Cast <to = 1> (w34_16) b_ = Cast <to = 1> (b4_16) h = Gemm(x, w, b_)" + HEAD.replace("g,", "h,")),
        (17, "w = Cast <to = 1> (w34_64) b_ = Cast <to = 1> (b4_64) h = Gemm(x, w, b_)" + HEAD.replace("g,", "h,")),
        (17, "w = Cast <to = 1> (w34_b) h = Gemm(x, w, b4)" + HEAD.replace("g,", "h,")),
        (17, "s = Cast <to = 10> (w34) w = Cast <to = 1> (s) h = Gemm(x, w, b4)" + HEAD.replace("g,", "h,")),
        (17, "l = Neg(half) h = Gemm(x, w31, b1) y = Clip(h, l, two)"),
    ],
)
def test_constant_nodes_and_folding(opset, body):
    model = graph(body, opset=opset)
    if "w34_b" in body:
        model.graph.initializer.append(helper.make_tensor("w34_b", TensorProto.BFLOAT16, [3, 4], CONSTANTS["w34"].ravel()))
    assert_reads(model)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [(TensorProto.DOUBLE, 1e-5), (TensorProto.FLOAT16, 5e-3), (TensorProto.BFLOAT16, 5e-2)]
)
def test_a_whole_model_in_another_precision(kind, tolerance):
    model = graph(HIDDEN + ERF + PRODUCTS[0] + HEAD)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, kind, values.shape, values.ravel()))
    model.graph.input[0].type.tensor_type.elem_type = model.graph.output[0].type.tensor_type.elem_type = kind
    assert_reads(model, tolerance)


def test_half_precision_between_casts():
    cast = "a = Cast <to = 10> (x) h = Gemm(a, w34_16, b4_16) r = Relu(h) g = Cast <to = 1> (r)"
    assert_reads(graph(cast + HEAD), tolerance=5e-3)


@pytest.mark.parametrize("field", ["float_data", "double_data", "int32_data", "raw_data"])
def test_numbers_in_every_field_of_a_tensor(field):
    kinds = {"double_data": TensorProto.DOUBLE, "int32_data": TensorProto.FLOAT16}
    values = np.float32([1, -2, 0.5])
    data = values.tobytes() if field == "raw_data" else values
    tensor = helper.make_tensor("w", kinds.get(field, TensorProto.FLOAT), [3, 1], data, raw=field == "raw_data")
    assert len(getattr(tensor, field))
    model = graph("y = MatMul(x, w)")
    model.graph.initializer.append(tensor)
    assert from_bytes(model.SerializeToString()).forward([[4, 5, 6]]).tolist() == [-3]


def test_initializers_may_be_listed_as_inputs():
    model = graph(HIDDEN + "g = Relu(h)" + HEAD, opset=7, ir=3)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    assert assert_reads(model).inputs == (Port("x", ("batch", 3)),)


@pytest.mark.parametrize("opset", [7, 11, 17, NEWEST_OPSET])
@pytest.mark.parametrize(
    ("inputs", "order", "axis"),
    [
        ("float[batch,2] a, float[batch,1] b", "a, b", 1),
        ("float[batch,2] a, float[batch,1] b", "b, a", 1),
        ("float[N,1] a, float[N,1] b, float[N,1] c_", "c_, a, b", -1),
        ("float[1,1] a, float[1,2] b", "b, a", 1),
        ("float[4,1] a, float[4,2] b", "b, a", 1),
    ],
)
def test_several_inputs_in_any_order(inputs, order, axis, opset):
    scaling = "h = Sub(x, c3) s = Div(h, c13) n = Gemm(s, w34, b4) g = Tanh(n)"
    model = graph(f"x = Concat <axis = {axis}> ({order}) {scaling}" + HEAD, inputs=inputs, opset=opset)
    network = assert_reads(model)
    assert [port.name for port in network.inputs] == re.findall(r"\] (\w+)", inputs)


def test_layer_normalization_of_inputs_in_another_order():
    body = "x = Concat <axis = 1> (b, a) n = LayerNormalization(x, c3, b3) y = Gemm(n, w31, b1)"
    assert_reads(graph(body, inputs="float[batch,2] a, float[batch,1] b", b3=np.float32([1, 2, 3])))


@pytest.mark.parametrize(
    ("inputs", "body", "shape"),
    [
        ("float[batch,3] x", "y = Gemm(x, w31, b1)", ("batch", 1)),
        ("float[batch,3] x", "h = Gemm(x, w31, b1) y = Squeeze(h, i1)", ("batch",)),
        ("float[batch,3] x", "h = Gemm(x, w31, b1) y = Squeeze(h, i_1)", ("batch",)),
        ("float[batch,3] x", "h = Gemm(x, w31, b1) y = Squeeze(h)", ("batch",)),
        ("float[batch,3] x", "h = Gemm(x, w31, b1) y = Reshape(h, flat)", ("batch",)),
        ("float[batch,3] x", "h = Gemm(x, w31, b1) y = Flatten <axis = 0> (h)", (1, "batch")),
        ("float[batch,3] x", "h = Gemm(x, w31, b1) y = Unsqueeze(h, i2)", ("batch", 1, 1)),
        ("float[batch,3] x", "h = Gemm(x, w31, b1) y = Reshape(h, to_cube)", ("batch", 1, 1)),
        ("float[batch,3] x", "h = Gemm(x, w31, b1) s = Squeeze(h, i1) t = Mul(s, c1) y = Clip(t, zero)", ("batch",)),
        ("float[batch,3] x", "h = Gemm(x, w31, b1) s = Squeeze(h, i1) y = Add(s, c11)", (1, "batch")),
        ("float[N,3] x", "r = Reshape(x, copy_row) y = Gemm(r, w31, b1)", ("N", 1)),
        ("float[1,3] x", "y = Gemm(x, w31, b1)", (1, 1)),
        ("float[1,3] x", "r = Reshape(x, one_row) h = Gemm(r, w31, b1) y = Squeeze(h, i1)", (1,)),
        ("float[1,3] x", "h = Gemm(x, w31, b1) y = Squeeze(h)", ()),
        ("float[1,3] x", "h = Gemm(x, w31, b1) y = Reshape(h, none)", ()),
        ("float[1,3] x", "s = Squeeze(x) m = MatMul(s, w34) h = Add(m, b4) y = MatMul(h, w41)", (1,)),
        ("float[1,3] x", "s = Squeeze(x) n = LayerNormalization <axis = 0> (s, c3) y = MatMul(n, w31)", (1,)),
        ("float[1,4] x", "r = Reshape(x, square) m = Mul(r, c2) s = Reshape(m, to_four) y = Gemm(s, w41)", (1, 1)),
        ("float[4,3] x", "t = Transpose(x) g = GatherND(t, i0_) s = Transpose(g) y = Gemm(s, b11)", (4, 1)),
        ("float[4,3] x", "y = Gemm(x, w31, b1)", (4, 1)),
        ("float[4,3] x", "h = Gemm(x, w31, b1) y = Flatten <axis = -2> (h)", (1, 4)),
        ("float[batch,1,3] x", "s = Squeeze(x, i1) y = Gemm(s, w31, b1)", ("batch", 1)),
        ("float[batch,1,3] x", "f = Flatten(x) h = Gemm(f, w31, b1) y = Squeeze(h, i1)", ("batch",)),
        ("float[batch,1,3] x", "m = MatMul(x, w34) h = Add(m, b4) y = MatMul(h, w41)", ("batch", 1, 1)),
        ("float[batch,1,3] x", "m = Sub(x, c113) n = LayerNormalization(m, c3) y = MatMul(n, w31)", ("batch", 1, 1)),
        ("float[batch,3,1] x", "d = Sub(x, c31) r = Reshape(d, to_row) y = Gemm(r, w31, b1)", ("batch", 1)),
        ("float[batch,3,1] x", "s = Squeeze(x, i2) y = Gemm(s, w31, b1)", ("batch", 1)),
        ("float[batch,3,1] x", "r = Reshape(x, keep_batch) y = Gemm(r, w31, b1)", ("batch", 1)),
        ("float[batch,3,1,1] x", "s = Squeeze(x) h = Gemm(s, w31, b1) y = Squeeze(h)", ("batch",)),
        ("float[1,3,1] x", "f = Flatten(x) h = Gemm(f, w31, b1) y = Squeeze(h)", ()),
        ("float[4,1,3] x", "m = MatMul(x, w31) y = Add(m, b1)", (4, 1, 1)),
        ("float[batch,1] x", "y = Sigmoid(x)", ("batch", 1)),
        ("float[batch,1] x", "y = Identity(x)", ("batch", 1)),
        ("float[batch,1,1] x", "y = Squeeze(x, i1)", ("batch", 1)),
    ],
)  # fmt: skip
def test_shapes_of_input_and_output(inputs, body, shape):
    constants = {"square": np.array([2, 2]), "c2": positive(2), "to_four": np.array([1, 4])}
    assert assert_reads(graph(body, inputs=inputs, **constants)).output == Port("y", shape)


@pytest.mark.parametrize("batch", [None, 0, -1])
def test_a_batch_without_a_size_is_open(batch):
    model = graph("y = Gemm(x, w31)")
    set_input(model, "x", shape=[batch, 3])
    network = from_bytes(model.SerializeToString())
    assert (network.inputs[0].shape, network.output.shape) == (("batch", 3), ("batch", 1))


def test_graphs_as_published_models_have_them():
    random = np.random.default_rng(3)
    shapes = {"first": (16, 14), "second": (8, 16), "third": (1, 8), "c16": 16, "c8": 8, "mean": (1, 14), "shift": 14}
    weights = {name: random.normal(size=shape).astype(np.float32) / 4 for name, shape in shapes.items()}
    weights |= {"deviation": np.exp(weights["mean"]), "scale": np.exp(weights["shift"]), "four": np.float32(4)}
    subtract_divide = "a = Sub(features, mean) b_ = Div(a, deviation) h = Gemm <transB = 1> (b_, first, c16)"
    hidden = "g = Relu(h) i = Gemm <transB = 1> (g, second, c8) j = Relu(i) k = Gemm <transB = 1> (j, third, c1)"
    predictor = graph(
        f"{subtract_divide} {hidden} l = Sigmoid(k) m = Constant <value = float {{100}}> () y = Mul(l, m)",
        inputs="float[1,14] features", opset=18, **weights,
    )  # fmt: skip
    assert assert_reads(predictor).dense_widths == (14, 16, 8, 1)
    mos = graph(
        f"""x = Concat <axis = 1> (features, onehot) b_ = LayerNormalization <axis = -1> (x, scale, shift)
        h = Gemm <transB = 1> (b_, first, c16) {hidden} s = Squeeze(k, i1) t = Sigmoid(s) m = Mul(t, four) y = Add(m, one)""",
        inputs="float[batch,11] features, float[batch,3] onehot", **weights,
    )  # fmt: skip
    assert assert_reads(mos).output == Port("y", ("batch",))


@pytest.mark.parametrize(
    ("inputs", "output"),
    [
        (["0.weight", "0.shape"], "1.Gemm"),
        (["1.constant", "0.Concat"], "0.constant"),
        (["x y", "température"], "0.Gemm"),
        (["0.Reshape_", "0.Reshape"], "0.bias"),
    ],
)
def test_names_of_inputs_and_output_stay_whatever_they_are(inputs, output):
    model = graph("x = Concat <axis = 1> (a, b) m = MatMul(x, w31) y = Add(m, b1)", "float[N,1] a, float[N,2] b")
    for new, value, place in zip(inputs, model.graph.input, (0, 1), strict=True):
        value.name = model.graph.node[0].input[place] = new
    model.graph.output[0].name = model.graph.node[-1].output[0] = output
    network = assert_reads(model)
    assert ([port.name for port in network.inputs], network.output.name) == (inputs, output)


def test_what_was_written_reads_as_the_same_bytes(make_network):
    scale = np.float32([2])
    tail = (Activation("gelu"), Elementwise("Mul", scale), Elementwise("Mul", scale[0]), Elementwise("Add", scale))
    odd = Network(3, (Dense(normal(1, 3), normal(1)), *tail, Clip(-np.inf, 5), Activation("gelu"), *tail))
    sizes = Network(3, odd.steps, (Port("x", (4, 1, 3)),), Port("y", (1, 4)))
    for network in (odd, sizes, *map(from_bytes, seeds()), make_network((80, 64, 1), "gelu")):
        assert to_bytes(from_bytes(to_bytes(network))) == to_bytes(network)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("e = Expm1(x) y = Gemm(e, w31)", r"^Expm1 \(node 'e'\) is not part of an MLP regressor: ONNX has no Expm1, which the"),
        ("c_ = Conv(x, w34) y = Gemm(c_, w41)", r"^Conv \(node 'c_'\) is not part of an MLP regressor$"),
        ("s = Softmax(x) [c] c_ = Conv(s, w34) y = Gemm(c_, w41)", r"Softmax \(node 's'\), Conv \(node 'c'\) are not part of"),
        ("k = com.microsoft.Add(c, c) h = Mul(x, k) y = Gemm(h, w31)", r"com.microsoft.Add \(node 'k'\) is not part"),
        ("[fc] y = Gemm(x, w)", r"node 'fc' \(Gemm\): 'w' is neither an input, a constant nor made by a node"),
        ("y = Relu(ghost)", r"node 'y' \(Relu\): 'ghost' is neither an input, a constant nor made by a node"),
        ("w = Relu(z) z = Relu(x) y = Gemm(x, w)", r"node 'y' \(Gemm\): 'w' is computed from the features, not constant"),
        ("z = Relu(x) y = Add(c, c)", "input 'x' is not used"),
        ("h = Relu(x) z = Identity(y)", "output 'y' is not made by a node"),
        ("a = Relu(b_) b_ = Relu(a) y = Gemm(b_, w31)", r"\(Relu\): the graph has a cycle"),
        ("h = Relu() g = Add(x, h) y = Gemm(g, w31)", r"node 'h' \(Relu\): has 0 inputs; expected 1 to 1"),
        ("y = Relu(x, c)", r"node 'y' \(Relu\): has 2 inputs; expected 1 to 1"),
        ("y = Gemm(x, w31, b1, b1)", "has 4 inputs; expected 2 to 3"),
        ("y = Gemm <transC = 1> (x, w31)", r"node 'y' \(Gemm\): has no attribute 'transC' in opset 17"),
        ("y = Gemm <transB = 1.0> (x, w31)", "attribute 'transB' has another type than INT"),
        ('y = Gemm <alpha = "1"> (x, w31)', "attribute 'alpha' has another type than FLOAT"),
        ("h = Gemm(x, w31) y = Clip <min = 0.0> (h)", "has no attribute 'min' in opset 17"),
        ("h = Gelu(x) y = Gemm(h, w31)", r"node 'h' \(Gelu\): opset 17 has no such operator"),
        # Gemm and MatMul
        ("y = Gemm(w31, x)", r"node 'y' \(Gemm\): 'x' is an input of the graph, not constant"),
        ("h = Relu(x) y = Gemm(w31, h)", "'h' is computed from the features, not constant"),
        ("h = Relu(x) y = MatMul(w31, h)", "'h' is computed from the features, not constant"),
        ("y = MatMul(w34, w41)", "input 'x' is not used"),
        ("k = MatMul(w34, w41) h = Mul(x, k) y = Gemm(h, w31)", r"node 'k' \(MatMul\): takes constants alone"),
        ("y = Gemm <transA = 1> (x, w31)", "transposes the features; expected a row for each encode"),
        ("y = Gemm(x, w41)", r"node 'y' \(Gemm\): a weight for 4 values gets \(batch, 3\)"),
        ("y = Gemm(x, c3)", r"weight 'c3' has shape \(3,\); expected two dimensions"),
        ("y = MatMul(x, w234)", r"weight 'w234' has shape \(2, 3, 4\)"),
        ("y = Gemm <transB = 1> (x, empty)", r"weight 'empty' has shape \(0, 3\); expected two dimensions, not empty"),
        ("u = Unsqueeze(x, i1) y = Gemm(u, w31)", r"takes \(batch, width\), gets \(batch, 1, 3\)"),
        ("h = Gemm(x, w34, c3) y = Gemm(h, w41)", r"'c3' has shape \(3,\); expected \(4,\)"),
        ("h = Gemm(x, w34, w41) y = Gemm(h, w41)", r"'w41' has shape \(4, 1\); expected \(4,\)"),
        ("y = Gemm(x, nan3)", r"^node 'y' \(Gemm\): weight 'nan3' has 3 values that are not finite$"),
        ("y = Gemm <alpha = 1e30> (x, huge31)", r"alpha is 1.*e\+30: not all of what it multiplies stays finite"),
        ("y = Gemm(x, w34)", r"output 'y' has \(batch, 4\) values; expected one score per row"),
        ("y = Relu(x)", r"output 'y' has \(batch, 3\) values"),
        # elementwise
        ("h = Div(x, zero) y = Gemm(h, w31)", "divides by a constant that has zeros"),
        ("h = Mul(x, huge) y = Gemm(h, w31)", "weight 'huge' has 1 values that are not finite"),
        ("h = Add(x, c4) y = Gemm(h, w31)", r"constant 'c4' of shape \(1, 4\) does not fit \(batch, 3\)"),
        ("h = Add(x, c31) y = Gemm(h, w31)", r"constant 'c31' of shape \(3, 1\) does not fit \(batch, 3\)"),
        ("h = Gemm(x, w31) y = Add(h, c5)", r"constant 'c5' of shape \(1, 5\) does not fit \(batch, 1\)"),
        ("h = Gemm(x, w31) y = Clip(h, two, one)", r"node 'y' \(Clip\): low 2.0 is above high 1.0"),
        ("h = Gemm(x, w31) y = Clip(h, c3)", r"'c3' has shape \(3,\); expected one number"),
        ("y = Clip(one, x)", "'x' is an input of the graph, not constant"),
        ("h = LeakyRelu <alpha = inf> (x) y = Gemm(h, w31)", "alpha is inf"),
        # what is no chain
        (HIDDEN + ERF + "p = Mul(x, a) g = Mul(p, half)" + HEAD, r"node 'p' \(Mul\): 'x' of shape \(batch, 3\) does not fit"),
        ("h = Gemm(x, w33) r = Relu(h) g = Gemm(r, w33) s = Add(g, x) y = Gemm(s, w31)", r"'s' \(Add\): a skip connection"),
        ("h = Gemm(x, w33) g = Gemm(x, w33) s = Mul(h, g) y = Gemm(s, w31)", r"'g' \(Gemm\): a skip connection or a second"),
        ("h = Gemm(x, w33) c_ = Concat <axis = 1> (x, h) y = Gemm(c_, w64)", r"'c_' \(Concat\): a skip connection or a second"),
        ("t = Tanh(x) c_ = Concat <axis = 1> (x, t) y = Gemm(c_, w61)", "joins rows of different shapes, or a feature twice"),
        ("p = Greater(x, c) j = Concat <axis = 1> (p) f = Cast <to = 1> (j) y = Gemm(f, w31)", "takes what is true or false"),
        ("u = Slice(x, i0, i1, i1) v = Slice(x, i1, i2, i1) m = Mul(u, v) y = Add(m, one)", "computes with one feature and"),
        ("m = ReduceMean <axes = [1]> (x) h = Sub(x, m) y = Gemm(h, w31)", "only as part of a layer normalisation"),
        ("m = ReduceMean <axes = [0]> (x) h = Sub(x, m) y = Gemm(h, w31)", r"takes axes \[0\] of \(batch, 3\); expected"),
        ("t = Tanh(x) h = PRelu(x, t) y = Gemm(h, w31)", "its slope is not constant"),
        ("h = PRelu(c3, x) y = Gemm(h, w31)", "its slope is not constant"),
        ("h = Pow(x, x) y = Gemm(h, w31)", "Pow takes a constant exponent, or a constant base above 0"),
        ("n = Neg(c) h = Pow(n, x) y = Gemm(h, w31)", "Pow takes a constant exponent, or a constant base above 0"),
        ("p = Greater(x, c) h = Add(x, p) y = Gemm(h, w31)", r"node 'h' \(Add\): 'p' is true or false"),
        ("h = Where(x, x, x) y = Gemm(h, w31)", r"node 'h' \(Where\): 'x' is a number"),
        ("e = Exp(x) t = Tanh(x) p = Greater(t, half) h = Where(p, x, e) y = Gemm(h, w31)", "what it does not choose may be"),
        ("l = Log(x) p = Greater(x, zero) h = Where(p, l, x) y = Gemm(h, w31)", "what it does not choose may be infinite"),
        ("q = QuantizeLinear(x, one) y = Gemm(q, w31)", "QuantizeLinear .*: a quantised model cannot be"),
        ("r = Slice(x, i0, i2, i0) y = Gemm(r, w31)", r"node 'r' \(Slice\): takes some rows of \(batch, 3\)"),
        ("g = Gather <axis = 0> (x, i1) y = Gemm(g, w31)", r"\(Gather\): takes some rows of \(batch, 3\)"),
        ("g = Gather <axis = 0> (x, whole) y = Gemm(g, w31)", r"takes some rows of \(batch, 3\)"),
        ("t = Transpose(x) y = Gemm <transA = 1> (t, w31)", r"'y' \(Gemm\): takes \(3, batch\); expected a row for each"),
        ("t = Transpose(x) r = Relu(t) y = Gemm(r, w31)", r"'r' \(Relu\): takes \(3, batch\); expected a row for each"),
        ("t = Transpose(x) r = Concat <axis = 0> (t, t) y = Gemm(r, w31)", r"'r' \(Concat\): takes \(3, batch\); expected a"),
        ("g = GatherND(x, i00) y = Gemm(g, w31)", r"'g' \(GatherND\): takes \(batch, 3\) to \[\[0, 0\]\], which mixes rows"),
        ("g = GatherND <batch_dims = 1> (x, i00) y = Gemm(g, w31)", r"\(GatherND\): gathers within batches; expected batch"),
        ("s = Slice(x, i0, i2, i1) n = LayerNormalization(s, c) y = Gemm(n, w21)", "normalises only 2 of 3 features"),
        ("s = Slice(x, i0, i2, i1) n = Mul(s, s) m = Neg(n) r = Sqrt(m) y = Gemm(r, w21)", "is of only some values, and not"),
        # LayerNormalization, Dropout, Cast
        ("n = LayerNormalization <axis = 0> (x, c3) y = Gemm(n, w31)", r"takes axes \[0\] of \(batch, 3\)"),
        ("n = LayerNormalization(x, c4) y = Gemm(n, w31)", r"'c4' has shape \(4,\); expected \(3,\)"),
        ("n = LayerNormalization(x, , c3) y = Gemm(n, w31)", "input 1 is missing"),
        ("n = LayerNormalization <epsilon = -1.0> (x, c3) y = Gemm(n, w31)", "epsilon is -1.0"),
        ("u, v = Split <axis = 1> (x, many) y = Gemm(u, w31)", r"makes 2 parts of sizes \[0, 1, 2, 3, 4, 5, 6, 7\] of"),
        ("u, v = Split(x, i1) y = Gemm(v, w31)", r"\(Split\): makes 2 parts of sizes \[1\]"),
        ("u = Split(x, i3) y = Gemm(u, w31)", r"takes some rows of \(batch, 3\)"),
        ("n, m, d = LayerNormalization(x, c3) y = Mul(m, c)", r"\(LayerNormalization\): its second output 'm' is used"),
        ("h = Dropout(x, half, yes) y = Gemm(h, w31)", r"node 'h' \(Dropout\): is in training mode"),
        ("h = Cast <to = 7> (x) y = Gemm(h, w31)", "casts the features to type INT64; expected a float"),
        ("h = Cast <to = 99> (x) y = Gemm(h, w31)", "casts the features to type 99"),
        # shapes
        ("s = Squeeze(x, i1) y = Gemm(s, w31)", r"node 's' \(Squeeze\): takes \(batch, 3\) to \[1\], which does not fit"),
        ("s = Squeeze(x, i3) y = Gemm(s, w31)", r"to \[3\], which does not fit"),
        ("s = Squeeze(x, i0) y = Gemm(s, w31)", r"to \[0\], which does not fit"),
        ("s = Squeeze(x, c3) y = Gemm(s, w31)", "expected up to 8 whole numbers, got 3 of type float"),
        ("s = Squeeze(x, many) y = Gemm(s, w31)", "expected up to 8 whole numbers, got 9 of type int64"),
        ("u = Unsqueeze(x, i_2) s = Unsqueeze(u, i3) t = Unsqueeze(s, many) y = Gemm(t, w31)", "expected up to 8"),
        ("u = Unsqueeze(x, i3) y = Gemm(u, w31)", r"node 'u' \(Unsqueeze\): takes \(batch, 3\) to \[3\], which does not fit"),
        ("f = Flatten <axis = 0> (x) y = Gemm(f, w31)", r"\(Flatten\): takes \(batch, 3\) to other places, which mixes"),
        ("f = Flatten <axis = 3> (x) y = Gemm(f, w31)", r"node 'f' \(Flatten\): axis 3 of 2 dimensions"),
        ("r = Reshape(x, flat) y = Gemm(r, w31)", r"node 'r' \(Reshape\): takes \(batch, 3\) to \[-1\], which mixes"),
        ("h = Gemm(x, w34) r = Reshape(h, swapped) y = Gemm(r, w41)", r"takes \(batch, 4\) to \[4, -1\], which mixes rows"),
        ("r = Reshape(x, of_two) y = Gemm(r, w31)", r"takes \(batch, 3\) to \[-1, 2\], which does not fit"),
        ("r = Reshape(x, two_open) y = Gemm(r, w31)", r"takes \(batch, 3\) to \[-1, -1\], which does not fit"),
        ("h = Gemm(x, w31) y = Reshape(h, two_open)", r"takes \(batch, 1\) to \[-1, -1\], which does not fit"),
        ("r = Reshape(x, one_row) y = Gemm(r, w31)", r"takes \(batch, 3\) to \[1, 3\], which does not fit"),
        ("r = Reshape(x, copy_fourth) y = Gemm(r, w31)", r"takes \(batch, 3\) to \[-1, 3, 0, 0\], which does not fit"),
        ("r = Reshape <allowzero = 1> (x, copy_row) y = Gemm(r, w31)", r"takes \(batch, 3\) to \[0, 3\], which does not fit"),
        ("c_ = Concat <axis = 1> (x, c13) y = Gemm(c_, w31)", r"node 'c_' \(Concat\): joins features with the constant 'c13'"),
        ("c_ = Concat <axis = 0> (x) y = Gemm(c_, w31)", r"node 'c_' \(Concat\): joins \(batch, 3\) along axis 0; expected"),
        ("c_ = Concat <axis = 1> (x, x) y = Gemm(c_, w61)", "joins rows of different shapes, or a feature twice"),
        # constants
        ("k = Constant() h = Mul(x, k) y = Gemm(h, w31)", r"node 'k' \(Constant\): has none of value"),
        ("r = Relu(x) k = Constant <value_float = 1.0> (r) h = Mul(x, k) y = Gemm(h, w31)", "has 1 inputs; expected 0"),
        ('k = Constant <value_string = "a"> () h = Mul(x, k) y = Gemm(h, w31)', "has none of value, value_float"),
        ("k = Sub(c3, c4) h = Mul(x, k) y = Gemm(h, w31)", r"node 'k' \(Sub\): cannot be evaluated: .*broadcast"),
        ("k = Div(whole, i2) f = Cast <to = 1> (k) h = Add(x, f) y = Gemm(h, w31)", r"node 'k' \(Div\): .*whole numbers"),
        ("k = Cast <to = 8> (c3) h = Mul(x, k) y = Gemm(h, w31)", r"node 'k' \(Cast\): to type STRING"),
        ("k = Add( , c3) h = Mul(x, k) y = Gemm(h, w31)", r"node 'k' \(Add\): cannot be evaluated"),
        ("k = Transpose <perm = [0, 2]> (w31) y = Gemm(x, k)", r"node 'k' \(Transpose\): cannot be evaluated"),
        ("k = Reshape(w31, swapped) y = Gemm(x, k)", r"node 'k' \(Reshape\): cannot be evaluated: cannot reshape"),
        ("k = Reshape(w31, copy_fourth) y = Gemm(x, k)", r"node 'k' \(Reshape\): cannot be evaluated"),
    ],
)  # fmt: skip
def test_what_is_no_chain_is_refused(body, message):
    with pytest.raises(NetworkError, match=message):
        from_bytes(graph(body).SerializeToString())


def with_output(model, name):
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def with_initializer(model, name):
    model.graph.initializer.append(numpy_helper.from_array(np.float32([1]), name))


def with_reference(model):
    attribute = onnx.AttributeProto(name="transB", type=onnx.AttributeProto.INT, ref_attr_name="outer")
    model.graph.node[0].attribute.append(attribute)


def set_tensor(model, **fields):
    tensor = model.graph.initializer[0]
    for name, value in fields.items():
        tensor.ClearField(name)
        if isinstance(value, (list, tuple)):
            getattr(tensor, name).extend(value)
        else:
            setattr(tensor, name, value)


def set_input(model, name, elem_type=TensorProto.FLOAT, shape=("batch", 3)):
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info(name, elem_type, shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.graph.ClearField("output"), r"^0 outputs \(\); expected one, the score$"),
        (lambda m: with_output(m, "z"), r"^2 outputs \('y', 'z'\); expected one, the score$"),
        (lambda m: m.graph.node.add(op_type="Relu", input=["x"], output=["y"]), r"node 'y' \(Relu\): 'y' exists already"),
        (lambda m: m.graph.node.add(op_type="Relu", input=["x"], output=["x"]), r"node 'x' \(Relu\): 'x' exists already"),
        (lambda m: m.graph.node.add(op_type="Relu", input=["x"], output=["b1"]), r"node 'b1' \(Relu\): 'b1' exists already"),
        (lambda m: with_initializer(m, "b1"), "two initializers or two inputs have the same name"),
        (lambda m: m.graph.input.append(m.graph.input[0]), "two inputs have the same name"),
        (lambda m: setattr(m.graph.input[0], "name", ""), "or an input has none"),
        (lambda m: setattr(m.graph.output[0], "name", "x"), "output 'x' is an input; nothing is computed"),
        (lambda m: setattr(m.graph.output[0], "name", ""), "output '' is not made by a node"),
        (lambda m: m.graph.input.add().CopyFrom(helper.make_tensor_value_info("z", 1, ["batch", 2])), "input 'z' is not used"),
        (lambda m: m.graph.input.add(name="w31", type=m.graph.input[0].type) and m.graph.initializer.pop(0), "'w31' is"),
        (lambda m: setattr(m.opset_import[0], "version", 6), f"^opset 6; expected 7 to {NEWEST_OPSET}$"),
        (lambda m: setattr(m.opset_import[0], "version", 99), f"opset 99; expected 7 to {NEWEST_OPSET}"),
        (lambda m: m.ClearField("opset_import"), "opset 0; expected 7"),
        (with_reference, "attribute 'transB' has another type than INT"),
        (lambda m: set_input(m, "x", TensorProto.INT64), "input 'x' is of type INT64; features are floats"),
        (lambda m: set_input(m, "x", 99), "input 'x' is of type 99"),
        (lambda m: m.graph.input[0].ClearField("type"), "input 'x' is of type UNDEFINED"),
        (lambda m: set_input(m, "x", shape=None), r"input 'x' has shape \(\); expected the batch and one dim"),
        (lambda m: set_input(m, "x", shape=[3]), r"input 'x' has shape \(3\)"),
        (lambda m: set_input(m, "x", shape=["n", 2, 3]), r"input 'x' has shape \(n, 2, 3\)"),
        (lambda m: set_input(m, "x", shape=["n", 3] + [1] * 9), r"input 'x' has shape \(n, 3, 1, 1, 1, 1, 1, 1, 1\); expected"),
        (lambda m: set_tensor(m, raw_data=b"1234"), r"'w31' of shape \[3, 1\] needs 12 bytes, but the file has 4"),
        (lambda m: set_tensor(m, raw_data=b""), "needs 12 bytes, but the file has 0"),
        (lambda m: m.graph.initializer[0].ClearField("raw_data"), r"'w31' of shape \[3, 1\]: cannot reshape array of size 0"),
        (lambda m: set_tensor(m, data_type=TensorProto.INT8, raw_data=b"123"), "'w31' is of type int8; expected floats"),
        (lambda m: set_tensor(m, data_type=TensorProto.INT16), "constant 'w31' is of type INT16; a regressor's are float32"),
        (lambda m: set_tensor(m, data_type=0), "constant 'w31' is of type UNDEFINED"),
        (lambda m: set_tensor(m, data_type=999), "constant 'w31' is of type 999"),
        (lambda m: set_tensor(m, dims=[-1, 3]), r"constant 'w31' has shape \[-1, 3\]"),
        (lambda m: set_tensor(m, dims=[1] * 9), r"constant 'w31' has shape \[1, 1, 1, 1, 1, 1, 1, 1, 1\]"),
        (lambda m: m.graph.initializer[0].segment.CopyFrom(TensorProto.Segment(begin=0, end=3)), "'w31'.*segments"),
    ],
)  # fmt: skip
def test_a_graph_that_is_not_whole_is_refused(change, message):
    model = graph("y = Gemm(x, w31, b1)")
    change(model)
    with pytest.raises(NetworkError, match=message):
        from_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("inputs", "body", "message"),
    [
        (
            "float[N,1] a, float[4,2] b",
            "x = Concat <axis = 1> (a, b) y = Gemm(x, w31)",
            r"different batch: \('N', 1\), \(4, 2\)",
        ),
        ("float[9000000000,3] a", "y = Gemm(a, w31)", "takes 9000000000 rows of 3 features at a time"),
        ("float[N,1,1] a, float[N,2] b", "x = Concat <axis = 1> (a, b) y = Gemm(x, w31)", r"several must be \(batch, width\)"),
        ("float[N,1] a, float[N,2] b", "y = Gemm(b, w21)", "input 'a' is not used"),
        ("float[3,3] a, float[3,1] b", "y = Gemm(a, b)", r"node 'y' \(Gemm\): 'b' is an input of the graph, not constant"),
        ("float[N,3] a, float[3,1] b", "h = Relu(a) y = MatMul(h, b)", r"different batch: \('N', 3\), \(3, 1\)"),
        ("float[N,3] a, float[1] b", "y = Gemm(a, w31, b)", r"input 'b' has shape \(1\); expected the batch and one dimension"),
        ("float[N,M] a, float[N,1] b", "x = Concat <axis = 1> (a, b) y = Gemm(x, w31)", r"several must be \(batch, width\)"),
        (
            "float[N,3] a, float[N,3] b",
            "h = Add(a, b) y = Gemm(h, w31)",
            r"node 'h' \(Add\): computes with one feature and another",
        ),
    ],
)
def test_inputs_that_do_not_go_together_are_refused(inputs, body, message):
    with pytest.raises(NetworkError, match=message):
        from_bytes(graph(body, inputs=inputs, w21=normal(2, 1)).SerializeToString())


def test_names_that_are_not_text_are_refused_or_shown_harmlessly():
    model = graph("y = Gemm(x, w31)")
    data = model.SerializeToString().replace(b"batch", b"b\xfftch")
    with pytest.raises(NetworkError, match=r"^input 'x' or output 'y' has a name that is not UTF-8$"):
        from_bytes(data)
    model.graph.node[0].op_type = "\x1b[2J\nConv" + "v" * 10_000
    with pytest.raises(NetworkError, match=r"^\\x1b\[2J\\nConvvvv") as error:
        from_bytes(model.SerializeToString())
    assert len(str(error.value)) < 2000


# External data


@pytest.fixture
def external(tmp_path):
    """Writes a model to a folder whose weight lies in a file, as `location` and the other entries say."""
    folder = tmp_path / "models"
    folder.mkdir()
    weight = np.float32([[1], [2], [4]])

    def write(location="data.bin", padding=b"", **entries):
        model = graph("y = Gemm(x, w)", w=weight)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=str(value))
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        for path in (folder / "data.bin", tmp_path / "outside.bin"):
            path.write_bytes(padding + weight.tobytes())
        return folder / "model.onnx"

    return write


@pytest.mark.parametrize(
    "entries",
    [{}, {"offset": 0, "length": 12}, {"offset": 5, "padding": b"12345"}, {"location": "./data.bin"}, {"checksum": "0"}],
)
def test_weights_beside_the_model_are_read(external, entries, monkeypatch):
    path = external(**entries)
    assert read(path).forward([[1, 1, 1]]).tolist() == [7]
    monkeypatch.chdir(path.parent)
    assert read(path.relative_to(path.parent)).forward([[1, 1, 1]]).tolist() == [7]


def test_weights_in_a_folder_below_the_model_and_through_a_link_within_it_are_read(external):
    path = external("below/linked.bin")
    (path.parent / "below").mkdir()
    (path.parent / "below" / "linked.bin").symlink_to(path.parent / "data.bin")
    assert read(path).forward([[1, 1, 1]]).tolist() == [7]


def test_data_of_a_model_in_the_cache_of_a_hub_is_read(external, tmp_path):
    path = external()
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "revision"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name, blob in (("model.onnx", "a1"), ("data.bin", "b2")):
        (path.parent / name).rename(blobs / blob)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    assert read(snapshot / "model.onnx").forward([[1, 1, 1]]).tolist() == [7]
    (snapshot / "data.bin").unlink()
    (snapshot / "data.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(NetworkError, match=r"is in the file 'data.bin', which is not in the model's folder"):
        read(snapshot / "model.onnx")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "absent.bin"}, r"'w' of shape \[3, 1\] is in the file 'absent.bin', which is not beside the model"),
        ({"location": "../outside.bin"}, r"is in the file '../outside.bin', which is not in the model's folder"),
        ({"location": "x/../../outside.bin"}, "which is not in the model's folder"),
        ({"location": "/etc/passwd"}, r"is in the file '/etc/passwd', which is not in the model's folder"),
        ({"location": "link.bin"}, "which is not in the model's folder"),
        ({"location": "folder/outside.bin"}, "which is not in the model's folder"),
        ({"location": "loop"}, "loop|not beside"),
        ({"location": "pipe"}, "which is not beside the model"),
        ({"location": ""}, "which is not in the model's folder"),
        ({"location": "."}, "which is not beside the model"),
        ({"location": ".."}, "which is not in the model's folder"),
        ({"location": "a\0b"}, "embedded null"),
        ({"location": "x" * 300}, "File name too long"),
        ({"offset": 1}, "bytes 1 to 13; 12 are needed, it has 12"),
        ({"offset": 10**30}, "12 are needed, it has 12"),
        ({"offset": "9" * 5000}, "digits"),
        ({"offset": -12}, "bytes -12 to 0"),
        ({"offset": "zero"}, "invalid literal"),
        ({"length": 8}, "bytes 0 to 8; 12 are needed"),
        ({"length": 10**18}, "12 are needed, it has 12"),
        ({"length": "1e3"}, "invalid literal"),
    ],
)  # fmt: skip
def test_external_data_that_is_not_there_or_elsewhere_is_refused(external, entries, message):
    path = external(**entries)
    (path.parent / "link.bin").symlink_to(path.parent.parent / "outside.bin")
    (path.parent / "folder").symlink_to(path.parent.parent)
    (path.parent / "loop").symlink_to(path.parent / "loop")
    os.mkfifo(path.parent / "pipe")
    with pytest.raises(NetworkError, match=message):
        read(path)


def test_external_data_needs_a_folder(external):
    with pytest.raises(NetworkError, match=r"is in the file 'data.bin', but only the model's own bytes were given"):
        from_bytes(external().read_bytes())


def test_files_that_cannot_be_read_are_named(tmp_path):
    for path, message in [
        (tmp_path, "is a directory, not a model"),
        (tmp_path / "absent", "no such file"),
        (tmp_path / "a\0b", "embedded null"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "large", "1000000.0 MB; a model may have at most 50"),
        (tmp_path / "text", "not an ONNX model"),
        (tmp_path / "text" / "x", "Not a directory"),
    ]:
        if path.name == "pipe":
            os.mkfifo(path)
        if path.name == "large":
            path.touch()
            os.truncate(path, 10**12)
        if path.name == "text":
            path.write_text("weights")
        with pytest.raises(NetworkError, match=f"^{re.escape(str(path))}: {message}"):
            read(path)


# Random chains


@st.composite
def random_chains(draw):
    """A model of random layers, scalings and activations in one of their spellings each."""
    opset = draw(st.sampled_from([7, 9, 11, 12, 13, 17, 18, 20, 22]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    widths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    inputs = [(f"in{place}", width) for place, width in enumerate(widths)]
    batch = draw(st.sampled_from(["batch", 1, 3]))
    nodes, initializers, names = [], [], iter(f"n{count}" for count in range(1000))

    def constant(values):
        kind = draw(st.sampled_from(["initializer", "node", "float64"]))
        name, values = next(names), np.asarray(values)
        if kind == "initializer" or values.dtype != np.float32:
            initializers.append(numpy_helper.from_array(values, name))
        elif kind == "node":
            nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values)))
        else:
            initializers.append(numpy_helper.from_array(values.astype(np.float64), name + "_64"))
            nodes.append(helper.make_node("Cast", [name + "_64"], [name], to=TensorProto.FLOAT))
        return name

    def add(operator, *arguments, **attributes):
        arguments = [argument if isinstance(argument, str) else constant(argument) for argument in arguments]
        nodes.append(helper.make_node(operator, arguments, [next(names)], **attributes))
        return nodes[-1].output[0]

    def either(operator, a, b):
        return add(operator, *draw(st.sampled_from([(a, b), (b, a)])))

    def numbers(*shape):
        return random.uniform(0.5, 2, size=shape).astype(np.float32)

    def axes(operator, x, *places):
        return add(operator, x, np.array(places)) if opset > 12 else add(operator, x, axes=places)

    def dense(x, n_in, n_out):
        weight, bias = (random.normal(size=(n_in, n_out)) / n_in**0.5).astype(np.float32), numbers(*draw(shapes(n_out)))
        match draw(st.integers(0, 3)):
            case 0:
                return add("Gemm", x, weight, bias)
            case 1:
                return add("Gemm", x, np.ascontiguousarray(weight.T), bias, transB=1, alpha=1.5, beta=-0.5)
            case 2:
                return either("Add", add("MatMul", x, weight), bias)
            case _:
                return add("MatMul", x, add("Transpose", np.ascontiguousarray(weight.T), perm=[1, 0]))

    def shapes(width):
        return st.sampled_from([(), (1,), (1, 1), (width,), (1, width)])

    def gelu(x):
        scaled = add("Div", x, np.float32(2**0.5)) if draw(st.booleans()) else either("Mul", x, np.float32(0.5**0.5))
        factors = draw(st.permutations([x, either("Add", add("Erf", scaled), np.float32(1)), np.float32(0.5)]))
        return either("Mul", either("Mul", *factors[:2]) if factors[0] is not factors[1] else x, factors[2])

    def step(x, width):
        operator = draw(st.sampled_from(["Add", "Sub", "Mul", "Div", "from", "gelu", "norm", "clip", "shape", "act", "act"]))
        if operator in ("Add", "Mul"):
            return either(operator, x, numbers(*draw(shapes(width))))
        if operator in ("Sub", "Div"):
            return add(operator, x, numbers(*draw(shapes(width))))
        if operator == "from":
            return add("Sub", numbers(*draw(shapes(width))), x)
        if operator == "gelu" and opset >= 9:
            return gelu(x) if opset < 20 or draw(st.booleans()) else add("Gelu", x)
        if operator == "norm" and opset >= 17 and width > 1:
            return add("LayerNormalization", x, numbers(width), numbers(width), axis=draw(st.sampled_from([-1, 1])))
        if operator == "clip":
            low, high = np.float32(-1.5), np.float32(4)
            return add("Clip", x, low, high) if opset > 10 else add("Clip", x, min=float(low), max=float(high))
        if operator == "shape":
            match draw(st.integers(0, 4)):
                case 0:
                    return axes("Squeeze", axes("Unsqueeze", x, 1), 1)
                case 1:
                    return add("Flatten", axes("Unsqueeze", x, 2))
                case 2:
                    return add("Reshape", axes("Unsqueeze", x, 1, 2), np.array([-1, width]))
                case 3:
                    return add("Reshape", x, np.array([0, -1]))
                case _:
                    return add("Dropout", add("Identity", x))
        return add(draw(st.sampled_from(["Relu", "LeakyRelu", "Tanh", "Sigmoid"])), x)

    order = draw(st.permutations(inputs))
    x = add("Concat", *(name for name, _ in order), axis=1) if len(inputs) > 1 else inputs[0][0]
    width = sum(widths)
    for target in [*draw(st.lists(st.integers(1, 6), max_size=2)), 1]:
        for _ in range(draw(st.integers(0, 2))):
            x = step(x, width)
        x, width = dense(x, width, target), target
    for _ in range(draw(st.integers(0, 2))):
        x = step(x, 1)
    end = draw(st.sampled_from(["(batch, 1)", "(batch,)", "either"]))
    x = axes("Squeeze", x, 1) if end == "(batch,)" else add("Squeeze", x) if end == "either" else x
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, width]) for name, width in inputs]
    output = helper.make_tensor_value_info(x, TensorProto.FLOAT, None)
    made = helper.make_graph(nodes, "g", ports, [output], initializers)
    return helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])


@settings(deadline=None, max_examples=80)
@given(random_chains())
def test_random_chains(model):
    data = model.SerializeToString()
    network = from_bytes(data)
    features = np.random.default_rng(1).normal(size=(24, network.n_features)).astype(np.float32)
    expected, shape = scores_of(data, features)
    written, written_shape = scores_of(to_bytes(network), features)
    canonical = Scorer(to_bytes(network.canonical())).predict(features)
    tolerance = 1e-5 * max(np.ptp(expected), np.abs(expected).max(), 1)
    assert written_shape == shape
    for scores in (network.forward(features), written, canonical):
        np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance)


# Real files

GOOD = ["vmaf_tiny_v1", "vmaf_tiny_v2", "vmaf_tiny_v3", "fr_regressor_v1", "fr_regressor_v2", "fr_regressor_v3"]
GOOD += ["predictor_libx264", "konvid_mos_head_v1"]
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no published models beside the checkout")


@needs_shared
@pytest.mark.parametrize("name", GOOD)
def test_published_models(name):
    path = SHARED / "models" / "onnx" / f"{name}.onnx"
    network = read(path)
    features = np.random.default_rng(2).normal(size=(200, network.n_features)).astype(np.float32)
    if name.startswith(("vmaf_tiny_v2", "vmaf_tiny_v3", "predictor")):  # which scale the features themselves
        mean, deviation = (step.value for step in network.steps[:2])
        features = features * deviation + mean
    assert_same_function(path, network, features)
    if network.n_features in (6, 24):
        assert_same_function(path, network, read_pairs([SHARED / "data" / f"recorded-{network.n_features}.jsonl.gz"]).features)


@needs_shared
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vmaf_tiny_v3.int8", r"DynamicQuantizeLinear.*MatMulInteger.* are not part of an MLP regressor: a quantised model"),
        ("vmaf_tiny_v1_medium", r"is in the file 'mlp_medium_final.onnx.data', which is not beside the model"),
        ("nr_metric_v1", r"Conv .* not part of an MLP regressor"),
    ],
)
def test_published_models_that_are_no_regressor(name, message):
    with pytest.raises(NetworkError, match=f"{name}.onnx: .*{message}"):
        read(SHARED / "models" / "onnx" / f"{name}.onnx")


# Limits of time and memory


def varint(number):
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def repeated(body, count, last="y = Gemm(h, w31)", inputs="float[batch,3] x", **constants):
    """A model of `count` nodes in a row, each as in `body` with its input {0} and output {1}: from x to h."""
    names = ["x", *(f"v{place}" for place in range(1, count)), "h"]
    nodes = "\n".join(body.format(*pair) for pair in itertools.pairwise(names))
    return graph(f"{nodes} {last}", inputs, **constants).SerializeToString()


def weight_of(rows, columns, kind=TensorProto.FLOAT, numbers=b"", field_number=9):
    """A model with one large weight; numbers: the bytes of its raw_data, or of the field of that number."""
    model = graph(
        "h = Gemm(x, w) y = Gemm(h, v)", inputs=f"float[batch,{rows}] x", v=np.ones((min(columns, 10**6), 1), np.float32)
    )
    tensor = TensorProto(name="w", dims=[rows, columns], data_type=kind)
    model.graph.initializer.append(TensorProto.FromString(tensor.SerializeToString() + field(field_number, numbers)))
    return model.SerializeToString()


def broadcast_bomb():
    model = graph("k = Add(column, row) h = Mul(x, k) y = Gemm(h, w31)")
    for name, shape in (("column", [100_000, 1]), ("row", [1, 100_000])):
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), name))
    return model.SerializeToString()


def sum_of_constants():
    column, row = np.ones((1000, 1), np.float32), np.ones((1, 1000), np.float32)
    return repeated("{1} = Add({0}, row)", 1000, "y = MatMul(z, h)", "float[N,1000] z", x=column, row=row)


def repeated_weight():
    weight = np.ones((1000, 1000), np.float32)
    return repeated("{1} = MatMul({0}, w)", 5000, "y = Relu(h)", "float[batch,1000] x", w=weight)


def wide_normalization():
    return graph("n = LayerNormalization(x, c1) y = Gemm(n, w31)", inputs=f"float[batch,{10**12}] x").SerializeToString()


def weights_without_numbers():
    model = graph("h = Gemm <transB = 1> (x, w) y = Relu(h)")
    model.graph.initializer.append(TensorProto(name="w", dims=[10**12, 0], data_type=TensorProto.FLOAT, raw_data=b""))
    return model.SerializeToString()


def wide_means():
    body = "m{1} = ReduceMean <axes = [1]> ({0}) {1} = Sub({0}, m{1})"
    return repeated(body, 2000, "y = Relu(h)", "float[batch,100000] x")


def selections_of_constants():
    constants = {f"k{place}": np.ones(100_000, np.float32) for place in range(100)}
    sums = " ".join(f"s{place + 1} = Add(s{place}, k{place}) " for place in range(100))
    names = ["s100", *(f"g{place}" for place in range(1, 200)), "h"]
    taken = " ".join(f"{b} = Gather <axis = 1> ({a}, places)" for a, b in itertools.pairwise(names))
    places = np.arange(100_000)[::-1].copy()
    body = f"s0 = Identity(x) {sums} {taken} y = Relu(h)"
    return graph(body, "float[batch,100000] x", places=places, **constants).SerializeToString()


def joins():
    body = "{1} = Concat <axis = 1> ({0})"
    return repeated(body, 5000, "y = Relu(h)", "float[batch,100000] z", c=np.float32(2)).replace(b"\n\x01x", b"\n\x01z")


BOMBS = {
    "wide means": wide_means,
    "selections of constants": selections_of_constants,
    "joins": joins,
    "bytes": lambda: bytes(MAX_BYTES + 1),
    "empty nodes": lambda: field(7, field(1, b"") * 500_000),
    "millions of empty nodes": lambda: field(7, field(1, b"") * 10_000_000),
    "fewer empty nodes": lambda: field(7, field(1, b"") * 240_000),
    "empty initializers": lambda: field(7, field(5, b"") * 240_000),
    "empty inputs": lambda: field(7, field(11, b"") * 240_000),
    "empty tensors in an attribute": lambda: field(7, field(1, field(5, field(10, b"") * 240_000))),
    "nested graphs": lambda: field(7, nested_graphs(2000)),
    "a name of megabytes": lambda: field(7, field(2, b"a" * 10_000_000)),
    "strings in a tensor": lambda: field(7, field(5, field(6, b"") * 1_000_000)),
    "numbers as integers": lambda: field(7, field(5, field(5, b"\0" * 1_000_000))),
    "broadcast": broadcast_bomb,
    "sum of constants": sum_of_constants,
    "repeated weight": repeated_weight,
    "wide normalization": wide_normalization,
    "wide weight without numbers": weights_without_numbers,
    "dimensions without numbers": lambda: weight_of(10**9, 10**9),
    "dimensions beyond 64 bits": lambda: weight_of(2**62, 2**62),
    "growing rank": lambda: repeated("{1} = Unsqueeze ({0}, i0)", 5000),
    "cycle": lambda: graph("a = Relu(b_) b_ = Relu(a) y = Gemm(b_, w31)").SerializeToString(),
    "long cycle": lambda: repeated("{1} = Mul ({0}, c3)", 9_000).replace(b"\n\x01x\n", b"\n\x01h\n"),
    "deep constants": lambda: repeated("{1} = Add ({0}, {0})", 9_990, "y = Mul(z, h)", "float[N,1] z", x=np.zeros(1)),
    "deep products": lambda: repeated("{1} = Mul ({0}, {0})", 4_000),
    "many steps": lambda: repeated("{1} = Relu ({0})", 9_990),
    "many no-ops": lambda: repeated("{1} = Identity ({0})", 9_990),
    "too many nodes": lambda: repeated("{1} = Relu ({0})", 10_001),
    "half precision": lambda: weight_of(24_000, 1000, TensorProto.FLOAT16, bytes(48_000_000)),
    "numbers one by one": lambda: weight_of(12_000, 1000, TensorProto.FLOAT, bytes(48_000_000), 4),
    "doubles one by one": lambda: weight_of(6_000, 1000, TensorProto.DOUBLE, bytes(48_000_000), 10),
    "all that a file may hold": lambda: weight_of(12_000, 1000, TensorProto.FLOAT, bytes(48_000_000)),
}  # fmt: skip
READ = {"deep constants", "many no-ops", "all that a file may hold", "numbers one by one", "doubles one by one"}


def nested_graphs(depth):
    content = b""
    for _ in range(depth):
        content = field(1, field(5, field(6, content)))
    return content


MEASURE = """
import os, resource, sys, time
from pathlib import Path
from onnx_builder import NetworkError
from onnx_builder.read import from_bytes, read
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
folder = Path(sys.argv[1])
from_bytes((folder / "small").read_bytes())
for path in sorted(folder.glob("*.bomb")):
    if os.fork() == 0:
        before, start = peak(), time.process_time()
        try:
            read(path)
            said = "read"
        except NetworkError as error:
            said = str(error)
        print(path.stem, time.process_time() - start, peak() - before, said, sep="\t", flush=True)
        os._exit(0)
    os.wait()
"""


LARGEST = "all that a file may hold"
FIRST = {
    "broadcast",
    "cycle",
    "deep products",
    "dimensions without numbers",
    "growing rank",
    "nested graphs",
    "repeated weight",
}


@pytest.mark.parametrize("names", [FIRST, pytest.param(BOMBS.keys() - FIRST - {LARGEST}, marks=pytest.mark.slow)])
def test_no_file_takes_long_or_much_memory(tmp_path, names):
    """Processor time is measured in that of the largest good file, about 0.4 s."""
    (tmp_path / "small").write_bytes(graph("y = Gemm(x, w31)").SerializeToString())
    for name in (LARGEST, *names):
        (tmp_path / f"{name}.bomb").write_bytes(BOMBS[name]())
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    reports = {name: report.split("\t", 2) for name, report in (line.split("\t", 1) for line in done.stdout.splitlines())}
    assert reports.keys() == {LARGEST, *names}, done.stderr
    unit = float(reports[LARGEST][0])
    for name, (seconds, megabytes, said) in reports.items():
        print(f"{name:30} {float(seconds):6.2f} s {float(megabytes):6.1f} MB {said[:200]}")
        assert (said == "read") == (name in READ), f"{name}: {said}"
        assert float(seconds) < 6 * unit, name
        assert float(megabytes) < 200, name


def test_bytes_beyond_the_limit_are_refused():
    with pytest.raises(NetworkError, match=r"^50\.0 MB; a model may have at most 50$"):
        from_bytes(bytes(MAX_BYTES + 1))


def test_as_many_steps_as_a_network_may_have_are_written_and_read(tmp_path):
    network = Network(1, (Activation("gelu"),) * MAX_STEPS)
    assert len(from_bytes(to_bytes(network)).steps) == MAX_STEPS
    with pytest.raises(NetworkError, match=f"is beyond step {MAX_STEPS}"):
        from_bytes(to_bytes(Network(1, (Activation("gelu"),) * (MAX_STEPS + 1))))


def test_mutated_models_are_read_or_refused():
    result = fuzz(seeds(), inputs=1500, seed=3)
    assert not result.failures
    assert result.networks > 50
