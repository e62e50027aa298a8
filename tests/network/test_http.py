"""What a sidecar tells over HTTP, to whom, and that no client can hold it up or make it grow."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import http.client
import json
import math
import os
import re
import socket
import struct
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

import sidecar.monitoring.fetch
import sidecar.network.http
from sidecar.monitoring.fetch import HttpError, fetch_status, probe
from sidecar.monitoring.history import History
from sidecar.monitoring.pages import Pages
from sidecar.monitoring.prometheus import metric_families
from sidecar.monitoring.status import Status
from sidecar.monitoring.status_document import STALL_SECONDS, encode_status, health, readiness, status_document
from sidecar.monitoring.terminal import format_status
from sidecar.network.address import parse_address
from sidecar.network.http import MAX_CONNECTIONS, start_http

FULL = Status(
    phase="running",
    accepting=True,
    n_features=80,
    position=123456,
    step=30000,
    pairs={"accepted": 117000, "held_out": 6456, "duplicate": 3, "rejected": 1},
    rejected={"features": 1},
    loss=3.25,
    prequential_rmse=1.5,
    prequential_plcc=0.998,
    feature_drift=0.25,
    step_seconds=29e-6,
    replay_size=9000,
    replay_capacity=10000,
    replay_evictions=7,
    held_out_size=1000,
    held_out_capacity=1000,
    connections=2,
    journal_bytes=12_345_678,
    journal_errors=4,
    skipped_steps=5,
    version=42,
    stable_version=41,
    checkpoint_time=1767225599.9,
    checkpoint_gate="unstable",
    checkpoints={"stable": 40, "unstable": 2},
    checkpoint_failures={"parity": 1},
)
UNKNOWN_AT_FIRST = ("loss", "prequential_rmse", "prequential_plcc", "feature_drift", "step_seconds")


def start(address, read_status):
    """A server of what a sidecar without checkpoints tells."""
    return start_http(address, Pages(read_status, History, Path("nowhere"), {"seed": 3}).look_up)


@pytest.fixture(scope="module")
def running():
    """One server for all tests that do not end it, and the status that it serves."""
    board = SimpleNamespace(status=FULL)
    server = start("127.0.0.1:0", lambda: board.status)
    yield server, board
    server.close()


@pytest.fixture
def server(running):
    server, board = running
    board.status = dataclasses.replace(FULL, progress=time.monotonic())
    server.set_status = lambda status: setattr(board, "status", status)
    yield server
    assert eventually(lambda: not len(server))


def ask(server, path="/status", method="GET", headers=None):
    connection = http.client.HTTPConnection(*parse_address(server.address), timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def connect(server):
    return socket.create_connection(parse_address(server.address), timeout=20)


def send(server, data, *, end=False):
    """The answer to raw bytes, up to the end of the connection; end: say first that no more will come."""
    with connect(server) as client:
        client.sendall(data)
        if end:
            client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def eventually(condition):
    """Waits for what other threads are about to do; false where it never comes."""
    for _ in range(1000):
        if condition():
            return True
        time.sleep(0.01)
    return False


# Addresses


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:9091", "127.0.0.1", 9091),
        ("0.0.0.0:1", "0.0.0.0", 1),
        (":9091", "", 9091),
        ("[::1]:9091", "::1", 9091),
        ("[::]:0", "::", 0),
        ("localhost:65535", "localhost", 65535),
        ("pod-3.vmafx_sidecar.svc:80", "pod-3.vmafx_sidecar.svc", 80),
    ],
)
def test_addresses(address, host, port):
    assert parse_address(address) == (host, port)


BAD_ADDRESSES = """
    9091 localhost localhost: :65536 :-1 :+1 :٣ :000001 http://localhost:9091 /status:1 user@host:1 a..b:1 é:1 1.2.3:1
    127.0.0.256:1 ::1:9091 [::1] []:1 [::g]:1 [:::]:1 [127.0.0.1]:1
