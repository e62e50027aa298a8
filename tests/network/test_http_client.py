"""One request over HTTP: the answer, and every way not to get one."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from sidecar.network.http_client import Answer, NotHttpError, get
from tests.running import PATIENCE_S


def long():
    """A deadline that nothing here reaches, however busy the machine is."""
    return time.monotonic() + PATIENCE_S


@pytest.fixture
def answering():
    """Starts a listener that answers one request with pieces of bytes, and holds the connection until the client hangs up.

    It returns the port, and a list that gets the request.
    """
    with contextlib.ExitStack() as stack:

        def start(*pieces, host="127.0.0.1", family=socket.AF_INET, hold=False):
            listener = stack.enter_context(socket.create_server((host, 0), family=family))
            requests = []

            listener.settimeout(PATIENCE_S)

            def serve():
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    requests.append(connection.recv(65536))
                    for piece in pieces:
                        connection.sendall(piece)
                    while hold and connection.recv(1):
                        pass

            thread = threading.Thread(target=serve)
            thread.start()
            stack.callback(thread.join)
            return listener.getsockname()[1], requests

        yield start


def test_an_answer_comes_whole_with_its_headers(answering):
    port, requests = answering(b"HTTP/1.1 200 OK\r\nETag: ", b'"x"\r\nContent-Length: 5\r\n\r\nab', b"cde")
    answer = get("127.0.0.1", port, "/a?b", headers={"If-None-Match": '"y"'}, most=5, until=long())
    assert answer == Answer(200, {"etag": '"x"', "content-length": "5"}, b"abcde")
    lines = requests[0].decode().split("\r\n")
    assert lines[0] == "GET /a?b HTTP/1.1"
    assert f"Host: 127.0.0.1:{port}" in lines
    assert 'If-None-Match: "y"' in lines


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", b"ab"),
        (b"HTTP/1.0 200 OK\r\n\r\nabc", b"abc"),
    ],
)
def test_other_forms_of_an_answer(answering, sent, body):
    port, _ = answering(sent)
    assert get("127.0.0.1", port, "/", most=100, until=long()).body == body


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "closed connection, in an answer that begins with b'SSH-2.0-OpenSSH_9.2"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "illegal status line"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "peer closed connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabcdefghi", "more than 8 bytes"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 20000, "Receive buffer too long"),
    ],
)
def test_what_is_no_answer(answering, sent, message):
    port, _ = answering(sent)
    with pytest.raises(NotHttpError, match=message):
        get("127.0.0.1", port, "/", most=8, until=long())


def test_a_server_that_says_nothing_has_not_answered(answering):
    port, _ = answering()
    with pytest.raises(ConnectionAbortedError, match="the connection was closed without an answer"):
        get("127.0.0.1", port, "/", most=8, until=long())


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"])
def test_a_server_that_holds_on_is_left_at_the_deadline(answering, sent):
    port, _ = answering(sent, hold=True)
    with pytest.raises(TimeoutError):
        get("127.0.0.1", port, "/", most=8, until=time.monotonic() + 0.05)


def test_a_server_that_sends_a_byte_now_and_then_does_not_move_the_deadline(answering, monkeypatch):
    port, _ = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabcdefghi")
    clock = iter([0.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr("sidecar.network.http_client._READ_BYTES", 1)
    monkeypatch.setattr("sidecar.network.http_client.time.monotonic", lambda: next(clock))
    with pytest.raises(TimeoutError):
        get("127.0.0.1", port, "/", most=9, until=4.0)


def test_an_address_of_version_6_is_in_brackets(answering):
    try:
        port, requests = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", host="::1", family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert get("::1", port, "/", most=0, until=long()).status == 200
    assert f"Host: [::1]:{port}".encode() in requests[0]


def test_tls_is_spoken_where_it_is_asked_for(answering):
    port, requests = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(OSError, match=r"(?i)ssl|tls|eof"):
        get("127.0.0.1", port, "/", most=0, until=long(), tls=True)
    assert requests[0][:1] == b"\x16", "a handshake"
