"""A model that reloads itself: one whole, verified model for each call, and none that does not fit."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import prometheus_client
import pytest

from onnx_builder import Network, Port
from onnx_builder.write import to_bytes
from sidecar import LiveModel
from sidecar.checkpoints.directory import promote, share_stable, tenant_directory
from sidecar.consumer.live_model import NoModelError, _close_all
from sidecar.consumer.verified import verified
from sidecar.learning.intervals import IntervalError
from tests.consumer.published import ROW, ModelServer, constant, publish_model, score_of
from tests.running import PATIENCE_S, wait_until

SOON = {"poll_s": 0.01}


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture
def registry():
    return prometheus_client.CollectorRegistry()


@pytest.fixture(params=["directory", "http"])
def source(request, directory):
    if request.param == "directory":
        yield directory
        return
    with ModelServer(directory).running() as server:
        yield server.url


def one(model, row=ROW):
    return float(model.predict(row)[0])


def test_it_predicts_with_each_new_stable_model(source, directory, registry):
    publish_model(directory, constant(20))
    with LiveModel(source, **SOON, registry=registry) as model:
        assert one(model) == pytest.approx(score_of(20))
        assert model.predict([]).shape == (0,)
        publish_model(directory, constant(30))
        wait_until(lambda: model.version == "model_v000002")
        assert model.predict(np.stack([ROW, 2 * ROW])) == pytest.approx([score_of(30), score_of(30, 2 * ROW)])
        publish_model(directory, constant(40), stable=False)
        promote(directory, 1)
        wait_until(lambda: model.version == "model_v000001")
        assert model.predict_with_version(ROW) == (pytest.approx(score_of(20)), "model_v000001")
        assert model.about["sha256"] == directory.joinpath("model_v000001.onnx.sha256").read_text().strip()
        assert (model.swaps, model.reason) == ({"ok": 3, "refused": 0, "failed": 0, "fallback": 0}, "")


def test_a_base_model_predicts_until_there_is_one(directory, tmp_path, registry):
    base = tmp_path / "base.onnx"
    base.write_bytes(to_bytes(constant(10)))
    with LiveModel(directory, base=base, **SOON, registry=registry) as model:
        assert (model.version, one(model)) == ("base", pytest.approx(score_of(10)))
        assert "stable.onnx: no such file or directory" in model.reason
        publish_model(directory, constant(30))
        wait_until(lambda: model.version == "model_v000001")
        assert (one(model), model.reason) == (pytest.approx(score_of(30)), "")


def test_scaling_that_a_json_leaves_to_whoever_predicts_is_applied(directory, registry):
    publish_model(directory, constant(20), feature_mean=[0.5, 0, 0], feature_std=[1, 2, 1], onnx_has_scaler=False)
    with LiveModel(directory, **SOON, registry=registry) as model:
        scaled = (ROW - np.array([0.5, 0, 0], dtype=np.float32)) / np.array([1, 2, 1], dtype=np.float32)
        assert one(model) == pytest.approx(score_of(20, scaled))
        publish_model(directory, constant(30))
        wait_until(lambda: model.version == "model_v000002")
        assert one(model) == pytest.approx(score_of(30))


def test_without_a_model_it_says_so_or_waits(source, directory, registry):
    with pytest.raises(NoModelError, match=r"stable\.onnx: (no such file|answered 404)"):
        LiveModel(source, registry=registry)
    publishing = threading.Timer(0.1, publish_model, (directory, constant(20)))
    publishing.start()
    with LiveModel(source, wait_s=PATIENCE_S, **SOON, registry=registry) as model:
        assert one(model) == pytest.approx(score_of(20))
    publishing.join()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"poll_s": 0}, "poll_s=0: expected a number of seconds above 0, at most"),
        ({"poll_s": float("inf")}, "poll_s=inf: expected a number of seconds above 0, at most"),
        ({"wait_s": -1}, "wait_s=-1: expected a number from 0"),
        ({"swap_drain_timeout": float("nan")}, "swap_drain_timeout=nan: expected a number from 0"),
        ({"score_deviation": -1.0}, "score_deviation=-1.0: expected a number above 0"),
        ({"fallback_threshold": -1}, "fallback_threshold=-1: expected a number from 0"),
        ({"policy": "newest"}, "policy='newest': expected one of"),
        ({"tenant": "../b"}, r"tenant='\.\./b': expected 1 to 64 letters"),
        ({"base": "nowhere.onnx"}, r"nowhere\.onnx: no such file"),
    ],
)
def test_arguments_that_cannot_be_used_are_told(directory, registry, arguments, message):
    with pytest.raises(ValueError, match=message):
        LiveModel(directory, **arguments, registry=registry)


TABLE = {"kind": "left-out", "by": "source", "groups": 8, "pairs": 96, "predicted": [20, 40],
         "half_widths": {"0.5": [1, 2], "0.9": [30, 50]}}  # fmt: skip


def test_it_gives_the_bounds_of_the_models_own_intervals(source, directory, registry):
    publish_model(directory, constant(20), intervals=TABLE)
    with LiveModel(source, **SOON, registry=registry) as model:
        scores, low, high, version = model.predict([ROW, -2 * ROW], interval=0.5)
        assert scores == pytest.approx(model.predict([ROW, -2 * ROW]))
        half = np.interp(scores, [20, 40], [1, 2])
        assert (low, high) == (pytest.approx(scores - half), pytest.approx(scores + half))
        assert (low.dtype, high.dtype, version) == (np.float32, np.float32, "model_v000001")
        assert model.predict(ROW, interval=0.9).low.tolist() == [0]
        with pytest.raises(IntervalError, match=r"interval=0\.8: expected one of 0\.5, 0\.9"):
            model.predict(ROW, interval=0.8)
        publish_model(directory, constant(30), intervals={**TABLE, "predicted": [40, 20]})
        wait_until(lambda: model.reason)
        assert "intervals: predicted: expected 1 to 256 numbers, each above the one before" in model.reason
        publish_model(directory, constant(40))
        wait_until(lambda: model.version == "model_v000003")
        with pytest.raises(IntervalError, match="model_v000003 has no table of prediction intervals in its JSON"):
            model.predict(ROW, interval=0.9)
        assert one(model) == pytest.approx(score_of(40))


NAMES = {"feature_order": ["adm2", "vif_scale0", "motion2"]}
OTHER_ORDER = {"feature_order": ["vif_scale0", "adm2", "motion2"]}


@pytest.mark.parametrize(
    ("network", "about", "message"),
    [
        (constant(30, width=4), {}, "model_v000002: it takes 4 features, model_v000001 takes 3"),
        (constant(30), OTHER_ORDER, "in another order: vif_scale0 is in the place of adm2"),
        (constant(30), {"settings": {"score_min": 0, "score_max": 10}}, "its scores are from 0 to 10"),
        (constant(30), {"target": "vmaf_v0.6.1neg"}, "its scores are vmaf_v0.6.1neg, those of model_v000001 vmaf_v0.6.1"),
    ],
)
def test_what_does_not_fit_the_present_model_is_refused(source, directory, registry, network, about, message):
    publish_model(directory, constant(20), **NAMES, target="vmaf_v0.6.1")
    with LiveModel(source, **SOON, registry=registry) as model:
        publish_model(directory, network, **about)
        wait_until(lambda: model.reason)
        assert message in model.reason
        assert (model.version, one(model)) == ("model_v000001", pytest.approx(score_of(20)))
        publish_model(directory, constant(40))
        wait_until(lambda: model.version == "model_v000003")
        assert model.swaps["refused"] == 1
        assert model.reason == ""


def test_rows_by_name_go_on_with_a_model_that_has_no_names(directory, registry):
    publish_model(directory, constant(20), **NAMES)
    with LiveModel(directory, **SOON, registry=registry) as model:
        publish_model(directory, constant(30))
        wait_until(lambda: model.version == "model_v000002")
        row = dict(zip(reversed(NAMES["feature_order"]), reversed(ROW.tolist()), strict=True))
        assert one(model, row) == pytest.approx(score_of(30))
        publish_model(directory, constant(40), **OTHER_ORDER)
        wait_until(lambda: model.reason)
        assert "in another order" in model.reason


def test_a_model_that_onnxruntime_runs_otherwise_on_real_rows_is_refused(directory, registry, monkeypatch):
    publish_model(directory, constant(20))
    with LiveModel(directory, **SOON, registry=registry) as model:
        model.predict(ROW)
        seen = []

        def otherwise(verified, rows):
            seen.append(rows)
            return verified.network.forward(rows) + 1

        monkeypatch.setattr("sidecar.consumer.serving.by_numpy", otherwise)
        publish_model(directory, constant(30))
        wait_until(lambda: model.reason)
        assert model.reason == ("model_v000002: onnxruntime and numpy differ by 1 on the last 1 rows; at most 0.01 is allowed")
        assert (seen[0] == ROW).all()


def test_scores_that_are_far_off_are_refused_if_that_is_asked_for(directory, registry):
    publish_model(directory, constant(20))
    with LiveModel(directory, score_deviation=5, **SOON, registry=registry) as model:
        model.predict([ROW] * 3)
        publish_model(directory, constant(24))
        wait_until(lambda: model.version == "model_v000002")
        publish_model(directory, constant(30))
        wait_until(lambda: model.reason)
        assert model.reason.startswith("model_v000003: its scores differ by 6 points from those of model_v000002 on the last 3")
        assert one(model) == pytest.approx(score_of(24))


def observe(model, true, groups=40, pairs=6):
    """Pairs of so many groups, whose true scores are about `true`, and differ by encode."""
    rng = np.random.default_rng(0)
    for group in range(groups):
        rows = ROW + rng.normal(size=(pairs, ROW.size), scale=0.1)
        model.observe(rows, true + rng.normal() + rng.normal(size=pairs, scale=0.1), group=f"g{group}")


@pytest.mark.parametrize(("true", "used"), [(20, "model_v000001"), (30, "model_v000002")])
def test_a_new_model_that_is_worse_on_observed_pairs_gives_its_place_back(directory, registry, true, used):
    publish_model(directory, constant(20))
    with LiveModel(directory, **SOON, registry=registry) as model:
        observe(model, 99)  # nothing to compare with
        publish_model(directory, constant(30))
        wait_until(lambda: model.version == "model_v000002")
        trial = model._trial
        observe(model, true)
        wait_until(lambda: model._trial is not trial)
        wait_until(lambda: model.version == used)
        fell_back = used != "model_v000002"
        assert model.swaps["fallback"] == fell_back
        assert model.reason.startswith("model_v000002: median error of 10") == fell_back
        observe(model, 99)  # decided once
        publish_model(directory, constant(25))
        wait_until(lambda: model.version == "model_v000003")
        assert (model.reason, model.swaps["fallback"]) == ("", fell_back)


@pytest.mark.parametrize(
    ("options", "given"), [({"fallback_threshold": 0}, {}), ({}, {"groups": 29, "pairs": 10}), ({}, {"pairs": 4})]
)
def test_nothing_is_decided_without_a_threshold_or_on_too_few_pairs(directory, registry, options, given):
    publish_model(directory, constant(20))
    with LiveModel(directory, **SOON, **options, registry=registry) as model:
        publish_model(directory, constant(30))
        wait_until(lambda: model.version == "model_v000002")
        trial = model._trial
        observe(model, 20, **given)
        publish_model(directory, constant(30), stable=False)
        failed = model.swaps["failed"]
        directory.rename(directory.with_name("elsewhere"))
        wait_until(lambda: model.swaps["failed"] > failed + 1)  # it has looked twice
        assert model._trial is trial
        assert model.version == "model_v000002"


def test_an_earlier_model_is_not_on_trial(directory, registry):
    publish_model(directory, constant(20))
    publish_model(directory, constant(30))
    with LiveModel(directory, **SOON, registry=registry) as model:
        promote(directory, 1)
        wait_until(lambda: model.version == "model_v000001")
        observe(model, 30)
        failed = model.swaps["failed"]
        directory.rename(directory.with_name("elsewhere"))
        wait_until(lambda: model.swaps["failed"] > failed + 1)  # it has looked twice
        assert (model.version, model.swaps["fallback"]) == ("model_v000001", 0)


def test_pairs_without_a_group_are_each_of_their_own_and_others_are_told(directory, registry):
    publish_model(directory, constant(20))
    with LiveModel(directory, **SOON, registry=registry) as model:
        publish_model(directory, constant(30))
        wait_until(lambda: model.version == "model_v000002")
        for _ in range(200):
            model.observe(ROW, 20.0)
        wait_until(lambda: model.version == "model_v000001")
        with pytest.raises(ValueError, match="true_score: expected 1 finite numbers, got nan"):
            model.observe(ROW, float("nan"))
        with pytest.raises(ValueError, match="true_score: expected 2 finite numbers, got 3"):
            model.observe([ROW, ROW], 3)


def test_a_source_that_fails_is_told_and_the_model_stays(directory, registry, tmp_path):
    publish_model(directory, constant(20))
    with LiveModel(directory, **SOON, registry=registry) as model:
        directory.rename(tmp_path / "elsewhere")
        wait_until(lambda: model.swaps["failed"] > 1)
        assert "no such file" in model.reason
        assert one(model) == pytest.approx(score_of(20))
        (tmp_path / "elsewhere").rename(directory)
        wait_until(lambda: not model.reason)


def test_whatever_else_goes_wrong_the_model_stays(directory, registry, monkeypatch):
    publish_model(directory, constant(20))
    with LiveModel(directory, **SOON, registry=registry) as model:
        with monkeypatch.context() as patch:
            patch.setattr(model._follower, "news", lambda: 1 / 0)
            wait_until(lambda: model.swaps["failed"])
            assert model.reason == "ZeroDivisionError('division by zero')"
        wait_until(lambda: not model.reason)
        assert one(model) == pytest.approx(score_of(20))
        with monkeypatch.context() as patch:
            patch.setattr("sidecar.consumer.follower.verified", lambda fetched: 1 / 0)
            failed = model.swaps["failed"]
            publish_model(directory, constant(30))
            wait_until(lambda: model.swaps["failed"] > failed)
        wait_until(lambda: model.version == "model_v000002")


def test_the_metrics_are_those_of_the_model_in_use(directory, registry, tmp_path):
    def metric(name, **labels):
        return registry.get_sample_value(f"vmafx_model_checkpoint_{name}", labels)

    base = tmp_path / "base.onnx"
    base.write_bytes(to_bytes(constant(10)))
    with LiveModel(directory, base=base, **SOON, registry=registry) as model:
        assert metric("version") == 0
        assert np.isnan(metric("age_seconds"))
        publish_model(directory, constant(30), created_at="2020-01-01T00:00:00Z")
        wait_until(lambda: model.version == "model_v000001")
        assert metric("version") == 1
        assert metric("age_seconds") == pytest.approx(time.time() - 1577836800, abs=PATIENCE_S)
        assert metric("swaps_total", result="ok") == 1
        assert metric("swaps_total", result="failed") >= 1
        assert metric("swaps_total", result="refused") == 0


class _Held:
    """Holds calls in a serving's session until they are let go."""

    def __init__(self, serving):
        self.entered, self.go = threading.Event(), threading.Event()
        self._scorer = serving._scorer
        serving._scorer = self

    def predict(self, rows):
        self.entered.set()
        assert self.go.wait(PATIENCE_S)
        return self._scorer.predict(rows)


