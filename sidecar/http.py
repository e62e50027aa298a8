"""The HTTP server: `/status`, `/metrics`, `/healthz` and `/readyz`.

Whatever a client does, the process must not grow and training must not wait. So a connection is one request: its head is
small and has to come within seconds, its answer is one write, then it is closed. So many connections are served at a
time, each by a thread of its own; when all places are taken, the connection that has been open longest makes room.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder

from sidecar.address import parse_address
from sidecar.exposition import encode_status, health, metric_families, readiness, status_document
from sidecar.status import Status, one_line

MAX_CONNECTIONS = 16
PATIENCE_SECONDS = 0.5  # a connection keeps its place for so long, whoever waits
REQUEST_SECONDS = 5.0  # for the whole head of a request, and again for the answer
LINGER_SECONDS = 1.0  # after the answer, for the client to close first
HEAD_BYTES = 16384
DRAIN_BYTES = 1 << 20

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_TEXT = "text/plain; charset=utf-8"
_LOG = logging.getLogger(__name__)


def start_http(address: str, read_status: Callable[[], Status]) -> HttpServer:
    """Serve what `read_status` returns, on threads of its own, until `close()`.

    address: see `parse_address`. read_status: called for each request, from any thread. Raises ValueError for a bad
    address, and OSError that names the address where nobody can listen on it.
    """
    return HttpServer(_listen(address), read_status)


def _listen(address: str) -> socket.socket:
    host, port = parse_address(address)
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128, dualstack_ipv6=both)
    except OSError as error:
        why = str(error.strerror or error).partition(" (while attempting")[0]
        raise OSError(error.errno, f"HTTP address {address}: cannot listen: {why}") from error


class HttpServer(ThreadingHTTPServer):
    """What `start_http` returns. address: where it listens, with the port that a port 0 became."""

    def __init__(self, listener: socket.socket, read_status: Callable[[], Status]) -> None:
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()  # the base class's own, whose bind would ask the DNS for the host's name
        self.socket = listener
        host, port = listener.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.read_status = read_status
        self.registry = CollectorRegistry()
        self.registry.register(_Collector(read_status))
        self._open: dict[socket.socket, tuple[float, threading.Thread]] = {}  # since when, and who serves it; oldest first
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, drop the open connections and wait for their threads. May be called again."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        with self._changed:
            threads = [thread for _, thread in self._open.values()]
            for connection in self._open:
                _drop(connection)
        for thread in threads:
            thread.join(REQUEST_SECONDS)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return self.socket.accept()
        except OSError:
            time.sleep(0.1)  # without a free descriptor the listener stays readable: do not spin beside the training
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection on a thread of its own; close it where no place becomes free."""
        arguments = (request, client_address)
        thread = threading.Thread(target=self.process_request_thread, args=arguments, name="http-connection", daemon=True)
        with self._changed:
            if self._make_room():
                self._open[request] = (time.monotonic(), thread)
                thread.start()
            else:
                request.close()

    def _make_room(self) -> bool:
        """Wait for a free place, then take that of the connection that has been open longest."""

        def has_room() -> bool:
            return len(self._open) < MAX_CONNECTIONS

        if has_room():
            return True
        oldest, (since, _) = next(iter(self._open.items()))
        if self._changed.wait_for(has_room, max(0.0, since + PATIENCE_SECONDS - time.monotonic())):
            return True
        _drop(oldest)
        return self._changed.wait_for(has_room, PATIENCE_SECONDS)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection so that its answer arrives: closing over unread bytes would reset it before it is read."""
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_WR)
            for _ in _received(request, DRAIN_BYTES, LINGER_SECONDS):
                pass
        self.close_request(request)

    def close_request(self, request: Any) -> None:
        with self._changed:  # so that nobody drops a descriptor that has just become another's
            request.close()
            self._open.pop(request, None)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log why a connection ended. A client that went away or was too slow is no error."""
        error = sys.exception()
        if isinstance(error, OSError):
            _LOG.debug("HTTP client %s: %s", client_address, error)
        else:
            _LOG.error("HTTP client %s", client_address, exc_info=error)


class _Collector:
    def __init__(self, read_status: Callable[[], Status]) -> None:
        self._read_status = read_status

    def collect(self) -> Iterable[Metric]:
        return metric_families(self._read_status())


class _Handler(BaseHTTPRequestHandler):
    """One request. The base class parses it."""

    server: HttpServer
    command = ""

    def handle(self) -> None:
        head = _read_head(self.connection)
        self.connection.settimeout(REQUEST_SECONDS)
        if len(head) == HEAD_BYTES and not _END_OF_HEAD.search(head):
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if b"\n" in head else HTTPStatus.REQUEST_URI_TOO_LONG)
            return
        self.rfile.close()
        self.rfile = io.BytesIO(head)
        self.raw_requestline = self.rfile.readline()
        if head and self.parse_request():
            self._answer_request()

    def _answer_request(self) -> None:
        if self.command not in ("GET", "HEAD"):
            self._answer(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n", _TEXT, "Allow: GET, HEAD")
            return
        try:
            answer = self._look_up(self.path.partition("?")[0])
        except Exception:
            _LOG.exception("HTTP request for %r", self.path)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
        else:
            self._answer(*answer)

    def _look_up(self, path: str) -> tuple[HTTPStatus, bytes, str]:
        """Code, body and content type of a path."""
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            return HTTPStatus.OK, encode(self.server.registry), content_type
        if path == "/status":
            return HTTPStatus.OK, encode_status(status_document(self.server.read_status())), "application/json"
        if path == "/healthz":
            good, line = health(self.server.read_status(), time.monotonic())
        elif path == "/readyz":
            good, line = readiness(self.server.read_status())
        else:
            return HTTPStatus.NOT_FOUND, b"not here; there are /status, /metrics, /healthz and /readyz\n", _TEXT
        return HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, f"{line}\n".encode(), _TEXT

    def _answer(self, code: HTTPStatus, body: bytes, content_type: str, *headers: str) -> None:
        """Write head and body at once; of HEAD, the head alone. Nothing here names the software or its version."""
        head = (
            f"HTTP/1.1 {code.value} {code.phrase}",
            f"Date: {formatdate(usegmt=True)}",
            f"Content-Type: {content_type}",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
            *headers,
        )
        self.wfile.write("\r\n".join((*head, "\r\n")).encode("latin-1") + (b"" if self.command == "HEAD" else body))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class calls for a request that it cannot parse."""
        status = HTTPStatus(code)
        self._answer(status, f"{one_line(message or status.phrase)}\n".encode(), _TEXT)


def _read_head(connection: socket.socket) -> bytes:
    """What a client sends up to the end of a request's head, and perhaps more; less where it ends or is too large."""
    head = bytearray()
    for chunk in _received(connection, HEAD_BYTES, REQUEST_SECONDS):
        head += chunk
        if _END_OF_HEAD.search(head):
            break
    return bytes(head)


def _received(connection: socket.socket, limit: int, seconds: float) -> Iterator[bytes]:
    """What arrives, up to its end or `limit` bytes. Raises TimeoutError after so many seconds in all, however it drips."""
    deadline = time.monotonic() + seconds
    while limit:
        connection.settimeout(max(deadline - time.monotonic(), 1e-6))
        chunk = connection.recv(min(limit, 16384))
        if not chunk:
            return
        limit -= len(chunk)
        yield chunk


def _drop(connection: socket.socket) -> None:
    """End a connection that another thread is reading or writing; that thread closes it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
