"""`train-offline --stream`: recorded pairs in order, through the online learner."""

from __future__ import annotations

import errno
import gzip
import json
import os

import numpy as np
import pytest

from onnx_builder.read import read
from sidecar.checkpoints.directory import LATEST, STABLE, checkpoints, linked, tenant_directory
from sidecar.checkpoints.publishing import Terms
from sidecar.journal.blocks import RUN, encode_block
from sidecar.journal.repair import replace_segment
from sidecar.journal.run import ALGORITHM, Run
from sidecar.journal.segments import journal_segments, whole_blocks
from sidecar.learning.metrics import rmse
from sidecar.learning.training_settings import TrainingSettings
from sidecar.models.description import read_description
from sidecar.online.publication import publication
from sidecar.online.training import OnlineTraining
from sidecar.state.base_models import digest_of
from tests.conftest import EXAMPLE, run

pytestmark = pytest.mark.usefixtures("quick_fits")


@pytest.fixture
def state(tmp_path):
    """The state of a sidecar that began fresh and saw 600 pairs."""
    lines = gzip.decompress(EXAMPLE.read_bytes()).splitlines()[:600]
    online = OnlineTraining(tmp_path / "state", Run(80, TrainingSettings(), 0.05))
    online.accept(lines)
    online.close()
    return tmp_path / "state"


def stream(*arguments):
    return run("train-offline", "--stream", *arguments, "--json")


def test_a_journal_and_its_lines_as_a_file_make_the_same_checkpoint(state, tmp_path):
    from_state = stream(state, "--output", tmp_path / "a")
    assert from_state.returncode in (0, 1), from_state.stderr
    lines = [line for line in journal_segments(state)[0].read_bytes().splitlines() if not line.startswith(b"#")]
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(b"\n".join(lines))
    from_file = stream(file, "--output", tmp_path / "b")
    assert json.loads(from_state.stdout)["sha256"] == json.loads(from_file.stdout)["sha256"]
    about = json.loads((tmp_path / "a" / "model_v000001.json").read_text())
    assert about["journal"] == {"first": 0, "last": 599}
    assert about["pairs_seen"] > 500
    assert about["intervals"]["kind"] == "held-out"
    assert about["intervals"]["pairs"] == about["metrics"]["pairs"] == 12 * about["intervals"]["groups"]


def test_until_stops_after_a_position(state, tmp_path, example):
    done = stream(state, "--until", 399, "--output", tmp_path / "c")
    assert done.returncode in (0, 1), done.stderr
    assert json.loads((tmp_path / "c" / "model_v000001.json").read_text())["journal"]["last"] == 399
    whole = stream(state, "--output", tmp_path / "c")
    first, second = (read(tmp_path / "c" / f"model_v00000{n}.onnx").forward(example.features) for n in (1, 2))
    assert json.loads(whole.stdout)["version"] == 2
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{state}", "--until", "600"], "its last position is 599, but 600 was requested"),
        (["{state}", "--until", "100"], "101 pairs are too few for a checkpoint; a new model needs 256"),
        (["{empty}"], "a directory without a journal, and without files of pairs"),
    ],
)
def test_what_cannot_be_made_is_told(state, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {"state": state, "empty": tmp_path / "empty"}
    done = stream(*(argument.format(**places) for argument in arguments), "--output", tmp_path / "c")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "c").exists()


def test_a_journal_whose_beginning_is_gone_says_so(state, tmp_path):
    segment = journal_segments(state)[0]
    segment.rename(segment.with_name("000000000100.jsonl"))
    done = stream(state, "--output", tmp_path / "c")
    assert done.returncode == 2
    assert "retention has deleted the pairs before position 100; training on them cannot be repeated" in done.stderr


@pytest.mark.parametrize("recorded", ["none", "newer"])
def test_pairs_that_another_algorithm_trained_are_not_trained_again(state, tmp_path, recorded):
    segment = journal_segments(state)[0]
    number = f'"algorithm":{ALGORITHM},'.encode()
    then, told = (b"", 1) if recorded == "none" else (f'"algorithm":{ALGORITHM + 1},'.encode(), ALGORITHM + 1)
    blocks = [
        encode_block(block.position, [line.replace(number, then, 1) if line.startswith(RUN) else line for line in block.lines])
        for block in whole_blocks(segment)
    ]
    assert number in segment.read_bytes()
    replace_segment(segment, iter(blocks))
    done = stream(state, "--output", tmp_path / "c")
    assert done.returncode == 2
    assert f"pairs from position 0 on were trained by algorithm {told}; this program knows algorithm {ALGORITHM}" in done.stderr


def test_until_is_for_streams(tmp_path):
    done = run("train-offline", EXAMPLE, "--until", 3, "--output", tmp_path / "c")
    assert done.returncode == 2
    assert "--until needs --stream" in done.stderr


