"""Heads that are made offline, beside the model that they stand on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sidecar.checkpoints.directory import tenant_directory
from sidecar.consumer.live_model import LiveModel
from sidecar.learning.recipe import Recipe
from sidecar.models.description import read_description
from sidecar.offline.training import train_offline
from sidecar.pairs.errors import RecordedPairsError
from tests.conftest import run
from tests.learning.tenants.test_tenants import MADE


@pytest.fixture(scope="module")
def write(example, tmp_path_factory):
    """Writes the example pairs as if they were of several tenants, an encode of one. Gives the path."""

    def write_some(names, made):
        path = tmp_path_factory.mktemp("tenants") / "pairs.jsonl"
        with path.open("w") as file:
            for row, (features, score) in enumerate(zip(example.features, example.true_score.tolist(), strict=True)):
                encode, name = row // 12, names[row // 12 % 4]
                score = min(100.0, max(0.0, made.get(name, float)(score)))
                pair = {"features": features.tolist(), "true_score": score, "group": f"encode {encode}", "tenant": name}
                file.write(json.dumps(pair) + "\n")
        return path

    return write_some


@pytest.fixture(scope="module")
def made(write):
    return write("abcd", MADE)


def test_heads_are_better_where_tenants_differ_and_are_published_as_stable(made, tmp_path):
    result = train_offline([made], tmp_path, Recipe(epochs=150), tenant="tenant", holdout=0.3)
    assert {each.tenant for each in result.tenants} == {*"abcd"}
    assert sum(each.pairs for each in result.tenants) == len(result.train) + len(result.held_out)
    assert sum(each.held_out for each in result.tenants) == len(result.held_out)
    for each in result.tenants:
        assert each.rmse < 0.8 * each.rmse_of_shared
        assert (each.gate, each.checkpoint) == ("stable", "model_v000001")
    about = read_description(tenant_directory(tmp_path, "a") / "model_v000001.onnx")
    (figures,) = (each for each in result.tenants if each.tenant == "a")
    assert about["tenant"]["pairs"] == figures.pairs
    assert about["journal"] is None
    its = np.flatnonzero(result.pairs.group == result.pairs.group_names.index("a"))
    with LiveModel(tmp_path, tenant="a") as live:
        predicted = live.predict(result.pairs.features[its])
    assert np.sqrt(np.mean((predicted - result.pairs.true_score[its]) ** 2)) < 0.8 * figures.rmse_of_shared

    again = train_offline([made], tmp_path, Recipe(epochs=1), tenant="tenant", holdout=0.3)
    assert {each.checkpoint for each in again.tenants} == {"model_v000002"}  # though no pairs have come


def test_where_tenants_do_not_differ_weights_are_as_without_them(write, tmp_path):
    path = write("abcd", {})
    recipe = Recipe(epochs=60)
    plain = train_offline([path], tmp_path / "plain", recipe, holdout=0.3)
    result = train_offline([path], tmp_path / "tenants", recipe, tenant="tenant", holdout=0.3)
    assert result.sha256 == plain.sha256
    assert {each.gate for each in result.tenants} == {"unstable"}


def test_the_command_says_which_heads_there_are_and_evaluate_compares_tenants(made, tmp_path):
    done = run("train-offline", made, "--tenant", "tenant", "--epochs", "20", "--output", tmp_path, "--json")
    tenants = json.loads(done.stdout)["tenants"]
    assert [each["tenant"] for each in tenants] == [*"abcd"]
    found = run("evaluate", tenant_directory(tmp_path, "a") / "latest.onnx", made, "--group-by", "tenant", "--json")
    assert {each["group"] for each in json.loads(found.stdout)["groups"]} == {*"abcd"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--group-by", "group"], "--group-by and --tenant cannot be used together"),
        (["--stream"], "--tenant cannot be used with --stream"),
    ],
)
def test_options_that_do_not_go_together(made, tmp_path, options, message):
    done = run("train-offline", made, "--tenant", "tenant", "--output", tmp_path, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.split())


def test_a_tenant_that_cannot_be_a_directory_is_refused(write, tmp_path):
    path = write(["a", "../b", "c", "d"], {})
    with pytest.raises(RecordedPairsError, match=r"tenant: '../b'; expected"):
        train_offline([path], tmp_path, Recipe(epochs=1), tenant="tenant")
