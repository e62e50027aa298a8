"""Training through elementwise functions: gradients beside central differences, and beside torch where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_builder import Activation, Clip, Dense, Function, LayerNormalization, Network
from onnx_builder.elementwise import OPERATORS, Node
from onnx_builder.read import from_bytes
from sidecar.learning.derivatives import DERIVATIVES
from sidecar.learning.head import Head
from tests.learning.test_head import assert_gradient_agrees_with_central_differences, some_pairs
from tests.onnx_builder.test_elementwise import CONSTANTS, SPELLED_OUT
from tests.onnx_builder.test_read import HEAD, HIDDEN, graph

NUMBERS = {"LeakyRelu": (0.2,), "Elu": (0.7,), "Selu": (1.5, 1.1), "HardSigmoid": (0.3, 0.4), "Clip": (-0.5, 0.8)}
OF_TWO = ["Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu"]
rng = np.random.default_rng(11)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def dense(n_out, n_in):
    return Dense(normal(n_out, n_in), normal(n_out))


def test_every_operator_has_its_derivatives():
    assert DERIVATIVES.keys() == OPERATORS.keys() - {"ReduceMean"}
    assert all(len(DERIVATIVES[name]) == (2 if name in OF_TWO else 1) for name in DERIVATIVES)


@pytest.mark.parametrize(("operator", "place"), [*((name, 0) for name in DERIVATIVES), *((name, 1) for name in OF_TWO[:-1])])
def test_gradient_of_each_operator(operator, place):
    """By each operand: the function's argument, which is squared and moved above 0 first, or a constant."""
    nodes = [Node("Mul", (0, 0)), Node("Add", (4, 1)), Node("Add", (5, 0))]  # x² + 0.5 + x
    operands = ((6, 2) if place == 0 else (2, 6)) if operator in OF_TWO else (6,)
    function = Function(
        (np.float32([0.5] * 5), abs(normal(5)) + 1, normal(5)), (*nodes, Node(operator, operands, NUMBERS.get(operator, ())))
    )
    network = Network(6, (dense(5, 6), function, dense(4, 5), Activation("tanh"), dense(1, 4)))
    head = Head(network, np.float64)
    assert_gradient_agrees_with_central_differences(head, head.rows(*some_pairs(6)))


def functions():
    """A function between layers, after other steps, before other steps, and at both ends of a network."""
    silu = Function((), (Node("Sigmoid", (0,)), Node("Mul", (0, 1))))
    slopes = Function((normal(5),), (Node("PRelu", (0, 1)),))
    one_slope = Function((np.float32(0.3).reshape(()),), (Node("PRelu", (0, 1)),))
    two_slopes = Function(
        (normal(5), np.float32(0.2).reshape(())),
        (Node("PRelu", (0, 1)), Node("Tanh", (0,)), Node("PRelu", (4, 2)), Node("Add", (3, 5))),
    )
    yield "SiLU", (dense(5, 6), silu, dense(1, 5))
    yield "SiLU twice", (dense(5, 6), silu, silu, dense(1, 5))
    yield "after an activation", (dense(5, 6), Activation("tanh"), silu, dense(1, 5))
    yield "before an activation", (dense(5, 6), silu, Activation("relu"), dense(1, 5))
    yield "after a clip", (dense(5, 6), Clip(-1, 1), silu, LayerNormalization(normal(5), normal(5)), silu, dense(1, 5))
    yield "at the end", (dense(5, 6), silu, dense(1, 5), silu)
    yield "in front", (silu, dense(5, 6), silu, dense(1, 5))
    yield "slopes", (dense(5, 6), slopes, dense(1, 5))
    yield "one slope", (dense(5, 6), one_slope, dense(5, 5), one_slope, dense(1, 5))
    yield "two slopes", (LayerNormalization(normal(6), normal(6)), dense(5, 6), two_slopes, dense(1, 5))
    yield "slopes in front are constant", (Function((normal(6),), slopes.nodes), dense(5, 6), slopes, dense(1, 5))


FUNCTIONS = dict(functions())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_and_prediction_of_functions_anywhere(name):
    network = Network(6, FUNCTIONS[name])
    head = Head(network, np.float64)
    features, scores = some_pairs(6)
    assert_gradient_agrees_with_central_differences(head, head.rows(features, scores))
    features = features.astype(np.float32)
    trained = Head(network)
    assert np.allclose(trained.predict(features), network.forward(features), atol=1e-5, rtol=1e-5)
    trained.parameters += np.float32(0.25)
    assert np.array_equal(Head(trained.network()).predict(features), trained.predict(features))
    slopes = [step for step in network.steps[1:] if isinstance(step, Function) and step.slopes]
    moved = [step for step in trained.network().steps[1:] if isinstance(step, Function) and step.slopes]
    for before, after in zip(slopes, moved, strict=True):
        for place in before.slopes:
            assert np.allclose(after.constants[place], before.constants[place] + 0.25)


@pytest.mark.parametrize("name", SPELLED_OUT)
def test_gradient_of_what_exporters_spell_out(name):
    network = from_bytes(graph(f"{HIDDEN} {SPELLED_OUT[name]} {HEAD}", **CONSTANTS).SerializeToString())
    head = Head(network, np.float64)
    assert_gradient_agrees_with_central_differences(head, head.rows(*some_pairs(3)))


def test_a_comparison_has_no_gradient_not_even_at_its_bound():
    body = "r = Relu(h) p = Greater(r, zero) m = Mul(r, half) g = Where(p, r, m)"
    head = Head(from_bytes(graph(f"{HIDDEN} {body} {HEAD}").SerializeToString()))
    rows = head.rows(*some_pairs(3))
    head.loss_and_gradient(rows)
    assert np.isfinite(head.gradient).all()
    assert head.gradient.any()
