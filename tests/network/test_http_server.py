"""The HTTP server: where it listens, that its answers arrive, and that no client can hold it up or make it grow."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import http.client
import os
import socket
import struct
import threading

import pytest

from sidecar.network.address import parse_address
from sidecar.network.http import BOUNDS, Page
from sidecar.network.http_server import start_http
from tests.running import PATIENCE_S, wait_until

UNHURRIED = dataclasses.replace(BOUNDS, patience_s=3600.0, request_s=3600.0, linger_s=3600.0)
"""For tests in which no deadline is to pass, however slow the machine is."""
LARGE = 20_000_000


DISK = threading.Event()
"""Set while the disk answers."""


def read():
    """What the disk gives."""
    assert DISK.wait(PATIENCE_S)
    return Page(b"from the disk")


def look_up(target, headers):
    if target == "/disk":
        return read
    return Page(bytes(LARGE) if target == "/large" else target.encode())


@pytest.fixture
def start():
    """Starts servers, and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def start_one(address="127.0.0.1:0", **bounds):
            server = start_http(address, look_up, dataclasses.replace(UNHURRIED, **bounds))
            stack.callback(server.close)
            return server

        yield start_one


def ask(server, path="/healthz", method="GET"):
    connection = http.client.HTTPConnection(*parse_address(server.address), timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def connect(server):
    return socket.create_connection(parse_address(server.address), timeout=PATIENCE_S)


def answer(client):
    """What a client receives up to the end of its connection."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def wait_until_empty(server):
    wait_until(lambda: not len(server), "the end of all connections")


# Where it listens


@pytest.mark.parametrize("address", ["9091", ":65536", "[::g]:1"])
def test_bad_addresses_are_named(address):
    with pytest.raises(ValueError, match=r"expected HOST:PORT, \[IPv6\]:PORT, or :PORT"):
        start_http(address, look_up)


def test_busy_port_is_named(start):
    server = start()
    with pytest.raises(OSError, match="cannot listen") as busy:
        start(server.address)
    assert busy.value.errno == errno.EADDRINUSE
    assert busy.value.strerror == f"HTTP address {server.address}: cannot listen: Address already in use"


@pytest.mark.parametrize(
    ("address", "reached_at"),
    [
        ("127.0.0.1:0", ["127.0.0.1"]),
        ("localhost:0", ["127.0.0.1"]),
        ("[::1]:0", ["::1"]),
        (":0", ["127.0.0.1", "::1"]),
        ("0.0.0.0:0", ["127.0.0.1"]),
        ("[::]:0", ["::1"]),
    ],
)
def test_listens_where_it_is_told_without_asking_the_dns(start, address, reached_at, monkeypatch):
    if "::1" in reached_at and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("asked the DNS for a name"))
    server = start(address)
    host, port = parse_address(server.address)
    assert port
    for host in reached_at:
        with socket.create_connection((host, port), timeout=PATIENCE_S) as client:
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert answer(client).startswith(b"HTTP/1.1 200 OK\r\n")


def test_close_frees_the_port_and_waits_for_every_thread(start):
    before = threading.enumerate()
    server = start()
    with connect(server) as slow, connect(server) as answered:
        slow.sendall(b"GET /sta")
        answered.sendall(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        assert answered.recv(100)
        wait_until(lambda: len(server) == 2)
        server.close()
        assert threading.enumerate() == before
        with contextlib.suppress(ConnectionResetError):  # if it was closed over what had just arrived
            assert slow.recv(100) == b""
    server.close()
    again = start(server.address)
    assert ask(again)[0] == 200
    again.close()
    with pytest.raises(ConnectionRefusedError):
        connect(again)


# Answers arrive


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_client_gets_an_answer_with_all_its_headers(start, method):
    code, headers, body = ask(start(), "/status", method)
    assert (code, body) == (200, b"/status" if method == "GET" else b"")
    assert sorted(headers) == [
        "Cache-Control",
        "Connection",
        "Content-Length",
        "Content-Type",
        "Date",
        "X-Content-Type-Options",
    ]
    assert (headers["Content-Length"], headers["Content-Type"]) == ("7", "text/plain; charset=utf-8")
    assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
    assert headers["Connection"] == "close"


def test_large_answers_arrive_whole(start):
    assert len(ask(start(), "/large")[2]) == LARGE


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (b"POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n" + bytes(500_000), 405),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + b"\x00\xff garbage\r\n" * 10_000, 200),
        (b"x" * 900_000, 431),
        (b"garbage\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
)
def test_an_answer_arrives_though_what_was_sent_is_not_read_or_wrong(start, request_bytes, code):
    server = start()
    with connect(server) as client:
        client.sendall(request_bytes)
        assert answer(client).startswith(f"HTTP/1.1 {code} ".encode())
    wait_until_empty(server)


@pytest.mark.parametrize("request_bytes", [b"", b"\r\n", b"\r\n\r\n"])
def test_nothing_asked_is_nothing_answered(start, request_bytes):
    with connect(start()) as client:
        client.sendall(request_bytes)
        client.shutdown(socket.SHUT_WR)
        assert answer(client) == b""


def test_a_request_without_a_body_is_closed_once_it_is_answered_and_one_with_a_body_waits_for_it(start):
    server = start()
    with connect(server) as bare, connect(server) as with_body:
        bare.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        with_body.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
        for client in (bare, with_body):
            assert answer(client).startswith(b"HTTP/1.1 200 ")
        wait_until(lambda: len(server) == 1)
        with_body.sendall(b"abc")
    wait_until_empty(server)


def test_a_client_that_goes_away_is_no_error(start, caplog):
    server = start()
    with connect(server) as client:
        client.sendall(b"GET /sta")
        wait_until(lambda: len(server))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets the connection
    wait_until_empty(server)
    assert not caplog.records


# A disk that is slow


@pytest.fixture
def slow_disk():
    DISK.clear()
    yield
    DISK.set()


def ask_for_the_disk(server):
    client = connect(server)
    client.sendall(b"GET /disk HTTP/1.1\r\nHost: x\r\n\r\n")
    return client


def test_while_one_waits_for_the_disk_others_are_answered(start, slow_disk):
    server = start()
    with ask_for_the_disk(server) as waits:
        wait_until(lambda: len(server) == 1)
        for _ in range(3):
            assert ask(server)[0] == 200
        DISK.set()
        assert answer(waits).endswith(b"\r\n\r\nfrom the disk")
    wait_until_empty(server)


def test_not_all_can_wait_for_the_disk(start, slow_disk, monkeypatch):
    monkeypatch.setattr("sidecar.network.http_server.MOST_READS", 2)
    server = start()
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(ask_for_the_disk(server)) for _ in range(2)]
        wait_until(lambda: len(server) == 2)
        wait_until(lambda: ask(server, "/disk")[0] == 503)
        assert ask(server, "/disk")[1]["Retry-After"] == "1"
        assert ask(server)[0] == 200
        DISK.set()
        assert [answer(each)[-13:] for each in waiting] == [b"from the disk"] * 2
    wait_until(lambda: ask(server, "/disk")[0] == 200)


def test_who_has_waited_for_the_disk_for_too_long_or_has_gone_harms_nobody(start, slow_disk):
    server = start(awaits_s=0.05)
    with ask_for_the_disk(server) as waits:
        assert answer(waits) == b""
    ask_for_the_disk(server).close()
    DISK.set()
    wait_until(lambda: ask(server, "/disk")[2] == b"from the disk")
    wait_until_empty(server)


# Clients that are slow, and many


def test_a_slow_client_beside_fast_ones(start):
    server = start()
    with connect(server) as slow:
        for byte in b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n":
            assert ask(server)[0] == 200
            slow.sendall(bytes([byte]))
        assert answer(slow).startswith(b"HTTP/1.1 200 OK\r\n")


def test_when_all_places_are_taken_the_oldest_connections_make_room(start):
    server = start(patience_s=0.02)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(3 * BOUNDS.connections)]
        for client in slow:
            with contextlib.suppress(ConnectionError):  # where it had to make room by now
                client.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n")
        for _ in range(20):
            assert ask(server)[0] == 200
            assert len(server) <= BOUNDS.connections
        for client in slow[: 2 * BOUNDS.connections]:
            with contextlib.suppress(ConnectionResetError):  # where it was closed over what it had sent
                assert client.recv(100) == b""
        slow[-1].sendall(b"\r\n")
        assert slow[-1].recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_connection_keeps_its_place_until_it_has_had_its_time(start):
    server = start()
    with contextlib.ExitStack() as stack:
        early = [stack.enter_context(connect(server)) for _ in range(BOUNDS.connections)]
        wait_until(lambda: len(server) == BOUNDS.connections)
        late = stack.enter_context(connect(server))
        late.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        early[0].settimeout(0.1)
        with pytest.raises(TimeoutError):
            early[0].recv(100)
        early[1].sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        for client in (early[1], late):
            assert answer(client).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_head_has_to_come_in_time_however_it_drips(start):
    server = start(request_s=0.2)
    with connect(server) as silent, connect(server) as dripping:
        assert silent.recv(100) == b""
        dripping.settimeout(0.01)
        for _ in range(1000):
            try:
                dripping.sendall(b"x")
                assert dripping.recv(100) == b""
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            pytest.fail("still open after 1000 bytes")
    wait_until_empty(server)


def test_a_client_that_never_reads_is_left(start):
    server = start(request_s=0.3)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(parse_address(server.address))
        client.settimeout(PATIENCE_S)
        client.sendall(b"GET /large HTTP/1.0\r\n\r\n")
        assert client.recv(9) == b"HTTP/1.1 "
        wait_until_empty(server)
        rest = b""
        with contextlib.suppress(ConnectionResetError):
            rest = answer(client)
        assert len(rest) < LARGE


@pytest.mark.parametrize("drip", [b"", b"x"])
def test_a_client_that_never_closes_is_left(start, drip):
    server = start(linger_s=0.2)

    def is_left():
        with contextlib.suppress(ConnectionError):
            client.sendall(drip)
        return not len(server)

    with connect(server) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
        wait_until(is_left)


def test_a_client_that_sends_without_end_is_left(start):
    with connect(start()) as client, contextlib.suppress(ConnectionError):
        for _ in range(1000):
            client.sendall(b"x" * 65536)
        pytest.fail("took 65 MB")


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts descriptors in /proc")
def test_many_requests_leave_nothing_behind(start):
    before, threads = open_descriptors(), threading.active_count()
    server = start()

    def some():
        for path in ("/status", "/metrics", "/healthz", "/nowhere") * 10:
            ask(server, path)
            most.append(len(server))

    most: list[int] = []
    clients = [threading.Thread(target=some) for _ in range(5)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert len(most) == 200
    assert max(most) <= BOUNDS.connections
    wait_until_empty(server)
    server.close()
    assert threading.active_count() == threads
    assert open_descriptors() == before
