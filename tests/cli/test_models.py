"""The commands that look at a model: evaluate, inspect and verify."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sidecar.checkpoints.directory import publish
from tests.conftest import EXAMPLE, run


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


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (lambda d: (d / "model_v000001.onnx.sha256").write_text("0" * 64 + "\n"), "digest"),
        (lambda d: (d / "model_v000001.onnx.sha256").unlink(), "digest"),
        (lambda d: (d / "model_v000001.json").write_text("{"), "description"),
        (lambda d: (d / "model_v000001.json").unlink(), "description"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "{directory}/none.onnx", EXAMPLE], "none.onnx: no such file"),
        (["evaluate", "{directory}", EXAMPLE], "is a directory, not a model"),
        (["evaluate", "{junk}", EXAMPLE], "onnxruntime cannot load it"),
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
    paths = {
        "directory": trained[0],
        "junk": tmp_path / "junk.onnx",
        "narrow": write_lines(random_rows(9)),
        "empty": tmp_path / "empty",
    }
    done = run(*(str(argument).format(**paths) for argument in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
