"""Trainings that workers share out."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from onnx_builder.write import to_bytes
from sidecar.fleet.shared import SharedArray
from sidecar.fleet.workers import processes
from sidecar.learning.recipe import Recipe, TrainingError
from sidecar.offline.seeds import Seeds
from tests.conftest import EXAMPLE, run


def test_workers_train_the_same_as_this_process(example):
    features = SharedArray((len(example) + 7, 80), np.float32)
    features.array[: len(example)] = example.features
    parts = [np.arange(0, len(example), step) for step in (3, 4)]
    recipe, told = Recipe(epochs=2), []
    here = Seeds(2).fit(example.features, example.true_score, parts, recipe)
    with processes(2) as workers:
        there = Seeds(2, workers=(workers, features)).fit(
            example.features, example.true_score, parts, recipe, lambda pairs, loss: told.append((pairs, loss > 0))
        )
        with pytest.raises(TrainingError, match="training diverged"):
            Seeds(2, workers=(workers, features)).fit(
                example.features, example.true_score, parts, Recipe(epochs=2, learning_rate=1e30)
            )
    for one, other in zip(itertools.chain(*here), itertools.chain(*there), strict=True):
        assert one.steps == other.steps
        assert to_bytes(one.live.network()) == to_bytes(other.live.network())
        assert to_bytes(one.ema.network()) == to_bytes(other.ema.network())
    assert sorted(told) == sorted((2 * len(part), True) for part in parts for _ in range(2))


def test_folds_and_seeds_of_a_sample(tmp_path):
    arguments = ("--epochs", 2, "--group-by", "source", "--holdout", 0.1, "--seeds", 2, "--output", tmp_path, "--json")
    done = run("train-offline", EXAMPLE, *arguments, "--workers", 2, "--sample", 1000, "--per-group", 3)
    assert done.returncode in (0, 1), done.stderr
    said = json.loads(done.stdout)
    assert len(said["loso"]["groups"]) == 8
    assert len(said["loso"]["seeds"]) == len(said["seeds"]) == 2
    assert said["sampled"]["read"] == 2496
    assert said["sampled"]["kept"] == said["pairs"]["train"] + said["pairs"]["held_out"] < 1001
    assert [pod["name"] for pod in said["sampled"]["pods"]] == ["files"]
