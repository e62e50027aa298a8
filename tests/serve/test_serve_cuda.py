"""A sidecar whose steps run on a GPU: killed and started again, and with states that come from a processor and go back."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from onnx_builder.read import from_bytes
from sidecar.checkpoints.directory import checkpoints, tenant_directory
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


def of_two_tenants(lines):
    """The pairs of lines, in turn of two tenants, one of which has other scores, and of none."""
    pairs = [json.loads(line) for line in lines]
    for number, pair in enumerate(pairs):
        if tenant := ["a", "b", ""][number // 5 % 3]:
            pair["tenant"] = tenant
        pair["true_score"] = max(0.0, pair["true_score"] - (5 if tenant == "b" else 0))
    return [json.dumps(pair).encode() for pair in pairs]


def newest(directory):
    """The newest checkpoints in a sidecar's directory: of all, and of each tenant that has some."""
    directory = directory / "checkpoints"
    found = (checkpoints(each) for each in (directory, *(tenant_directory(directory, name) for name in "ab")))
    return [each[-1].model.read_bytes() for each in found if each]


@needs_gpu
@pytest.mark.parametrize(("kills", "tenants"), [(10, {}), (3, {"tenants": "a,b", "tenant_rank": 1})])
def test_killed_it_ends_where_it_would_have_ended(serve, base_path, lines, tmp_path, kills, tenants):
    stream, settings = lines[: PAIRS_A_LIFE * (kills + 1)], {"cuda": 1, "base_model": base_path, **BUSY, **tenants}
    stream = of_two_tenants(stream) if tenants else stream
    run_of(serve, tmp_path / "whole", settings, stream)
    live_and_die(kills, lambda life: serve(tmp_path / "killed", **settings), [stream], random.Random(5))
    assert journalled(tmp_path / "killed") == stream
    assert newest(tmp_path / "killed") == newest(tmp_path / "whole")
    assert len(newest(tmp_path / "whole")) == (3 if tenants else 1)
    assert run("verify", tmp_path / "killed" / "checkpoints").returncode == 0


@needs_gpu
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"optimizer": "adam", "lr": 1e-5},  # at the default rate rounding moves what Adam gives in numpy itself
        {"tenants": "a,b", "tenant_rank": 1},
    ],
)
def test_a_state_goes_to_the_gpu_and_back(serve, base_path, lines, example, tmp_path, changed):
    """Up to the first later fit, which makes tenths of a point of rounding, in numpy too."""
    stream, settings = lines[:240], {"base_model": base_path, **changed, **BUSY}
    stream = of_two_tenants(stream) if "tenants" in changed else stream
    run_of(serve, tmp_path / "processor", settings, stream)
    for at, cuda in ((0, 0), (80, 1), (160, 0)):
        run_of(serve, tmp_path / "both", {**settings, "cuda": cuda}, stream[at : at + 80])
    for models in zip(*(newest(tmp_path / name) for name in ("processor", "both")), strict=True):
        scores = [from_bytes(model).forward(example.features) for model in models]
        np.testing.assert_allclose(*scores, rtol=0, atol=0.01)
    state = tmp_path / "both" / "checkpoints" / "state"
    kernels = [entry.run["kernel"] for entry in read_journal(state) if entry.run]
    assert [kernel.startswith("CUDA") for kernel in dict.fromkeys(kernels)] == [False, True]
    again = run("train-offline", "--stream", state, "--output", tmp_path / "again", "--json")
    assert "were trained on CUDA" in again.stderr
    repeated = from_bytes(Path(json.loads(again.stdout)["checkpoint"]).read_bytes())
    scores = from_bytes(published(tmp_path / "both")[-1]).forward(example.features)
    np.testing.assert_allclose(repeated.forward(example.features), scores, rtol=0, atol=0.01)
