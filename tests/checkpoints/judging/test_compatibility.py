"""A model that does not fit the stable one's consumers moves no link, whatever its figures."""

from __future__ import annotations

import json
import os

import pytest

from onnx_builder import Network
from onnx_builder.network import Port
from onnx_builder.runtime import Scorer
from onnx_builder.write import to_bytes
from sidecar.checkpoints.directory import publish
from sidecar.checkpoints.judging.compatibility import differences, interface_of, score_range
from tests.conftest import run

NAMES = ["adm2", "vif_scale0", "vif_scale1", "vif_scale2", "vif_scale3", "motion2", "psnr_y", "cambi"]
RANGE = {"settings": {"score_min": 0, "score_max": 100}}


@pytest.fixture
def interface(make_network):
    def make(inputs=(("features", 8),), output="score", about=RANGE, batch="batch"):
        network = make_network([sum(width for _, width in inputs), 4, 1])
        ports = tuple(Port(name, (batch, width)) for name, width in inputs)
        declared = Network(network.n_features, network.steps, ports, Port(output, (batch, 1)))
        return interface_of(Scorer(to_bytes(declared)), about)

    return make


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, ""),
        ({"about": {}}, ""),
        ({"about": {"settings": {"score_min": 0.0, "score_max": 100.0}}}, ""),
        ({"about": {"settings": {"score_min": 0, "score_max": 10}}}, "its scores are from 0 to 10, those of old 0 to 100"),
        ({"inputs": [("features", 9)]}, "it takes 9 features, old takes 8"),
        ({"inputs": [("x", 8)]}, "its inputs are x (float32, 8), those of old features (float32, 8)"),
        ({"inputs": [("x", 9)]}, "it takes 9 features, old takes 8; its inputs are x (float32, 9), those of old features"),
        (
            {"inputs": [("a", 5), ("b", 3)]},
            "its inputs are a (float32, 5) and b (float32, 3), those of old features (float32, 8)",
        ),
        ({"output": "vmaf"}, "its output is vmaf, that of old score"),
        ({"batch": 1}, "it takes only 1 rows at a time, old any number"),
        ({"about": {"feature_order": NAMES}}, ""),
        ({"about": {"features": [f"integer_{name}" for name in NAMES]}}, ""),
        ({"about": {"feature_order": NAMES[::-1]}}, "its features are in another order: cambi is in the place of adm2"),
        ({"about": {"feature_order": [*NAMES[:7], "x"]}}, "its features are not those of old: missing: cambi; not known: x"),
        ({"about": {"feature_order": NAMES[:7]}}, ""),
    ],
)
def test_what_differs_is_said(interface, changed, words):
    found = differences(interface(**changed), interface(about={**RANGE, "feature_order": NAMES}), "old")
    assert found.startswith(words)
    assert bool(found) == bool(words)


def test_names_that_a_json_has_lost_are_in_the_model(make_network):
    model = to_bytes(make_network([8, 4, 1]), {"feature_order": json.dumps(NAMES)})
    for about in ({}, {"feature_order": None}, {"notes": "rewritten"}):
        assert interface_of(Scorer(model), about).names == tuple(NAMES)
    for spoilt in ("[", "3", "[1]", "[" * 100_000):
        assert interface_of(Scorer(to_bytes(make_network([8, 4, 1]), {"feature_order": spoilt})), {}).names == ()


def test_a_fixed_batch_may_become_free(interface):
    assert not differences(interface(), interface(batch=1), "old")
    assert not differences(interface(batch=1), interface(batch=1), "old")


@pytest.mark.parametrize(
    "about", [{}, {"settings": 3}, {"settings": {}}, {"settings": {"score_min": True, "score_max": 1}},
              {"settings": {"score_min": 0, "score_max": "100"}}, {"settings": {"score_min": 0, "score_max": float("nan")}}],
)  # fmt: skip
def test_a_range_that_is_not_there_is_unknown(about):
    assert score_range(about) is None


def links(directory):
    return [os.readlink(directory / name) for name in ("latest.onnx", "latest.json", "stable.onnx", "stable.json")]


def test_another_width_or_score_range_moves_no_link_until_it_is_promoted(tmp_path, random_rows, write_lines):
    directory = tmp_path / "c"
    narrow, wide = write_lines(random_rows(1200), "narrow.jsonl"), write_lines(random_rows(1200, 6), "wide.jsonl")
    quick = ("--output", directory, "--epochs", 30)
    assert run("train-offline", narrow, *quick).returncode == 0
    before = links(directory)
    done = run("train-offline", wide, *quick, "--json")
    assert (done.returncode, done.stderr) == (1, "")
    said = json.loads(done.stdout)
    assert said["gate"] == {"verdict": "incompatible", "reason": "it takes 6 features, model_v000001 takes 5"}
    about = json.loads((directory / "model_v000002.json").read_text())
    assert (about["gate"], about["metrics"]["pairs"]) == (said["gate"], said["pairs"]["held_out"])
    done = run("train-offline", narrow, *quick, "--score-max", 120)
    assert done.returncode == 1
    assert "gate: incompatible (its scores are from 0 to 120, those of model_v000001 0 to 100)" in done.stdout
    done = run("train-offline", wide, "--stream", "--output", directory)
    assert (done.returncode, "gate: incompatible (it takes 6 features" in done.stdout) == (1, True)
    assert links(directory) == before
    assert run("verify", directory).returncode == 0
    assert run("promote", 2, "--checkpoint-dir", directory).returncode == 0
    assert links(directory) == [*before[:2], "model_v000002.onnx", "model_v000002.json"]
    assert run("train-offline", wide, *quick).returncode == 0
    assert links(directory)[0] == "model_v000005.onnx"
    assert run("train-offline", narrow, *quick).returncode == 1


def test_it_says_so_before_it_asks_for_held_out_pairs(tmp_path, random_rows, write_lines):
    run("train-offline", write_lines(random_rows(99)), "--output", tmp_path / "a", "--epochs", 1)
    publish(tmp_path / "c", (tmp_path / "a" / "model_v000001.onnx").read_bytes(), {}, stable=True)
    done = run("train-offline", write_lines(random_rows(60, 3)), "--output", tmp_path / "c", "--holdout", 0, "--json")
    assert json.loads(done.stdout)["gate"]["verdict"] == "incompatible"
