"""Standard streams that are closed, or that nobody reads, harm neither the journal nor the answers."""

from __future__ import annotations

import itertools
import json
import os
import subprocess

import pytest

from sidecar import FeedbackClient
from tests.conftest import ROOT
from tests.running import PATIENCE_S, journalled, unhurried, wait_until

CLOSED = [" ".join(f"{n}>&-" for n in numbers) for k in (1, 2, 3) for numbers in itertools.combinations((0, 1, 2), k)]


@pytest.mark.parametrize("closed", CLOSED[2::2])
def test_closed_standard_streams_are_opened_to_nowhere(base_path, lines, tmp_path, closed):
    path = tmp_path / "s.sock"
    options = ["--socket", path, "--checkpoint-dir", tmp_path / "checkpoints", "--http", "", "--base-model", base_path]
    command = ["sh", "-c", f'exec "$0" "$@" {closed}', *unhurried(), "serve", *map(str, options)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        wait_until(lambda: path.exists() or process.poll() is not None)
        with FeedbackClient(path) as client:
            for line in lines[:50]:
                pair = json.loads(line)
                client.send(pair["features"], pair["true_score"], pair["job_id"])
        assert client.delivered == 50
        opened = {number: os.readlink(f"/proc/{process.pid}/fd/{number}") for number in (0, 1, 2)}
        for number in (0, 1, 2):
            if f"{number}>&-" in closed:
                assert opened[number] == os.devnull
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    assert len(journalled(tmp_path)) == 50
