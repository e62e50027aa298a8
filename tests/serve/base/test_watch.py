"""When another file at the base model's path is read, what becomes of it, and what is told. Real files; no threads."""

from __future__ import annotations

import json
import logging
import os
from concurrent.futures import Executor, Future

import numpy as np
import pytest

import sidecar.serve.base.watch as watch_module
from onnx_builder import Clip, Dense, Network, Port
from onnx_builder.write import to_bytes
from sidecar.checkpoints.directory import checkpoints
from sidecar.models.base_model import load
from sidecar.online.start import where_to_start
from sidecar.online.training import OnlineTraining
from sidecar.serve.base.watch import LOOK_S, LOOKS, BaseWatch
from sidecar.serve.checkpointing import Checkpointing
from sidecar.settings import Settings
from sidecar.state.base_models import digest_of

NAMES = ["adm2", "motion2", "vif_scale0"]
PAIR = b'{"features": [0.5, 0.25, 0.125], "true_score": %d}'


def network(bias, width=3, low=0, high=100, port="features"):
    steps = (Dense(np.full((1, width), 0.01, dtype=np.float32), np.array([bias], dtype=np.float32)), Clip(low, high))
    return Network(width, steps, (Port(port, ("N", width)),), Port("score", ("N", 1)))


def digest(bias):
    """Of the base model that this network is."""
    return digest_of(network(bias).canonical())


def write(path, net, about=None):
    """As a careful writer does: whole, by a rename, the JSON before the model."""
    for target, data in ((path.with_suffix(".json"), json.dumps(about).encode() if about else None), (path, to_bytes(net))):
        if data is not None:
            temporary = path.parent / ".new"
            temporary.write_bytes(data)
            temporary.rename(target)


