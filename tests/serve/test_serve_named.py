"""Features by name on the socket: the same checkpoint as from arrays, whatever the order, over a restart."""

from __future__ import annotations

import json
import random
import signal

import pytest

from sidecar.checkpoints.directory import checkpoints
from tests.conftest import ROOT, run
from tests.running import free_address

NAMES = (ROOT / "examples" / "recorded-80.features").read_text().strip().split(",")


@pytest.fixture
def as_objects(lines):
    draw = random.Random(0)

    def shuffled(line):
        pair = json.loads(line)
        named = [*zip(NAMES, pair["features"], strict=True)]
        draw.shuffle(named)
        spelled = {f"integer_{name}" if draw.random() < 0.2 else name: value for name, value in named}
        return json.dumps(pair | {"features": spelled}).encode()

    return [shuffled(line) for line in lines]


def test_objects_in_random_order_over_a_restart_and_a_kill_make_the_bytes_of_arrays(
    serve, base_path, lines, as_objects, tmp_path
):
    settings = {"base_model": base_path, "features": ",".join(NAMES), "holdout_fraction": 0.2}
    arrays = serve(tmp_path / "arrays", **settings).connect()
    assert all(answer["ok"] for answer in arrays.send(lines[:450]))
    assert arrays.stop() == 0

    for part, ending in ((as_objects[:150], signal.SIGKILL), (as_objects[150:300], signal.SIGTERM)):
        objects = serve(tmp_path / "objects", **settings, checkpoint_interval=1e6).connect()
        assert all(answer["ok"] for answer in objects.send(part))
        objects.process.send_signal(ending)
        objects.process.wait()
    objects = serve(tmp_path / "objects", **settings, http=(address := free_address())).connect()
    assert all(answer["ok"] for answer in objects.send(lines[300:310] + as_objects[310:450]))
    (refused,) = objects.send([as_objects[0].replace(b'"integer_', b'"double_').replace(b'"adm2_mean"', b'"adm9_mean"')])
    assert refused["error"].startswith("features: missing: ")
    status = json.loads(run("status", "--http", address, "--json").stdout)
    assert status["features"] == NAMES
    assert status["drifting_feature"] in NAMES
    assert objects.stop() == 0

    made, expected = (checkpoints(tmp_path / name / "checkpoints")[-1] for name in ("objects", "arrays"))
    assert made.model.read_bytes() == expected.model.read_bytes()
    assert json.loads(made.description.read_text())["feature_order"] == NAMES
