"""The line protocol on a connection: tables of bytes in, turns, and bytes out."""

from __future__ import annotations

import json

import pytest

from sidecar.network.lines import TURN_LINES, LineConversation
from sidecar.pairs.line_protocol import Answer, refused
from sidecar.pairs.request import MAX_LINE_BYTES

TOO_LONG = f"line: longer than {MAX_LINE_BYTES} bytes"


@pytest.fixture
def calls():
    """The lines of each call for answers."""
    return []


@pytest.fixture
def talk(calls):
    def answer(lines):
        calls.append(lines)
        return [Answer(ok=True, job_id=line.decode()) for line in lines]

    return LineConversation(answer, lambda error: refused(str(error)))


def said(talk):
    """What is said until nothing waits: the names that are answered, and the errors."""
    answers = b""
    while talk.waiting:
        answers += talk.next()
    return [told.get("job_id") or told["error"] for told in map(json.loads, answers.splitlines())]


@pytest.mark.parametrize(
    ("received", "answers", "kept"),
    [
        ([b"a\nb\n"], [["a", "b"]], 0),
        ([b"a", b"b\nc", b"d\n"], [[], ["ab"], ["cd"]], 0),
        ([b"\n \n\t\r\n", b"a\n\n"], [[], ["a"]], 0),
        ([b"a\nhalf"], [["a"]], 4),
        ([b"half", b" a l"], [[], []], 8),
    ],
)
def test_whole_lines_are_answered_in_their_order(talk, received, answers, kept):
    for data, expected in zip(received, answers, strict=True):
        talk.receive(data)
        assert said(talk) == expected
    assert talk.kept == kept
    assert not talk.closing


def test_a_turn_answers_so_many_lines_and_no_more(talk, calls):
    data = b"x\n" * (2 * TURN_LINES + 1) + b"half"
    talk.receive(data)
    left = len(data)
    for lines in (TURN_LINES, TURN_LINES, 1):
        assert talk.waiting
        assert talk.kept == left
        left -= 2 * lines
        assert talk.next() == b'{"ok":true,"job_id":"x"}\n' * lines
    assert not talk.waiting
    assert talk.kept == len(b"half")
    assert [len(lines) for lines in calls] == [TURN_LINES, TURN_LINES, 1]


def test_the_end_comes_after_the_answers_and_the_last_line_may_lack_its_newline(talk):
    talk.receive(b"a\nhalf")
    assert said(talk) == ["a"]
    talk.receive(b"")
    assert (talk.closing, talk.waiting) == (True, True)
    assert said(talk) == ["half"]
    assert (talk.closing, talk.waiting, talk.lingers, talk.kept) == (True, False, False, 0)


def test_the_end_without_a_line_is_the_end(talk):
    talk.receive(b"a\n")
    assert said(talk) == ["a"]
    talk.receive(b"")
    assert (talk.closing, talk.waiting) == (True, False)


@pytest.mark.parametrize(("waiting", "lines"), [(1, TURN_LINES), (2, TURN_LINES // 2), (1000, 8), (10_000, 8)])
def test_when_many_wait_a_turn_is_shorter(talk, calls, waiting, lines):
    talk.receive(b"x\n" * TURN_LINES)
    talk.next(waiting)
    assert [len(each) for each in calls] == [lines]


@pytest.mark.parametrize(
    ("received", "answers"),
    [
        ([b"a\nb\n" + b"z" * (MAX_LINE_BYTES + 1)], ["a", "b", TOO_LONG]),
        ([b"z" * MAX_LINE_BYTES, b"z"], [TOO_LONG]),
        ([b"a\n" * (TURN_LINES + 1) + b"z" * (MAX_LINE_BYTES + 1) + b"\nb\n"], ["a"] * (TURN_LINES + 1) + [TOO_LONG]),
    ],
)
def test_a_line_over_the_limit_is_answered_after_those_before_it_and_ends_the_connection(talk, calls, received, answers):
    for data in received:
        assert not talk.waiting
        talk.receive(data)
    assert said(talk) == answers
    assert talk.closing
    assert [line.decode() for lines in calls for line in lines] == answers[:-1]
    assert talk.kept == 0


def test_a_line_of_the_limit_is_one_like_any_other(talk):
    talk.receive(b"z" * MAX_LINE_BYTES)
    talk.receive(b"\n")
    assert said(talk) == ["z" * MAX_LINE_BYTES]
    assert not talk.closing


def test_last_words(talk):
    assert talk.turned_away("there are 3 already") == (
        b'{"ok":false,"retryable":true,"error":"connections: there are 3 already"}\n'
    )
