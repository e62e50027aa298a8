"""The loop over real sockets: turns, bounds and deadlines, so that nobody waits for somebody else."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import logging
import selectors
import socket
import struct
import time
from types import SimpleNamespace

import pytest

import sidecar.network.loop as loop_module
from sidecar.network.conversation import Bounds, Conversation
from sidecar.network.lines import BOUNDS, TURN_LINES, LineConversation
from sidecar.network.loop import READ_BYTES, TURN_S, Loop
from sidecar.network.unix_socket import listen
from sidecar.pairs.line_protocol import Answer, refused
from sidecar.pairs.request import MAX_LINE_BYTES
from tests.running import PATIENCE_S


@pytest.fixture
def clock(monkeypatch):
    """The time as the loop sees it: it stands still until `now` is moved."""
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now, perf_counter=time.perf_counter, sleep=time.sleep)
    monkeypatch.setattr(loop_module, "time", clock)
    return clock


class Running:
    """A loop, its clients, and turns until something holds."""

    def __init__(self, listener, converse, bounds):
        self.listener, self.clients = listener, []
        self.loop = Loop(listener, converse, bounds)

    def connect(self):
        """A client that does not block; nobody has accepted it yet."""
        client = socket.socket(self.listener.family)
        client.connect(self.listener.getsockname())
        client.setblocking(False)
        self.clients.append(client)
        return client

    def turn(self, times=1):
        for _ in range(times):
            self.loop.turn(0.001)

    def until(self, holds):
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline
            self.turn()

    def accept(self, count=1):
        """So many new clients, all of which are accepted."""
        before = len(self.loop)
        clients = [self.connect() for _ in range(count)]
        self.until(lambda: len(self.loop) == before + count)
        return clients

    def answer(self, client):
        """What a client receives up to the end of its connection."""
        data = bytearray()

        def ended():
            with contextlib.suppress(BlockingIOError):
                while more := client.recv(1 << 20):
                    data.extend(more)
                return True
            return False

        self.until(ended)
        return bytes(data)

    def close(self):
        for client in self.clients:
            client.close()
        self.loop.close()
        self.listener.close()


@pytest.fixture
def run():
    """Starts loops, and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def start(converse, bounds, listener=None):
            running = Running(listener or socket.create_server(("127.0.0.1", 0)), converse, bounds)
            stack.callback(running.close)
            return running

        yield start


# Lines


class Lines(Running):
    """A loop of lines whose answers repeat the line, and a log of which lines were answered in which call."""

    def __init__(self, path, bounds):
        self.calls, self.answer_size = [], 0
        super().__init__(listen(path, 0o600), lambda: LineConversation(self.answer_lines, lambda e: refused(str(e))), bounds)

    def answer_lines(self, lines):
        self.calls.append(lines)
        return [Answer(ok=True, job_id=line.decode() + "." * self.answer_size) for line in lines]


@pytest.fixture
def line_loop(tmp_path):
    """Starts a loop of lines."""
    with contextlib.ExitStack() as stack:

        def start(**bounds):
            running = Lines(tmp_path / "s.sock", dataclasses.replace(BOUNDS, **bounds))
            stack.callback(running.close)
            return running

        yield start


def received(client):
    data = b""
    with contextlib.suppress(BlockingIOError):
        while more := client.recv(1 << 20):
            data += more
    return [json.loads(line)["job_id"] for line in data.splitlines()]


def test_lines_are_answered_in_their_order_on_their_own_connection(line_loop):
    running = line_loop()
    one, other = running.connect(), running.connect()
    one.send(b"a\n\nb\n")
    other.send(b"c\nd")
    running.turn(4)
    assert received(one) == ["a", "b"]
    assert received(other) == ["c"]
    other.send(b"e\n")
    running.turn(2)
    assert received(other) == ["de"]
    assert len(running.loop) == 2
    one.close()
    running.turn(2)
    assert len(running.loop) == 1


