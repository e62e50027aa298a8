"""A sidecar with `followBase`: another base model at its path, without a restart, and over a kill."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from onnx_builder.write import to_bytes
from sidecar.checkpoints.directory import checkpoints
from sidecar.learning.recipe import Recipe, fit
from tests.conftest import run
from tests.monitoring.live import ask_json
from tests.running import free_address, journalled, metrics, wait_until

FOLLOWED, REFUSED = (f'vmafx_training_base_models_total{{result="{result}"}}' for result in ("followed", "refused"))


@pytest.fixture(scope="module")
def others(example):
    """Two more base models, as bytes."""
    return [
        to_bytes(fit(example.features, example.true_score, np.arange(start, start + 100), Recipe(epochs=3)).ema.network())
        for start in (100, 200)
    ]


def test_a_base_model_that_is_replaced_is_followed_and_all_of_it_can_be_made_again(serve, base_path, others, lines, tmp_path):
    path, aside, address = tmp_path / "model.onnx", tmp_path / "new", free_address()
    path.write_bytes(base_path.read_bytes())
    settings = {"base_model": path, "follow_base": 1, "http": address, "holdout_fraction": 0.2, "snapshot_interval": 0.05}
    settings["changed"] = "import sidecar.serve.base.watch as watch\nwatch.LOOK_S = 0.05"
    sidecar = serve(**settings).connect()
    sent = 0

    def send(count):
        nonlocal sent
        assert all(answer["ok"] for answer in sidecar.send(lines[sent : sent + count]))
        sent += count

    def follows(times):
        """Send until another run has begun."""

        def begun():
            send(1)
            return metrics(address)[FOLLOWED] == times

        wait_until(begun)
        send(100)

    def publish(version):
        sidecar.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: len(checkpoints(sidecar.checkpoint_dir)) == version)

    send(300)
    publish(1)
    aside.write_bytes(others[0])
    aside.rename(path)
    follows(1)
    publish(2)
    path.write_bytes(b"junk")
    wait_until(lambda: metrics(address)[REFUSED] == 1)
    wait_until(lambda: "model.onnx" in ask_json(address, "/status").get("base_model_refused", ""))
    send(100)
    with path.open("wb", buffering=0) as stream:  # in two steps
        stream.write(others[1][:1000])
        stream.write(others[1][1000:])
    follows(2)
    wait_until(lambda: "base_model_refused" not in ask_json(address, "/status"))
    publish(3)
    sidecar.stop(signal.SIGKILL)
    sidecar = serve(**settings).connect()
    send(100)
    assert sidecar.stop() == 0
    assert sidecar.log.read_text().count("base model not followed") == 1
    assert sidecar.log.read_text().count("base model followed: a new run begins") == 2
    assert journalled(tmp_path) == lines[:sent]
    models = []
    for checkpoint in checkpoints(sidecar.checkpoint_dir):
        about = json.loads(checkpoint.description.read_text())
        models.append(about["base_model"]["sha256"])
        made = run(
            "train-offline", "--stream", sidecar.checkpoint_dir / "state", "--until", about["journal"]["last"], "--output",
            tmp_path / "again", "--json",
        )  # fmt: skip
        assert Path(json.loads(made.stdout)["checkpoint"]).read_bytes() == checkpoint.model.read_bytes()
    assert models[1] != models[0]
    assert models[2] == models[3] != models[1]
    assert run("verify", sidecar.checkpoint_dir / "state").returncode == 0
