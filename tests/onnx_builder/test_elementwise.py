"""Functions of each value: however an exporter spells an activation, what is read computes it, and so does what is written."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

from onnx_builder import Activation, Clip, Elementwise, Function, NetworkError
from onnx_builder.read import from_bytes
from onnx_builder.write import OPERATORS, to_bytes
from tests.onnx_builder.test_read import ERF, HEAD, HIDDEN, assert_reads, assert_same_function, graph, positive

CONSTANTS = {
    "cubic": np.float32(0.044715), "sqrt_2_pi": np.float32((2 / np.pi) ** 0.5), "tenth": np.float32(0.1), "six": np.float32(6),
    "three": np.float32(3), "slope": positive(4), "slope1": positive(1), "minus": np.float32(-0.2), "twenty": np.float32(20),
    "true": np.array(True), "masks": np.array([True, False, True, False]), "minus_one": np.float32(-1),
    "i4": np.array([4]), "c2": positive(2), "i21": np.array([2, 1]),
}  # fmt: skip

ONE_OPERATOR = {
    "Softplus": 17, "Elu": 17, "Elu <alpha = 0.7>": 17, "Selu": 17, "Selu <alpha = 1.5, gamma = 0.9>": 17, "Celu": 17,
    "Celu <alpha = 2.0>": 17, "HardSigmoid": 17, "HardSigmoid <alpha = 0.3, beta = 0.4>": 17, "HardSwish": 17, "Mish": 18,
    "Softsign": 17, "ThresholdedRelu <alpha = 0.5>": 17, "Shrink <lambd = 0.4, bias = 0.1>": 17, "Erf": 17, "Exp": 17,
    "Abs": 17, "Sign": 17, "Neg": 17, "com.microsoft.QuickGelu": 17, "com.microsoft.QuickGelu <alpha = 1.0>": 17,
    "com.microsoft.Gelu": 17,
    'Gelu <approximate = "tanh">': 20, 'Gelu <approximate = "none">': 20, "Relu": 7, "Sigmoid": 7, "Tanh": 7,
    "LeakyRelu": 7,
}  # fmt: skip

SPELLED_OUT = {
    "SiLU": "s = Sigmoid(h) g = Mul(h, s)",
    "SiLU with a factor": "b_ = Mul(h, third) s = Sigmoid(b_) g = Mul(s, h)",
    "GELU by tanh": """k = Mul(h, h) q = Mul(k, h) c_ = Mul(q, cubic) a = Add(h, c_) z = Mul(sqrt_2_pi, a) t = Tanh(z)
        u = Add(one, t) v = Mul(h, half) g = Mul(v, u)""",
    "GELU by Pow": """q = Pow(h, three) c_ = Mul(cubic, q) a = Add(h, c_) z = Mul(a, sqrt_2_pi) t = Tanh(z) u = Add(t, one)
        v = Mul(h, u) g = Mul(v, half)""",
    "GELU with a rough constant": ERF.replace("sqrt2", "rough_sqrt2") + "p = Mul(h, a) g = Mul(p, half)",
    "not quite a GELU": ERF.replace("one", "near_one") + "p = Mul(h, a) g = Mul(p, half)",
    "GELU times itself": ERF + "p = Mul(h, a) g = Mul(p, h)",
    "Mish": "p = Softplus(h) t = Tanh(p) g = Mul(h, t)",
    "hard swish": "a = Add(h, three) c_ = Clip(a, zero, six) p = Mul(h, c_) g = Div(p, six)",
    "log-sigmoid": "s = Sigmoid(h) g = Log(s)",
    "tanh shrink": "t = Tanh(h) g = Sub(h, t)",
    "softsign": "a = Abs(h) b_ = Add(a, one) g = Div(h, b_)",
    "square": "g = Mul(h, h)",
    "square root": "a = Abs(h) b_ = Add(a, tenth) g = Sqrt(b_)",
    "power": "a = Abs(h) b_ = Add(a, one) g = Pow(b_, third)",
    "exponential": "g = Pow(two, h)",
    "Gaussian": "s = Mul(h, h) n = Neg(s) g = Exp(n)",
    "reciprocal": "s = Mul(h, h) b_ = Add(s, one) g = Reciprocal(b_)",
    "a constant by it": "s = Exp(h) b_ = Add(s, one) g = Div(c4, b_)",
    "a constant less it": "t = Tanh(h) m = Sub(c4, t) g = Mul(m, t)",
    "PReLU of Keras": "r = Relu(h) n = Neg(h) m = Relu(n) p = Mul(m, slope) q = Neg(p) g = Add(r, q)",
    "leaky ReLU by Max": "m = Mul(h, tenth) g = Max(h, m)",
    "leaky ReLU by Where": "p = Greater(h, zero) m = Mul(h, tenth) g = Where(p, h, m)",
    "leaky ReLU by Where of jax": "p = GreaterOrEqual(h, zero) m = Mul(tenth, h) g = Where(p, h, m)",
    "ReLU by Where": "p = Less(h, zero) g = Where(p, zero, h)",
    "ELU by Where": "e = Exp(h) m = Sub(e, one) p = Greater(h, zero) g = Where(p, h, m)",
    "ELU of jax": """p = Greater(h, zero) a = Where(p, zero, h) e = Exp(a) m = Sub(e, one) q = Greater(h, zero)
        g = Where(q, h, m)""",
    "softplus above a bound": """p = LessOrEqual(h, twenty) e = Exp(h) a = Add(e, one) l = Log(a) g = Where(p, l, h)""",
    "softplus of jax": """m = Max(h, zero) d = Sub(h, zero) n = Equal(d, d) q = Not(n) a = Abs(d) i = Neg(a) e = Exp(i)
        f = Add(e, one) l = Log(f) s = Add(m, l) k = Add(h, zero) g = Where(q, k, s)""",
    "hard shrink": "p = Greater(h, half) n = Less(h, minus) q = Or(p, n) g = Where(q, h, zero)",
    "a band": "p = Greater(h, minus) n = Less(h, half) q = And(p, n) f = Cast <to = 1> (q) g = Mul(f, h)",
    "Where of a constant": "p = Greater(two, h) g = Where(p, h, two)",
    "Where of constants": "t = Tanh(h) g = Where(masks, h, t)",
    "Where of one constant": "g = Where(true, h, zero)",
    "clamp": "a = Max(h, zero) g = Min(a, six)",
    "clamp each": "a = Max(h, c4) g = Min(slope, a)",
    "several": "t = Tanh(h) g = Max(t, h, zero)",
    "a sum": "t = Tanh(h) g = Sum(t, h, one)",
    "a mean": "t = Tanh(h) g = Mean(t, h, one)",
    "ReLU of a sigmoid, doubled": "s = Sigmoid(h) a = Add(s, h) r = Relu(a) g = Add(r, r)",
    "not a number": "n = IsNaN(h) g = Where(n, zero, h)",
    "of some": """u = Slice(h, i0, i2, i1) v = Slice(h, i2, i4, i1) a = Abs(u) r = Sqrt(a)
        g = Concat <axis = 1> (v, r)""",
}


TWO, THIRD = "u = Slice(x, i0, i2, i1)", "v = Slice(x, i2, i3, i1)"
OF_SOME = {
    "finite everywhere": f"{TWO} t = Elu(u) y = Gemm(t, w21)",
    "exponential": f"{TWO} d = Mul(u, c2) e = Exp(d) y = Gemm(e, w21)",
    "logarithm": f"{TWO} s = Mul(u, u) l = Log(s) y = Gemm(l, w21)",
    "not a number at 0.5": f"{TWO} d = Sub(tenth, u) r = Sqrt(d) y = Gemm(r, w21)",
    "joined with another": f"{TWO} {THIRD} e = Exp(u) j = Concat <axis = 1> (v, e) y = Gemm(j, w31)",
    "joined with a scaled one": f"{TWO} {THIRD} s = Mul(u, u) l = Log(s) q = Div(l, c2) m = Mul(v, two) "
    "j = Concat <axis = 1> (q, m) t = Tanh(j) y = Gemm(t, w31)",
    "joined with another function": f"{TWO} {THIRD} e = PRelu(u, c2) t = Tanh(v) j = Concat <axis = -1> (t, e) n = Mul(j, c3) "
    "y = Gemm(n, w31)",
    "joined with a rest": "u, v = Split <axis = 1> (x, i21) e = Exp(u) j = Concat <axis = 1> (v, e) y = Gemm(j, w31)",
    "some of what was joined": f"{TWO} {THIRD} e = Exp(v) t = Tanh(u) j = Concat <axis = 1> (t, e) g = Slice(j, i0, i2, i1) "
    "y = Gemm(g, w21)",
}  # fmt: skip


def of_one_feature(body):
    return graph(re.sub(r"\bh\b", "x", body).replace("g =", "y ="), inputs="float[N,1] x", **CONSTANTS)


@pytest.mark.parametrize("operator", ONE_OPERATOR)
def test_activations_of_one_operator(operator):
    assert_reads(graph(f"{HIDDEN} g = {operator} (h) {HEAD}", opset=ONE_OPERATOR[operator]))


@pytest.mark.parametrize("slope", ["slope", "slope1", "tenth"])
def test_the_slope_of_a_prelu_may_be_one_or_many(slope):
    network = assert_reads(graph(f"{HIDDEN} g = PRelu(h, {slope}) {HEAD}", **CONSTANTS))
    (function,) = (step for step in network.steps if isinstance(step, Function))
    assert function.slopes == [0]


@pytest.mark.parametrize("body", SPELLED_OUT.values(), ids=SPELLED_OUT)
def test_activations_spelled_out(body):
    network = assert_reads(graph(f"{HIDDEN} {body} {HEAD}", **CONSTANTS))
    assert {node.op_type for node in onnx.load_from_string(to_bytes(network)).graph.node} <= OPERATORS
    wild = np.float32([[1e4, -1e4, 1e3], [-1e4, 1e4, 0], [0, 0, 0]])  # nothing that is not chosen spoils what is
    assert np.isfinite(network.forward(wild)).all() or "Exp" in body or "Pow" in body or "Log" in body


@pytest.mark.parametrize("name", ["ELU by Where", "softplus above a bound", "ELU of jax", "softplus of jax"])
def test_what_overflows_where_it_is_not_chosen_does_no_harm(name):
    model = of_one_feature(SPELLED_OUT[name])
    network = from_bytes(model.SerializeToString())
    assert network.forward([[1e4], [100], [20], [0]]) == pytest.approx([1e4, 100, 20, network.forward([[0]])[0]])


def test_the_logarithm_of_a_small_sigmoid_is_exact():
    network = from_bytes(of_one_feature(SPELLED_OUT["log-sigmoid"]).SerializeToString())
    assert network.forward([[-15], [-60], [-85], [3]]) == pytest.approx([-15, -60, -85, -np.log1p(np.exp(-3))], rel=1e-5)


@pytest.mark.parametrize("name", ["leaky ReLU by Where", "hard shrink", "Where of a constant", "a band"])
def test_comparisons_are_exact(name):
    model = of_one_feature(SPELLED_OUT[name])
    network = from_bytes(model.SerializeToString())
    bounds = np.float32([0, -0.2, 0.5, 2])
    x = np.concatenate([bounds, np.nextafter(bounds, np.float32(9)), np.nextafter(bounds, np.float32(-9))])[:, None]
    expected = {
        "leaky ReLU by Where": np.where(x > 0, x, x * np.float32(0.1)),
        "hard shrink": np.where((x > 0.5) | (x < np.float32(-0.2)), x, 0),
        "Where of a constant": np.where(x < 2, x, 2),
        "a band": np.where((x > np.float32(-0.2)) & (x < 0.5), x, 0),
    }[name]
    assert np.array_equal(network.forward(x), expected[:, 0])


@pytest.mark.parametrize("name", OF_SOME)
def test_functions_of_some_values(name):
    data = graph(OF_SOME[name], **CONSTANTS).SerializeToString()
    network = from_bytes(data)
    below_zero = -np.abs(np.random.default_rng(1).normal(size=(48, 3))).astype(np.float32)
    assert_same_function(data, network, below_zero)
    other = below_zero * np.float32([1, 1, 1e4])
    assert np.isfinite(network.forward(other)).all()
    assert "joined with" in name or np.array_equal(network.forward(other), network.forward(below_zero))


def test_activations_that_have_a_step_of_their_own_keep_it():
    steps = {
        "Relu(h)": Activation, "LeakyRelu(h)": Activation, "Tanh(h)": Activation, "Sigmoid(h)": Activation,
        "Neg(h)": Elementwise, "Max(h, zero)": Clip, "Min(six, h)": Clip, "Sum(h, c4)": Elementwise, "Elu(h)": Function,
    }  # fmt: skip
    for operator, kind in steps.items():
        network = assert_reads(graph(f"{HIDDEN} g = {operator} {HEAD}", **CONSTANTS))
        assert [type(step) for step in network.steps[1:-1]] == [kind], operator


def test_a_term_that_grows_without_bound_is_refused():
    part = "a{0} = Abs(v{0}) e{0} = Sqrt(a{0}) p{0} = Greater(v0, zero) v{1} = Where(p{0}, v{0}, e{0})"
    nested = " ".join(part.format(place, place + 1) for place in range(40))
    model = graph(f"v0 = Tanh(x) {nested} y = Gemm(v40, w31)", **CONSTANTS)
    with pytest.raises(NetworkError, match="more than 10000 operators, with what they are made of"):
        from_bytes(model.SerializeToString())