def test_a_client_with_many_lines_does_not_keep_the_others_waiting(line_loop):
    running = line_loop()
    greedy, modest = running.accept(2)
    greedy.send(b"x\n" * (3 * TURN_LINES))
    running.turn()
    modest.send(b"m\n")
    running.turn(2)
    assert received(modest) == ["m"]
    running.turn(4)
    assert [len(each) for each in running.calls] == [TURN_LINES, 1, TURN_LINES, TURN_LINES]
    assert len(received(greedy)) == 3 * TURN_LINES


def test_a_client_that_does_not_take_its_answers_is_not_read_from(line_loop):
    running = line_loop()
    running.answer_size = 200
    deaf, other = running.accept(2)
    sent = 0
    for _ in range(2000):
        with contextlib.suppress(BlockingIOError):
            sent += deaf.send(b"y\n" * 1000)
        running.turn()
    answered = sum(len(each) for each in running.calls)
    assert answered < BOUNDS.unsent_bytes // 200 + READ_BYTES // 2 + 10_000
    assert answered < sent // 2
    other.send(b"o\n")
    running.turn(3)
    assert received(other)[0].startswith("o")
    taken = 0
    for _ in range(20_000):  # it takes them after all, and gets every one
        with contextlib.suppress(BlockingIOError):
            taken += deaf.recv(1 << 20).count(b"\n")
        running.turn()
        if taken == sent // 2:
            break
    assert taken == sent // 2


def test_a_line_over_the_limit_is_answered_after_those_before_it_and_closed(line_loop):
    running = line_loop()
    (client,) = running.accept()
    data = b"a\nb\n" + b"z" * (MAX_LINE_BYTES + 1)
    while data and len(running.loop):
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            data = data[client.send(data) :]
        running.turn()
    running.until(lambda: not len(running.loop))
    answers = b""
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        while more := client.recv(1 << 16):
            answers += more
    told = [json.loads(line) for line in answers.splitlines()]
    assert [line.get("job_id") for line in told[:2]] == ["a", "b"]
    assert told[2] == {"ok": False, "error": f"line: longer than {MAX_LINE_BYTES} bytes"}


def test_what_is_kept_for_all_together_is_bounded(line_loop, caplog):
    running = line_loop(kept_bytes=3_000_000)
    clients = running.accept(10)
    for client in clients:
        data = b"w" * 900_000
        for _ in range(100):
            if not data:
                break
            with contextlib.suppress(OSError):
                data = data[client.send(data) :]
            running.turn()
    assert len(running.loop) == 3
    assert "a connection was closed: connections: over 3000000 bytes are kept for all" in caplog.text
    told = []
    for client in clients:
        with contextlib.suppress(BlockingIOError):
            told.append(json.loads(client.recv(1000)))
    assert [(answer["ok"], answer["retryable"]) for answer in told] == [(False, True)] * 7
    assert BOUNDS.kept_bytes < 100 << 20


def test_what_was_kept_is_not_counted_once_it_is_answered_or_gone(line_loop):
    running = line_loop(kept_bytes=3_000_000)
    for end in (b"\n", b""):
        for _ in range(8):  # more than may be kept, one after the other
            (client,) = running.accept()
            data = b"w" * 900_000 + end
            while data:
                with contextlib.suppress(BlockingIOError):
                    data = data[client.send(data) :]
                running.turn()
            client.close()
            running.until(lambda: not len(running.loop))
    assert running.loop._kept == 0
    assert len(running.calls) == 16


def test_when_all_places_are_taken_the_client_that_was_silent_longest_makes_room(line_loop, clock):
    running = line_loop(connections=3)
    clients = running.accept(3)
    clock.now += 5
    for client in (clients[0], clients[2]):
        client.send(b"a\n")
    running.turn(3)
    late = running.connect()
    late.send(b"late\n")
    running.turn(4)
    assert received(late) == ["late"]
    assert clients[1].recv(10) == b""
    assert len(running.loop) == 3
    later = running.connect()  # the others have just said something: nobody makes room
    running.turn(4)
    assert json.loads(later.recv(1000))["retryable"] is True