@pytest.mark.parametrize("drain_s", [PATIENCE_S, 0.0])
def test_a_replaced_model_ends_with_the_last_call_in_it(directory, registry, drain_s):
    publish_model(directory, constant(20))
    with LiveModel(directory, swap_drain_timeout=drain_s, **SOON, registry=registry) as model:
        held, old = _Held(model._serving), weakref.ref(model._serving)
        scores = []
        caller = threading.Thread(target=lambda: scores.append(model.predict_with_version(ROW)))
        caller.start()
        assert held.entered.wait(PATIENCE_S)
        publish_model(directory, constant(30))
        wait_until(lambda: model.version == "model_v000002")
        assert one(model) == pytest.approx(score_of(30)), "no call waits for another"
        assert old() is not None
        held.go.set()
        caller.join()
        wait_until(lambda: (gc.collect(), old())[1] is None)
        assert scores == [(pytest.approx(score_of(20)), "model_v000001")]


def in_child(function):
    """What a function gives in a child of a fork."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            writer.send(function())
        finally:
            os._exit(0)
    writer.close()
    assert reader.poll(PATIENCE_S)
    given = reader.recv()
    assert os.waitpid(child, 0)[1] == 0
    return given


def test_a_child_of_a_fork_goes_on_by_itself(directory, registry):
    publish_model(directory, constant(20))
    with LiveModel(directory, **SOON, registry=registry) as model:
        before = model._serving

        def goes_on():
            first = one(model)
            publish_model(directory, constant(30))
            wait_until(lambda: model.version == "model_v000002")
            return first, one(model), model._serving is not before

        assert in_child(goes_on) == (pytest.approx(score_of(20)), pytest.approx(score_of(30)), True)
        wait_until(lambda: model.version == "model_v000002")


def test_a_child_of_a_fork_in_the_middle_of_a_look_takes_the_new_model_too(directory, registry, monkeypatch):
    publish_model(directory, constant(20))
    with LiveModel(directory, **SOON, registry=registry) as model:
        looking, go = threading.Event(), threading.Event()

        def slowly(fetched):
            looking.set()
            assert go.wait(PATIENCE_S)
            return verified(fetched)

        def takes_it():
            monkeypatch.undo()
            wait_until(lambda: model.version == "model_v000002")
            return one(model)

        monkeypatch.setattr("sidecar.consumer.follower.verified", slowly)
        publish_model(directory, constant(30))
        assert looking.wait(PATIENCE_S)
        try:
            assert in_child(takes_it) == pytest.approx(score_of(30))
        finally:
            go.set()


def test_a_child_of_a_fork_ends_as_any_other(directory):
    publish_model(directory, constant(20))
    program = f"""
