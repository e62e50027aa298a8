"""The commands that look at a model: evaluate, inspect and verify."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnx_builder.runtime import Scorer
from onnx_builder.write import to_bytes
from sidecar.checkpoints.directory import checkpoints, linked, publish
from sidecar.checkpoints.verify import verify
from sidecar.learning.intervals import Intervals
from tests.conftest import EXAMPLE, run
from tests.torch_files import linears, zip_file


def document(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_evaluate_agrees_with_training(trained):
    directory, said = trained
    whole = document(run("evaluate", directory / "latest.onnx", EXAMPLE, "--json"))
    assert whole["pairs"] == 2496
    counts = [said["pairs"]["train"], said["pairs"]["held_out"]]
    parts = [said["metrics"][part]["ema"]["rmse"] for part in ("train", "held_out")]
    assert whole["rmse"] ** 2 * 2496 == pytest.approx(np.dot(counts, np.square(parts)), rel=1e-4)


def test_inspect_and_verify(trained):
    directory, said = trained
    about = document(run("inspect", directory / "stable.onnx", "--json"))
    assert about["sha256"] == said["sha256"] == about["description"]["sha256"]
    assert about["architecture"].startswith("80 features → Sub → Mul")
    assert (about["opset"], about["inputs"]) == (17, [{"name": "features", "type": "FLOAT", "shape": ["batch", 80]}])
    assert document(run("verify", directory, directory / "latest.onnx", "--json"))["ok"]
    text = run("inspect", directory / "stable.onnx").stdout
    assert said["sha256"] in text
    assert "  intervals\n    kind                 held-out\n" in text
    assert max(map(len, text.splitlines())) < 300
    assert "limits plcc " in text
    assert not [line for line in text.splitlines() if line != line.rstrip()]


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (lambda d: (d / "model_v000001.onnx.sha256").write_text("0" * 64 + "\n"), "digest"),
        (lambda d: (d / "model_v000001.onnx.sha256").unlink(), "digest"),
        (lambda d: (d / "model_v000001.json").write_text("{"), "description"),
        (lambda d: (d / "model_v000001.json").unlink(), "description"),
        (lambda d: (d / "model_v000001.json").write_text('{"intervals": {}}'), "description"),
        (lambda d: (d / "model_v000001.onnx").write_bytes(b"junk"), "graph"),
        (lambda d: (d / "model_v000001.onnx").write_bytes((d / "model_v000001.onnx").read_bytes()[:-99]), "parity"),
    ],
)
def test_verify_says_no_to_what_was_spoilt(trained, tmp_path, spoil, check):
    model = (trained[0] / "model_v000001.onnx").read_bytes()
    publish(tmp_path, model, {})
    assert run("verify", tmp_path).returncode == 0
    spoil(tmp_path)
    done = run("verify", tmp_path, "--json")
    assert done.returncode == 1
    (verified,) = json.loads(done.stdout)["models"]
    assert check in verified["failed"]
    assert "FAILED" in run("verify", tmp_path).stdout


NAMED = {"feature_order": [f"f{place}" for place in range(80)]}
SCALING = {"feature_mean": [1.0] * 80, "feature_std": [2.0] * 80}


@pytest.mark.parametrize(
    ("about", "wrong"),
    [
        ({}, ""),
        ({"notes": "of another tool"}, ""),
        ({"opset": 17, "input_names": ["features"], "output_name": "score", "n_features": 80, **NAMED}, ""),
        ({"opset": 18}, "its JSON says opset 18, the graph 17"),
        ({"input_names": ["x"]}, "its JSON says input_names ['x'], the graph ['features']"),
        ({"output_name": "vmaf"}, "its JSON says output_name vmaf, the graph score"),
        ({"n_features": 6}, "its JSON says n_features 6, the graph 80"),
        ({"features": ["adm2"]}, "the JSON names 1 features; the graph takes 80"),
        ({"onnx_has_scaler": True}, ""),
        ({"onnx_has_scaler": False}, "its JSON says that the graph does not hold the scaling, but not which scaling"),
        ({"onnx_has_scaler": False, **SCALING}, ""),
        ({"onnx_has_scaler": True, **SCALING}, "the graph does not hold the scaling feature_mean and feature_std of its JSON"),
        ({"onnx_has_scaler": False, **SCALING, "feature_std": [2.0]}, "80 values in feature_mean and 1 in feature_std"),
    ],
)
def test_verify_holds_the_json_against_the_graph(trained, tmp_path, about, wrong):
    checkpoint = publish(tmp_path, (trained[0] / "model_v000001.onnx").read_bytes(), {})
    digest = checkpoint.digest.read_text().strip()
    checkpoint.description.write_text(json.dumps({"sha256": digest, **about}))
    (verified,) = verify([tmp_path])
    assert verified.checks["inputs"].removeprefix(f"{checkpoint.description}: ").startswith(wrong)
    assert verified.ok == (not wrong)


def test_scaling_that_the_graph_begins_with_is_said_to_be_there(tmp_path, make_network):
    network = make_network([3, 4, 1])
    mean, factor = network.steps[0].value, network.steps[1].value
    stated = {"input_mean": mean.tolist(), "input_std": (1 / factor).tolist()}
    for flag, wrong in (
        (True, ""),
        (False, "the graph holds the scaling input_mean and input_std of its JSON, which says that"),
    ):
        publish(tmp_path / str(flag), to_bytes(network), {"onnx_has_scaler": flag, **stated})
        (verified,) = verify([tmp_path / str(flag)])
        assert verified.checks["inputs"].startswith(wrong)
        assert verified.ok is flag


def test_names_in_the_json_are_those_in_the_model(tmp_path, make_network):
    model = to_bytes(make_network([2, 4, 1]), {"feature_order": '["adm2", "motion2"]'})
    for names, ok in ((["integer_adm2", "motion2"], True), (["motion2", "adm2"], False)):
        publish(tmp_path / names[0], model, {"feature_order": names})
        assert verify([tmp_path / names[0]])[0].ok is ok
    assert verify([tmp_path / "motion2"])[0].checks["inputs"] == (
        "its JSON names the features motion2, adm2, the model adm2, motion2"
    )


def test_a_json_that_a_tool_has_rewritten_harms_no_other_checkpoint(tmp_path, random_rows, write_lines):
    directory, pairs = tmp_path / "c", write_lines(random_rows(1200))
    train = ("train-offline", pairs, "--output", directory, "--epochs", 30)
    assert run(*train).returncode == 0
    first = directory / "model_v000001.json"
    for rewritten in (
        '{"id":"x","kind":"fr","notes":"\\u00e9"}',
        "{",
        "[]",
        "",
        '{"sha256": 3, "journal": null, "settings": []}',
    ):
        first.write_text(rewritten)
        assert run(*train).returncode == 0
        newest = max(each.version for each in checkpoints(directory))
        assert linked(directory, "stable.onnx").version == newest
        others = {one.model.name: one.ok for one in verify([directory]) if one.model.name != "model_v000001.onnx"}
        assert others
        assert all(others.values())
        assert run("promote", 2, "--checkpoint-dir", directory).returncode == 0
        second = directory / "model_v000002.json"
        kept = {key: value for key, value in json.loads(second.read_text()).items() if key not in ("n_features", "settings")}
        second.write_text(json.dumps({**kept, "added": True}, indent=None))
        assert run(*train).returncode == 0
        assert linked(directory, "stable.onnx").version > newest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "{directory}/none.onnx", EXAMPLE], "none.onnx: no such file"),
        (["evaluate", "{directory}", EXAMPLE], "is a directory, not a model"),
        (["evaluate", "{junk}", EXAMPLE], "onnxruntime cannot load it"),
        (["evaluate", "{torch}", EXAMPLE], "a PyTorch file: make it ONNX with train-offline --base-model "),
        (["evaluate", "{directory}/latest.onnx", "{narrow}"], "takes 80 features, but "),
        (["inspect", "{junk}"], "not an ONNX model"),
        (["inspect", "{directory}/none.onnx"], "no such file"),
        (["verify", "{empty}"], "no checkpoint (model_vNNNNNN.onnx) in this directory"),
        (["verify", "{directory}/none.onnx"], "no such file"),
    ],
)
def test_bad_models_are_one_clear_line_and_exit_code_2(trained, tmp_path, random_rows, write_lines, arguments, message):
    (tmp_path / "junk.onnx").write_bytes(b"\x08junk")
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.pt").write_bytes(zip_file(linears((1, 80))))
    paths = {
        "torch": tmp_path / "model.pt",
        "directory": trained[0],
        "junk": tmp_path / "junk.onnx",
        "narrow": write_lines(random_rows(9)),
        "empty": tmp_path / "empty",
    }
    done = run(*(str(argument).format(**paths) for argument in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluate_says_which_pairs_the_model_was_trained_on(trained, tmp_path, monkeypatch):
    directory, said = trained
    model = directory / "stable.onnx"
    whole = document(run("evaluate", model, EXAMPLE, "--json"))
    assert whole["trained_on"] == said["pairs"]["train"] == 2256
    held_out = document(run("evaluate", model, EXAMPLE, "--held-out", "--json"))
    assert whole["not_trained_on"] == {name: held_out[name] for name in whole["not_trained_on"]}
    assert whole["not_trained_on"]["pairs"] == 240
    text = run("evaluate", model, EXAMPLE).stdout
    assert "not trained on" in text
    assert "2,256 of 2,496 pairs were trained on; these figures flatter the model\n" in text
    monkeypatch.chdir(EXAMPLE.parent)  # however the same file is named
    twice = document(run("evaluate", model, EXAMPLE.name, EXAMPLE, "--json"))
    assert (twice["pairs"], twice["trained_on"]) == (2 * 2496, 2 * 2256)
    copy = tmp_path / EXAMPLE.name
    copy.write_bytes(EXAMPLE.read_bytes())
    assert "trained_on" not in document(run("evaluate", model, copy, "--json"))
    both = document(run("evaluate", model, copy, EXAMPLE, "--json"))
    assert (both["pairs"], both["trained_on"]) == (2 * 2496, 2256)


def test_evaluate_measures_what_the_models_own_intervals_cover(trained, tmp_path, example):
    model = trained[0] / "latest.onnx"
    found = document(run("evaluate", model, EXAMPLE, "--json", "--group-by", "source"))["intervals"]
    about = json.loads((trained[0] / "latest.json").read_text())
    assert {**about["intervals"], "coverage": found["coverage"]} == found
    table = Intervals.from_json(about["intervals"])
    low, high = table.bounds(0.9, Scorer(model).predict(example.features), (0.0, 100.0))
    rest = example.position < 0.1  # the others were trained on
    inside = ((low <= example.true_score) & (example.true_score <= high))[rest]
    sources = example.group[rest]
    by_source = [inside[sources == source].mean() for source in np.unique(sources)]
    expected = [inside.mean(), np.mean(by_source), min(by_source), (high - low)[rest].mean()]
    assert [*found["coverage"]["0.9"].values()] == pytest.approx([*expected, 240])
    text = run("evaluate", model, EXAMPLE, "--group-by", "source").stdout
    assert f"90% intervals            {' '.join(f'{each:8.3f}' for each in expected)}" in text
    assert "made from 240 pairs of 20 held-out encodes; on unseen clips" in text


def test_a_table_of_another_model_or_that_cannot_be_used_is_not_used(trained, tmp_path):
    about = json.loads((trained[0] / "latest.json").read_text())
    model = tmp_path / "model.onnx"
    model.write_bytes((trained[0] / "latest.onnx").read_bytes())
    model.with_suffix(".json").write_text(json.dumps({**about, "sha256": "0" * 64}))
    assert "intervals" not in document(run("evaluate", model, EXAMPLE, "--json"))
    model.with_suffix(".json").write_text(json.dumps({**about, "intervals": {**about["intervals"], "predicted": []}}))
    done = run("evaluate", model, EXAMPLE, "--json")
    assert "intervals" not in document(done)
    assert "intervals: predicted: expected 1 to 256 numbers" in done.stderr


def test_evaluate_on_what_was_held_out_agrees_with_training(trained, tmp_path):
    directory, said = trained
    copy = tmp_path / EXAMPLE.name
    copy.write_bytes(EXAMPLE.read_bytes())
    for pairs in (EXAMPLE, copy):  # by the hash of their groups, whatever file they are in
        found = document(run("evaluate", directory / "latest.onnx", pairs, "--held-out", "--json", "--group-by", "source"))
        assert "trained_on" not in found
        assert found["pairs"] == said["pairs"]["held_out"] == sum(each["pairs"] for each in found["groups"])
        assert found["rmse"] == pytest.approx(said["metrics"]["held_out"]["ema"]["rmse"], rel=1e-4)
    report = tmp_path / "report.html"
    assert run("evaluate", directory / "latest.onnx", EXAMPLE, "--held-out", "--report", report).returncode == 0
    assert "the pairs that were kept out of the model's training" in report.read_text()
    assert run("evaluate", directory / "latest.onnx", EXAMPLE, "--report", report).returncode == 0
    assert "all pairs (2,256 of them were trained on, which flatters the model)" in report.read_text()


def test_what_the_base_model_was_trained_on_counts_too(trained, tmp_path, random_rows, write_lines):
    rows = [{**row, "features": row["features"] * 16} for row in random_rows(400)]
    options = ("--base-model", trained[0] / "latest.onnx", "--epochs", 1, "--holdout", 0.2, "--output", tmp_path / "c")
    assert run("train-offline", write_lines(rows), *options).returncode in (0, 1)
    model = tmp_path / "c" / "latest.onnx"
    assert document(run("evaluate", model, EXAMPLE, "--json"))["trained_on"] == 2256
    held_out = document(run("evaluate", model, EXAMPLE, "--held-out", "--json"))
    assert held_out["pairs"] == 240  # its own hold-out is 0.2, but the base model was trained on what is over 0.1
    about = model.resolve().with_suffix(".json")
    about.write_text(json.dumps({**json.loads(about.read_text()), "base_model": {"path": str(trained[0]), "sha256": None}}))
    assert "trained_on" not in document(run("evaluate", model, EXAMPLE, "--json"))


@pytest.mark.parametrize("holdout", [..., None, True, "0.1", float("nan")])
def test_a_hold_out_that_is_not_known(trained, tmp_path, holdout):
    model = (trained[0] / "model_v000001.onnx").read_bytes()
    made = publish(tmp_path, model, {"data": [3, str(EXAMPLE)], "settings": {}, "journal": [], "base_model": 3})
    if holdout is not ...:
        about = json.loads(made.description.read_text())
        made.description.write_text(json.dumps({**about, "settings": {"holdout": holdout}}))
    assert document(run("evaluate", made.model, EXAMPLE, "--json"))["trained_on"] is True
    assert "some of 2,496 pairs were trained on" in run("evaluate", made.model, EXAMPLE).stdout
    done = run("evaluate", made.model, EXAMPLE, "--held-out")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no JSON beside it that says which pairs were kept out" in done.stderr


def test_a_json_that_is_not_the_models_says_nothing(trained, tmp_path):
    made = publish(tmp_path, (trained[0] / "model_v000001.onnx").read_bytes(), {"data": [str(EXAMPLE)]})
    about = json.loads(made.description.read_text())
    for text in ("{", json.dumps({**about, "sha256": "0" * 64}), json.dumps({**about, "data": ["\0", "-"], "journal": 1})):
        made.description.write_text(text)
        assert "trained_on" not in document(run("evaluate", made.model, EXAMPLE, "--json"))


def test_held_out_pairs_where_there_are_none_are_told(tmp_path, random_rows, write_lines):
    path = write_lines(random_rows(80))
    assert run("train-offline", path, "--holdout", 0, "--epochs", 1, "--output", tmp_path / "c").returncode == 0
    done = run("evaluate", tmp_path / "c" / "latest.onnx", path, "--held-out")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "kept 0 of all pairs out of its training, none of these 80" in done.stderr
