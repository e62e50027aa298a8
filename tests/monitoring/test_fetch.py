"""A look at a sidecar from outside, and at what is none."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading

import pytest

import sidecar.monitoring.fetch
from sidecar.monitoring.fetch import HttpError, fetch_status, probe
from sidecar.monitoring.history import History
from sidecar.monitoring.pages import Pages
from sidecar.monitoring.status import Status
from sidecar.monitoring.status_document import status_document
from sidecar.network.address import parse_address
from sidecar.network.http_server import start_http
from tests.monitoring.statuses import FULL


@pytest.fixture
def serve_status(tmp_path):
    """Starts a server of what a sidecar with this status tells."""
    with contextlib.ExitStack() as stack:

        def start(status):
            server = start_http("127.0.0.1:0", Pages(lambda: status, History, tmp_path, {}).look_up)
            stack.callback(server.close)
            return server

        yield start


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


def test_fetch_status_is_what_the_server_tells(serve_status):
    server = serve_status(FULL)
    port = parse_address(server.address)[1]
    for address in (server.address, f"localhost:{port}", f":{port}", f"0.0.0.0:{port}", f"http://localhost:{port}/"):
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
        (
            b"SSH-2.0-OpenSSH_9.6\r\n",
            "not a sidecar: peer unexpectedly closed connection, in an answer that begins with b'SSH-2.0-OpenSSH_9.6\\r\\n'",
        ),
        (b"", "no answer: the connection was closed without an answer"),
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
def test_probe(serve_status, accepting, line):
    server = serve_status(Status(phase="failed", accepting=accepting))
    assert probe(server.address) == (accepting, f"{server.address}: {line}")


def test_asking_loads_nothing_that_takes_long():
    asked = "import sys, sidecar.monitoring.fetch, sidecar.monitoring.terminal; print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout == "False\n"
