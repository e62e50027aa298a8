"""Conditioning changes how weights learn, never what they compute."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_builder import Activation, Clip, Dense, Elementwise, LayerNormalization, Network
from onnx_builder.network import apply
from sidecar.learning.conditioning import condition
from sidecar.learning.head import Head


def array(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def networks():
    rng = np.random.default_rng(0)

    def dense(n_out, n_in):
        return Dense(array(rng, n_out, n_in), array(rng, n_out))

    number = np.float32(100).reshape(())
    yield "raw", Network(4, (dense(5, 4), Activation("relu"), dense(1, 5)))
    yield "clipped", Network(4, (dense(1, 4), Elementwise("Mul", number), Elementwise("Add", number), Clip(0, 100)))
    yield "scaled", Network(4, (Elementwise("Sub", array(rng, 4)), dense(6, 4), Activation("gelu"), dense(1, 6)))
    yield (
        "sigmoid",
        Network(4, (dense(3, 4), Activation("tanh"), dense(1, 3), Activation("sigmoid"), Elementwise("Mul", number))),
    )
    yield "normalised", Network(4, (LayerNormalization(array(rng, 4), array(rng, 4)), dense(3, 4), Clip(-1, 1), dense(1, 3)))


ALL = dict(networks())


@pytest.fixture
def features():
    """Of very different scale; the last never varies."""
    rng = np.random.default_rng(1)
    return (rng.normal(size=(300, 4)) * [0.02, 1, 5, 0] + [1, 0, -3, 0.5]).astype(np.float32)


@pytest.mark.parametrize("name", ALL)
def test_the_function_stays_the_same_there_and_back(name, features):
    network = ALL[name]
    expected = network.forward(features)
    conditioning = condition(network, features, 0, 100)
    conditioned = conditioning.apply(network)
    tolerance = 1e-5 * max(1.0, np.abs(expected).max())
    assert np.allclose(conditioned.forward(features), expected, atol=tolerance, rtol=0)
    back = conditioning.remove(conditioned)
    assert [type(step) for step in back.steps] == [type(step) for step in network.steps]
    assert np.allclose(back.forward(features), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("value", [3.4e38, -3.4e38, 1e38])
@pytest.mark.parametrize("name", ALL)
def test_features_as_large_as_float32_allows_leave_every_weight_finite(name, features, value):
    features[7] = value
    features[8, 1:] = -value
    with np.errstate(over="ignore", invalid="ignore"):
        conditioning = condition(ALL[name], features, 0, 100)
        conditioning.remove(conditioning.apply(ALL[name]))  # a network takes nothing else


@pytest.mark.parametrize("name", ALL)
def test_layers_see_centred_inputs_of_one_length_and_scores_in_units_of_twenty_points(name, features):
    conditioned = condition(ALL[name], features, 0, 100).apply(ALL[name])
    values = features
    first = True
    for step in conditioned.steps:
        if isinstance(step, Dense):
            varying = np.mean(values.std(axis=0) > 1e-6) if first else 1.0
            assert np.allclose(values.mean(axis=0), 0, atol=1e-2)
            assert np.mean((values**2).sum(axis=1)) == pytest.approx(16 * varying, rel=0.02)
            first = False
        values = apply(step, values)
    if name != "sigmoid":
        assert Head(conditioned).score_scale == pytest.approx(20)


def test_weights_of_another_network_of_the_architecture_go_through_the_same_units(features):
    network, other = ALL["raw"], Network(4, tuple(next(networks())[1].steps))
    conditioning = condition(network, features, 0, 100)
    moved = Network(4, tuple(Dense(s.weight * 2, s.bias + 1) if isinstance(s, Dense) else s for s in other.steps))
    again = conditioning.remove(conditioning.apply(moved))
    assert np.allclose(again.forward(features), moved.forward(features), atol=1e-4)


def test_other_score_ranges_have_other_units():
    network = ALL["raw"]
    features = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert Head(condition(network, features, 1, 5).apply(network)).score_scale == pytest.approx(0.8)


def test_a_single_pair_is_enough(features):
    network = ALL["raw"]
    conditioned = condition(network, features[:1], 0, 100).apply(network)
    assert np.allclose(conditioned.forward(features[:1]), network.forward(features[:1]), rtol=1e-5)
    assert np.isfinite(Head(conditioned).parameters).all()
