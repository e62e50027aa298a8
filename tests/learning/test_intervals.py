"""Prediction intervals: what share of a new source they cover, and tables that can be used."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sidecar.learning.intervals import LEVELS, IntervalError, Intervals, calibrate

TABLE = {"kind": "left-out", "by": "source", "groups": 8, "pairs": 96, "predicted": [20, 60, 90],
         "half_widths": {"0.5": [2, 1, 0.5], "0.9": [8, 4, 2]}}  # fmt: skip


def sources(generator, count, spread, pairs=40):
    """Predictions, true scores and sources of made pairs: residuals are larger at low scores, and in some sources."""
    source = np.repeat(np.arange(count), pairs)
    predicted = generator.uniform(0, 100, count * pairs)
    scale = np.exp(spread * generator.normal(size=count))[source] * (3 - predicted / 40)
    return predicted, predicted + scale * generator.normal(size=count * pairs), source


@pytest.mark.parametrize("count", [4, 8])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_a_new_source_is_covered_as_it_should_be_on_average(count, spread):
    generator, covered = np.random.default_rng(count), []
    for _ in range(250):
        predicted, true, source = sources(generator, count + 1, spread)
        known, new = source < count, source == count
        table = calibrate(predicted[known], true[known], source[known], "left-out", "source")
        covered.append([table.coverage(level, predicted[new], true[new], source[new]).covered for level in LEVELS])
    mean, deviation = np.mean(covered, axis=0), np.std(covered, axis=0) / np.sqrt(len(covered))
    assert (mean > np.array(LEVELS) - 2 * deviation).all()
    assert (mean < np.array(LEVELS) + 0.05).all()


def test_intervals_are_as_wide_as_residuals_are_at_their_score():
    predicted, true, source = sources(np.random.default_rng(0), 8, 0.0, 2000)
    table = calibrate(predicted, true, source, "left-out", "source")
    low, high = table.bounds(0.9, np.array([10.0, 50.0, 90.0]))
    assert high - low == pytest.approx(2 * 1.645 * np.array([2.75, 1.75, 0.75]), rel=0.1)
    assert (low + high) / 2 == pytest.approx([10, 50, 90])
    assert len(json.dumps(table.as_json(), indent=2)) < 4096
    assert calibrate(predicted, true, source, "left-out", "source").as_json() == table.as_json()


def test_all_sources_weigh_the_same_however_many_pairs_they_have():
    predicted, true, source = sources(np.random.default_rng(1), 5, 1.0)
    more = np.concatenate([np.arange(len(source)), *[np.flatnonzero(source == 3)] * 20])
    one, other = (calibrate(predicted[rows], true[rows], source[rows], "left-out", "source") for rows in (slice(None), more))
    assert other.pairs == len(more)
    assert other.predicted == pytest.approx(one.predicted)
    for level in LEVELS:
        assert other.half_widths[level] == pytest.approx(one.half_widths[level], rel=1e-3)


def test_scores_in_another_unit_give_the_same_table_in_that_unit():
    predicted, true, source = sources(np.random.default_rng(2), 6, 0.5)
    points, shares = (calibrate(predicted / unit, true / unit, source, "left-out", "source") for unit in (1, 100))
    assert 100 * shares.predicted == pytest.approx(points.predicted, rel=1e-5)
    assert 100 * shares.half_widths[0.9] == pytest.approx(points.half_widths[0.9], rel=1e-3)
    low, high = shares.bounds(0.9, np.array([0.001, 0.999]), (0.0, 1.0))
    assert (low[0], high[1]) == (0.0, 1.0)


def test_one_source_gives_no_table():
    assert calibrate(np.arange(9.0), np.arange(9.0), np.zeros(9), "left-out", "source") is None
    assert calibrate(np.zeros(0), np.zeros(0), np.zeros(0), "held-out", "encode") is None


@pytest.mark.parametrize("off", [0.0, 3.0])
def test_constant_predictions(off):
    table = calibrate(np.full(60, 50.0), np.full(60, 50.0 + off), np.arange(60) % 3, "left-out", "source")
    assert table.predicted.tolist() == [50]
    for level in LEVELS:
        low, high = table.bounds(level, np.array([0.0, 50.0, 100.0]))
        assert (high - low).tolist() == [2 * off] * 3
        assert table.coverage(level, np.full(3, 50.0), np.full(3, 50 + off), np.arange(3))[:3] == (1, 1, 1)


def test_a_table_of_more_pairs_than_are_needed_and_of_more_groups_than_are_left_out_alone():
    predicted, true, source = sources(np.random.default_rng(3), 500, 0.5, 200)
    table = calibrate(predicted, true, source, "held-out", "encode")
    assert (table.groups, table.pairs) == (500, 50_000)
    low, high = table.bounds(0.9, predicted)
    assert ((low <= true) & (true <= high)).mean() == pytest.approx(0.9, abs=0.01)


def test_bounds_between_and_beyond_the_scores_of_a_table():
    table = Intervals.from_json(TABLE)
    low, high = table.bounds(0.9, np.array([0, 20, 40, 90, 99], dtype=np.float32), (0.0, 100.0))
    assert low.tolist() == [0, 12, 34, 88, 97]
    assert high.tolist() == [8, 28, 46, 92, 100]
    with pytest.raises(IntervalError, match=r"interval=0\.95: expected one of 0\.5, 0\.9"):
        table.bounds(0.95, np.array([50.0]))


def test_coverage_by_pairs_and_by_groups():
    table = Intervals.from_json(TABLE)
    found = table.coverage(0.9, np.full(4, 60.0), np.array([56.0, 64, 64.1, 60]), np.array(["a", "a", "b", "a"]), (0, 63))
    assert found == (0.5, pytest.approx(1 / 3), 0.0, 7.0, 4)


def test_a_table_stands_in_json_as_it_is():
    assert Intervals.from_json(TABLE).as_json() == TABLE
    left_out = "96 pairs of 8 groups by source, each predicted by a model that was trained on the others"
    words = Intervals.from_json(json.loads(json.dumps(TABLE))).in_words()
    assert words == f"{left_out}; so few can guarantee 89% at most"
    held_out = Intervals.from_json({**TABLE, "kind": "held-out", "by": "encode", "groups": 40}).in_words()
    assert held_out.startswith("96 pairs of 40 held-out encodes; on unseen clips, such tables covered ")
    assert "guarantee" not in held_out


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "expected a JSON object, got list"),
        ({**TABLE, "kind": "ring"}, "kind 'ring': expected 'left-out' or 'held-out'"),
        ({**TABLE, "by": 3}, "by '3': expected a text of at most 256 characters"),
        ({**TABLE, "by": "x" * 257}, f"by '{'x' * 64}': expected a text of at most 256 characters"),
        ({**TABLE, "groups": True}, "groups True: expected a count from 1"),
        ({**TABLE, "pairs": 0}, "pairs 0: expected a count from 1"),
        ({**TABLE, "predicted": []}, "predicted: expected 1 to 256 numbers, each above the one before"),
        ({**TABLE, "predicted": [20, 20, 90]}, "predicted: expected 1 to 256 numbers, each above the one before"),
        ({**TABLE, "predicted": [20, "60", 90]}, "predicted: expected a list of finite numbers"),
        ({**TABLE, "predicted": [20, float("nan"), 90]}, "predicted: expected a list of finite numbers"),
        ({**TABLE, "predicted": [20, 10**400, 90]}, "predicted: expected a list of finite numbers"),
        ({**TABLE, "half_widths": {}}, "half_widths: expected an object with lists of numbers for 1 to 16 levels"),
        (
            {**TABLE, "half_widths": {f"0.{n}1": [1, 1, 1] for n in range(17)}},
            "half_widths: expected an object with lists of numbers for 1 to 16 levels",
        ),
        ({**TABLE, "half_widths": {"90": [1, 1, 1]}}, "half_widths of '90': expected a level between 0 and 1"),
        ({**TABLE, "half_widths": {"x": [1, 1, 1]}}, "half_widths of 'x': expected a level between 0 and 1"),
        ({**TABLE, "half_widths": {"0.9": [1, 1]}}, "half_widths of 0.9: expected 3 numbers from 0"),
        ({**TABLE, "half_widths": {"0.9": [1, -1, 1]}}, "half_widths of 0.9: expected 3 numbers from 0"),
    ],
)
def test_a_table_that_cannot_be_used_is_told(table, message):
    with pytest.raises(IntervalError) as told:
        Intervals.from_json(table)
    assert str(told.value) == f"intervals: {message}"
