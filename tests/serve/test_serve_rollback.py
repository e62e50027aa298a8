"""The whole loop: a poisoned stream makes a bad model stable, and clean pairs take it back."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import signal

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from sidecar import LiveModel
from sidecar.checkpoints.directory import LATEST, STABLE, checkpoints, linked
from sidecar.checkpoints.rollbacks import read_rollbacks
from sidecar.learning.metrics import rmse
from sidecar.models.description import read_description
from sidecar.state.anchor import read_anchor
from tests.conftest import EXAMPLE, run
from tests.monitoring.live import ask_json
from tests.running import free_address, metrics, wait_until


@pytest.fixture(scope="module")
def recorded():
    """Real pairs, as a node would send them."""
    with gzip.open(EXAMPLE) as stream:
        found = [json.loads(line) for line in stream]
    return [{name: each[name] for name in ("job_id", "group", "features", "true_score")} for each in found]


@pytest.fixture
def node_on():
    """Makes the model of a node that follows a directory."""
    with contextlib.ExitStack() as stack:
        yield lambda directory: stack.enter_context(LiveModel(directory, poll_s=0.05, registry=CollectorRegistry()))


def lines(pairs, off=0.0):
    scores = (min(100.0, max(0.0, pair["true_score"] + off)) for pair in pairs)
    return [json.dumps(pair | {"true_score": score}).encode() for pair, score in zip(pairs, scores, strict=True)]


def test_a_poisoned_stream_makes_a_bad_model_stable_and_clean_pairs_take_it_back(
    tmp_path, serve, recorded, write_lines, node_on
):
    # A good model is stable; the sidecar begins with it, and has no anchor yet.
    first = write_lines(recorded[:600], "first.jsonl")
    directory = tmp_path / "checkpoints"
    assert run("train-offline", first, "--output", directory, "--epochs", 60).returncode == 0
    good = linked(directory, STABLE)
    base = shutil.copy(good.model, tmp_path / "base.onnx")
    node = node_on(directory)
    features = np.array([pair["features"] for pair in recorded[1300:]], dtype=np.float32)
    scores = np.array([pair["true_score"] for pair in recorded[1300:]])

    def error():
        """Of what the node serves."""
        return rmse(node.predict(features), scores)

    good_error = error()

    # All scores are 20 points too low, those of the held-out pairs too: what has learned that passes the gate.
    address = free_address()
    settings = {"base_model": base, "checkpoint_interval": "1d", "holdout_fraction": 0.2, "http": address}
    sidecar = serve(**settings).connect()
    for start in range(600, 1300, 12):
        sidecar.send(lines(recorded[start : min(start + 12, 1300)], off=-20))
    sidecar.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: linked(directory, STABLE) != good)
    bad = linked(directory, STABLE)
    assert read_description(bad.model)["gate"]["verdict"] == "stable"
    wait_until(lambda: error() > good_error + 10)

    # The scores are right again: it is taken back within the window, without a restart of anything.
    for start in range(1300, 1700, 12):
        sidecar.send(lines(recorded[start : start + 12]))
    sidecar.logged("the stable checkpoint was taken back")
    assert linked(directory, STABLE) == good
    assert linked(directory, LATEST) == bad
    wait_until(lambda: error() == good_error)
    why = read_rollbacks(directory).rolled_back[bad.name]
    assert (why["predecessor"], why["groups"]) == (good.name, 30)
    assert 200 <= why["pairs"] <= 400
    assert why["error"] > why["predecessor_error"] + 10
    assert len(read_anchor(directory / "state")) == 0
    wait_until(lambda: metrics(address)["vmafx_training_rollbacks_total"] == 1)
    status = ask_json(address, "/status")
    assert status["rolled_back"] == f"{bad.name}: {why['reason']}"
    shown = {each["name"]: each for each in ask_json(address, "/api/checkpoints")["checkpoints"]}
    assert (shown[bad.name]["gate"], shown[bad.name]["reason"]) == ("rolled_back", why["reason"])

    # What has learned from the poison does not come back: not the next one, and not by a restart.
    for start in range(1700, 2300, 12):
        sidecar.send(lines(recorded[start : start + 12]))
    sidecar.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: linked(directory, LATEST) != bad)
    assert sidecar.stop() == 0
    assert {read_description(each.model)["gate"]["verdict"] for each in checkpoints(directory)[2:]} == {"unstable"}
    sidecar = serve(**settings).connect()
    wait_until(lambda: ask_json(address, "/status").get("rolled_back") == status["rolled_back"])
    sidecar.send(lines(recorded[2300:2400]))
    assert sidecar.stop() == 0
    assert linked(directory, STABLE) == good
