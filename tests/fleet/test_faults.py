"""Workers that are killed, and networks that are cut: the sample stays the same."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import threading
import time

import pytest

from sidecar.fleet.reading import Done
from sidecar.fleet.workers import processes
from tests.conftest import ROOT
from tests.fleet.sampled import digest
from tests.running import start_process, wait_until

pytestmark = pytest.mark.slow
KILLED, CUT_OFF_S = 50, 10
NAMESPACES = {f"vx{os.getpid()}a": "10.77.0.1", f"vx{os.getpid()}b": "10.77.0.2"}


def test_any_number_of_workers_and_any_order_give_the_same(journals):
    found = set()
    for count in (1, 2, 3):
        with processes(count) as workers:
            found |= {digest(workers, journals), digest(workers, journals[::-1])}
    assert len(found) == 1


def test_workers_that_are_killed_at_random_moments_change_nothing(journals):
    rng, killed = random.Random(0), 0

    def kill() -> None:
        nonlocal killed
        if children := multiprocessing.active_children():
            rng.choice(children).kill()
            killed += 1

    def told(done: Done) -> None:
        if rng.random() < 0.5:
            threading.Timer(rng.uniform(0, 0.3), kill).start()

    with processes(2) as workers:
        expected = digest(workers, journals)
    while killed < KILLED:
        with processes(2) as workers:
            assert digest(workers, journals, told) == expected
    wait_until(lambda: not multiprocessing.active_children(), "processes that end")


@pytest.fixture
def network():
    """Two network namespaces, and what lies between them."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root, and the program ip")

    def ip(*arguments: str, check: bool = True) -> int:
        return subprocess.run(["ip", *arguments], check=check, capture_output=True).returncode

    try:
        for name in NAMESPACES:
            if ip("netns", "add", name, check=False):
                pytest.skip("network namespaces are not allowed here")
        here, there = NAMESPACES
        ip("link", "add", here, "type", "veth", "peer", "name", there)
        for name, address in NAMESPACES.items():
            ip("link", "set", name, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", name)
            for device in (name, "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield lambda state: ip("-n", there, "link", "set", there, state)
    finally:
        for name in NAMESPACES:
            ip("netns", "del", name, check=False)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not here")
@pytest.mark.usefixtures("certificates")
@pytest.mark.parametrize("cut_off", ["worker", "command"])
def test_cluster_of_which_a_part_is_cut_off_for_ten_seconds_gives_the_same(tmp_path, journals, network, cut_off):
    with processes(2) as workers:
        expected = digest(workers, journals)
    here, there = NAMESPACES
    with (tmp_path / "log").open("w") as log, contextlib.ExitStack() as stack:

        def start(namespace: str, *arguments: object, stdout: object = log) -> subprocess.Popen[bytes]:
            command = ["ip", "netns", "exec", namespace, sys.executable, "-m"]
            return stack.enter_context(start_process(*arguments, command=command, cwd=ROOT, stdout=stdout, stderr=log))

        file = tmp_path / "scheduler.json"
        start(here, "dask", "scheduler", "--protocol", "tls", "--host", NAMESPACES[here], "--no-dashboard",
              "--scheduler-file", file)  # fmt: skip
        wait_until(lambda: file.exists() and file.stat().st_size > 0, "a scheduler")
        address = json.loads(file.read_text())["address"]
        for namespace in (here, there if cut_off == "worker" else here):
            start(namespace, "dask", "worker", address, "--nthreads", 1, "--no-dashboard", "--no-nanny",
                  "--local-directory", tmp_path)  # fmt: skip
        where = here if cut_off == "worker" else there
        lines = start(where, "tests.fleet.sampled", address, *journals, stdout=subprocess.PIPE).stdout
        assert lines is not None
        assert int(lines.readline()) < 48
        network("down")
        time.sleep(CUT_OFF_S)
        network("up")
        *_, last = lines
        assert last.decode().strip() == expected
