"""Files that fail at random, and kills on top: what was answered is there, and the state is that of a run without faults.

`FAULT_RUNS=100 python -m pytest tests/serve/test_serve_faults.py -m slow` is the longer run.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from onnx_builder.write import to_bytes
from sidecar.online.start import where_to_start
from sidecar.online.training import OnlineTraining
from tests.conftest import run
from tests.running import Sidecar, journalled
from tests.small_states import BASE, small_lines, small_settings, state_digest

RUNS = int(os.environ.get("FAULT_RUNS", "2"))
LIVES, PAIRS_A_LIFE, ATTEMPTS = 4, 120, 40
OPTIONS = {
    "snapshot_interval": 0.05, "checkpoint_interval": 0, "min_samples": 16,
    "batch_size": 8, "replay_capacity": 24, "holdout_fraction": 0.1,
}  # fmt: skip
CHANGED = """
import sidecar.journal.writer, sidecar.serve.maintenance
sidecar.journal.writer.SEGMENT_BYTES = 10_000
sidecar.serve.maintenance.SEGMENT_BYTES = 0
sidecar.serve.maintenance.HOUSEKEEPING_S = 0.2
sidecar.serve.maintenance.SYNC_S = 0.02
"""
"""Segments are closed and compressed, and what has failed is tried again, many times in a life."""


@pytest.fixture(scope="module")
def faults(tmp_path_factory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run([compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    environment = {"LD_PRELOAD": str(library), "FAULTS_BELOW": "/", "FAULTS_ONE_IN": "1", "FAULTS_SEED": "1"}
    assert subprocess.run(["cat", source], env={**os.environ, **environment}, capture_output=True).returncode
    return library


class Lives:
    """Sidecars on one directory, one after the other. answered: pairs that were answered with `ok`."""

    def __init__(self, directory: Path, faults: Path, lines: list[bytes], chance: random.Random) -> None:
        self.directory, self._faults, self._chance = directory, faults, chance
        self._base = directory / "base.onnx"
        directory.mkdir()
        self._base.write_bytes(to_bytes(BASE))
        self.left, self.answered = [*lines], list[bytes]()
        self.starts = self.refused = 0

    def start(self, faulty: bool) -> Sidecar:
        """One that accepts pairs. With faults, a start may end with exit code 2, and is made again."""
        one_in = self._chance.choice([10, 30, 100])
        for _ in range(100):
            environment = {
                "LD_PRELOAD": str(self._faults), "FAULTS_BELOW": str(self.directory / "checkpoints"),
                "FAULTS_ONE_IN": str(one_in), "FAULTS_SEED": str(self._chance.getrandbits(60)),
            }  # fmt: skip
            options = {"base_model": self._base, **OPTIONS}
            sidecar = self._sidecar = Sidecar(self.directory, CHANGED, environment if faulty else {}, **options)
            self.starts += 1
            if sidecar.accepts():
                return sidecar
            assert (sidecar.process.wait(), faulty) == (2, True), sidecar.log.read_text()
            one_in += one_in // 4  # where one call in ten fails, hardly any start succeeds
        raise AssertionError(sidecar.log.read_text())

    def end(self) -> None:
        """Leave none of them behind."""
        self._sidecar.end()

    def send(self, sidecar: Sidecar, count: int) -> None:
        """Send pairs; those that are refused for now are left, behind those that have not been sent."""
        lines, self.left = self.left[:count], self.left[count:]
        for line, answer in zip(lines, sidecar.send(lines), strict=True):
            if answer["ok"]:
                self.answered.append(line)
            else:
                assert answer["retryable"], answer
                self.refused += 1
                self.left.append(line)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(RUNS))
def test_with_files_that_fail_and_kills_nothing_answered_is_lost_and_the_state_is_the_same(tmp_path, request, faults, seed):
    chance = random.Random(seed)
    lines = small_lines(LIVES * PAIRS_A_LIFE + 20)
    lives = Lives(tmp_path / "faulty", faults, lines, chance)
    request.addfinalizer(lives.end)
    for life in range(LIVES):
        sidecar = lives.start(faulty=True)
        for _ in range(ATTEMPTS):
            if len(lives.answered) >= PAIRS_A_LIFE * (life + 1):
                break
            lives.send(sidecar, chance.randrange(1, 12))
            time.sleep(chance.random() * 0.05)
        if chance.random() < 0.25:
            assert sidecar.stop() == 0, sidecar.log.read_text()
        else:
            sidecar.client.sendall(b"".join(line + b"\n" for line in lives.left[:3])[: chance.randrange(1, 400)])
            assert sidecar.stop(signal.SIGKILL) == -signal.SIGKILL, sidecar.log.read_text()
    sidecar = lives.start(faulty=False)
    while lives.left:
        lives.send(sidecar, len(lives.left))
    assert sidecar.stop() == 0, sidecar.log.read_text()
    log = sidecar.log.read_text()
    assert "Traceback" not in log
    assert "damage in the state directory" not in log
    accepted = journalled(lives.directory)
    assert sorted(accepted) == sorted(lines)
    print(f"seed {seed}: {lives.starts} starts, {lives.refused} refusals, {log.count(' ERROR ')} errors in the log")
    settings = small_settings(sidecar.checkpoint_dir, lives.directory / "base.onnx")
    assert digest(sidecar.checkpoint_dir / "state", settings, []) == digest(tmp_path / "whole", settings, accepted)
    assert run("verify", sidecar.checkpoint_dir).returncode == 0
    assert run("verify", sidecar.checkpoint_dir / "state").returncode == 0


def digest(state: Path, settings, lines: list[bytes]) -> str:
    """Of the state in a directory once it has taken these pairs."""
    online = OnlineTraining(state, where_to_start(settings).run, BASE)
    for start in range(0, len(lines), 50):
        assert all(answer.ok is True for answer in online.accept(lines[start : start + 50]))
    online.backlog.wait()
    found = state_digest(online)
    online.close()
    return found