class Here(Executor):
    """Does all at once."""

    def submit(self, call, /, *arguments):
        done = Future()
        try:
            done.set_result(call(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done


class Watched:
    """A watch, the training that it looks after, and the time."""

    def __init__(self, settings):
        base, network, run, failed = where_to_start(settings)
        assert not failed
        self.online = OnlineTraining(settings.state, run, network)
        self.taken = []
        self.watch = BaseWatch(settings, self.online, base, Here(), Here(), self.taken.append)
        self.now, self.pairs = 0.0, 0

    def looks(self, count=LOOKS):
        for _ in range(count):
            self.watch.turn(self.now)  # begins a look
            self.watch.turn(self.now)  # takes it
            self.watch.turn(self.now)  # and what was read
            self.now += LOOK_S

    def pair(self):
        self.pairs += 1
        assert all(answer.ok is True for answer in self.online.accept([PAIR % self.pairs]))

    @property
    def told(self):
        status = self.watch.as_status()
        return status["base_models"], status["base_refused"]

    @property
    def base(self):
        return self.online.learner.run.base


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "base").mkdir()
    path = tmp_path / "base" / "model.onnx"
    write(path, network(50))
    return Settings(checkpoint_dir=tmp_path / "checkpoints", base_model=path, follow_base=True)


@pytest.fixture
def start():
    opened = []

    def start_one(settings):
        opened.append(Watched(settings))
        opened[-1].pair()
        return opened[-1]

    yield start_one
    for each in opened:
        each.online.close()


def test_a_model_that_is_renamed_into_place_is_followed_with_the_next_pair(settings, start, caplog):
    caplog.set_level(logging.INFO)
    watched = start(settings)
    watched.looks()
    assert (watched.told, watched.taken) == (({}, ""), [])
    write(settings.base_model, network(60))
    watched.looks(LOOKS - 1)
    watched.pair()
    assert watched.base == digest(50)
    watched.looks(1)
    assert watched.base == digest(50)
    watched.pair()
    assert watched.base == digest(60)
    assert watched.told == ({"followed": 1}, "")
    assert [each.network.forward(np.zeros((1, 3), dtype=np.float32)).item() for each in watched.taken] == [60]
    assert caplog.text.count("base model followed: a new run begins") == 1
    watched.looks(3 * LOOKS)
    watched.pair()
    assert watched.told == ({"followed": 1}, "")


def test_a_file_that_is_being_written_is_not_read(settings, start):
    watched, data = start(settings), to_bytes(network(60))
    watched.looks()
    with settings.base_model.open("wb", buffering=0) as stream:
        for place in range(0, len(data), 50):
            stream.write(data[place : place + 50])
            watched.looks(LOOKS - 1)
    assert watched.told == ({}, "")
    watched.looks(1)
    watched.pair()
    assert (watched.base, watched.told) == (digest(60), ({"followed": 1}, ""))


def test_a_json_that_comes_later_counts_too(settings, start):
    settings = Settings(checkpoint_dir=settings.checkpoint_dir, base_model=settings.base_model, base_scaler="json")
    about = {"feature_mean": [0.5] * 3, "feature_std": [2.0] * 3, "feature_order": NAMES}
    write(settings.base_model, network(50), about)
    watched = start(settings)
    write(settings.base_model, network(60))
    watched.looks()
    watched.pair()
    first = watched.base
    (settings.base_model.parent / ".new").write_text(json.dumps(about | {"feature_std": [4.0] * 3}))
    (settings.base_model.parent / ".new").rename(settings.base_model.with_suffix(".json"))
    watched.looks()
    watched.pair()
    assert watched.told == ({"followed": 2}, "")
    assert len({digest(50), first, watched.base}) == 3
    assert watched.base == digest_of(load(settings.base_model, scaler="json").network)


def test_links_of_a_mounted_config_map_that_are_swapped(tmp_path, settings, start):
    volume = tmp_path / "volume"
    for name, bias in (("..1", 50), ("..2", 60)):
        (volume / name).mkdir(parents=True)
        write(volume / name / "model.onnx", network(bias))
    (volume / "..data").symlink_to("..1")
    (volume / "model.onnx").symlink_to("..data/model.onnx")
    watched = start(Settings(checkpoint_dir=settings.checkpoint_dir, base_model=volume / "model.onnx"))
    watched.looks()
    (volume / "..data_tmp").symlink_to("..2")
    (volume / "..data_tmp").rename(volume / "..data")
    watched.looks()
    watched.pair()
    assert (watched.base, watched.told) == (digest(60), ({"followed": 1}, ""))


def test_a_model_where_there_was_none(tmp_path, settings, start):
    path = settings.base_model.parent / "later.onnx"
    watched = start(Settings(checkpoint_dir=settings.checkpoint_dir, base_model=path, n_features=3))
    watched.looks(3 * LOOKS)
    assert (watched.base, watched.told) == (None, ({}, ""))
    write(path, network(60))
    watched.looks()
    watched.pair()
    assert (watched.base, watched.told) == (digest(60), ({"followed": 1}, ""))


def test_a_model_that_is_removed_and_put_back_or_touched_begins_nothing(settings, start):
    watched = start(settings)
    watched.looks()
    data = settings.base_model.read_bytes()
    settings.base_model.unlink()
    watched.looks(2 * LOOKS)
    settings.base_model.write_bytes(data)
    watched.looks()
    os.utime(settings.base_model)
    watched.looks()
    watched.pair()
    assert (watched.base, watched.told, watched.taken) == (digest(50), ({}, ""), [])


@pytest.mark.parametrize(
    ("data", "about", "reason"),
    [
        (b"junk", None, "not an ONNX model"),
        (b"", None, "model.onnx: empty"),
        (to_bytes(network(60))[:-20], None, "not an ONNX model"),
        (to_bytes(network(60, width=4)), None, "the JSON names 3 features; the graph takes 4"),
        (to_bytes(network(60, width=4)), {"feature_order": [*NAMES, "vif_scale1"]}, "takes 4 features, not 3"),
        (to_bytes(network(60)), {"feature_order": ["adm2", "motion2", "vif_scale1"]}, "takes other features"),
        (to_bytes(network(60)), {"feature_order": NAMES[::-1]}, "in another order than adm2, motion2, vif_scale0"),
        (
            to_bytes(network(60)),
            {"settings": {"score_min": 0, "score_max": 5}},
            "its scores are from 0 to 5, not from 0 to 100",
        ),
        (to_bytes(network(60, high=5)), None, "its scores are from 0 to 5, not from 0 to 100"),
        (to_bytes(network(60)), {"target": "vmaf_4k_v0.6.1"}, "its scores are vmaf_4k_v0.6.1, not vmaf_v0.6.1"),
        (to_bytes(network(60)), "half a JSO", "not JSON"),
    ],
)
def test_what_cannot_be_used_or_is_used_otherwise_is_told_once_and_not_followed(settings, start, caplog, data, about, reason):
    known = {"feature_order": NAMES, "target": "vmaf_v0.6.1"}
    write(settings.base_model, network(50), known)
    watched = start(settings)
    watched.looks()
    text = about if isinstance(about, str) else json.dumps({**known, **(about or {})})
    settings.base_model.with_suffix(".json").write_text(text)
    settings.base_model.write_bytes(data)
    for _ in range(3):
        watched.looks(2 * LOOKS)
        watched.pair()
    counted, told = watched.told
    assert counted == {"refused": 1}
    assert reason in told
    assert str(settings.base_model) in told or ".json" in told
    assert caplog.text.count("base model not followed") == 1
    assert watched.base == digest(50)
    write(settings.base_model, network(60), known)  # a good one after it
    watched.looks()
    watched.pair()
    assert (watched.base, watched.told) == (digest(60), ({"refused": 1, "followed": 1}, ""))


def test_with_export_io_base_one_of_other_inputs_is_not_followed(settings, start):
    settings = Settings(checkpoint_dir=settings.checkpoint_dir, base_model=settings.base_model, export_io="base")
    watched = start(settings)
    write(settings.base_model, network(60, port="x"))
    watched.looks()
    assert "its inputs and output are others" in watched.told[1]
    write(settings.base_model, network(60))
    watched.looks()
    watched.pair()
    assert (watched.base, watched.told) == (digest(60), ({"refused": 1, "followed": 1}, ""))


def test_its_own_checkpoints_are_not_followed(settings, start):
    watched = start(settings)
    settings.checkpoint_dir.mkdir(exist_ok=True)
    own = settings.checkpoint_dir / "model_v000001.onnx"
    write(own, network(60))
    settings.base_model.unlink()
    settings.base_model.symlink_to(own)
    watched.looks()
    watched.pair()
    assert watched.base == digest(50)
    assert "is a checkpoint of this very sidecar's directory" in watched.told[1]


@pytest.mark.parametrize("good", [True, False])
def test_what_changes_while_it_is_read_is_read_again(settings, start, monkeypatch, good):
    watched = start(settings)
    watched.looks()
    settings.base_model.write_bytes(to_bytes(network(60)) if good else b"junk")
    real, changes = watch_module.next_base, [network(70)]

    def read(*arguments):
        try:
            return real(*arguments)
        finally:
            if changes:
                write(settings.base_model, changes.pop())

    monkeypatch.setattr(watch_module, "next_base", read)
    watched.looks(2 * LOOKS)
    watched.pair()
    assert (watched.base, watched.told) == (digest(70), ({"followed": 1}, ""))


def test_one_that_onnxruntime_computes_otherwise_is_not_followed(settings, start, monkeypatch):
    watched = start(settings)
    watched.looks()
    for _ in range(40):
        watched.pair()
    watched.online.backlog.wait()
    write(settings.base_model, network(60))
    with monkeypatch.context() as patch:
        patch.setattr("onnx_builder.runtime.Scorer.predict", lambda scorer, rows: np.zeros(len(rows)))
        watched.looks()
    assert "what was read differs from what onnxruntime computes" in watched.told[1]
    watched.pair()
    assert watched.base == digest(50)


def test_a_new_run_counts_its_pairs_to_the_next_checkpoint_anew(settings, start):
    watched = start(settings)
    checkpointing = Checkpointing(settings, load(settings.base_model), watched.online, Here(), Here(), lambda: None)
    watched.watch = BaseWatch(settings, watched.online, None, Here(), Here(), checkpointing.follow)
    for version, bias in ((1, 50), (2, 60)):
        write(settings.base_model, network(bias))
        watched.looks()
        watched.pair()
        while watched.online.learner.trainer.trained < 32:
            watched.pair()
            watched.online.backlog.wait()
        assert watched.online.learner.trainer.trained == 32
        checkpointing.finish()
        newest = checkpoints(settings.checkpoint_dir)[-1]
        about = json.loads(newest.description.read_text())
        assert (newest.version, about["base_model"]["sha256"]) == (version, load(settings.base_model).sha256)


def test_where_it_cannot_be_kept_with_the_state_it_is_tried_again(settings, start, monkeypatch, caplog):
    watched = start(settings)
    watched.looks()
    write(settings.base_model, network(60))
    with monkeypatch.context() as patch:

        def full(*arguments):
            raise watch_module.StateError("no space left on device")

        patch.setattr(watch_module, "keep_base", full)
        watched.looks(2 * LOOKS)
        watched.pair()
    assert (watched.base, watched.told) == (digest(50), ({}, ""))
    assert "the new base model is not followed yet: no space left on device" in caplog.text
    watched.looks()
    watched.pair()
    assert watched.base == digest(60)


def test_only_its_json_is_another_one(settings, start):
    write(settings.base_model, network(50), {"feature_order": NAMES})
    watched = start(settings)
    write(settings.base_model, network(50), {"feature_order": NAMES, "encoder_vocab": ["a"]})
    watched.looks()
    watched.pair()
    assert watched.told == ({}, "")