"""


@pytest.mark.parametrize("address", [*BAD_ADDRESSES.split(), "", ": 1", ":1 ", "a b:1", "127.0.0.1:9091\n", "a" * 64 + ":1"])
def test_bad_addresses_are_named_with_what_is_allowed(address):
    for function in (parse_address, fetch_status, probe, lambda address: start(address, Status)):
        with pytest.raises(ValueError, match=re.escape(f"{address!r}: expected HOST:PORT, [IPv6]:PORT, or :PORT")):
            function(address)


def test_busy_port_is_named(server):
    with pytest.raises(OSError, match="cannot listen") as busy:
        start(server.address, Status)
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
def test_listens_where_it_is_told_without_asking_the_dns(address, reached_at, monkeypatch):
    if "::1" in reached_at and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("asked the DNS for a name"))
    server = start(address, lambda: FULL)
    with contextlib.closing(server):
        assert fetch_status(server.address)["phase"] == "running"
        port = parse_address(server.address)[1]
        assert port
        for host in reached_at:
            with socket.create_connection((host, port), timeout=20):
                pass


# /status


def test_status_of_a_fresh_sidecar_leaves_out_what_has_no_value():
    assert status_document(Status()) == {
        "phase": "initializing",
        "current_samples": 0,
        "accepting": False,
        "step": 0,
        "pairs": {"accepted": 0, "held_out": 0, "duplicate": 0, "rejected": 0},
        "replay_size": 0,
        "replay_capacity": 0,
        "replay_evictions": 0,
        "held_out_size": 0,
        "held_out_capacity": 0,
        "checkpoints": {"stable": 0, "unstable": 0, "unverified": 0},
        "checkpoint_failures": {"build": 0, "parity": 0, "write": 0},
        "journal_bytes": 0,
        "journal_errors": 0,
        "connections": 0,
        "skipped_steps": 0,
        "n_features": 0,
        "rejected": {},
    }


def test_status_tells_all(server):
    server.set_status(dataclasses.replace(FULL, phase="paused", reason="journal: no space left on device"))
    code, headers, body = ask(server, "/status?pretty=1")
    assert (code, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body) == {
        "phase": "paused",
        "current_samples": 123456,
        "last_checkpoint_time": "2025-12-31T23:59:59Z",
        "model_version": "model_v000042",
        "reason": "journal: no space left on device",
        "accepting": True,
        "stable_version": "model_v000041",
        "last_checkpoint_gate": "unstable",
        "step": 30000,
        "loss": 3.25,
        "prequential_rmse": 1.5,
        "prequential_plcc": 0.998,
        "feature_drift": 0.25,
        "pairs": {"accepted": 117000, "held_out": 6456, "duplicate": 3, "rejected": 1},
        "replay_size": 9000,
        "replay_capacity": 10000,
        "replay_evictions": 7,
        "held_out_size": 1000,
        "held_out_capacity": 1000,
        "checkpoints": {"stable": 40, "unstable": 2, "unverified": 0},
        "checkpoint_failures": {"build": 0, "parity": 1, "write": 0},
        "journal_bytes": 12_345_678,
        "journal_errors": 4,
        "connections": 2,
        "step_seconds": 29e-6,
        "skipped_steps": 5,
        "n_features": 80,
        "rejected": {"features": 1},
    }
    # Nothing of the value is forgotten: every field is told, or has its own endpoint.
    assert len(dataclasses.fields(Status)) == len(json.loads(body)) + len(["progress"])


LONGEST = {
    field.name: 2**63 if field.type == "int" else -1.2345678901234567e-300
    for field in dataclasses.fields(Status)
    if field.type in ("int", "float | None") and field.name != "checkpoint_time"
}


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ('a "quoted" \\ path', 'a "quoted" \\ path'),
        ("two\nlines\r\n\x1b[31mred\x00", "two lines   [31mred "),
        ("x" * 500, "x" * 500),
        ("x" * 501, "x" * 499 + "…"),
        ("x" * 100_000, "x" * 499 + "…"),
        ('"' * 100_000, '"' * 499 + "…"),
        ("\U0001f600" * 100_000, "\U0001f600" * 499 + "…"),
        ("\x01" * 100_000, " " * 499 + "…"),
        ("\udcff caf\u00e9 \u2028\u202e", "  café   "),
    ],
)
def test_hostile_text_neither_breaks_the_status_nor_drives_a_figure_out(server, reason, told):
    server.set_status(dataclasses.replace(FULL, **LONGEST, phase="failed", reason=reason))
    code, _, body = ask(server)
    document = json.loads(body)
    assert code == 200
    assert len(body) <= 4096
    assert body.count(b"\n") == 1
    assert document["reason"] == told
    assert document["n_features"] == 2**63


def test_status_never_exceeds_its_size_and_keeps_what_readers_rely_on(server):
    many = {f"\udcff{i}" * 50: i for i in range(1000)}
    server.set_status(dataclasses.replace(FULL, pairs=many, checkpoints=many, checkpoint_gate="\udcff" * 100_000))
    _, _, body = ask(server)
    assert len(body) <= 4096
    document = json.loads(body)
    assert list(document)[:4] == ["phase", "current_samples", "last_checkpoint_time", "model_version"]
    exact = {"phase": "running", "rest": "x" * (4096 - len('{"phase": "running", "rest": ""}\n'))}
    assert len(encode_status(exact)) == 4096
    assert json.loads(encode_status({**exact, "rest": exact["rest"] + "x"})) == {"phase": "running"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_absent(value):
    status = dataclasses.replace(FULL, **dict.fromkeys(UNKNOWN_AT_FIRST, value))
    assert not set(UNKNOWN_AT_FIRST) & set(status_document(status))
    assert not {f"vmafx_training_{name}" for name in UNKNOWN_AT_FIRST} & {family.name for family in metric_families(status)}


# /metrics


METRICS = {
    'vmafx_training_pairs_total{result="accepted"}': 117000,
    'vmafx_training_pairs_total{result="held_out"}': 6456,
    'vmafx_training_pairs_total{result="duplicate"}': 3,
    'vmafx_training_pairs_total{result="rejected"}': 1,
    "vmafx_training_steps_total": 30000,
    "vmafx_training_loss": 3.25,
    "vmafx_training_prequential_rmse": 1.5,
    "vmafx_training_prequential_plcc": 0.998,
    "vmafx_training_feature_drift": 0.25,
    'vmafx_training_phase{phase="initializing"}': 0,
    'vmafx_training_phase{phase="running"}': 1,
    'vmafx_training_phase{phase="paused"}': 0,
    'vmafx_training_phase{phase="failed"}': 0,
    "vmafx_training_replay_size": 9000,
    "vmafx_training_replay_evictions_total": 7,
    'vmafx_training_checkpoints_total{gate="stable"}': 40,
    'vmafx_training_checkpoints_total{gate="unstable"}': 2,
    'vmafx_training_checkpoints_total{gate="unverified"}': 0,
    'vmafx_training_checkpoint_failures_total{stage="build"}': 0,
    'vmafx_training_checkpoint_failures_total{stage="parity"}': 1,
    'vmafx_training_checkpoint_failures_total{stage="write"}': 0,
    "vmafx_training_checkpoint_version": 42,
    "vmafx_training_checkpoint_timestamp_seconds": 1767225599.9,
    "vmafx_training_step_seconds": 29e-6,
    "vmafx_training_journal_bytes": 12_345_678,
    "vmafx_training_journal_errors_total": 4,
    "vmafx_training_connections": 2,
}
ABSENT_AT_FIRST = {
    *(f"vmafx_training_{name}" for name in UNKNOWN_AT_FIRST),
    "vmafx_training_checkpoint_version",
    "vmafx_training_checkpoint_timestamp_seconds",
}


def scrape(server):
    """Samples by name and labels, and the families that they came in."""
    code, headers, body = ask(server, "/metrics")
    assert code == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(body.decode()))
    samples = {}
    for sample in (sample for family in families for sample in family.samples):
        labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
        samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples, families


def test_metrics_are_exactly_those_that_are_promised(server):
    samples, families = scrape(server)
    assert samples == METRICS
    for family in families:
        assert re.fullmatch(r"[A-Z1][^.]*\.", family.documentation), "one sentence"
        assert family.type == ("counter" if family.samples[0].name.endswith("_total") else "gauge")


def test_metrics_of_a_fresh_sidecar_have_all_labels_and_nothing_that_has_no_value(server):
    server.set_status(Status())
    samples, _ = scrape(server)
    assert samples == {name: int("initializing" in name) for name in METRICS if name not in ABSENT_AT_FIRST}


def test_label_values_that_are_not_foreseen_are_told_too(server):
    server.set_status(dataclasses.replace(FULL, checkpoint_failures={'a "new"\nstage\\': 2}))
    _, families = scrape(server)
    failures = next(family for family in families if family.name == "vmafx_training_checkpoint_failures")
    assert {sample.labels["stage"]: sample.value for sample in failures.samples} == {
        "build": 0,
        "parity": 0,
        "write": 0,
        'a "new"\nstage\\': 2,
    }


def test_metrics_in_the_open_metrics_format(server):
    _, headers, body = ask(server, "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


# /healthz and /readyz


@pytest.mark.parametrize(
    ("silent", "healthy", "line"),
    [
        (0, True, "making progress (running)"),
        (STALL_SECONDS, True, "making progress (running)"),
        (STALL_SECONDS + 0.01, False, "no progress for more than 10 s (running)"),
    ],
)
def test_health(silent, healthy, line):
    assert health(dataclasses.replace(FULL, progress=5000.0), 5000 + silent) == (healthy, line)


@pytest.mark.parametrize(
    ("phase", "accepting", "line"),
    [
        ("initializing", False, "not accepting pairs (initializing)"),
        ("initializing", True, "accepting pairs (initializing)"),
        ("failed", True, "accepting pairs (failed)"),
        ("paused", False, "not accepting pairs (paused)"),
    ],
)
def test_readiness_is_whether_the_socket_accepts(phase, accepting, line):
    assert readiness(Status(phase=phase, accepting=accepting)) == (accepting, line)


@pytest.mark.parametrize(
    ("path", "change", "code", "body"),
    [
        ("/healthz", {}, 200, b"making progress (running)\n"),
        ("/healthz", {"progress": -1e9}, 503, b"no progress for more than 10 s (running)\n"),
        ("/readyz", {}, 200, b"accepting pairs (running)\n"),
        ("/readyz", {"accepting": False, "phase": "paused"}, 503, b"not accepting pairs (paused)\n"),
    ],
)
def test_probes(server, path, change, code, body):
    server.set_status(dataclasses.replace(FULL, **{"progress": time.monotonic(), **change}))
    assert ask(server, path)[::2] == (code, body)


# HTTP


@pytest.mark.parametrize("path", ["/status", "/metrics", "/healthz", "/readyz", "/nowhere"])
def test_head_is_get_without_the_body(server, path):
    got, head = ask(server, path), ask(server, path, "HEAD")
    assert head[0] == got[0]
    assert send(server, f"HEAD {path} HTTP/1.1\r\n\r\n".encode()).endswith(b"\r\n\r\n")
    for headers in (got[1], head[1]):
        assert sorted(headers) == [
            "Cache-Control",
            "Connection",
            "Content-Length",
            "Content-Type",
            "Date",
            "X-Content-Type-Options",
        ]
        assert int(headers["Content-Length"]) == len(got[2])
        assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
        assert headers["Connection"] == "close"
    assert got[1]["Content-Type"] == head[1]["Content-Type"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "G<b>ET", "__class__"])
def test_other_methods_are_refused(server, method):
    code, headers, body = ask(server, "/status", method)
    assert (code, headers["Allow"], body) == (405, "GET, HEAD", b"only GET and HEAD\n")


@pytest.mark.parametrize(
    "path",
    [
        "//",
        "/status/",
        "/Status",
        "/statusx",
        "/%73tatus",
        "/../status",
        "/./status",
        "/static",
        "/web/live.html",
        "/live.html",
        "/api",
        "/api/history/",
        "*",
    ],
)
def test_other_paths_are_not_there(server, path):
    code, _, body = ask(server, path)
    assert (code, body) == (
        404,
        b"not found; available: /, /status, /metrics, /healthz, /readyz, /api/history and /api/checkpoints\n",
    )


def test_answer_arrives_though_a_body_was_never_read(server):
    body = bytes(500_000)
    answer = send(server, b"POST /status HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert answer.endswith(b"only GET and HEAD\n")


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\n\n", 200),
        (b"GET /healthz\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nExpect: 100-continue\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 16_000 + b"\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\n\r\nGET /readyz HTTP/1.1\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\n\r\n" + b"\x00\xff garbage\r\n" * 10_000, 200),
        (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"x" * 900_000, 414),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 20_000, 431),
        (b"garbage\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"\x00" * 1000 + b"\n\n", 400),
        (b"GET /healthz HTTP/one\r\n\r\n", 400),
        (b"GET /health z HTTP/1.1\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
        (b"GET \xff\xfe HTTP/1.1\r\n\r\n", 404),
    ],
)
def test_raw_requests_get_one_answer_each(server, request_bytes, code):
    answer = send(server, request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {code} ".encode())
    assert f"Content-Length: {len(body)}" in head.decode()
    assert len(body) < 1000
    assert body.decode().removesuffix("\n").isprintable()


@pytest.mark.parametrize("blank", [b"\r\n", b"\n", b"\r\n\r\n"])
def test_blank_lines_before_a_request_are_passed_over(server, blank):
    assert send(server, blank + b"GET /healthz HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("request_bytes", [b"", b"\r\n", b"\r\n\r\n"])
def test_nothing_asked_is_nothing_answered(server, request_bytes):
    assert send(server, request_bytes, end=True) == b""


def test_head_in_pieces_is_put_together(server):
    with connect(server) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (b"G", b"ET /heal", b"thz HTTP/1.1\r", b"\nHost: x\r\n", b"\r", b"\n"):
            client.sendall(piece)
            time.sleep(0.002)
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("path", ["/status", "/metrics", "/healthz", "/readyz"])
def test_a_status_that_cannot_be_read_is_an_error_of_that_request_alone(server, running, path, caplog):
    running[1].status = None
    code, _, body = ask(server, path)
    assert (code, body) == (500, b"Internal Server Error\n")
    assert "AttributeError" in caplog.text
    server.set_status(dataclasses.replace(FULL, progress=time.monotonic()))
    assert ask(server, path)[0] == 200


def test_a_client_that_goes_away_is_no_error(server, caplog):
    with connect(server) as client:
        client.sendall(b"GET /sta")
        assert eventually(lambda: len(server))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets the connection
    assert eventually(lambda: not len(server))
    assert not caplog.records


# Clients that are slow, and many


def test_a_slow_client_beside_fast_ones(server):
    with connect(server) as slow:
        slow.sendall(b"G")
        for byte in b"ET /readyz HTTP/1.1\r\n\r\n":
            assert ask(server, "/healthz")[0] == 200
            slow.sendall(bytes([byte]))
        assert slow.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_when_all_places_are_taken_the_oldest_connections_make_room(server, monkeypatch):
    monkeypatch.setattr(sidecar.network.http, "REQUEST_SECONDS", 3600.0)
    monkeypatch.setattr(sidecar.network.http, "PATIENCE_SECONDS", 0.02)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(3 * MAX_CONNECTIONS)]
        for client in slow:
            client.sendall(b"GET /readyz HTTP/1.1\r\n")
        for _ in range(20):
            assert ask(server, "/healthz")[0] == 200
            assert len(server) <= MAX_CONNECTIONS
        for client in slow[: 2 * MAX_CONNECTIONS]:
            with contextlib.suppress(ConnectionResetError):  # where it was closed over what it had sent
                assert client.recv(100) == b""
        slow[-1].sendall(b"\r\n")
        assert slow[-1].recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_connection_keeps_its_place_until_it_has_had_its_time(server, monkeypatch):
    monkeypatch.setattr(sidecar.network.http, "PATIENCE_SECONDS", 3600.0)
    with contextlib.ExitStack() as stack:
        early = [stack.enter_context(connect(server)) for _ in range(MAX_CONNECTIONS)]
        assert eventually(lambda: len(server) == MAX_CONNECTIONS)
        late = stack.enter_context(connect(server))
        late.sendall(b"GET /readyz HTTP/1.1\r\n\r\n")
        early[0].settimeout(0.1)
        with pytest.raises(TimeoutError):
            early[0].recv(100)
        early[1].sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert early[1].recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
        early[1].close()
        assert late.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_head_has_to_come_in_time_however_it_drips(server, monkeypatch):
    monkeypatch.setattr(sidecar.network.http, "REQUEST_SECONDS", 0.2)
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
    assert eventually(lambda: not len(server))


@pytest.mark.parametrize("drip", [b"", b"x"])
def test_a_client_that_never_closes_is_left(server, monkeypatch, drip):
    monkeypatch.setattr(sidecar.network.http, "LINGER_SECONDS", 0.2)

    def is_left():
        with contextlib.suppress(ConnectionError):
            client.sendall(drip)
        return not len(server)

    with connect(server) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nContent-Length: 99999\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
        assert eventually(is_left)


def test_a_client_that_never_reads_is_left(server, monkeypatch):
    monkeypatch.setattr(sidecar.network.http, "REQUEST_SECONDS", 0.3)
    server.set_status(dataclasses.replace(FULL, checkpoint_failures={f"{i:020000}": 1 for i in range(1000)}))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(parse_address(server.address))
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert eventually(lambda: len(server))
        assert eventually(lambda: not len(server))


def test_a_client_that_sends_without_end_is_left(server, monkeypatch):
    monkeypatch.setattr(sidecar.network.http, "LINGER_SECONDS", 3600.0)
    with connect(server) as client, contextlib.suppress(ConnectionError):
        for _ in range(1000):
            client.sendall(b"x" * 65536)
        pytest.fail("took 65 MB")


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts descriptors in /proc")
def test_many_requests_leave_nothing_behind():
    before, threads = open_descriptors(), threading.active_count()
    server = start("127.0.0.1:0", lambda: FULL)

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
    assert max(most) <= MAX_CONNECTIONS
    assert eventually(lambda: not len(server))
    server.close()
    assert threading.active_count() == threads
    assert open_descriptors() == before


def test_a_request_without_a_body_is_closed_once_it_is_answered_and_one_with_a_body_waits_for_it(server):
    with connect(server) as bare, connect(server) as with_body:
        bare.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        with_body.sendall(b"GET /healthz HTTP/1.1\r\nContent-Length: 3\r\n\r\n")
        for client in (bare, with_body):
            assert b"".join(iter(lambda: client.recv(65536), b"")).startswith(b"HTTP/1.1 200 ")  # noqa: B023 (called at once)
        assert len(server) == 1
        with_body.sendall(b"abc")
    assert eventually(lambda: not len(server))


def test_close_frees_the_port_and_waits_for_every_thread():
    before = threading.enumerate()
    server = start("127.0.0.1:0", lambda: FULL)
    with connect(server) as slow, connect(server) as answered:
        slow.sendall(b"GET /sta")
        answered.sendall(b"POST /healthz HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
        assert answered.recv(100)
        assert eventually(lambda: len(server) == 2)
        server.close()
        assert threading.enumerate() == before
        assert slow.recv(100) == b""
    server.close()
    again = start(server.address, lambda: FULL)
    assert ask(again)[0] == 200
    again.close()
    with pytest.raises(ConnectionRefusedError):
        connect(again)


def test_without_a_free_descriptor_accepting_does_not_spin(server, monkeypatch):
    def accept():
        tried.append(time.monotonic())
        raise OSError(errno.EMFILE, "Too many open files")

    tried = []
    listener = server._listener
    monkeypatch.setattr(server, "_listener", SimpleNamespace(accept=accept, fileno=listener.fileno))
    with connect(server) as client:
        assert eventually(lambda: len(tried) == 3)
        monkeypatch.undo()
        assert tried[2] - tried[0] > 1.9 * sidecar.network.http.ACCEPT_AGAIN_SECONDS
        client.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


# The client


@pytest.fixture
def impostor():
    """A listener that answers every connection with given bytes, or with nothing at all."""
    with contextlib.ExitStack() as stack:

        def start(answer):
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def serve():
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    if answer is None:
                        connection.settimeout(10)
                        assert connection.recv(1) == b"", "nobody has waited so long"
                    else:
                        connection.sendall(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            stack.callback(thread.join)
            return f"127.0.0.1:{listener.getsockname()[1]}"

        yield start


def test_fetch_status_is_what_the_server_tells(server):
    port = parse_address(server.address)[1]
    for address in (server.address, f"localhost:{port}", f":{port}", f"0.0.0.0:{port}"):
        assert fetch_status(address) == status_document(FULL)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nhello \x1b[31m", "/status is not from a sidecar: answered 200 with b'hello \\x1b[31m'"),
        (b"HTTP/1.1 200 OK\r\n\r\n[1]", "/status is not from a sidecar: answered 200 with b'[1]'"),
        (
            b'HTTP/1.1 404 No\r\n\r\n{"phase":"running"}',
            '/status is not from a sidecar: answered 404 with b\'{"phase":"running"}\'',
        ),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not a sidecar: SSH-2.0-OpenSSH_9.6"),
        (b"", "no answer: Remote end closed connection without response"),
        (None, "no answer: timed out"),
    ],
)
def test_what_is_no_sidecar_is_named(impostor, monkeypatch, answer, message):
    monkeypatch.setattr(sidecar.monitoring.fetch, "CLIENT_SECONDS", 0.2)
    address = impostor(answer)
    with pytest.raises(HttpError) as refused:
        fetch_status(address)
    assert str(refused.value).strip() == f"{address}: {message}"


def test_nobody_there_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(HttpError) as refused:
        fetch_status(address)
    assert str(refused.value) == f"{address}: no answer: Connection refused"
    assert probe(address) == (False, str(refused.value))


@pytest.mark.parametrize(("accepting", "line"), [(True, "accepting pairs (failed)"), (False, "not accepting pairs (failed)")])
def test_probe(server, accepting, line):
    server.set_status(Status(phase="failed", accepting=accepting))
    assert probe(server.address) == (accepting, f"{server.address}: {line}")


def test_status_for_a_person():
    told = status_document(dataclasses.replace(FULL, reason="no space left on device, so nothing is accepted until a restart"))
    assert format_status(told).splitlines() == [
        "phase                  running",
        "pairs in the journal   123,456",
        "last checkpoint        2025-12-31T23:59:59Z",
        "newest model           model_v000042",
        "reason                 no space left on device, so nothing is accepted until a",
        "                       restart",
        "accepts pairs          yes",
        "stable model           model_v000041",
        "gate verdict           unstable",
        "gradient steps         30,000",
        "loss                   3.25 score points squared",
        "RMSE, last 1000 pairs  1.5 score points",
        "PLCC, last 1000 pairs  0.998",
        "feature drift          0.25 standard deviations",
        "pairs since the start  accepted 117,000, held out 6,456, duplicate 3, rejected 1",
        "replay buffer          9,000 pairs",
        "replay capacity        10,000 pairs",
        "replay evictions       7 pairs",
        "held out               1,000 pairs",
        "held-out capacity      1,000 pairs",
        "checkpoints            stable 40, unstable 2, unverified 0",
        "failed checkpoints     build 0, parity 1, write 0",
        "journal                12.35 MB",
        "journal errors         4",
        "connections            2",
        "time per step          29 µs",
        "skipped steps          5",
        "features per pair      80",
        "rejected, by reason    features 1",
    ]


@pytest.mark.parametrize(
    ("document", "lines"),
    [
        ({}, []),
        ({"phase": "\x1b[2Jrun\nning"}, ["phase  [2Jrun ning"]),
        ({"phase": "", "pairs": {}, "a_new\n_field": None}, ["phase                  –"]),
        ({"x" * 100: 1}, ["x" * 24 + "  1"]),
        ({"reason": "x" * 200}, ["reason  " + "x" * 72, "        " + "x" * 72, "        " + "x" * 56]),
    ],
)
def test_statuses_of_another_make_are_told_as_well_as_can_be(document, lines):
    assert format_status(document).splitlines()[: len(lines)] == lines
