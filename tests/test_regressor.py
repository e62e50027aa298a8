"""`VmafRegressor`: scikit-learn's conventions, the command's recipe, and checkpoints in and out."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")
from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.model_selection import GroupKFold, cross_val_score  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from onnx_builder.runtime import Scorer  # noqa: E402
from sidecar import VmafRegressor  # noqa: E402
from sidecar.learning.recipe import Recipe, fit  # noqa: E402
from tests.conftest import EXAMPLE, ROOT  # noqa: E402

pd = pytest.importorskip("pandas")
NAMES = ["adm2", "vif_scale0", "motion2", "psnr_y"]


@pytest.fixture(scope="module")
def data():
    X = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    return X, (60 + 8 * X.sum(axis=1) + 3 * X[:, 0] * X[:, 1]).astype(np.float32)


def quick(**parameters):
    return VmafRegressor(epochs=60, **parameters)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("parameters", [{"epochs": 100}, pytest.param({}, marks=pytest.mark.slow)])
def test_it_keeps_the_conventions_of_scikit_learn(parameters):
    results = check_estimator(VmafRegressor(**parameters), on_fail=None)
    assert len(results) > 40
    failed = [(each["check_name"], each["exception"]) for each in results if each["status"] not in ("passed", "skipped")]
    assert failed == []


def test_it_is_the_recipe_of_the_command(data):
    X, y = data
    expected = fit(X, y, np.arange(len(y)), Recipe(epochs=60, score_min=0, score_max=100, seed=3)).ema.predict(X)
    regressor = quick(score_min=0, score_max=100, random_state=3).fit(X, y)
    assert np.array_equal(regressor.predict(X), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(regressor)).predict(X), expected)
    assert np.array_equal(clone(regressor).fit(X, y).predict(X), expected)


def test_scores_have_no_range_unless_it_is_given(data):
    X, y = data
    assert quick().fit(X, y + 1000).predict(X).min() > 900
    assert quick(score_min=0, score_max=50).fit(X, y).predict(X).max() == 50
    with pytest.raises(ValueError, match="score_min=0, score_max=None: expected both or neither"):
        quick(score_min=0).fit(X, y)


def test_columns_of_a_data_frame_may_have_any_order_and_spelling(data):
    X, y = data
    regressor = quick().fit(pd.DataFrame(X, columns=["integer_adm2", "vif_scale0", "integer_motion2", "psnr_y"]), y)
    assert regressor.feature_names_in_.tolist() == NAMES
    frame = pd.DataFrame(X, columns=NAMES)
    expected = regressor.predict(frame)
    assert np.array_equal(regressor.predict(frame[NAMES[::-1]]), expected)
    with pytest.raises(ValueError, match="feature names"):
        regressor.predict(frame.rename(columns={"adm2": "adm3"}))


def test_partial_fit_trains_on_and_does_not_depend_on_how_rows_are_divided(data):
    X, y = data
    once = quick().partial_fit(X[:200], y[:200])
    before = once.score(X[200:], 1.2 * y[200:])
    once.partial_fit(X[200:], 1.2 * y[200:])
    assert once.score(X[200:], 1.2 * y[200:]) > before
    often = quick().fit(X[:200], y[:200])
    for start in range(200, 400, 7):
        often.partial_fit(X[start : start + 7], 1.2 * y[start : start + 7])
    assert np.array_equal(often.predict(X), once.predict(X))


@pytest.mark.parametrize("trained_on", [False, True])
def test_what_is_saved_is_a_checkpoint_that_gives_the_same_scores(data, tmp_path, trained_on):
    X, y = data
    groups = np.arange(len(y)) // 10
    regressor = quick(score_min=0, score_max=100, holdout=0.2).fit(pd.DataFrame(X, columns=NAMES), y.clip(0, 100), groups)
    if trained_on:
        regressor.partial_fit(pd.DataFrame(X, columns=NAMES), y.clip(0, 100))
    path = regressor.save(tmp_path)
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["feature_order"] == NAMES
    assert about["metrics"]["pairs"] == len(regressor._evidence[1]) > 30
    assert about["gate"]["verdict"] == "stable"
    expected = regressor.predict(pd.DataFrame(X, columns=NAMES))
    assert np.abs(Scorer(path).predict(X) - expected).max() < 1e-2
    loaded = VmafRegressor.load(path)
    assert loaded.feature_names_in_.tolist() == NAMES
    frame = pd.DataFrame(X[:, ::-1], columns=NAMES[::-1])
    assert np.abs(loaded.predict(frame) - expected).max() < 1e-2
    assert loaded.partial_fit(frame, y).save(tmp_path).name == "model_v000002.onnx"


def test_a_base_model_is_fine_tuned(data, tmp_path):
    X, y = data
    path = quick().fit(X, y).save(tmp_path)
    unchanged = VmafRegressor(base_model=path, epochs=0).fit(X, y)
    assert np.abs(unchanged.predict(X) - VmafRegressor.load(path).predict(X)).max() < 1e-3
    tuned = VmafRegressor(base_model=path, epochs=60).fit(X, y + 5)
    assert tuned.score(X, y + 5) > unchanged.score(X, y + 5)


def test_it_cross_validates_by_clip(data):
    X, y = data
    scores = cross_val_score(quick(), X, y, groups=np.arange(len(y)) // 100, cv=GroupKFold(4))
    assert scores.min() > 0.9


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(
    ("rows", "parameters", "groups", "said"),
    [
        ([[1, 2], [3, np.nan]], {}, None, "contains NaN"),
        ([[1, 2], [3, 1e39]], {}, None, "too large for dtype\\('float32'\\)"),
        ([[1, 2], [3, 4]], {}, ["a"], "groups: expected 2 values, one for each row, got 1"),
        ([[1, 2], [3, 4]], {"holdout": 1.0}, None, "holdout=1.0 leaves none of 2 rows to train on"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(rows, parameters, groups, said):
    with pytest.raises(ValueError, match=said):
        quick(**parameters).fit(rows, [1, 2], groups)


def test_nothing_is_predicted_or_saved_before_it_is_fitted(tmp_path):
    with pytest.raises(NotFittedError):
        quick().predict([[1]])
    with pytest.raises(NotFittedError):
        quick().save(tmp_path)


def test_the_example_cross_validates_by_clip_and_publishes(tmp_path):
    command = [sys.executable, ROOT / "examples" / "cross_validate.py", EXAMPLE, "--clip", "source", "--epochs", "2"]
    done = subprocess.run(
        [*command, "--plot", tmp_path / "plot.png", "--output", tmp_path], capture_output=True, text=True, check=True
    )
    assert len(re.findall(r"^\w+: RMSE [\d.]+ on \d+ pairs$", done.stdout, flags=re.MULTILINE)) == 8
    assert done.stdout.endswith(f"trained on all: {tmp_path}/model_v000001.onnx\n")
