"""Workers: processes that die, schedulers that are refused or lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sidecar.fleet import workers as module
from sidecar.fleet.shared import SharedArray
from sidecar.fleet.workers import LostError, Pieces, SchedulerError, cluster, processes
from tests.conftest import ROOT
from tests.running import wait_until


def once_dead(directory: str, number: int) -> int:
    """The process that does number 1 dies the first time."""
    marker = Path(directory) / "died"
    if number == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def always_dead() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fails(number: int) -> int:
    if number == 3:
        raise ValueError("the fourth")
    return number


def first(array: SharedArray) -> float:
    return float(array.array[0, 0])


def test_what_a_dead_worker_had_is_done_again(tmp_path):
    with processes(2) as workers:
        assert sorted(workers.run(once_dead, [(str(tmp_path), n) for n in range(3)])) == [(n, n) for n in range(3)]


def large(number: int) -> bytes:
    return bytes([number]) * (8 << 20)


def test_workers_may_die_while_they_hand_over_results():
    with processes(2) as workers:
        for number, found in workers.run(large, [(number,) for number in range(12)]):
            assert found == large(number)
            if number in (3, 8):
                for child in multiprocessing.active_children():
                    child.kill()


def in_pieces(count: int) -> tuple[str, Pieces[np.ndarray]]:
    return "beside", Pieces(np.full(1 << 19, number) for number in range(count))


def peak_megabytes() -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM")) // 1000


def take_pieces() -> None:
    with processes(1) as workers:
        before = peak_megabytes()
        for _, (beside, pieces) in workers.run(in_pieces, [(50,)] * 2):
            assert beside == "beside"
            assert [piece.sum() >> 19 for piece in pieces] == [*range(50)]
        print(peak_megabytes() - before)


def test_pieces_are_loaded_one_at_a_time():
    run = [sys.executable, "-c", "from tests.fleet import test_workers as here; here.take_pieces()"]
    taken = int(subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert taken < 60  # of 210 MB


def test_a_call_that_always_kills_its_worker_ends_the_work(monkeypatch):
    monkeypatch.setattr(module, "_LOSSES", 2)
    with processes(1) as workers, pytest.raises(LostError, match="1 process: workers were lost 2 times"):
        [*workers.run(always_dead, [()])]


def test_errors_of_calls_are_raised_and_processes_end():
    with processes(1) as workers, pytest.raises(ValueError, match="the fourth"):
        [*workers.run(fails, [(n,) for n in range(50)])]
    wait_until(lambda: not multiprocessing.active_children(), "processes that end")


def test_shared_arrays_are_seen_without_a_copy():
    array = SharedArray((4, 2), float)
    array.array[0, 0] = 7
    with processes(1) as workers:
        assert [*workers.run(first, [(array,)])] == [(0, 7.0)]


@pytest.mark.parametrize(
    "address",
    [
        "tcp://10.0.0.1:8786",
        "tcp://scheduler:8786",
        "scheduler:8786",
        "http://127.0.0.1:8786",
        "tls://scheduler",
        "tcp://[::1]:x",
    ],
)
def test_schedulers_that_are_refused(address):
    with pytest.raises(SchedulerError, match="--scheduler"), cluster(address):
        pass


def test_tls_needs_certificates(monkeypatch):
    pytest.importorskip("distributed")
    with pytest.raises(SchedulerError, match="no certificates"), cluster("tls://127.0.0.1:1"):
        pass


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SchedulerError, match=r"pip install 'vmafx-sidecar\[fleet\]'"), cluster("tls://scheduler:8786"):
        pass
