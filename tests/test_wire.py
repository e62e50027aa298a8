"""The line protocol: tables of bytes in and answers out."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.pairs import MAX_LINE_BYTES, Pair
from sidecar.wire import Answer, LineBuffer, LineTooLongError, encode, read_request, refused

GOOD = b'{"job_id": "a1", "features": [0.5, 1, -2e3], "true_score": 42.5}'


def test_a_pair_is_decoded():
    assert read_request(GOOD) == Pair([0.5, 1.0, -2000.0], 42.5, "a1")


# A refused line and what the answer says. The number of features and ranges are checked further in.
REFUSED = [
    (b"", "not JSON"),
    (b"[]", "expected object, got array"),
    (b"null", "expected object, got null"),
    (b'"text"', "expected object, got str"),
    (b"{}", "features: missing"),
    (b'{"features": [1]}', "true_score: missing"),
    (b'{"features": [true], "true_score": 1}', "features[0]: expected a number, got bool"),
    (b'{"features": ["1"], "true_score": 1}', "features[0]: expected a number, got str"),
    (b'{"features": [null], "true_score": 1}', "features[0]: expected a number, got null"),
    (b'{"features": [[1]], "true_score": 1}', "features[0]: expected a number, got array"),
    (b'{"features": 1, "true_score": 1}', "features: expected array, got int"),
    (b'{"features": [NaN], "true_score": 1}', "not JSON"),
    (b'{"features": [Infinity], "true_score": 1}', "not JSON"),
    (b'{"features": [-Infinity], "true_score": 1}', "not JSON"),
    (b'{"features": [1], "true_score": NaN}', "not JSON"),
    (b'{"features": [1], "true_score": "1"}', "true_score: expected a number, got str"),
    (b'{"features": [1], "true_score": true}', "true_score: expected a number, got bool"),
    (b'{"features": [1], "true_score": null}', "true_score: expected a number, got null"),
    (b'{"features": [1], "true_score": 1, "job_id": 5}', "job_id: expected str, got int"),
    (b'{"features": [1], "true_score": 1, "job_id": null}', "job_id: expected str, got null"),
    (b'{"features": [1], "true_score": 1, "job_id": "' + b"x" * 257 + b'"}', "job_id: expected str of length <= 256"),
    (b'{"features": [1], "true_score": 1, "group": "' + b"x" * 257 + b'"}', "group: expected str of length <= 256"),
    (b'{"features": [1], "true_score": 1', "not JSON"),
    (b'{"features": [1], "true_score": 1} x', "not JSON"),
    (b'{"features": [1], "true_score": 1, "job_id": "\xff"}', "not UTF-8: byte 0xff"),
    (b"\x00\x01\x02", "not JSON"),
    (b"[" * 10_000, "expected object, got array"),
    (b'{"features": ' + b"[" * 100_000, "features[0]: expected a number, got array"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_a_line_that_is_no_pair_is_refused_with_the_reason(line, message):
    answer = read_request(line)
    assert isinstance(answer, Answer)
    assert answer.ok is False
    assert message in answer.error
    document = json.loads(encode([answer]))
    assert set(document) <= {"ok", "error", "job_id"}


def test_an_integer_of_400_digits_is_refused_as_any_other_number_too_large():
    answer = read_request(b'{"features": [1' + b"0" * 400 + b'], "true_score": 1, "job_id": "big"}')
    assert isinstance(answer, Answer)
    assert answer.ok is False


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
    assert json.loads(encode([read_request(line)])).get("job_id") == job_id


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
    buffer = LineBuffer()
    assert [line for data in reads for line in buffer.feed(data)] == lines


@given(st.lists(st.binary(max_size=20), max_size=30))
def test_how_bytes_arrive_does_not_matter(pieces):
    buffer, at_once = LineBuffer(), LineBuffer()
    assert [line for piece in pieces for line in buffer.feed(piece)] == at_once.feed(b"".join(pieces))


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
            lines += buffer.feed(data)
    except LineTooLongError as error:
        return lines + error.lines, str(error)
    return lines, ""


@given(st.binary(max_size=200))
def test_any_bytes_give_a_pair_or_a_refusal(line):
    answer = read_request(line)
    if isinstance(answer, Answer):
        assert answer.ok is False
        msgspec.json.decode(encode([answer]))
