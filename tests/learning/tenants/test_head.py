"""Heads in closed form: what tells a tenant's scores from the shared model's predictions is found from few pairs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from onnx_builder.network import Activation, Clip, Dense, Elementwise, LayerNormalization, Network
from sidecar.learning.tenants.head import adapter_of, row_of
from sidecar.learning.tenants.trunk import Own, Trunk


def network(*tail, widths=(6, 16, 1), activation="relu"):
    generator, steps = np.random.default_rng(0), []
    for n_in, n_out in itertools.pairwise(widths):
        weight = generator.normal(size=(n_out, n_in)) / np.sqrt(n_in)
        steps += [Dense(weight.astype(np.float32), np.zeros(n_out, np.float32)), Activation(activation)]
    return Network(widths[0], (*steps[:-1], *tail))


def number(value):
    return np.asarray(value, dtype=np.float32)


IN_POINTS = Elementwise("Mul", number(20)), Elementwise("Add", number(60)), Clip(0, 100)
FEATURES = np.random.default_rng(1).normal(size=(200, 6)).astype(np.float32)


def head(trunk, features, scores, rank=0):
    own, seen = trunk.nothing(rank, 1).of(0), trunk.see(features)
    own = own._replace(row=row_of(trunk, own, seen, scores, 100.0))
    if not own.down.size:
        return own
    up, down = adapter_of(trunk, own, seen, scores, 100.0)
    own = Own(own.row, up, down)
    return own._replace(row=row_of(trunk, own, seen, scores, 100.0))


def errors(trunk, shared, own, features, scores):
    merged = replace(shared, steps=trunk.with_own(own))
    return np.abs(np.clip(merged.forward(features), 0, 100) - scores)


@pytest.mark.parametrize(
    "shared",
    [
        network(*IN_POINTS),
        network(*IN_POINTS, widths=(6, 1)),
        network(*IN_POINTS, widths=(6, 16, 8, 1), activation="gelu"),
        network(Activation("sigmoid"), Elementwise("Mul", number(100))),
    ],
    ids=["one hidden layer", "none", "two", "behind a sigmoid"],
)
def test_a_head_learns_an_offset_from_sixteen_pairs(shared):
    trunk = Trunk.of(shared.steps)
    scores = np.clip(shared.forward(FEATURES) + 5, 0, 100)
    own = head(trunk, FEATURES[:16], scores[:16])
    assert errors(trunk, shared, own, FEATURES[16:], scores[16:]).mean() < 0.8


def test_without_differences_a_head_adds_nothing():
    shared = network(*IN_POINTS)
    own = head(Trunk.of(shared.steps), FEATURES, np.clip(shared.forward(FEATURES), 0, 100), rank=2)
    assert max(np.abs(own.row).max(), np.abs(own.up @ own.down).max()) < 1e-5


def test_scores_at_a_limit_tell_nothing_of_predictions_beyond_it():
    shared = network(*IN_POINTS[:2], Clip(0, 50))
    trunk = Trunk.of(shared.steps)
    beyond = FEATURES[Network(6, shared.steps[:-1]).forward(FEATURES) > 55]
    assert len(beyond) > 10
    own = head(trunk, beyond, np.full(len(beyond), 50.0))
    assert np.abs(own.row).max() < 1e-6


def test_a_few_wrong_scores_move_a_head_little():
    shared = network(*IN_POINTS)
    trunk = Trunk.of(shared.steps)
    scores = shared.forward(FEATURES).astype(float) + 2
    wrong = scores.copy()
    wrong[::20] += 40
    right = errors(trunk, shared, head(trunk, FEATURES[:100], wrong[:100]), FEATURES[100:], np.clip(scores[100:], 0, 100))
    assert right.mean() < 1


def test_an_adapter_finds_what_no_row_can_have():
    shared = network(*IN_POINTS)
    hidden = shared.steps[0]
    turned = Dense((hidden.weight + np.outer(np.eye(16)[3], [0, 0, 0, 0, 0.8, 0])).astype(np.float32), hidden.bias)
    features = np.random.default_rng(2).normal(size=(1000, 6)).astype(np.float32)
    scores = np.clip(replace(shared, steps=(turned, *shared.steps[1:])).forward(features), 0, 100)
    trunk = Trunk.of(shared.steps)
    mean = {rank: errors(trunk, shared, head(trunk, features, scores, rank), features, scores).mean() for rank in (0, 1)}
    assert mean[1] < 0.85 * mean[0]


def test_the_parts_of_a_network_make_what_the_network_makes():
    shared = network(*IN_POINTS, widths=(6, 16, 8, 1))
    trunk = Trunk.of(shared.steps)
    own = head(trunk, FEATURES[:50], np.clip(shared.forward(FEATURES[:50]) + 3, 0, 100), rank=2)
    predicted = np.clip(trunk.scores(trunk.outputs(trunk.see(FEATURES), own)), 0, 100)
    merged = replace(shared, steps=trunk.with_own(own))
    np.testing.assert_allclose(merged.forward(FEATURES), predicted, atol=1e-3)
    each = Own(*(np.stack([values] * len(FEATURES)) for values in own))
    np.testing.assert_allclose(trunk.outputs(trunk.see(FEATURES), each), trunk.outputs(trunk.see(FEATURES), own), atol=1e-5)


def test_there_is_no_adapter_where_hidden_units_act_on_each_other():
    normalised = LayerNormalization(np.ones(16, np.float32), np.zeros(16, np.float32), 1e-5)
    steps = network(*IN_POINTS).steps
    trunk = Trunk.of((steps[0], normalised, *steps[1:]))
    assert trunk.hidden is None
    assert trunk.nothing(4, 1).down.size == 0


@pytest.mark.parametrize("rank", [0, 2])
def test_no_pairs_leave_a_head_as_it_is(rank):
    trunk = Trunk.of(network(*IN_POINTS).steps)
    own = head(trunk, FEATURES[:0], FEATURES[:0, 0], rank)
    assert not any(part.any() for part in own)