import os, sys
from sidecar import LiveModel

model = LiveModel({str(directory)!r})
if os.fork() == 0:
    model.predict([1, 2, 3])
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]), os.environ.get("ORT_DISABLE_TELEMETRY"))
"""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    arguments = [sys.executable, "-W", "ignore", "-c", program]
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert (ended.stdout, ended.stderr) == ("7 None\n", "")


def test_a_closed_model_still_predicts_and_follows_no_longer(directory, registry):
    publish_model(directory, constant(20))
    model = LiveModel(directory, **SOON, registry=registry)
    model.close()
    assert not model._thread.is_alive()
    assert one(model) == pytest.approx(score_of(20))


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_says_that_it_cannot_be_copied_or_pickled(directory, registry, take):
    publish_model(directory, constant(20))
    with LiveModel(directory, registry=registry) as model, pytest.raises(TypeError, match="cannot be copied or pickled: give"):
        take(model)


def test_all_end_together_with_the_interpreter(directory, registry):
    publish_model(directory, constant(20))
    models = [LiveModel(directory, **SOON, registry=registry) for _ in range(2)]
    _close_all()
    assert not any(model._thread.is_alive() for model in models)


def test_a_base_model_that_is_fed_otherwise_can_be_followed_by_a_checkpoint(directory, registry, tmp_path):
    base = tmp_path / "base.onnx"
    network = constant(10)
    ports = (Port("one", (1, 2)), Port("other", (1, 1)))
    base.write_bytes(to_bytes(Network(3, network.steps, ports, Port("out", (1,)))))
    base.with_suffix(".json").write_text('{"feature_mean": [0.5, 0], "feature_std": [1, 1]}')
    with LiveModel(directory, base=base, **SOON, registry=registry) as model:
        shifted = ROW - np.array([0.5, 0, 0], dtype=np.float32)
        assert model.predict([ROW, ROW]) == pytest.approx([score_of(10, shifted)] * 2)
        publish_model(directory, constant(30))
        wait_until(lambda: model.version == "model_v000001")


def test_a_tenant_without_a_model_of_its_own_has_the_shared_one(directory, registry):
    mine = tenant_directory(directory, "a")
    publish_model(directory, constant(20))
    with LiveModel(directory, tenant="a", **SOON, registry=registry) as model:
        assert one(model) == pytest.approx(score_of(20))
        share_stable(mine)
        publish_model(mine, constant(30), stable=False)
        publish_model(directory, constant(40))
        wait_until(lambda: one(model) == pytest.approx(score_of(40)))
        publish_model(mine, constant(50))
        wait_until(lambda: one(model) == pytest.approx(score_of(50)))
        share_stable(mine)
        wait_until(lambda: one(model) == pytest.approx(score_of(40)))
        assert (model.swaps["ok"], model.swaps["refused"]) == (4, 0)
