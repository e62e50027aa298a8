"""The HTTP server beside the training: one thread for all clients, and bounds that no client can get around.

It knows requests and answers; what there is to see is `monitoring/pages.py`. A request costs some tens of microseconds of the
interpreter, which the thread that trains wants too: so there is no thread a connection, no `http.server` and no e-mail parser.
Every connection takes one request and is closed after it. All have deadlines; when all places are taken, the connection that
has been open longest makes room.
"""

from __future__ import annotations

import contextlib
import logging
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

from sidecar.network.address import parse_address

MAX_CONNECTIONS = 64
PATIENCE_SECONDS = 0.5  # a connection keeps its place for so long, whoever waits
REQUEST_SECONDS = 5.0  # for the whole head of a request, and again for the answer
LINGER_SECONDS = 1.0  # after the answer, for the client to close first
ACCEPT_AGAIN_SECONDS = 0.1  # after an accept that failed, for want of file descriptors most likely
HEAD_BYTES = 16384
HEAD_LINES = 100
DRAIN_BYTES = 1 << 20
TEXT = "text/plain; charset=utf-8"

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_ENDS_WITH_HEAD = re.compile(rb"\n\r?\n\Z")
_BODY = {"content-length", "transfer-encoding"}
_VERSION = re.compile(r"HTTP/(\d{1,9})\.\d{1,9}")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Page:
    """An answer. headers: whole lines, beside those of every answer."""

    body: bytes
    content_type: str = TEXT
    status: HTTPStatus = HTTPStatus.OK
    headers: tuple[str, ...] = ("Cache-Control: no-store",)


LookUp = Callable[[str, Mapping[str, str]], Page]
"""The answer to GET for a target, `/status?since=3`, and the request's headers, their names in lower case."""


def start_http(address: str, look_up: LookUp) -> HttpServer:
    """Answer GET and HEAD with what `look_up` gives, on a thread of its own, until `close()`.

    address: see `parse_address`. Raises ValueError for a bad address, and OSError that names the address where nobody can
    listen on it.
    """
    return HttpServer(_listen(address), look_up)


def _listen(address: str) -> socket.socket:
    host, port = parse_address(address)
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128, dualstack_ipv6=both)
    except OSError as error:
        why = str(error.strerror or error).partition(" (while attempting")[0]
        raise OSError(error.errno, f"HTTP address {address}: cannot listen: {why}") from error


