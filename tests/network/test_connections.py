"""The event loop: bounds on what clients can make it keep, and turns so that nobody waits for somebody else's lines."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import selectors
import socket

import pytest

import sidecar.network.connections as connections_module
from sidecar.network.connections import BUFFERED_BYTES, TURN_LINES, UNSENT_BYTES, Connections
from sidecar.network.unix_socket import listen
from sidecar.pairs.line_protocol import Answer
from sidecar.pairs.request import MAX_LINE_BYTES


class Loop:
    """Connections whose answers repeat the line, and a log of which lines were answered in which call."""

    def __init__(self, path):
        self.path, self.calls, self.answer_size, self.clients = path, [], 0, []
        self.listener = listen(path, 0o600)
        self.connections = Connections(self.listener, self.answer)

    def answer(self, lines):
        self.calls.append(lines)
        return [Answer(ok=True, job_id=line.decode() + "." * self.answer_size) for line in lines]

    def connect(self):
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        client.connect(str(self.path))
        self.clients.append(client)
        return client

    def turn(self, times=1):
        for _ in range(times):
            self.connections.turn(0.001)


@pytest.fixture
def loop(tmp_path):
    loop = Loop(tmp_path / "s.sock")
    yield loop
    for client in loop.clients:
        client.close()
    loop.connections.close()
    loop.listener.close()


def received(client):
    data = b""
    with contextlib.suppress(BlockingIOError):
        while more := client.recv(1 << 20):
            data += more
    return [json.loads(line)["job_id"] for line in data.splitlines()]


def test_lines_are_answered_in_their_order_on_their_own_connection(loop):
    one, other = loop.connect(), loop.connect()
    one.send(b"a\n\nb\n")
    other.send(b"c\nd")
    loop.turn(4)
    assert received(one) == ["a", "b"]
    assert received(other) == ["c"]
    other.send(b"e\n")
    loop.turn(2)
    assert received(other) == ["de"]
    assert len(loop.connections) == 2
    one.close()
    loop.turn(2)
    assert len(loop.connections) == 1


def test_a_client_with_many_lines_does_not_keep_the_others_waiting(loop):
    greedy, modest = loop.connect(), loop.connect()
    loop.turn(3)
    greedy.send(b"x\n" * (3 * TURN_LINES))
    loop.turn()
    modest.send(b"m\n")
    loop.turn(2)
    assert received(modest) == ["m"]
    loop.turn(4)
    assert [len(lines) for lines in loop.calls] == [TURN_LINES, TURN_LINES, 1, TURN_LINES]
    assert len(received(greedy)) == 3 * TURN_LINES


def test_a_client_that_does_not_take_its_answers_is_not_read_from(loop):
    loop.answer_size = 200
    deaf, other = loop.connect(), loop.connect()
    sent = 0
    for _ in range(2000):
        with contextlib.suppress(BlockingIOError):
            sent += deaf.send(b"y\n" * 1000)
        loop.turn()
    answered = sum(len(lines) for lines in loop.calls)
    assert answered < UNSENT_BYTES // 200 + connections_module.READ_BYTES // 2 + 10_000
    assert answered < sent // 2
    other.send(b"o\n")
    loop.turn(3)
    assert received(other)[0].startswith("o")
    taken = 0
    for _ in range(20_000):  # it takes them after all, and gets every one
        with contextlib.suppress(BlockingIOError):
            taken += deaf.recv(1 << 20).count(b"\n")
        loop.turn()
        if taken == sent // 2:
            break
    assert taken == sent // 2


def test_a_line_over_the_limit_is_answered_after_those_before_it_and_closed(loop):
    client = loop.connect()
    client.setblocking(True)
    client.settimeout(10)
    loop.turn(2)
    data = b"a\nb\n" + b"z" * (MAX_LINE_BYTES + 1)
    answers = b""
    client.setblocking(False)
    while data:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            data = data[client.send(data) :]
        loop.turn()
        if not len(loop.connections):
            break
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        while more := client.recv(1 << 16):
            answers += more
    lines = [json.loads(line) for line in answers.splitlines()]
    assert [line.get("job_id") for line in lines[:2]] == ["a", "b"]
    assert lines[2] == {"ok": False, "error": f"line: longer than {MAX_LINE_BYTES} bytes"}
    assert len(loop.connections) == 0


def test_what_is_kept_for_all_together_is_bounded(loop, caplog, monkeypatch):
    monkeypatch.setattr(connections_module, "BUFFERED_BYTES", 3_000_000)
    clients = [loop.connect() for _ in range(10)]
    loop.turn(12)
    for client in clients:
        data = b"w" * 900_000
        for _ in range(100):
            if not data:
                break
            with contextlib.suppress(OSError):
                data = data[client.send(data) :]
            loop.turn()
    assert len(loop.connections) == 3
    assert "a connection was closed: connections: over 3000000 bytes are kept for all" in caplog.text
    told = []
    for client in clients:
        with contextlib.suppress(BlockingIOError):
            told.append(json.loads(client.recv(1000)))
    assert [(answer["ok"], answer["retryable"]) for answer in told] == [(False, True)] * 7
    assert BUFFERED_BYTES < 100 << 20


def test_a_client_over_the_number_allowed_is_told_and_turned_away(loop, monkeypatch):
    monkeypatch.setattr(connections_module, "MAX_CONNECTIONS", 3)
    clients = [loop.connect() for _ in range(5)]
    loop.turn(8)
    assert len(loop.connections) == 3
    answer = json.loads(clients[4].recv(1000))
    assert answer == {"ok": False, "error": "connections: there are 3 already", "retryable": True}
    assert clients[4].recv(1000) == b""


def test_an_accept_that_fails_does_not_make_it_spin_and_is_tried_again(loop, caplog):
    class Full:
        fileno = loop.listener.fileno

        def accept(self):
            raise OSError(errno.EMFILE, "Too many open files")

    client, full = loop.connect(), Full()
    loop.connections._selector.unregister(loop.listener)
    loop.connections._selector.register(full, selectors.EVENT_READ)
    loop.connections._listener = full
    with caplog.at_level(logging.WARNING):
        loop.turn(5)
    assert caplog.text.count("a connection could not be accepted: Too many open files") == 1
    loop.connections._listener = loop.listener
    loop.connections._accept_again_at = 1e-9
    client.send(b"late\n")
    loop.turn(3)
    assert received(client) == ["late"]


def test_many_connections_with_half_a_line_hold_up_nobody(loop):
    clients = []
    for _ in range(300):
        clients.append(loop.connect())
        loop.turn()
    for client in clients:
        client.send(b"half a li")
    loop.turn(3)
    clients[0].send(b"ne\n")
    loop.turn(3)
    assert received(clients[0]) == ["half a line"]


def test_at_the_end_what_has_arrived_is_answered(loop):
    client = loop.connect()
    loop.turn(2)
    client.send(b"a\n" * (TURN_LINES + 5))
    loop.connections.finish()
    assert len(received(client)) == TURN_LINES + 5


def test_a_turn_ends_in_time_and_goes_on_with_those_who_waited(loop, monkeypatch):
    clients = [loop.connect() for _ in range(6)]
    loop.turn(6)
    moments = itertools.count(step=connections_module.TURN_S)  # each look at the clock is a whole turn later
    monkeypatch.setattr(connections_module.time, "monotonic", lambda: next(moments))
    for client in clients:
        client.sendall(b"first\n")
    loop.turn()
    assert len(loop.calls) == 1
    for client in clients:
        client.sendall(b"second\n")
    loop.turn(5)
    assert [len(received(client)) > 0 for client in clients] == [True] * 6


class Clock:
    """A selector and the time: `ready_at` is when the next line comes; each look takes 5 µs."""

    def __init__(self):
        self.now = self.ready_at = 0.0
        self.slept = False

    def select(self, timeout=None):
        self.now += 5e-6
        if timeout and self.now < self.ready_at:
            self.slept, self.now = True, self.ready_at
        return ["ready"] if self.now >= self.ready_at else []

    def comes_after(self, seconds, connections):
        """Whether it slept until a line that comes after so many seconds."""
        self.ready_at, self.slept = self.now + seconds, False
        assert connections._wait(0.2) == ["ready"]
        return self.slept


def test_a_client_in_lockstep_is_waited_for_without_sleeping_until_it_does_not_come(loop, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(connections_module.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(loop.connections, "_selector", clock)
    slept = [clock.comes_after(30e-6, loop.connections) for _ in range(100)]
    assert all(slept[:32])
    assert not any(slept[32:])
    assert clock.comes_after(1e-3, loop.connections)  # after which it has to be prompt again for a while
    assert all(clock.comes_after(30e-6, loop.connections) for _ in range(32))
    assert not clock.comes_after(30e-6, loop.connections)


def test_a_client_that_is_not_in_lockstep_is_never_waited_for_without_sleeping(loop, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(connections_module.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(loop.connections, "_selector", clock)
    looks = []
    monkeypatch.setattr(clock, "select", lambda timeout, select=clock.select: (looks.append(timeout), select(timeout))[1])
    assert all(clock.comes_after(1e-3, loop.connections) for _ in range(50))
    assert looks == [0, 0.2] * 50
