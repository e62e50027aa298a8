"""The log: nobody waits for whoever reads it, and what was dropped is counted and told."""

from __future__ import annotations

import os

import pytest

from sidecar import log
from tests.running import wait_until


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    for end in (reader, writer):
        os.close(end)


def test_lines_for_which_there_is_no_room_are_dropped_counted_and_told(pipe, monkeypatch):
    reader, descriptor = pipe
    monkeypatch.setattr(log, "_MOST_LINES", 10)
    writer = log._Writer(descriptor)
    for _ in range(200):  # more than the pipe and the queue hold together
        writer.put("x" * 4000)
    assert writer.dropped > 100
    told, received = f"{writer.dropped} log lines were dropped: nobody read standard error\n".encode(), b""
    while told not in received:
        received += os.read(reader, 1 << 16)
    writer.put("the last")
    while b"the last\n" not in received:
        received += os.read(reader, 1 << 16)
    assert received.count(b"were dropped") == 1


def test_what_waits_is_written_before_the_end(pipe):
    reader, descriptor = pipe
    writer = log._Writer(descriptor)
    for number in range(100):
        writer.put(f"line {number}")
    writer.drain()
    assert os.read(reader, 1 << 16).count(b"\n") == 100


def test_a_descriptor_that_cannot_be_written_harms_nothing(pipe):
    writer = log._Writer(pipe[0])
    writer.put("nobody gets this")
    wait_until(lambda: not writer._lines.unfinished_tasks)
    assert writer.dropped == 0
