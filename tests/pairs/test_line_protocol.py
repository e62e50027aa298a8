"""The line protocol: tables of bytes in and answers out."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.pairs.holdout import holdout_position
from sidecar.pairs.line_protocol import Answer, LineBuffer, LineTooLongError, encode, refused
from sidecar.pairs.pair import Pair
from sidecar.pairs.request import MAX_LINE_BYTES
from tests.bad_lines import ODD, REFUSED, answer_to

GOOD = b'{"job_id": "a1", "features": [0.5, 1, -2e3], "true_score": 42.5}'


def test_a_pair_is_decoded():
    features = np.array([0.5, 1.0, -2000.0], dtype=np.float32).tobytes()
    assert answer_to(GOOD) == Pair(features, 42.5, holdout_position("", "a1", features), "a1")


@pytest.mark.parametrize("bad", REFUSED, ids=lambda bad: bad.says)
def test_a_line_that_is_no_pair_is_refused_with_the_reason(bad):
    answer = answer_to(bad.line)
    assert isinstance(answer, Answer)
    document = json.loads(encode([answer]))
    assert document["ok"] is False
    assert bad.says in document["error"]
    assert document.get("job_id") == bad.job_id
    assert set(document) <= {"ok", "error", "job_id"}
    assert len(document["error"]) < 200


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.line[:60].decode(errors="replace"))
def test_an_odd_line_is_a_pair_all_the_same(odd):
    names = {name: value for name, value in (("job_id", odd.job_id), ("group", odd.group)) if value is not None}
    features = np.array(odd.features, dtype=np.float32).tobytes()
    position = holdout_position(odd.group or "", odd.job_id or "", features)
    assert answer_to(odd.line) == Pair(features, odd.true_score, position, **names)


def test_an_empty_line_is_refused_where_it_is_not_skipped():
    assert answer_to(b"").error == "not JSON: input data was truncated"


@pytest.mark.parametrize(
    ("line", "job_id"),
    [
        (b'{"job_id": "b1", "features": [true], "true_score": 1}', "b1"),
        (b'{"features": 7, "job_id": "b2"}', "b2"),
        (b'{"job_id": 5}', None),
        (b'{"job_id": "b3"', None),
    ],
)
def test_a_refusal_says_which_job_it_was_where_that_can_be_known(line, job_id):
    assert json.loads(encode([answer_to(line)])).get("job_id") == job_id


def test_answers_are_as_the_contract_has_them():
    answers = [
        Answer(ok=True, job_id="a1", step=1234, trained=False),
        Answer(ok=True, job_id="a2", step=1238, trained=True, loss=3.1),
        Answer(ok=True, step=1, trained=False, duplicate=True),
        refused("features: expected 80 numbers, got 79", "b1"),
        refused("journal: no space left on device", retryable=True),
    ]
    assert encode(answers).decode().splitlines() == [
        '{"ok":true,"job_id":"a1","step":1234,"trained":false}',
        '{"ok":true,"job_id":"a2","step":1238,"trained":true,"loss":3.1}',
        '{"ok":true,"step":1,"trained":false,"duplicate":true}',
        '{"ok":false,"job_id":"b1","error":"features: expected 80 numbers, got 79"}',
        '{"ok":false,"retryable":true,"error":"journal: no space left on device"}',
    ]
    assert encode(answers).endswith(b"\n")
    assert encode([]) == b""


@pytest.mark.parametrize(
    ("reads", "lines"),
    [
        ([b"a\nb\n"], [b"a", b"b"]),
        ([b"a", b"b\nc", b"d", b"\n"], [b"ab", b"cd"]),
        ([b"\n \n\t\r\na\n\n"], [b"a"]),
        ([b"a\r\n"], [b"a\r"]),
        ([b"unfinished"], []),
        ([b"", b"a\n"], [b"a"]),
    ],
)
def test_lines_are_whole_and_not_blank(reads, lines):
    assert received(reads) == (lines, "")


@given(st.lists(st.binary(max_size=20), max_size=30))
def test_how_bytes_arrive_does_not_matter(pieces):
    assert received(pieces) == received([b"".join(pieces)])


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_a_line_may_have_a_mebibyte_and_no_byte_more(pieces):
    for extra in (0, 1):
        for ending in (b"\n", b""):
            whole = b"first\n" + b"x" * (MAX_LINE_BYTES + extra) + ending
            size = -(-len(whole) // pieces)
            lines, error = received([whole[start : start + size] for start in range(0, len(whole), size)])
            assert lines[0] == b"first"
            assert error == ("line: longer than 1048576 bytes" if extra else "")


def received(reads):
    """The lines of some reads, and what was wrong with them."""
    buffer, lines = LineBuffer(), []
    try:
        for data in reads:
            buffer.feed(data)
            while buffer.has_line:
                lines += buffer.take(3)
    except LineTooLongError as error:
        return lines + error.lines, str(error)
    return lines, ""


@given(st.binary(max_size=200))
def test_any_bytes_give_a_pair_or_a_refusal(line):
    answer = answer_to(line)
    if isinstance(answer, Answer):
        assert answer.ok is False
        msgspec.json.decode(encode([answer]))


def test_short_lines_that_wait_take_no_more_memory_than_their_bytes():
    buffer = LineBuffer()
    buffer.feed(b"1\n" * 100_000)
    assert buffer.size == 200_000
    assert buffer.take(2) == [b"1", b"1"]
    assert buffer.size == 199_996
