"""The average of several networks as one."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from onnx_builder import Activation, Dense, LayerNormalization, Network
from onnx_builder.read import from_bytes
from sidecar.learning.recipe import Recipe, TrainingError, fresh_network
from sidecar.learning.scaler import measure_scaling
from sidecar.offline.ensemble import average
from tests.conftest import run
from tests.learning.test_head import some_pairs


def without_clip(network):
    return Network(network.n_features, network.steps[:-1])


def test_it_scores_the_mean_of_fresh_heads():
    features, scores = some_pairs(7, 60)
    features = features.astype(np.float32)
    scaling = measure_scaling(features, scores, np.arange(60))
    networks = [without_clip(fresh_network(scaling, Recipe(hidden=5), np.random.default_rng(seed))) for seed in range(3)]
    together = average(networks)
    assert together.dense_widths == (7, 15, 1)
    mean = np.mean([network.forward(features) for network in networks], axis=0)
    np.testing.assert_allclose(together.forward(features), mean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("widths", [(6, 1), (6, 5, 1), (6, 5, 4, 3, 1)])
def test_it_scores_the_mean_of_deeper_networks(make_network, widths):
    networks = [without_clip(make_network(widths, "tanh", seed)) for seed in range(3)]
    front = networks[0].steps[:2]  # they agree in their scaling, as networks from one base do
    networks = [dataclasses.replace(network, steps=(*front, *network.steps[2:])) for network in networks]
    features = some_pairs(6)[0].astype(np.float32)
    mean = np.mean([network.forward(features) for network in networks], axis=0)
    np.testing.assert_allclose(average(networks).forward(features), mean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("where", ["between", "after", "in front"])
def test_what_has_no_average_is_refused(make_network, where):
    ones = np.ones(5, dtype=np.float32)

    def network(seed):
        first, activation, last = make_network((6, 5, 1), "tanh", seed).steps[2:5]
        assert isinstance(first, Dense)
        norm = LayerNormalization(ones, ones)
        steps = {
            "between": (first, norm, activation, last),
            "after": (first, activation, last, Activation("sigmoid")),
            "in front": (*make_network((6, 5, 1), "tanh", seed).steps[:2], first, activation, last),
        }
        return Network(6, steps[where])

    with pytest.raises(TrainingError, match="have no average as one network"):
        average([network(0), network(1)])


def test_the_command_publishes_the_average_of_all_seeds_and_tells_of_each(tmp_path, random_rows, write_lines):
    rows = [{**row, "source": "abc"[i % 3]} for i, row in enumerate(random_rows(300))]
    path, one, asked = write_lines(rows), tmp_path / "one", ("--seed", 3, "--epochs", 20, "--hidden", 4, "--json")
    done = run("train-offline", path, *asked, "--seeds", 3, "--ensemble", "--group-by", "source", "--output", tmp_path / "all")
    said = json.loads(done.stdout)
    assert len(said["loso"]["seeds"]) == 3
    features = np.float32([row["features"] for row in rows])
    each = []
    for seed in (3, 4, 5):
        alone = json.loads(run("train-offline", path, *asked, "--holdout", 0, "--seed", seed, "--output", one).stdout)
        with open(alone["checkpoint"], "rb") as file:
            each.append(from_bytes(file.read()))
    with open(said["checkpoint"], "rb") as file:
        together = from_bytes(file.read())
    assert together.dense_widths == (5, 12, 1)
    inside = np.mean([without_clip(network).forward(features) for network in each], axis=0)
    np.testing.assert_allclose(without_clip(together).forward(features), inside, rtol=0, atol=1e-3)


def test_an_average_of_one_seed_is_refused(tmp_path, random_rows, write_lines):
    done = run("train-offline", write_lines(random_rows(50)), "--ensemble", "--output", tmp_path / "c")
    assert (done.returncode, "--ensemble needs --seeds 2 or more" in done.stderr) == (2, True)
