"""The history of the status: what is kept, for how long, and that it outlives the process."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from itertools import pairwise

import pytest

from sidecar.monitoring.history import COLUMNS, EVERY_S, HISTORY, TIERS, History, read_history, write_history
from sidecar.monitoring.status import Status
from sidecar.state.checked import write_checked

START = 1_767_225_600
SOME = Status(
    position=100, prequential_rmse=1.5, prequential_winsorized_rmse=1.25, prequential_constant_rmse=20.0,
    prequential_plcc=0.998, loss=3.25, feature_drift=0.5, journal_bytes=90,
)  # fmt: skip


def told(history, seconds, wall=START, clock=1000.0, pairs_per_second=100):
    """A history after so many more seconds of five statuses a second."""
    for tick in range(5 * seconds):
        status = dataclasses.replace(SOME, position=round(pairs_per_second * tick / 5))
        history.tell(status, clock + tick / 5, wall + tick / 5)
    return history


def test_a_row_every_ten_seconds_with_the_rate_since_the_one_before():
    history = told(History(), 25)
    assert [json.loads(row) for row in history.since(0)] == [
        [START, None, 1.5, 1.25, 20, 0.998, 3.25, 0.5, 90],
        [START + 10, 100, 1.5, 1.25, 20, 0.998, 3.25, 0.5, 90],
        [START + 20, 100, 1.5, 1.25, 20, 0.998, 3.25, 0.5, 90],
    ]
    assert len(COLUMNS) == 9
    assert history.pairs_per_second == 100
    assert len(history.since(START + 10)) == 1
    assert history.since(START + 20) == []


def test_what_has_no_value_or_is_not_finite_is_null():
    history = History()
    history.tell(Status(loss=math.inf, prequential_plcc=math.nan), 0.0, START)
    assert json.loads(history.since(0)[0]) == [START, *[None] * 7, 0]


def test_it_is_thinned_and_bounded():
    history, seconds, recent = History(), 8 * 86_400, 100_000  # before these, looks are rare, since each takes its time
    for tick in [*range(0, seconds - recent, 200), *range(seconds - recent, seconds, EVERY_S)]:
        history.tell(dataclasses.replace(SOME, position=tick * 1234), float(tick), START + tick)
    rows = history.since(0)
    apart = Counter(after - time for (time, _), (after, _) in pairwise(history.rows))
    assert apart[10] in range(360, 370)
    assert apart[60] in range(1370, 1381)
    assert apart[600] in range(860, 865)
    assert len(rows) - sum(apart[every] for _, every in TIERS) < 5
    assert START + seconds - history.rows[0][0] in range(7 * 86_400 - 600, 7 * 86_400 + 60)
    assert sum(map(len, rows)) < 250_000


def test_after_a_long_rest_what_is_too_old_is_gone():
    history = told(told(History(), 100), 25, wall=START + 30 * 86_400, clock=2000.0)
    assert [time - START for time, _ in history.rows] == [30 * 86_400 + seconds for seconds in (0, 10, 20)]


def test_a_clock_that_is_set_back_leaves_no_row_in_the_future():
    history = told(told(History(), 100), 11, wall=START + 35, clock=1100.0)
    assert [time - START for time, _ in history.rows] == [0, 10, 20, 30, 35, 45]


def test_it_is_read_as_it_was_written_and_a_gap_is_a_gap(tmp_path):
    write_history(tmp_path, told(History(), 25))
    history = told(read_history(tmp_path), 11, wall=START + 300)
    assert [time - START for time, _ in history.rows] == [0, 10, 20, 300, 310]
    assert json.loads(history.rows[3][1])[1] is None
    assert not list(tmp_path.glob(".tmp-*"))


def test_nothing_there_is_no_history(tmp_path, caplog):
    assert read_history(tmp_path).rows == ()
    assert not caplog.records


HEAD = json.dumps(COLUMNS).encode()
GOOD = HEAD + b"\n[1, null, 1.5, 1.25, 20, 0.9, 3, 0.5, 90]"


@pytest.mark.parametrize(
    "content",
    [
        b"junk",
        b"\xff",
        b"[",
        b"{}",
        b"3",
        b"[]",
        b"[1, 2]",
        b"[" * 100_000,
        b"",
        b"[1, null, 1.5]",
        b'["a", "time"]\n[1]',
        GOOD + b"\n" + GOOD.splitlines()[1],
        GOOD + b"\n\n",
        GOOD[:-3],
        GOOD.replace(b"1.5", b'"x"'),
        GOOD.replace(b"[1,", b"[true,"),
        GOOD.replace(b"[1,", b"[1.0,"),
        GOOD.replace(b"90", b"[90]"),
        GOOD.replace(b"90", b"9" * 400),
    ],
)
def test_a_damaged_file_is_passed_over_with_a_warning(tmp_path, caplog, content):
    write_checked(tmp_path / HISTORY, "history", content)
    assert read_history(tmp_path).rows == ()
    assert "is damaged; it was ignored" in caplog.text


def test_what_json_cannot_say_does_not_get_out_again(tmp_path):
    write_checked(tmp_path / HISTORY, "history", GOOD.replace(b"1.5", b"NaN").replace(b"0.9", b"1e999"))
    assert read_history(tmp_path).since(0) == [b"[1,null,null,1.25,20,null,3,0.5,90]"]


def test_a_file_of_other_columns_is_read_by_their_names(tmp_path):
    write_checked(tmp_path / HISTORY, "history", b'["loss", "time", "another"]\n[3, 1, 7]\n[4, 11, 8]')
    assert [json.loads(row) for row in read_history(tmp_path).since(0)] == [
        [time, *[None] * 5, loss, None, None] for time, loss in ((1, 3), (11, 4))
    ]
