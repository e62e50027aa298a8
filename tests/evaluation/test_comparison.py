"""Several models on the same pairs: which is better, how sure that is, and what may be given as a model."""

from __future__ import annotations

import json
import os
import threading

import numpy as np
import pytest

from onnx_builder import Dense, Network
from onnx_builder.write import to_bytes
from sidecar.evaluation.comparison import compare
from sidecar.pairs.recorded import RecordedPairs
from tests.conftest import run
from tests.evaluation.test_report import document_of, drawn

TRUE = np.zeros(240, dtype=np.float32)


def pairs_of(group, true=TRUE):
    names = [f"g{n}" for n in range(max(group) + 1)]
    return RecordedPairs(np.zeros((len(true), 1), np.float32), true, np.zeros(len(true)), np.array(group, np.int32), names)


def test_a_model_that_is_better_in_each_group_is_better_in_all_resamples():
    errors = np.random.default_rng(0).normal(size=240)
    pairs = pairs_of(np.arange(240) // 12)
    found = compare([errors, 0.8 * errors, errors, 1.1 * errors], pairs)
    better, same, worse = found.differences
    assert better.rmse_difference == pytest.approx(-0.2 * np.sqrt(np.mean(errors**2)))
    assert better.interval[0] < better.rmse_difference < better.interval[1] < 0
    assert (better.better_in, better.in_words) == (1.0, "better")
    assert (same.rmse_difference, same.interval, same.better_in, same.in_words) == (0, (0, 0), 0, "not shown to differ")
    assert (worse.better_in, worse.in_words) == (0, "worse")
    assert compare([errors, 0.8 * errors], pairs).differences == [better]


def test_what_one_group_alone_decides_is_not_shown():
    errors = np.random.default_rng(0).normal(size=240)
    other = np.where(np.arange(240) < 12, 0, 1.01 * errors)
    pairs = pairs_of(np.arange(240) // 12)
    (difference,) = compare([errors, other], pairs).differences
    assert difference.rmse_difference < 0
    assert difference.in_words == "not shown to differ"
    assert 0.3 < difference.better_in < 0.95
    assert compare([errors, other], pairs).groups[0].name == "g0"


def test_groups_count_not_pairs():
    """Ten groups whose pairs are all alike say no more than ten pairs, and less than pairs that know nothing of each other."""
    rng = np.random.default_rng(0)
    errors = rng.normal(size=(2, 10))
    few = compare(errors, pairs_of(np.arange(10), TRUE[:10])).differences
    repeated = np.repeat(errors, 24, axis=1)
    assert compare(repeated, pairs_of(np.repeat(np.arange(10), 24))).differences[0].interval == pytest.approx(few[0].interval)
    low, high = few[0].interval
    as_pairs = compare(repeated, pairs_of(np.arange(240))).differences[0].interval
    assert as_pairs[1] - as_pairs[0] < 0.5 * (high - low)


@pytest.mark.parametrize("groups", [1, 4])
def test_of_a_few_groups_there_is_no_interval(groups):
    errors = np.random.default_rng(0).normal(size=240)
    (difference,) = compare([errors, 2 * errors], pairs_of(np.arange(240) % groups)).differences
    assert (difference.interval, difference.better_in) == (None, None)
    assert difference.rmse_difference > 0
    unknown = RecordedPairs(np.zeros((240, 1), np.float32), TRUE, np.zeros(240))
    assert compare([errors, 2 * errors], unknown).differences[0].interval is None


@pytest.mark.slow
@pytest.mark.parametrize("groups", [5, 20])
def test_the_interval_holds_the_difference_about_as_often_as_it_says(groups):
    rng = np.random.default_rng(0)

    def errors(count):
        own = np.exp(rng.normal(scale=0.6, size=count))[:, None] * rng.normal(size=(count, 12))
        other = 0.9 * np.exp(rng.normal(scale=0.3, size=count))[:, None] * own
        return [(each + 0.3 * rng.normal(size=(count, 12))).ravel() for each in (own, other)]

    one, other = errors(200_000)
    difference = np.sqrt(np.mean(other**2)) - np.sqrt(np.mean(one**2))
    pairs = pairs_of(np.repeat(np.arange(groups), 12), np.zeros(12 * groups, np.float32))
    intervals = [compare(errors(groups), pairs).differences[0].interval for _ in range(200)]
    held = np.mean([low <= difference <= high for low, high in intervals])
    assert 0.85 < held < 0.98


def linear(path, weight, names=(), **about):
    """A model that adds up features, named in its JSON."""
    step = Dense(np.array([weight], np.float32), np.array([50], np.float32))
    path.write_bytes(to_bytes(Network(len(weight), (step,))))
    if names or about:
        path.with_suffix(".json").write_text(json.dumps({"feature_order": [*names], **about}))
    return path


@pytest.fixture
def table(tmp_path):
    """A table of two features by name, in twenty groups, and a model of both."""
    rng = np.random.default_rng(0)
    adm2, motion = rng.normal(size=(2, 200))
    rows = [f"{a},{m},clip{i // 10},{50 + 5 * a + 2 * m:.5f}" for i, (a, m) in enumerate(zip(adm2, motion, strict=True))]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(["adm2,motion2,clip,vmaf", *rows]) + "\n")
    return path, linear(tmp_path / "both.onnx", [5, 2], ["adm2", "motion2"])


def test_models_of_other_features_are_read_by_the_names_of_their_own(table, tmp_path):
    path, both = table
    reversed_order = linear(tmp_path / "reversed.onnx", [2, 5], ["motion2", "adm2"])
    one = linear(tmp_path / "one.onnx", [5], ["adm2"])
    done = run("evaluate", both, reversed_order, one, path, "--group-by", "clip", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [each["model"] for each in said["models"]] == [str(both), str(reversed_order), str(one)]
    assert [each["rmse"] for each in said["models"]] == pytest.approx([0, 0, 2], abs=0.3)
    alone = json.loads(run("evaluate", one, path, "--group-by", "clip", "--json").stdout)
    assert said["models"][2] == alone
    compared = said["comparison"]
    assert (compared["with"], compared["groups"], compared["resamples"]) == (str(both), 20, 2000)
    worse = compared["models"][1]
    assert worse["rmse_difference"] == pytest.approx(alone["rmse"] - said["models"][0]["rmse"])
    assert worse["interval"][0] < worse["rmse_difference"] < worse["interval"][1]
    assert worse["better_in"] == 0
    text = run("evaluate", both, one, path, "--group-by", "clip").stdout
    assert f"{worse['interval'][0]:+.3f} to {worse['interval'][1]:+.3f}" in text
    assert text.count("\nclip") == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["both.onnx", "one.onnx"], "Missing argument 'PAIRS...'"),
        (["both.onnx", "pairs.csv", "one.onnx"], "one.onnx: models come before pairs"),
        (["both.onnx", "three.onnx", "pairs.csv"], "three.onnx takes 3 features, but "),
        (["both.onnx", "other.onnx", "pairs.csv"], "no column for vif_scale0"),
        (["both.onnx", "none.onnx", "pairs.csv"], "none.onnx: no such file"),
        (["both.onnx", "one.onnx", "-"], "-: can be read only once"),
        (["both.onnx", "one.onnx", "pairs.csv", "--held-out"], "no JSON beside it that says"),
        (["both.onnx", "one.onnx", "pairs.csv", "--report", "one.json"], "one.json: is an input of this command"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(table, tmp_path, monkeypatch, arguments, message):
    linear(tmp_path / "one.onnx", [5], ["adm2"])
    linear(tmp_path / "three.onnx", [5, 2, 1])
    linear(tmp_path / "other.onnx", [5], ["vif_scale0"])
    monkeypatch.chdir(tmp_path)
    done = run("evaluate", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pipe_is_read_once_for_models_that_take_the_same(table, tmp_path):
    path, both = table
    again = linear(tmp_path / "again.onnx", [4, 2], ["adm2", "motion2"])
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()))
    writer.start()
    done = run("evaluate", both, again, pipe, "--json")
    writer.join()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"][1]["pairs"] == 200


def test_models_for_which_other_rows_are_skipped_are_not_compared(table, tmp_path):
    path, both = table
    one = linear(tmp_path / "one.onnx", [5], ["adm2"])
    lines = path.read_text().splitlines()
    lines[5] = ",".join([lines[5].split(",")[0], "", *lines[5].split(",")[2:]])
    path.write_text("\n".join(lines) + "\n")
    done = run("evaluate", both, one, path, "--skip-bad")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"199 pairs can be used with {both}, 200 with {one}" in done.stderr


def test_held_out_pairs_are_those_of_every_model(tmp_path, random_rows, write_lines):
    pairs = write_lines(random_rows(400))
    models = []
    for share in (0.1, 0.3):
        options = ("--epochs", 1, "--holdout", share, "--output", tmp_path / str(share))
        assert run("train-offline", pairs, *options).returncode in (0, 1)
        models.append(tmp_path / str(share) / "latest.onnx")
    said = json.loads(run("evaluate", *models, pairs, "--held-out", "--json").stdout)
    alone = [json.loads(run("evaluate", each, pairs, "--held-out", "--json").stdout) for each in models]
    assert alone[0]["pairs"] < alone[1]["pairs"]
    assert said["models"][0]["pairs"] == said["models"][1]["pairs"] == alone[0]["pairs"]
    text = run("evaluate", *models, pairs).stdout  # of the same file name, so told apart by their paths
    trained_on = [400 - each["pairs"] for each in alone]
    for model, count in zip(models, trained_on, strict=True):
        assert f"…{str(model)[-23:]}: {count} of 400 pairs were trained on" in text
    (tmp_path / "none.jsonl").write_text(next(line for line in pairs.read_text().splitlines(True) if '"g1"' in line))
    done = run("evaluate", *models, tmp_path / "none.jsonl", "--held-out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_the_report_has_each_model_and_the_differences(chromium, table, tmp_path):
    path, both = table
    one = linear(tmp_path / "one.onnx", [5], ["adm2"])
    other = linear(tmp_path / "other.onnx", [5, 1], ["adm2", "motion2"])
    done = run("evaluate", both, one, other, path, "--report", tmp_path / "r.html", "--json")
    assert done.returncode == 0, done.stderr
    said, shown = json.loads(done.stdout), document_of(tmp_path / "r.html")
    assert shown["said"] == said
    for each, about in zip(shown["differences"], said["comparison"]["models"], strict=True):
        assert {name: each[name] for name in ("rmse_difference", "interval", "better_in")} == {
            name: about[name] for name in ("rmse_difference", "interval", "better_in")
        }
    for dark, width in ((False, 1280), (True, 400)):
        drawn(chromium, tmp_path / "r.html", width=width, dark=dark)
        assert chromium.console() == []
        assert chromium.ask("document.documentElement.scrollWidth") <= width
        assert chromium.violations() == []
    cells = "[...document.querySelectorAll('#{} table')[{}].tBodies[0].rows].map(r => [...r.cells].map(c => c.textContent))"
    assert [row[0] for row in chromium.ask(cells.format("result", 0))] == ["both.onnx", "one.onnx", "other.onnx"]
    assert [[row[0], row[4], row[1]] for row in chromium.ask(cells.format("result", 1))] == [
        ["one.onnx", "0.0 %", "worse"],
        ["other.onnx", "0.0 %", "worse"],
    ]
    assert len(chromium.ask(cells.format("differences", 0))) == 20
    titles = chromium.ask("[...document.querySelectorAll('#predictions h3')].map(e => e.firstChild.textContent)")
    assert titles == ["both.onnx", "one.onnx", "other.onnx"]
    sections = chromium.ask("[...document.querySelectorAll('main > section')].map(s => s.id)")
    assert sections == ["result", "predictions", "differences", "calibration", "settings", "data", "model"]