def test_a_listener_can_be_replaced(line_loop, tmp_path):
    running = line_loop()
    (one,) = running.accept(1)
    other = listen(tmp_path / "other.sock", 0o600)
    running.loop.listen_on(other)
    late = socket.socket(socket.AF_UNIX)
    late.connect(str(tmp_path / "other.sock"))
    late.setblocking(False)
    for client in (one, late):
        client.send(b"a\n")
    running.turn(4)
    assert [received(client) for client in (one, late)] == [["a"], ["a"]]
    late.close()


def test_a_client_over_the_number_allowed_is_told_and_turned_away(line_loop):
    running = line_loop(connections=3)
    clients = [running.connect() for _ in range(5)]
    running.turn(8)
    assert len(running.loop) == 3
    answer = json.loads(clients[4].recv(1000))
    assert answer == {"ok": False, "error": "connections: there are 3 already", "retryable": True}
    assert clients[4].recv(1000) == b""


def test_many_connections_with_half_a_line_hold_up_nobody(line_loop):
    running = line_loop()
    clients = []
    for _ in range(300):
        clients.append(running.connect())
        running.turn()
    for client in clients:
        client.send(b"half a li")
    running.turn(3)
    clients[0].send(b"ne\n")
    running.turn(3)
    assert received(clients[0]) == ["half a line"]


def test_a_turn_ends_in_time_and_goes_on_with_those_who_waited(line_loop, monkeypatch):
    running = line_loop()
    clients = running.accept(6)
    moments = itertools.count(step=TURN_S)  # each look at the clock is a whole turn later
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=lambda: next(moments), perf_counter=time.perf_counter))
    for client in clients:
        client.sendall(b"first\n")
    running.turn()
    assert len(running.calls) == 1
    for client in clients:
        client.sendall(b"second\n")
    running.turn(5)
    assert [len(received(client)) > 0 for client in clients] == [True] * 6


def test_who_sends_now_and_then_comes_before_those_who_send_without_end(line_loop):
    running = line_loop()
    *greedy, modest = running.accept(41)
    for each in greedy:
        each.send(b"x\n" * TURN_LINES)
    running.turn()
    modest.send(b"m\n")
    served = len(running.calls)
    running.turn()
    assert running.calls[served] == [b"m"]
    running.turn(100)
    assert [len(received(each)) for each in greedy] == [TURN_LINES] * 40


def test_those_who_send_without_end_have_a_part_of_each_turn(line_loop, monkeypatch):
    running = line_loop()
    greedy, *modest = running.accept(41)
    greedy.send(b"x\n" * 3 * TURN_LINES)
    running.turn()
    moments = itertools.count(step=TURN_S)  # each look at the clock is a whole turn later
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=lambda: next(moments), perf_counter=time.perf_counter))
    for each in modest:
        each.send(b"m\n")
    before = len(running.calls)
    running.turn()
    assert [call[0] for call in running.calls[before:]] == [b"m", b"x"]


def test_of_those_that_come_the_one_that_sent_least_comes_first(line_loop):
    running = line_loop()
    *greedy, modest = running.accept(4)
    for each, size in zip([*greedy, modest], (9000, 8000, 7000, 10), strict=True):
        each.send(b"x" * size + b"\n")
    running.turn(2)
    running.calls.clear()
    for each, line in zip([*greedy, modest], (b"4", b"3", b"2", b"1"), strict=True):
        each.send(line + b"\n")
    running.turn(2)
    assert running.calls == [[b"1"], [b"2"], [b"3"], [b"4"]]


def test_where_many_wait_little_is_read_from_each(line_loop):
    running = line_loop()
    clients = running.accept(40)
    for each in clients:
        each.send(b"y" * 100_000)
    running.turn()
    assert sum(connection.talk.kept for connection in running.loop._connections) < 40 * 50_000
    for each in clients:
        each.send(b"\n")
    running.turn(10)
    assert [len(call[0]) for call in running.calls] == [100_000] * 40


def test_those_who_wait_to_be_accepted_are_accepted_together(line_loop):
    running = line_loop()
    for _ in range(40):
        running.connect()
    running.turn()
    assert len(running.loop) == 40


# The end


