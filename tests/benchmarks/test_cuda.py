"""What the benchmark of a GPU measures there runs on the device that is numpy, too."""

from __future__ import annotations

import importlib.util

import pytest

from sidecar.learning.online import trainer
from tests.conftest import ROOT
from tests.host_device import HostDevice


@pytest.fixture
def benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_of_a_gpu", ROOT / "benchmarks" / "cuda.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SECONDS", 0)
    monkeypatch.setattr(trainer, "next_fit", trainer.next_fit)  # which it changes
    return module


def test_all_steps_of_several_heads_are_taken(benchmark):
    assert benchmark.ours(8, 16, HostDevice(3)) > 0  # it checks that itself


def test_the_trainer_of_serve_runs_on_a_device_and_in_numpy(benchmark):
    assert benchmark.served(8, 32, HostDevice()) > 0
    assert benchmark.served(8, 32) > 0
    assert benchmark.in_numpy(8, 32) > 0
