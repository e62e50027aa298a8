"""Names of features in training: on the wire, over restarts and other orders, into the checkpoint's JSON."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from onnx_builder.network import Network
from onnx_builder.read import read
from onnx_builder.write import to_bytes
from sidecar.checkpoints.publishing import Terms
from sidecar.journal.run import Run
from sidecar.learning.training_settings import TrainingSettings
from sidecar.models.base_model import load
from sidecar.online.publication import publication
from sidecar.online.start import where_to_start
from sidecar.online.stream import train_stream
from sidecar.online.training import OnlineTraining
from sidecar.settings import Settings, SettingsError
from tests.small_states import BASE

pytestmark = pytest.mark.usefixtures("quick_fits")
NAMES = ("adm2", "vif_scale0", "motion2", "psnr_y")
SPELLED = ("integer_adm2", "VMAF_integer_feature_vif_scale0_score", "motion2", "psnr_y")
ORDERED = ("psnr_y", "adm2", "vif_scale0", "motion2")


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "base.onnx"
    path.write_bytes(to_bytes(BASE))
    path.with_suffix(".json").write_text(json.dumps({"feature_order": NAMES, "target": "vmaf_v0.6.1"}))
    return Settings(base_model=path, checkpoint_dir=tmp_path / "c", batch_size=8, replay_capacity=40, holdout_fraction=0.2)


def rows(count, seed=1):
    features = np.random.default_rng(seed).normal(size=(count, len(NAMES))).round(3)
    return features.tolist(), np.clip(60 + 12 * features.sum(axis=1), 0, 100).round(3).tolist()


def lines(kind, count=120):
    """The same pairs as arrays, or as objects with their names in random order and spelling."""
    draw, made = random.Random(2), []
    for number, (features, score) in enumerate(zip(*rows(count), strict=True)):
        named = [*zip(draw.choice([NAMES, SPELLED]), features, strict=True)]
        draw.shuffle(named)
        found = {
            "array": features,
            "object": dict(named),
            "ordered": [dict(zip(NAMES, features, strict=True))[n] for n in ORDERED],
        }
        made.append(json.dumps({"job_id": f"j{number}", "features": found[kind], "true_score": score}).encode())
    return made


def train(settings, batches):
    """The weights after each start takes a batch; a start that finds a state goes on."""
    for batch in batches:
        start = where_to_start(settings)
        assert not start.failed
        online = OnlineTraining(settings.state, start.run, start.begins_with)
        assert all(answer.ok is True for answer in online.accept(batch))
        online.backlog.wait()
        online.close()
    return online


def weights(online):
    return to_bytes(online.learner.trainer.network(online.learner.trainer.ema))


def test_objects_in_any_order_over_a_restart_train_as_arrays_do(settings, tmp_path):
    arrays = train(settings, [lines("array")])
    objects = train(replace(settings, checkpoint_dir=tmp_path / "o"), [lines("object")[:50], lines("object")[50:]])
    mixed = train(replace(settings, checkpoint_dir=tmp_path / "m"), [lines("array")[:50], lines("object")[50:]])
    assert weights(arrays) == weights(objects) == weights(mixed)
    assert arrays.learner.run.features == arrays.learner.run.order == NAMES


def test_arrays_in_a_configured_order_are_put_into_the_base_models(settings, tmp_path):
    ordered = replace(settings, features=ORDERED, checkpoint_dir=tmp_path / "o")
    online = train(ordered, [lines("ordered")[:50], lines("ordered")[50:]])
    assert weights(online) == weights(train(settings, [lines("array")]))
    assert (online.learner.run.features, online.learner.run.order) == (ORDERED, NAMES)


def test_pairs_of_before_a_reordering_are_read_in_the_order_of_their_own_run(settings, tmp_path):
    expected = weights(train(settings, [lines("array")]))
    moved = replace(settings, checkpoint_dir=tmp_path / "m")
    train(moved, [lines("array")[:50]])
    for snapshot in moved.state.glob("snapshot_*"):
        snapshot.unlink()
    online = train(replace(moved, features=ORDERED), [lines("ordered")[50:]])
    assert weights(online) == expected
    published = train_stream([moved.state], tmp_path / "again")
    assert to_bytes(read(published.checkpoint.model)) == expected


def test_another_base_model_with_another_order_takes_the_pairs_so_far_with_it(settings, tmp_path):
    online = train(settings, [lines("array")[:50]])
    places = [NAMES.index(name) for name in ORDERED]
    before = online.learner.trainer.replay.rows()
    held_out = online.learner.held_out.rows()
    other = tmp_path / "other.onnx"
    scale, *rest = BASE.steps
    other.write_bytes(to_bytes(Network(BASE.n_features, (replace(scale, value=scale.value * 2), *rest))))
    other.with_suffix(".json").write_text(json.dumps({"features": ORDERED}))
    for _ in range(2):  # and once more from the journal
        online = train(replace(settings, base_model=other), [[]])
        assert (online.learner.run.features, online.learner.run.order) == (NAMES, ORDERED)
        assert np.array_equal(online.learner.trainer.replay.rows()[:, : len(NAMES)], before[:, places])
        assert np.array_equal(online.learner.held_out.rows()[:, : len(NAMES)], held_out[:, places])
        for snapshot in settings.state.glob("snapshot_*"):
            snapshot.unlink()


def test_names_that_a_base_model_does_not_take_are_told_with_what_to_set(settings):
    start = where_to_start(replace(settings, features=("adm2", "vif_scale0", "motion2", "psnr_cb")))
    assert "missing: psnr_y; not known: psnr_cb" in start.failed
    assert "set VMAFX_SIDECAR_FEATURES to adm2,vif_scale0,motion2,psnr_y" in start.failed
    start = where_to_start(replace(settings, n_features=80))
    assert start.failed.endswith("takes 4 features, not 80: set VMAFX_SIDECAR_N_FEATURES to 4, or leave it out")


def test_a_state_of_other_names_is_moved_aside(settings, tmp_path, caplog):
    fresh = replace(settings, base_model=tmp_path / "none.onnx", features=NAMES)
    train(fresh, [lines("array")[:20]])
    start = where_to_start(replace(fresh, features=("adm2", "vif_scale0", "motion2", "cambi")))
    assert start.run.features == ("adm2", "vif_scale0", "motion2", "cambi")
    assert "moved aside" in caplog.text
    assert not (settings.state / "journal").exists()


def test_names_go_on_with_the_state_and_a_state_without_names_takes_them(settings, tmp_path):
    fresh = replace(settings, base_model=tmp_path / "none.onnx", n_features=4)
    train(fresh, [lines("array")[:20]])
    assert where_to_start(fresh).run.features == ()
    named = train(replace(fresh, features=SPELLED), [lines("object")[20:40]])
    assert named.journal.position == 40
    assert where_to_start(fresh).run.features == NAMES


def test_a_checkpoint_says_what_it_takes_and_what_its_scores_are(settings):
    online = train(settings, [lines("array")])
    terms = Terms(settings.checkpoint_dir, 100.0, load(settings.base_model))
    published = publication(online.learner, terms, settings.state)()
    about = json.loads(published.checkpoint.description.read_text())
    assert about["feature_order"] == [*NAMES]
    assert about["target"] == "vmaf_v0.6.1"


def test_a_pair_of_another_target_is_refused_and_an_old_one_is_read_all_the_same(settings):
    with_target = [line[:-1] + b', "target": "vmaf_v0.6.1"}' for line in lines("array")]
    train(settings, [with_target[:20]])
    other = replace(settings, target="vmaf_4k_v0.6.1")
    start = where_to_start(other)
    online = OnlineTraining(other.state, start.run, start.begins_with)
    assert online.journal.position == 20
    (answer,) = online.accept(with_target[20:21])
    assert answer.error == "target: 'vmaf_v0.6.1' is not what is trained on here, 'vmaf_4k_v0.6.1'"
    online.close()


def test_a_run_is_written_down_with_its_names(settings):
    run = replace(where_to_start(settings).run, features=ORDERED)
    assert Run.from_json(json.loads(json.dumps(run.as_json()))) == run
    assert Run(4, TrainingSettings(), 0.1).features == ()


def test_a_feature_that_is_named_twice_in_two_spellings_is_told(settings):
    with pytest.raises(
        SettingsError, match=r"^VMAFX_SIDECAR_FEATURES=adm2,motion2,integer_adm2: adm2 is there more than once$"
    ):
        where_to_start(replace(settings, features=("adm2", "motion2", "integer_adm2")))
    settings.base_model.with_suffix(".json").write_text(json.dumps({"features": ["adm2", "float_adm2", "motion2", "psnr_y"]}))
    assert "the JSON names adm2 more than once" in where_to_start(settings).failed