def test_at_the_end_what_has_arrived_is_answered_and_all_are_hung_up(line_loop):
    running = line_loop()
    client, idle = running.accept(2)
    client.send(b"a\n" * (TURN_LINES + 5))
    running.loop.finish()
    assert len(received(client)) == TURN_LINES + 5
    assert client.recv(1) == b""
    assert idle.recv(1) == b""
    assert len(running.loop) == 0


def test_at_the_end_answers_that_were_not_taken_yet_can_be_taken(line_loop, monkeypatch):
    running = line_loop()
    running.answer_size = 200
    (client,) = running.accept()
    sent = client.send(b"y\n" * 10_000) // 2
    running.until(lambda: sum(len(each) for each in running.calls) == sent)
    taken = bytearray()

    def take(seconds):  # while the loop waits for it to be taken
        with contextlib.suppress(BlockingIOError):
            taken.extend(client.recv(1 << 20))

    moments = itertools.count(step=1e-9)  # time enough, however slow the machine is
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=lambda: next(moments), sleep=take))
    running.loop.finish()
    with contextlib.suppress(BlockingIOError):
        while more := client.recv(1 << 20):
            taken.extend(more)
    assert taken.count(b"\n") == sent


def test_at_the_end_a_client_that_takes_nothing_is_waited_for_a_second(line_loop, clock, monkeypatch):
    running = line_loop()
    running.answer_size = 200
    (client,) = running.accept()
    sent = client.send(b"y\n" * 10_000) // 2
    running.until(lambda: sum(len(each) for each in running.calls) == sent)
    begun = clock.now
    monkeypatch.setattr(loop_module.time, "sleep", lambda seconds: setattr(clock, "now", clock.now + seconds))
    running.loop.finish()
    assert clock.now - begun == pytest.approx(1.0, abs=0.01)
    assert len(running.loop) == 0


# Waiting


class Selector:
    """A selector and the time: `ready_at` is when the next line comes; each look takes 5 µs."""

    def __init__(self):
        self.now = self.ready_at = 0.0
        self.slept = False
        self.looks = []

    def select(self, timeout=None):
        self.looks.append(timeout)
        self.now += 5e-6
        if timeout and self.now < self.ready_at:
            self.slept, self.now = True, self.ready_at
        return ["ready"] if self.now >= self.ready_at else []

    def comes_after(self, seconds, loop):
        """Whether it slept until a line that comes after so many seconds."""
        self.ready_at, self.slept = self.now + seconds, False
        assert loop._wait(0.2) == ["ready"]
        return self.slept


@pytest.fixture
def selector(monkeypatch):
    selector = Selector()
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=time.monotonic, perf_counter=lambda: selector.now))
    return selector


def test_a_client_in_lockstep_is_waited_for_without_sleeping_until_it_does_not_come(line_loop, selector, monkeypatch):
    loop = line_loop().loop
    monkeypatch.setattr(loop, "_selector", selector)
    slept = [selector.comes_after(30e-6, loop) for _ in range(100)]
    assert all(slept[:32])
    assert not any(slept[32:])
    assert selector.comes_after(1e-3, loop)  # after which it has to be prompt again for a while
    assert all(selector.comes_after(30e-6, loop) for _ in range(32))
    assert not selector.comes_after(30e-6, loop)
    monkeypatch.undo()


def test_a_client_that_is_not_in_lockstep_is_never_waited_for_without_sleeping(line_loop, selector, monkeypatch):
    loop = line_loop().loop
    monkeypatch.setattr(loop, "_selector", selector)
    assert all(selector.comes_after(1e-3, loop) for _ in range(50))
    assert selector.looks == [0, 0.2] * 50
    monkeypatch.undo()


def test_where_nobody_is_in_lockstep_it_always_sleeps(run, selector, monkeypatch):
    loop = run(Conversation, Bounds(connections=2)).loop
    monkeypatch.setattr(loop, "_selector", selector)
    assert all(selector.comes_after(30e-6, loop) for _ in range(100))
    assert selector.looks == [0.2] * 100
    monkeypatch.undo()


def test_a_turn_that_waits_is_ended_from_elsewhere(run):
    running = run(Conversation, Bounds(connections=2))
    running.loop.wake()
    running.loop.turn(3600.0)


