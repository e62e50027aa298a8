"""The command `train-offline` as a person or a script uses it."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnx_builder.read import from_bytes
from onnx_builder.runtime import Scorer
from tests.conftest import EXAMPLE, run, tree

QUICK = ("--epochs", 3)


def train(*arguments, **options):
    return run("train-offline", *QUICK, *arguments, **options)


def document(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_example_trains_to_a_good_model(trained):
    directory, said = trained
    assert said["checkpoint"] == str(directory / "model_v000001.onnx")
    assert said["pairs"]["train"] + said["pairs"]["held_out"] == 2496
    assert said["n_features"] == 80
    for weights in ("live", "ema"):
        assert said["metrics"]["held_out"][weights]["rmse"] < 1.5
        assert said["metrics"]["held_out"][weights]["plcc"] > 0.998
        assert said["metrics"]["train"][weights]["rmse"] < 1.0
    assert said["gate"]["verdict"] == "stable"
    assert said["parity_max_abs_diff"] <= 1e-4 * 100
    assert os.readlink(directory / "stable.onnx") == os.readlink(directory / "latest.onnx") == "model_v000001.onnx"


def test_description_has_what_the_contract_asks(trained):
    directory, said = trained
    about = json.loads((directory / "model_v000001.json").read_text())
    asked = (
        "name kind onnx_opset input_name output_name version sha256 n_features created_at base_model step pairs_seen "
        "settings metrics gate parity_max_abs_diff journal"
    )
    assert set(asked.split()) <= about.keys()
    assert (about["name"], about["kind"], about["onnx_opset"], about["version"]) == ("model_v000001", "fr", 17, 1)
    assert about["metrics"] == said["metrics"]["held_out"]["ema"]
    assert about["settings"]["seed"] == 0
    table = about["intervals"]
    assert [table[name] for name in ("kind", "by", "groups", "pairs")] == ["held-out", "encode", 20, 240]


def test_tables_for_people(trained, tmp_path, write_lines, random_rows):
    directory, _ = trained
    done = train(write_lines([*random_rows(400), b"junk"]), "--output", tmp_path / "c", "--group-by", "group", "--skip-bad")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "features: the array; score: true_score; group: group; job: job_id"
    assert done.stdout.splitlines()[2] == "Each group, predicted by a model that was trained on the others:"
    for words in ("all, pooled", "train", "live", "EMA", "PLCC", "SROCC", "RMSE", "pairs per second", "rows skipped: 1 wrong"):
        assert words in done.stdout
    assert done.stdout.splitlines()[-1] == f"checkpoint: {tmp_path / 'c' / 'model_v000001.onnx'}"
    assert done.stderr == ""
    assert "evaluated" in run("evaluate", directory / "latest.onnx", EXAMPLE).stdout


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(tmp_path, random_rows, write_lines):
    path = write_lines(random_rows(300))
    digests = [document(train(path, "--output", tmp_path / name, "--seed", seed, "--json"))["sha256"] for name, seed in
               (("a", 1), ("b", 1), ("c", 2))]  # fmt: skip
    assert digests[0] == digests[1] != digests[2]


def test_every_group_is_held_out_once_and_the_checkpoint_is_trained_on_all(tmp_path, random_rows, write_lines):
    rows = random_rows(300)
    for i, row in enumerate(rows):
        row["source"] = "abc"[i % 3]
    said = document(train(write_lines(rows), "--group-by", "source", "--output", tmp_path / "c", "--json"))
    loso = said["loso"]
    assert [(g["group"], g["pairs"]) for g in loso["groups"]] == [("a", 100), ("b", 100), ("c", 100)]
    assert loso["min_plcc"] == min(g["plcc"] for g in loso["groups"])
    assert loso["mean_plcc"] == pytest.approx(np.mean([g["plcc"] for g in loso["groups"]]))
    assert loso["pooled_rmse"] ** 2 == pytest.approx(np.mean([g["rmse"] ** 2 for g in loso["groups"]]))
    assert said["pairs"] == {"train": 300, "held_out": 0, "skipped": 0}
    about = json.loads((tmp_path / "c" / "model_v000001.json").read_text())
    assert about["loso"] == loso
    table = about["intervals"]
    assert [table[name] for name in ("kind", "by", "groups", "pairs")] == ["left-out", "source", 3, 300]
    assert said["intervals"] == table
    assert min(table["half_widths"]["0.9"]) > loso["pooled_rmse"] / 4


def test_holdout_splits_by_whole_groups_and_a_larger_one_holds_out_more(tmp_path, random_rows, write_lines):
    path = write_lines(random_rows(2000))
    counts = []
    for share in ("0", "0.05", "0.1", "0.5"):
        counts.append(document(train(path, "--holdout", share, "--output", tmp_path / share, "--json"))["pairs"]["held_out"])
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert all(count % 4 == 0 for count in counts)
    assert 140 < counts[2] < 260


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "leaky_relu"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_settings_of_a_fresh_head(tmp_path, random_rows, write_lines, activation, optimizer):
    path = write_lines(random_rows(200, 7))
    settings = ("--hidden", 9, "--activation", activation, "--optimizer", optimizer, "--learning-rate", 0.003, "--epochs", 150)
    said = document(run("train-offline", path, "--output", tmp_path / "c", *settings, "--json"))
    network = from_bytes((tmp_path / "c" / "latest.onnx").read_bytes())
    assert network.dense_widths == (7, 9, 1)
    assert activation in [getattr(step, "name", None) for step in network.steps]
    assert said["metrics"]["train"]["ema"]["rmse"] < 8


def test_checkpoint_worse_than_the_stable_one_is_published_but_not_stable(tmp_path, random_rows, write_lines):
    path = write_lines(random_rows(1200))
    assert run("train-offline", path, "--output", tmp_path / "c", "--epochs", 30).returncode == 0
    worse = run("train-offline", path, "--output", tmp_path / "c", "--epochs", 1, "--learning-rate", 1e-6, "--json")
    assert worse.returncode == 1
    assert json.loads(worse.stdout)["gate"]["verdict"] == "unstable"
    assert os.readlink(tmp_path / "c" / "latest.onnx") == "model_v000002.onnx"
    assert os.readlink(tmp_path / "c" / "stable.onnx") == "model_v000001.onnx"
    two_scores = helper.make_graph(
        [helper.make_node("Concat", ["x", "x"], ["y"], axis=1)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
    )  # fmt: skip
    loads = helper.make_model(two_scores, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    for cannot_be_used in (b"junk", loads):
        (tmp_path / "c" / "stable.onnx").resolve().write_bytes(cannot_be_used)
        done = run("train-offline", path, "--output", tmp_path / "c", "--epochs", 30)
        assert done.returncode == 0
        assert "WARNING: stable.onnx is not compared with" in done.stderr


@pytest.mark.parametrize(
    "form", ["one", "two equal", "constant features", "constant scores", "one constant", "few", "huge spread", "largest"]
)
def test_odd_pairs_train_to_a_finite_model(tmp_path, random_rows, write_lines, form):
    rows = random_rows(3 if form == "few" else 100)
    for i, row in enumerate(rows):
        if form == "constant features":
            row["features"] = [0.1] * 5
        elif form == "constant scores":
            row["true_score"] = 97.5
        elif form == "one constant":
            row["features"][2] = -7.25
        elif form == "huge spread":
            row["features"][2] *= 10.0 ** (i % 70 - 35)
        elif form == "largest":
            row["features"][2:4] = (-1) ** i * 3.4e38, 3.4e38 if i == 50 else 0
    if form == "one":
        rows = rows[:1]
    elif form == "two equal":
        rows = [rows[0]] * 2
    done = train(write_lines(rows), "--holdout", 0, "--output", tmp_path / "c", "--json")
    assert document(done)["gate"]["verdict"] == "unverified"
    assert done.stderr == ""
    model = tmp_path / "c" / "model_v000001.onnx"
    features = np.array([row["features"] for row in rows], dtype=np.float32)
    scores = Scorer(model).predict(np.vstack([features, features * 0, features + 1e6, features * 0 - 3.4e38]))
    assert np.isfinite(scores).all()
    assert ((scores >= 0) & (scores <= 100)).all()
    if form in ("one", "two equal", "constant scores"):
        assert scores[: len(rows)] == pytest.approx([row["true_score"] for row in rows], abs=0.5)
    if form in ("one", "two equal", "constant features", "constant scores"):
        assert "–" in run("evaluate", model, write_lines(rows)).stdout


BAD_LINE = b'{"features":[1,2,3],"true_score":5}'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{good}", "nowhere.jsonl"], "nowhere.jsonl: No such file or directory"),
        (["{bad}"], "line 401: features: expected 5 numbers, got 3"),
        (["{good}", "--holdout", "1"], "1.0 is not in the range 0<=x<1"),
        (["{good}", "--holdout", "nan"], "nan is not a finite number"),
        (["{good}", "--lr", "inf"], "inf is not a finite number"),
        (["{good}", "--holdout", "0.9999"], "use 0 to train on all"),
        (["{good}", "--epochs", "-1"], "-1 is not in the range x>=0"),
        (["{good}", "--learning-rate", "nan"], "nan"),
        (["{good}", "--batch-size", "x"], "'x' is not a valid integer"),
        (["{good}", "--optimizer", "lion"], "'lion' is not one of 'sgd', 'adam'"),
        (["{good}", "--activation", "softplus"], "'softplus' is not one of"),
        (["{good}", "--score-max", "-1"], "--score-min 0 is not below --score-max -1"),
        (["{good}", "--score-max", "inf"], "--score-min 0, --score-max inf: expected numbers from -3.4e+38 to 3.4e+38"),
        (["{good}", "--group-by", "codec"], "no column 'codec' to group by"),
        (["{good}", "--group-by", "source"], "leaving out one group at a time needs at least two groups, got ['only']"),
        (["{good}", "--output", "{good}"], "is not a directory"),
        (["{good}", "--output", "/proc/nowhere"], "/proc"),
        (["{good}", "--output", "/dev/full/x"], "/dev/full is not a directory"),
        (["{good}", "--workers", "2", "--scheduler", "tls://a:1"], "--workers and --scheduler cannot be used together"),
        (["{good}", "--sample", "10"], "--sample and --per-group need --workers or --scheduler"),
        (["{good}", "--scheduler", "tcp://scheduler:8786"], "without TLS only on loopback"),
        (["-", "--workers", "1"], "standard input cannot be read by several workers"),
        (["{bad}", "--workers", "1"], "line 401: features: expected 5 numbers, got 3"),
        (["{good}", "--frobnicate"], "No such option"),
        ([], "Missing argument 'PAIRS...'"),
        (["/proc/self/fdinfo"], "a directory without a journal"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(tmp_path, monkeypatch, random_rows, write_lines, arguments, message):
    rows = [{**row, "source": "only"} for row in random_rows(400)]
    paths = {"good": write_lines(rows, "good.jsonl"), "bad": write_lines([*rows, BAD_LINE], "bad.jsonl")}
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = train(*(argument.format(**paths) for argument in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert tree(tmp_path) == before


def test_a_learning_rate_that_diverges_never_publishes_a_model_that_is_not_finite(tmp_path, random_rows, write_lines):
    done = train(write_lines(random_rows(400)), "--learning-rate", 1e30, "--output", tmp_path / "c")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: training diverged at step ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_pairs_from_standard_input(tmp_path, random_rows):
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in random_rows(50))
    assert document(train("-", "--output", tmp_path / "c", "--holdout", 0, "--json", stdin=lines))["pairs"]["train"] == 50
    done = train("-", "--output", tmp_path / "c", stdin=b"junk\n")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "standard input: line 1: not JSON" in done.stderr
