"""A sidecar whose steps run on a GPU: killed and started again, and with states that come from a processor and go back."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from onnx_builder.read import from_bytes
from sidecar.journal.segments import read_journal
from tests.conftest import run, run_process
from tests.devices import MISSING, needs_gpu
from tests.running import journalled, published
from tests.serve.test_serve_kill import BUSY, PAIRS_A_LIFE, live_and_die, run_of


@pytest.mark.skipif(not MISSING, reason="there is a GPU")
@pytest.mark.parametrize("command", [("serve", "--cuda", "1", "--http", ""), ("train-offline", "no.jsonl", "--device", "cuda")])
def test_without_a_gpu_it_says_what_is_missing(command, tmp_path):
    done = run_process(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert MISSING in done.stderr


@needs_gpu
def test_killed_ten_times_it_ends_where_it_would_have_ended(serve, base_path, lines, tmp_path):
    stream, settings = lines[: PAIRS_A_LIFE * 11], {"cuda": 1, "base_model": base_path, **BUSY}
    run_of(serve, tmp_path / "whole", settings, stream)
    live_and_die(10, lambda life: serve(tmp_path / "killed", **settings), [stream], random.Random(5))
    assert journalled(tmp_path / "killed") == stream
    assert published(tmp_path / "killed")[-1] == published(tmp_path / "whole")[-1]
    assert run("verify", tmp_path / "killed" / "checkpoints").returncode == 0


@needs_gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_state_goes_to_the_gpu_and_back(serve, base_path, lines, example, tmp_path, optimizer):
    stream, settings = lines[:600], {"base_model": base_path, "optimizer": optimizer, **BUSY}
    run_of(serve, tmp_path / "processor", settings, stream)
    for at, cuda in ((0, 0), (200, 1), (400, 0)):
        run_of(serve, tmp_path / "both", {**settings, "cuda": cuda}, stream[at : at + 200])
    scores = [from_bytes(published(tmp_path / name)[-1]).forward(example.features) for name in ("processor", "both")]
    np.testing.assert_allclose(*scores, rtol=0, atol=0.02)
    state = tmp_path / "both" / "checkpoints" / "state"
    kernels = [entry.run["kernel"] for entry in read_journal(state) if entry.run]
    assert [kernel.startswith("CUDA") for kernel in dict.fromkeys(kernels)] == [False, True]
    again = run("train-offline", "--stream", state, "--output", tmp_path / "again", "--json")
    assert "were trained on CUDA" in again.stderr
    repeated = from_bytes(Path(json.loads(again.stdout)["checkpoint"]).read_bytes())
    np.testing.assert_allclose(repeated.forward(example.features), scores[1], rtol=0, atol=0.02)