# Requests with deadlines


class Once(Conversation):
    """Asked for `SIZE\\n`, it says so many bytes, and is over. It lingers, unless the line ends with a full stop."""

    def __init__(self):
        self.line = b""

    def receive(self, data):
        self.line += data
        self.waiting = b"\n" in self.line
        self.closing = self.waiting or not data
        self.lingers = not self.line.endswith(b".\n")

    def next(self, waiting=1):
        self.waiting = False
        return b"a" * int(self.line.split(b"\n")[0].rstrip(b"."))


ONCE = Bounds(connections=3, patience_s=0.5, one_request=True, request_s=5.0, linger_s=1.0)


@pytest.fixture
def once(run, clock):
    return run(Once, ONCE)


def test_a_request_is_answered_and_its_connection_closed(once):
    client = once.connect()
    client.send(b"100.\n")
    assert once.answer(client) == b"a" * 100
    assert len(once.loop) == 0


def test_nothing_asked_is_nothing_answered(once):
    (client,) = once.accept()
    client.shutdown(socket.SHUT_WR)
    assert once.answer(client) == b""
    once.until(lambda: not len(once.loop))


def test_a_request_has_to_come_in_time_however_it_drips(once, clock):
    silent, dripping = once.accept(2)
    for _ in range(49):
        clock.now += 0.1
        dripping.send(b"1")
        once.turn(2)
    assert len(once.loop) == 2
    clock.now += 0.1
    once.until(lambda: not len(once.loop))
    assert once.answer(silent) == b""


def test_an_answer_has_as_long_again_to_be_taken(once, clock):
    deaf, quick = once.accept(2)
    clock.now += 4.9
    once.turn()
    for client in (deaf, quick):
        client.send(b"20000000.\n")  # more than a connection takes by itself
    assert len(once.answer(quick)) == 20_000_000
    once.until(lambda: len(once.loop) == 1)
    clock.now += 4.9
    once.turn(4)
    assert len(once.loop) == 1
    clock.now += 0.2
    once.until(lambda: not len(once.loop))


def test_who_has_asked_in_time_is_answered_though_its_turn_comes_later(run, clock, monkeypatch, tmp_path):
    running = run(Once, ONCE, listen(tmp_path / "s.sock", 0o600))
    clients = running.accept(3)
    for client in clients:
        client.send(b"1.\n")
    late = ONCE.request_s + 1
    moments = itertools.chain(itertools.repeat(clock.now, 2), itertools.repeat(clock.now + late))  # the first turn is long
    monkeypatch.setattr(clock, "monotonic", lambda: next(moments))
    running.turn()
    assert len(running.loop) == 2
    assert [running.answer(client) for client in clients] == [b"a"] * 3


def test_an_answer_arrives_though_more_was_sent_than_was_read(once):
    """To close over what was not read would reset the connection."""
    client = once.connect()
    client.setblocking(True)
    client.settimeout(PATIENCE_S)
    client.send(b"100000\n" + b"x" * 100_000)
    once.until(lambda: len(once.loop))
    client.send(b"x" * 100_000)
    client.setblocking(False)
    assert once.answer(client) == b"a" * 100_000
    client.close()
    once.until(lambda: not len(once.loop))


@pytest.mark.parametrize("drip", [b"", b"x"])
def test_a_client_that_does_not_close_after_its_answer_is_left(once, clock, drip):
    (client,) = once.accept()
    client.send(b"1\n")
    assert once.answer(client) == b"a"
    for _ in range(9):
        clock.now += 0.1
        client.send(drip)
        once.turn(2)
    assert len(once.loop) == 1
    clock.now += 0.2
    once.until(lambda: not len(once.loop))


def test_a_client_that_sends_without_end_after_its_answer_is_left(once):
    client = once.connect()
    client.send(b"1\n")
    sent, deadline = 0, time.monotonic() + PATIENCE_S
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                sent += client.send(b"x" * 65536)
            once.turn()
    assert sent < 65 << 20
    assert len(once.loop) == 0


