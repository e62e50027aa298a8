"""A Dask cluster of two workers on loopback, with TLS."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from sidecar.fleet.reading import Done, Sampling
from sidecar.fleet.sample import Limits
from sidecar.fleet.workers import LostError, cluster
from sidecar.pairs.tables.choice import Columns
from tests.conftest import EXAMPLE, run_process
from tests.running import wait_until

dask_config = pytest.importorskip("dask.config", reason="distributed is not here: pip install 'vmafx-sidecar[fleet]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not here"),
]


@pytest.fixture
def dask(tmp_path, certificates):
    """The address of a scheduler with two workers, and its process."""
    started = []

    def start(name, *arguments):
        with (tmp_path / f"{name}.log").open("wb") as log:
            started.append(subprocess.Popen([sys.executable, "-m", "dask", *arguments], stdout=log, stderr=log, cwd=tmp_path))
        return started[-1]

    file = tmp_path / "scheduler.json"
    scheduler = start(
        "scheduler", "scheduler", "--protocol", "tls", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
        "--scheduler-file", file,
    )  # fmt: skip
    wait_until(lambda: file.exists() and file.stat().st_size > 0, "a scheduler")
    for number in range(2):
        start(f"worker-{number}", "worker", "--scheduler-file", file, "--nthreads", "1", "--no-dashboard", "--no-nanny")
    yield json.loads(file.read_text())["address"], scheduler
    for process in started:
        process.kill()
        process.wait()


def test_it_gives_the_bytes_of_processes_and_its_loss_publishes_nothing(tmp_path, dask):
    address, scheduler = dask
    assert address.startswith("tls://")
    arguments = ("train-offline", EXAMPLE, "--epochs", 2, "--group-by", "codec", "--sample", 1000, "--per-group", 5)
    digests = []
    for name, who in (("here", ("--workers", 2)), ("there", ("--scheduler", address))):
        done = run_process(*arguments, *who, "--output", tmp_path / name)
        assert done.returncode in (0, 1), done.stderr
        digests.append((tmp_path / name / "model_v000001.onnx.sha256").read_text())
    assert digests[0] == digests[1]

    def lose(done: Done) -> None:
        if done.parts == 2:
            scheduler.kill()

    (tmp_path / "parts").mkdir()
    for number in range(8):
        shutil.copy(EXAMPLE, tmp_path / "parts" / f"{number}.jsonl.gz")
    with dask_config.set({"distributed.comm.timeouts.connect": "2s"}), cluster(address) as workers:
        sampling = Sampling(workers, Limits(1000, 5), lose)
        with pytest.raises(LostError, match="the scheduler is lost"):
            sampling.read([tmp_path / "parts"], Columns(), score_min=0, score_max=100, skip_bad=False)
    done = run_process(*arguments, "--scheduler", address, "--output", tmp_path / "lost",
                       env={**os.environ, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s"})  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.endswith("; nothing was published\n")
    assert not (tmp_path / "lost").exists() or not [*(tmp_path / "lost").glob("*.onnx")]