class HttpServer:
    """What `start_http` returns. address: where it listens, with the port that a port 0 became."""

    def __init__(self, listener: socket.socket, look_up: LookUp) -> None:
        host, port = listener.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._listener, self._look_up = listener, look_up
        self._clients: dict[socket.socket, _Client] = {}  # the one that has been open longest first
        self._selector = selectors.DefaultSelector()
        self._accept_at: float | None = None  # when the listener, which is left alone now, is looked at again
        self._closing = False
        self._wake, self._woken = socket.socketpair()
        listener.setblocking(False)
        for each in (listener, self._woken):
            self._selector.register(each, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Open connections."""
        return len(self._clients)

    def close(self) -> None:
        """Stop listening and drop the open connections. May be called again."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select(self._seconds_to_wait()):
                if isinstance(key.data, _Client):
                    self._serve(key.data)
                elif key.fd == self._listener.fileno():
                    self._accept()
            self._look_at_the_clock()
        for connection in (*self._clients, self._listener, self._wake, self._woken):
            connection.close()
        self._clients.clear()
        self._selector.close()

    def _seconds_to_wait(self) -> float | None:
        due = [client.deadline for client in self._clients.values()]
        if self._accept_at is not None:
            due.append(self._accept_at)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _look_at_the_clock(self) -> None:
        """Drop who had his time, and look at the listener again where it is time to, making room where there is none."""
        now = time.monotonic()
        for client in [client for client in self._clients.values() if client.deadline <= now]:
            self._drop(client)
        if self._accept_at is not None and self._accept_at <= now:
            if len(self._clients) == MAX_CONNECTIONS:
                self._drop(next(iter(self._clients.values())))
            self._accept_at = None
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _accept(self) -> None:
        if len(self._clients) == MAX_CONNECTIONS:
            self._accept_later(next(iter(self._clients.values())).since + PATIENCE_SECONDS)
            return
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            _LOG.debug("HTTP accept: %s", error)
            self._accept_later(time.monotonic() + ACCEPT_AGAIN_SECONDS)
            return
        connection.setblocking(False)
        self._clients[connection] = client = _Client(connection)
        self._serve(client)  # its request is mostly there by now

    def _accept_later(self, moment: float) -> None:
        """Leave the listener alone, which stays readable, until then or until a place becomes free: do not spin."""
        self._selector.unregister(self._listener)
        self._accept_at = moment

    def _watch(self, client: _Client, events: int) -> None:
        """Go on with a client once it is ready for that."""
        if not client.watched:
            self._selector.register(client.connection, events, client)
        elif events != client.watched:
            self._selector.modify(client.connection, events, client)
        client.watched = events

    def _drop(self, client: _Client) -> None:
        if client.watched:
            self._selector.unregister(client.connection)
        del self._clients[client.connection]
        client.connection.close()
        if self._accept_at is not None:
            self._accept_at = 0.0

    def _serve(self, client: _Client) -> None:
        """Go on with a client that is new, has sent something, or takes something again."""
        try:
            if client.unsent is None:
                head = client.read_head()
                if head is None:
                    self._watch(client, selectors.EVENT_READ)
                    return
                answer, client.may_send_more = self._answer(head)
                client.unsent = memoryview(answer)
                client.deadline = time.monotonic() + REQUEST_SECONDS
            if client.unsent:
                client.unsent = client.unsent[client.connection.send(client.unsent) :]
                if client.unsent:
                    self._watch(client, selectors.EVENT_WRITE)
                elif client.may_send_more:
                    # Closing over bytes that were not read would reset the connection before the answer arrives.
                    client.connection.shutdown(socket.SHUT_WR)
                    client.deadline = time.monotonic() + LINGER_SECONDS
                    self._watch(client, selectors.EVENT_READ)
                else:
                    self._drop(client)
            elif client.drain():
                self._drop(client)
        except BlockingIOError:
            self._watch(client, selectors.EVENT_WRITE if client.unsent else selectors.EVENT_READ)
        except OSError as error:  # a client that goes away is no error
            _LOG.debug("HTTP client: %s", error)
            self._drop(client)

    def _answer(self, head: bytes) -> tuple[bytes, bool]:
        """Head and body; the head alone where that is what was asked for; nothing where nothing was asked.

        And whether more may follow the request than was read.
        """
        method, more = "", True
        try:
            request = _parse(head)
            if request is None:
                return b"", more
            method, target, headers = request
            if method in ("GET", "HEAD"):
                more = not _ENDS_WITH_HEAD.search(head) or not _BODY.isdisjoint(headers)
                page = self._look_up(target, headers)
            else:
                refusal = ("Cache-Control: no-store", "Allow: GET, HEAD")
                page = Page(b"only GET and HEAD\n", TEXT, HTTPStatus.METHOD_NOT_ALLOWED, refusal)
        except _BadRequestError as error:
            page = Page(f"{error.status.phrase}\n".encode(), TEXT, error.status)
        except Exception:
            _LOG.exception("HTTP request for %r", target)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            page = Page(f"{status.phrase}\n".encode(), TEXT, status)
        lines = (  # none names the software or its version
            f"HTTP/1.1 {page.status.value} {page.status.phrase}",
            f"Date: {formatdate(usegmt=True)}",
            f"Content-Type: {page.content_type}",
            f"Content-Length: {len(page.body)}",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
            *page.headers,
            "\r\n",
        )
        bare = method == "HEAD" or page.status == HTTPStatus.NOT_MODIFIED
        return "\r\n".join(lines).encode("latin-1", "replace") + (b"" if bare else page.body), more


class _Client:
    """A connection. unsent: what is left of its answer, None as long as there is no answer; watched: for which events.

    may_send_more: after its request.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.since = time.monotonic()
        self.deadline = self.since + REQUEST_SECONDS
        self.unsent: memoryview | None = None
        self.watched = 0
        self.may_send_more = True
        self._head = bytearray()
        self._to_drain = DRAIN_BYTES

    def read_head(self) -> bytes | None:
        """A request's head, and perhaps more: up to its end, the client's, or the limit; None as long as none has come."""
        chunk = self.connection.recv(HEAD_BYTES - len(self._head))
        searched = max(0, len(self._head) - 3)  # an end may have begun there
        self._head += chunk if self._head else chunk.lstrip(b"\r\n")  # blank lines may come before a request
        whole = not chunk or len(self._head) == HEAD_BYTES or _END_OF_HEAD.search(self._head, searched)
        return bytes(self._head) if whole else None

    def drain(self) -> bool:
        """Take what comes after the answer; true at its end, or where it is too much."""
        chunk = self.connection.recv(min(self._to_drain, 65536))
        self._to_drain -= len(chunk)
        return not chunk or not self._to_drain


class _BadRequestError(Exception):
    def __init__(self, status: HTTPStatus) -> None:
        self.status = status


def _parse(head: bytes) -> tuple[str, str, dict[str, str]] | None:
    """Method, target and headers, their names in lower case; None of an empty request. Raises _BadRequestError."""
    if len(head) == HEAD_BYTES and not _END_OF_HEAD.search(head):
        raise _BadRequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if b"\n" in head else HTTPStatus.REQUEST_URI_TOO_LONG)
    first, *rest = _END_OF_HEAD.split(head, maxsplit=1)[0].decode("latin-1").split("\n")
    if len(rest) > HEAD_LINES:
        raise _BadRequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    words = first.split()
    if not words:
        return None
    version = _VERSION.fullmatch(words[2]) if len(words) == 3 else None
    if version is None and (len(words) != 2 or words[0] != "GET"):
        raise _BadRequestError(HTTPStatus.BAD_REQUEST)
    if version is not None and int(version[1]) > 1:
        raise _BadRequestError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    named = (line.partition(":") for line in rest)
    return words[0], words[1], {name.strip().lower(): value.strip() for name, _, value in named}