def test_when_all_places_are_taken_the_one_that_was_open_longest_makes_room(once, clock):
    early = []
    for _ in range(3):
        early += once.accept()
        clock.now += 0.1
    late = once.connect()
    late.send(b"2.\n")
    once.turn(5)
    assert len(once.loop) == 3
    with pytest.raises(BlockingIOError):
        early[0].recv(1)
    clock.now += 0.2  # half a second since the first
    assert once.answer(late) == b"aa"
    assert once.answer(early[0]) == b""
    for client in early[1:]:
        with pytest.raises(BlockingIOError):
            client.recv(1)


def test_a_place_that_becomes_free_is_given_at_once(once):
    early = once.accept(3)
    late = once.connect()
    late.send(b"2.\n")
    once.turn(5)
    early[1].send(b"1.\n")
    assert once.answer(late) == b"aa"
    for client in (early[0], early[2]):
        with pytest.raises(BlockingIOError):
            client.recv(1)


def test_one_that_makes_room_in_the_moment_in_which_it_sends_is_no_error(once, clock):
    early = once.accept(3)
    late = once.connect()
    once.turn(2)
    clock.now += 0.5
    once.turn()  # the listener is watched again
    early[0].send(b"1.\n")
    late.send(b"2.\n")
    assert once.answer(late) == b"aa"
    with contextlib.suppress(ConnectionResetError):
        once.answer(early[0])


def test_a_client_that_resets_its_connection_is_no_error(once, caplog):
    (client,) = once.accept()
    client.send(b"10")
    once.turn(2)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets it
    client.close()
    once.until(lambda: not len(once.loop))
    assert not caplog.records


# Accepting


class Listener(socket.socket):
    """A listening socket for which there may be no descriptors left."""

    tried = 0
    full = True

    def accept(self):
        self.tried += 1
        if self.full:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@pytest.fixture
def listener():
    with Listener() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


def test_an_accept_that_fails_is_tried_again_without_spinning(run, clock, listener, caplog):
    running = run(Once, ONCE, listener)
    client = running.connect()
    client.send(b"2.\n")
    with caplog.at_level(logging.WARNING):
        running.until(lambda: listener.tried)
        running.turn(20)
        assert listener.tried == 1
        for tried in (2, 3):
            clock.now += 0.2
            running.until(lambda tried=tried: listener.tried == tried)
            running.turn(20)
            assert listener.tried == tried
    assert caplog.text.count("a connection could not be accepted: Too many open files") == 1
    listener.full = False
    clock.now += 0.2
    assert running.answer(client) == b"aa"


def test_an_accept_that_failed_is_tried_again_once_a_connection_is_closed(run, clock, listener):
    listener.full = False
    running = run(Once, ONCE, listener)
    (first,) = running.accept()
    listener.full = True
    second = running.connect()
    second.send(b"2.\n")
    running.until(lambda: listener.tried > 1)
    listener.full = False
    running.turn(20)
    assert len(running.loop) == 1
    first.close()
    assert running.answer(second) == b"aa"


def test_an_accept_that_failed_is_not_tried_again_at_the_end(run, clock, listener):
    running = run(Once, ONCE, listener)
    running.connect()
    running.until(lambda: listener.tried)
    running.loop.finish()
    assert listener.tried == 1


def test_without_descriptors_nobody_loses_its_place(run, clock, listener):
    listener.full = False
    running = run(Conversation, Bounds(connections=2), listener)
    running.accept(2)
    listener.full = True
    running.connect()
    running.until(lambda: listener.tried == 3)
    clock.now += 3600
    running.until(lambda: listener.tried == 4)
    assert len(running.loop) == 2


def test_the_selector_is_asked_for_nothing_where_nothing_is_wanted(line_loop):
    """Epoll tells of a connection's end even so, again and again."""
    running = line_loop()
    (client,) = running.accept()
    client.send(b"x\n" * (2 * TURN_LINES))
    running.turn()
    assert [key.data.watched for key in running.loop._selector.get_map().values() if key.data] == []
    running.until(lambda: len(running.calls) == 2)
    (key,) = (key for key in running.loop._selector.get_map().values() if key.data)
    assert key.events == selectors.EVENT_READ
