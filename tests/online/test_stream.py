"""`train-offline --stream`: recorded pairs in order, through the online learner."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from onnx_builder.read import read
from sidecar.journal.blocks import RUN, encode_block
from sidecar.journal.repair import replace_segment
from sidecar.journal.run import ALGORITHM, Run
from sidecar.journal.segments import journal_segments, whole_blocks
from sidecar.learning.training_settings import TrainingSettings
from sidecar.online.training import OnlineTraining
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
