"""Snapshots, and trainers that go on from them bit for bit."""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from sidecar.learning.online.trainer import Trainer
from sidecar.learning.recipe import Recipe, fit
from sidecar.learning.training_settings import TrainingSettings
from sidecar.state.damage import Damages
from sidecar.state.snapshots import read_snapshot, read_snapshots, snapshots, write_snapshot

SETTINGS = TrainingSettings(replay_capacity=100)


@pytest.fixture(scope="module")
def base(example):
    return fit(example.features, example.true_score, np.arange(200), Recipe(epochs=10)).ema.network()


def feed(trainer, example, start, stop):
    return trainer.add(example.features[start:stop], example.true_score[start:stop])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("stop", [0, 7, 16, 40, 100, 255, 256, 300])
@pytest.mark.usefixtures("quick_fits")
def test_a_trainer_goes_on_bit_for_bit_from_its_state(tmp_path, example, base, optimizer, with_base, stop):
    settings = replace(SETTINGS, optimizer=optimizer)
    uninterrupted = Trainer(80, settings, base if with_base else None)
    feed(uninterrupted, example, 0, stop)
    write_snapshot(tmp_path, stop, uninterrupted.state())
    ((position, state),) = read_snapshots(tmp_path)
    assert position == stop
    restored = Trainer.from_state(80, settings, state)
    assert feed(restored, example, stop, stop + 290) == feed(uninterrupted, example, stop, stop + 290)
    expected, found = uninterrupted.state(), restored.state()
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        assert np.array_equal(array, found[name]), name


def test_a_state_is_a_copy(example, base):
    trainer = Trainer(80, SETTINGS, base)
    feed(trainer, example, 0, 48)
    state = trainer.state()
    before = {name: array.copy() for name, array in state.items()}
    feed(trainer, example, 48, 200)
    assert all(np.array_equal(state[name], before[name]) for name in before)


def test_writing_a_snapshot_takes_no_memory_for_a_copy_of_it(tmp_path):
    state = {"replay": np.arange(10 << 20, dtype=np.float32)}  # 40 MiB
    tracemalloc.start()
    try:
        path = write_snapshot(tmp_path, 1, state)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 35 << 20
    assert np.array_equal(read_snapshot(path)["replay"], state["replay"])


def test_two_snapshots_are_kept(tmp_path):
    for position in (5, 10, 20):
        write_snapshot(tmp_path, position, {"x": np.arange(position)})
    assert [position for position, _ in snapshots(tmp_path)] == [20, 10]
    assert [(position, len(state["x"])) for position, state in read_snapshots(tmp_path)] == [(20, 20), (10, 10)]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-30], lambda data: b"", lambda data: b"junk", lambda data: data.replace(b"\x07", b"\x08", 1)]
)
def test_a_damaged_snapshot_is_passed_over(tmp_path, caplog, damage):
    write_snapshot(tmp_path, 1, {"x": np.full(100, 7)})
    path = write_snapshot(tmp_path, 2, {"x": np.full(100, 7)})
    path.write_bytes(damage(path.read_bytes()))
    assert [position for position, _ in read_snapshots(tmp_path)] == [1]
    damages = Damages(tmp_path)
    assert [position for position, _ in read_snapshots(tmp_path, damages)] == [1]
    assert damages.counts == {"snapshot": 1}
    assert damages.names == [f"000001-{path.name}"]
    assert not path.exists()
    assert "damage in the state directory" in caplog.text


def test_a_snapshot_that_cannot_be_written_leaves_the_others(tmp_path, monkeypatch):
    write_snapshot(tmp_path, 1, {"x": np.arange(3)})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sidecar.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_snapshot(tmp_path, 2, {"x": np.arange(3)})
    assert os.listdir(tmp_path) == ["snapshot_000000000001.npz"]


def test_where_there_is_no_state_there_are_no_snapshots(tmp_path):
    assert list(read_snapshots(tmp_path / "none")) == []
