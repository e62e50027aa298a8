"""The head's forward and backward passes."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from onnx_builder import Activation, Clip, Dense, Elementwise, LayerNormalization, Network, NetworkError
from onnx_builder.elementwise import erf
from sidecar.learning.head import Head
from sidecar.learning.optim.adam import Adam
from sidecar.learning.optim.clipping import clip_gradient
from sidecar.learning.optim.polyak import PolyakAverage
from sidecar.learning.optim.sgd import Sgd

ACTIVATIONS = ["relu", "leaky_relu", "tanh", "gelu", "sigmoid"]
WIDTHS = [(6, 1), (6, 5, 1), (6, 5, 4, 1), (6, 5, 4, 3, 1)]


def some_pairs(n_features, count=33):
    rng = np.random.default_rng(2)
    return rng.normal(size=(count, n_features)), rng.uniform(0, 100, count)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("widths", WIDTHS)
def test_gradient_agrees_with_central_differences(make_network, widths, activation):
    head = Head(make_network(widths, activation), np.float64)
    assert_gradient_agrees_with_central_differences(head, head.rows(*some_pairs(widths[0])))


def assert_gradient_agrees_with_central_differences(head, rows):
    head.loss_and_gradient(rows)
    gradient = head.gradient.copy()
    numeric = np.empty_like(gradient)
    for i, value in enumerate(head.parameters.tolist()):
        losses = []
        for moved in (value + 1e-6, value - 1e-6):
            head.parameters[i] = moved
            losses.append(head.loss_and_gradient(rows))
        head.parameters[i] = value
        numeric[i] = (losses[0] - losses[1]) / 2e-6
    assert np.abs(gradient - numeric).max() <= 1e-6 * np.abs(numeric).max()


def base_model_shapes():
    """What real base models are made of, besides dense layers and activations: constants and norms anywhere."""
    rng = np.random.default_rng(4)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def dense(n_out, n_in):
        return Dense(normal(n_out, n_in), normal(n_out))

    def number(operator, value):
        return Elementwise(operator, np.float32(value).reshape(()))

    yield "norm first", (LayerNormalization(normal(6), normal(6)), dense(5, 6), Activation("relu"), dense(1, 5))
    yield "norm inside", (dense(5, 6), LayerNormalization(normal(5), normal(5), 0.1), Activation("gelu"), dense(1, 5))
    yield "norm twice", (LayerNormalization(normal(6), normal(6)), LayerNormalization(normal(6), normal(6)), dense(1, 6))
    yield "sigmoid output", (dense(4, 6), Activation("tanh"), dense(1, 4), Activation("sigmoid"), number("Mul", 100))
    constants = (Elementwise("Mul", normal(4)), number("Add", 2), Activation("tanh"), Elementwise("Div", normal(4)))
    yield "constants between", (dense(4, 6), *constants, Elementwise("Sub", normal(4)), dense(1, 4), number("Mul", 9))
    yield "clip between", (dense(4, 6), Clip(-1, 0.5), Activation("tanh"), dense(1, 4))
    yield "two activations", (dense(4, 6), Activation("tanh"), Activation("leaky_relu", 0.3), dense(1, 4))
    yield (
        "activation in front",
        (Activation("tanh"), Elementwise("Add", normal(6)), dense(4, 6), Activation("relu"), dense(1, 4)),
    )
    yield "activation at the end", (dense(4, 6), Activation("relu"), dense(1, 4), Clip(-2, 2), Activation("tanh"))


BASE_MODEL_SHAPES = dict(base_model_shapes())


@pytest.mark.parametrize("name", BASE_MODEL_SHAPES)
def test_gradient_and_prediction_of_what_base_models_are_made_of(name):
    network = Network(6, BASE_MODEL_SHAPES[name])
    head = Head(network, np.float64)
    features, scores = some_pairs(6)
    assert_gradient_agrees_with_central_differences(head, head.rows(features, scores))
    features = features.astype(np.float32)
    assert np.allclose(Head(network).predict(features), network.forward(features), atol=1e-4, rtol=1e-5)
    assert np.array_equal(Head(Head(network).network()).predict(features), Head(network).predict(features))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("widths", [*WIDTHS, (80, 64, 1)])
def test_prediction_is_the_networks(make_network, widths, activation):
    network = make_network(widths, activation)
    features = some_pairs(widths[0], 1300)[0].astype(np.float32)
    for count in (0, 1, 32, 512, 513, 1300):
        assert np.allclose(Head(network).predict(features[:count]), network.forward(features[:count]), atol=1e-4, rtol=0)


def test_loss_is_the_mean_squared_error_in_score_points(make_network):
    head = Head(make_network((6, 5, 1)))
    features, scores = some_pairs(6)
    unclipped = Head(Network(6, head.network().steps[:-1])).predict(features)
    loss = head.loss_and_gradient(head.rows(features, scores)) * head.score_scale**2
    assert loss == pytest.approx(np.mean((unclipped - scores) ** 2), rel=1e-5)


def test_the_gradient_of_hubers_loss_with_the_loss_still_the_squared_one(make_network):
    plain, bounded = (Head(make_network((6, 5, 1)), np.float64) for _ in range(2))
    rows = plain.rows(*some_pairs(6))
    limit = 0.7
    bounded.bound_errors(limit)
    assert bounded.loss_and_gradient(rows) == plain.loss_and_gradient(rows)
    numeric = np.empty_like(bounded.gradient)
    for i, value in enumerate(plain.parameters.tolist()):
        losses = []
        for moved in (value + 1e-6, value - 1e-6):
            plain.parameters[i] = moved
            errors = np.abs([math.sqrt(plain.loss_and_gradient(row[None])) for row in rows])
            losses.append(np.mean(np.where(errors <= limit, errors**2, 2 * limit * errors - limit**2)))
        plain.parameters[i] = value
        numeric[i] = (losses[0] - losses[1]) / 2e-6
    assert np.abs(bounded.gradient - numeric).max() <= 1e-6 * np.abs(numeric).max()
    bounded.bound_errors(1e6)
    bounded.loss_and_gradient(rows)
    plain.loss_and_gradient(rows)
    assert np.array_equal(bounded.gradient, plain.gradient)


def test_a_prediction_beyond_a_bound_is_right_for_a_score_at_it():
    ones = np.ones((1, 1), np.float32)
    steps = (Dense(ones, np.zeros(1, np.float32)), Elementwise("Mul", np.float32(-20) * ones[0]), Clip(0, 100))
    head = Head(Network(1, steps))
    features, scores = np.array([[-7.0], [2.0], [-7.0], [2.0], [-3.0]]), np.array([100.0, 0.0, 90.0, 10.0, 100.0])
    squared = np.array([0, 0, 140 - 90, -40 - 10, 60 - 100]) ** 2
    rows = head.rows(features, scores)
    for row, expected in zip(rows, squared, strict=True):
        assert head.loss_and_gradient(row[None]) * head.score_scale**2 == pytest.approx(expected)
        assert head.gradient.any() == bool(expected)
    assert head.loss_and_gradient(rows) * head.score_scale**2 == pytest.approx(squared.mean())


def test_network_gives_back_what_was_trained(make_network):
    head = Head(make_network((6, 5, 4, 1), "tanh"))
    head.parameters += 0.25
    features = some_pairs(6)[0]
    assert np.array_equal(Head(head.network()).predict(features), head.predict(features))


def test_a_head_at_other_parameters_shares_them(make_network):
    head = Head(make_network((6, 5, 1)))
    features = some_pairs(6)[0]
    average = head.parameters.copy()
    averaged = head.at(average)
    before = head.predict(features)
    average *= 0.5
    assert not np.allclose(averaged.predict(features), before)
    assert np.array_equal(head.predict(features), before)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_step_allocates_no_arrays(make_network, activation):
    head = Head(make_network((80, 64, 1), activation))
    rows = head.rows(*some_pairs(80, 32))
    average = PolyakAverage(head.parameters)
    for optimizer in (Sgd(head.parameters, head.gradient, 0.9, 1e-5), Adam(head.parameters, head.gradient, 1e-5)):

        def step(optimizer=optimizer):
            head.loss_and_gradient(rows)
            clip_gradient(head.gradient, 0.01)
            optimizer.step(1e-4)
            average.update()

        tracemalloc.start()
        for _ in range(50):  # until the interpreter's free lists are full
            step()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(50):
            step()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak - before < 4096  # views and floats; the smallest array of a step, one hidden activation, has 8 KiB


def test_erf_is_within_its_bound():
    x = np.linspace(-8, 8, 20001)
    exact = np.array([math.erf(value) for value in x])
    assert np.abs(erf(x.astype(np.float32)) - exact).max() < 6e-7
    assert np.array_equal(erf(x), exact)
    assert erf(np.float32([-3e38, 3e38])).tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((Elementwise("Mul", np.float32(2) * np.ones(1, np.float32)),), "without a dense layer"),
        (
            (Dense(np.ones((1, 1), np.float32), np.ones(1, np.float32)), Elementwise("Mul", np.zeros((), np.float32))),
            "scale by 0",
        ),
        (
            (Dense(np.ones((1, 1), np.float32), np.ones(1, np.float32)), Elementwise("Div", np.zeros(1, np.float32))),
            "scale by inf",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(steps, message):
    with pytest.raises(NetworkError, match=message):
        Head(Network(1, steps))