@pytest.mark.parametrize(
    "option", [["--learning-rate", "0.1"], ["--skip-bad"], ["--epochs", "3"], ["--score-max", "5"], ["--group-by", "x"]]
)
def test_options_that_it_would_pass_over_are_refused(state, tmp_path, option):
    done = stream(state, "--output", tmp_path / "c", *option)
    assert done.returncode == 2
    assert f"{option[0]} cannot be used with --stream" in done.stderr


def test_the_heads_of_tenants_are_made_again_as_they_were_published(tmp_path, example, base):
    """Encodes belong to two tenants in turn, the second of which scores ten points lower."""
    lines = []
    for number, line in enumerate(gzip.decompress(EXAMPLE.read_bytes()).splitlines()[:900]):
        pair, tenant = json.loads(line), number // 12 % 2
        lines.append(
            json.dumps({**pair, "true_score": max(0, pair["true_score"] - 10 * tenant), "tenant": "ab"[tenant]}).encode()
        )
    settings = TrainingSettings(tenants=("*",), tenant_rank=2)
    online = OnlineTraining(tmp_path / "state", Run(80, settings, 0.05, digest_of(base)), base)
    directory, stop = tmp_path / "checkpoints", 800
    online.accept(lines[:stop])
    publication(online.learner, Terms(directory), tmp_path / "state")()
    published = {
        name: [read_description(each.model) for each in checkpoints(tenant_directory(directory, name))] for name in "ab"
    }
    assert [about["tenant"]["name"] for each in published.values() for about in each] == ["a", "b"]
    assert published["b"][0]["gate"]["verdict"] == "stable"
    assert linked(tenant_directory(directory, "b"), STABLE).version == 1
    publication(online.learner, Terms(directory), tmp_path / "state")()
    assert len(checkpoints(tenant_directory(directory, "b"))) == 1  # no pair has come
    online.accept(lines[stop:])
    online.close()
    done = stream(tmp_path / "state", "--until", stop - 1, "--output", tmp_path / "again")
    assert done.returncode in (0, 1), done.stderr
    for name in "ab":
        mine, again = (tenant_directory(each, name) / "model_v000001.onnx" for each in (directory, tmp_path / "again"))
        assert mine.read_bytes() == again.read_bytes()
    unseen = slice(1500, 2400)
    lower = np.maximum(0, example.true_score[unseen] - 10)
    own, shared = (read(each / "model_v000001.onnx").forward(example.features[unseen]) for each in (mine.parent, directory))
    assert rmse(own, lower) < 0.5 * rmse(shared, lower)


def test_a_head_that_is_no_better_leaves_the_tenant_the_shared_model(tmp_path, example, base):
    lines = [
        json.dumps({**json.loads(line), "tenant": "a"}).encode()
        for line in gzip.decompress(EXAMPLE.read_bytes()).splitlines()[:40]
    ]
    lines[:16] = [line.replace(b', "tenant": "a"', b"") for line in lines[:16]]
    online = OnlineTraining(tmp_path / "state", Run(80, TrainingSettings(tenants=("a",)), 0, digest_of(base)), base)
    online.accept(lines)
    publication(online.learner, Terms(tmp_path / "c"), tmp_path / "state")()
    online.close()
    mine = tenant_directory(tmp_path / "c", "a")
    assert read_description(mine / "model_v000001.onnx")["gate"] == {
        "verdict": "unverified",
        "reason": "24 pairs of the tenant were predicted, fewer than 50",
    }
    assert [os.readlink(mine / name) for name in ("stable.onnx", "stable.json")] == ["../../stable.onnx", "../../stable.json"]
    assert linked(mine, LATEST).version == 1


def test_where_a_tenants_checkpoint_cannot_be_read_now_the_shared_one_is_published_and_told_so(tmp_path, base, monkeypatch):
    lines = [
        json.dumps({**json.loads(line), "tenant": "a"}).encode() if number // 10 % 2 else line
        for number, line in enumerate(gzip.decompress(EXAMPLE.read_bytes()).splitlines()[:200])
    ]
    online = OnlineTraining(tmp_path / "state", Run(80, TrainingSettings(tenants=("a",)), 0, digest_of(base)), base)
    directory, stat = tmp_path / "checkpoints", os.stat
    online.accept(lines[:100])
    publication(online.learner, Terms(directory), tmp_path / "state")()

    def stale(path, **options):
        if str(path).startswith(str(tenant_directory(directory, "a") / "model_")):
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", stale)
    online.accept(lines[100:])
    assert publication(online.learner, Terms(directory), tmp_path / "state")().checkpoint.version == 2
    online.close()
