"""HTTP on one connection, without I/O: one request comes in, its answer goes out, and that is the end.

h11 knows the grammar, and `monitoring/pages.py` what there is to see.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

import h11

from sidecar.network.conversation import Bounds, Conversation

_log = logging.getLogger(__name__)
BOUNDS = Bounds(
    connections=64, patience_s=0.5, one_request=True, request_s=5.0, awaits_s=30.0, linger_s=1.0
)  # fmt: skip
PIECE_BYTES = 1 << 18
"""A long body is given to the client piece by piece, each once it has taken the one before."""
HEAD_BYTES = 16384
MAX_HEADERS = 100
TEXT = "text/plain; charset=utf-8"
_NO_STORE = ("Cache-Control", "no-store")
_BODY = {"content-length", "transfer-encoding"}
_ETAG = re.compile(r'(?:W/)?("[^"]*")')


@dataclass(frozen=True)
class Page:
    """An answer. headers: names and values, in addition to those of every answer. shared: many may be sent these very bytes.

    How much memory shared ones take is bounded by who makes them, that of others by the loop.
    """

    body: bytes
    content_type: str = TEXT
    status: HTTPStatus = HTTPStatus.OK
    headers: tuple[tuple[str, str], ...] = (_NO_STORE,)
    shared: bool = False


def unchanged(headers: Mapping[str, str], etag: str) -> bool:
    """Whether a request's `If-None-Match` names an entity tag, in its quotes, or any (RFC 9110, section 13.1.2)."""
    known = headers.get("if-none-match", "")
    return known.strip() == "*" or etag in _ETAG.findall(known)


def unavailable(why: str) -> Page:
    """What is there later, it may be. Ask again in a second."""
    return Page(f"{why}\n".encode(), TEXT, HTTPStatus.SERVICE_UNAVAILABLE, (_NO_STORE, ("Retry-After", "1")))


_ONLY_GET = Page(b"only GET and HEAD\n", TEXT, HTTPStatus.METHOD_NOT_ALLOWED, (_NO_STORE, ("Allow", "GET, HEAD")))

Read = Callable[[], Page]
"""Makes an answer, on a thread that may wait for a disk."""
LookUp = Callable[[str, Mapping[str, str]], Page | Read]
"""The answer to GET for a target, `/status?since=3`, and the request's headers, their names in lower case."""


class HttpConversation(Conversation):
    """One request, GET or HEAD, and its answer.

    read: begins to make an answer on another thread; gives None if too many are being made already. clock: the time for the
    answer, in seconds since the epoch.
    """

    lingers = True

    def __init__(self, look_up: LookUp, read: Callable[[Read], Future[Page] | None], clock: Callable[[], float]) -> None:
        self._look_up, self._read, self._clock = look_up, read, clock
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES - 1)
        self._request: h11.Request | HTTPStatus  # or what is wrong with it
        self._headers: dict[str, str] = {}
        self._lines = 0  # of its head
        self._page: Page | None = None
        self._left = memoryview(b"")  # of its body

    def receive(self, data: bytes) -> None:
        """Once the head of a request is complete, or never will be, `next` has the answer. Nothing asked, nothing answered."""
        if data and not self.kept and not (data := data.lstrip(b"\r\n")):
            return  # blank lines may come before a request
        data = data[: HEAD_BYTES - self.kept]
        self.kept += len(data)
        head, blank, _ = data.partition(b"\r\n\r\n")
        self._lines += (head + blank).count(b"\n")
        self._h11.receive_data(data)
        try:
            if self._lines > MAX_HEADERS + 2:  # with the request line and a blank one; h11 would need milliseconds for all
                raise h11.RemoteProtocolError("too many headers", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            event = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            self._request = HTTPStatus(error.error_status_hint)
            self.closing = self.waiting = True
            return
        if isinstance(event, h11.Request):
            self._request = event
            for name, value in ((name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers):
                self._headers[name] = f"{self._headers[name]}, {value}" if name in self._headers else value
            self.closing = self.waiting = True
            has_more = self.kept == HEAD_BYTES or bool(self._h11.trailing_data[0])
            self.lingers = has_more or not _BODY.isdisjoint(self._headers)
        elif isinstance(event, h11.ConnectionClosed):
            self.closing, self.lingers = True, False

    def next(self, waiting: int = 1) -> bytes:
        """The next piece of the answer, none while another thread makes it; for HEAD, without its body."""
        head = b""
        if self._page is None:
            page = self._made() if self.awaits is not None else self._asked()
            if page is None:
                return b""
            self._page = page
            head = _write_head(page.status, page.content_type, len(page.body), page.headers, int(self._clock()))
            if not self._is_head and page.status != HTTPStatus.NOT_MODIFIED:
                self._left = memoryview(page.body)
        piece, self._left = self._left[:PIECE_BYTES], self._left[PIECE_BYTES:]
        self.kept = 0 if self._page.shared else len(self._left)
        self.waiting = bool(self._left)
        return head + piece

    @property
    def _is_head(self) -> bool:
        return isinstance(self._request, h11.Request) and self._request.method == b"HEAD"

    def _asked(self) -> Page | None:
        """The answer, None if it has to be awaited."""
        request = self._request
        if not isinstance(request, h11.Request):
            return _error(request)
        if not request.http_version.startswith(b"1."):
            return _error(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        if request.method not in (b"GET", b"HEAD"):
            return _ONLY_GET
        try:
            found = self._look_up(request.target.decode("ascii"), self._headers)
        except Exception:
            return self._failed()
        if isinstance(found, Page):
            return found
        self.awaits = self._read(found)
        return None if self.awaits is not None else unavailable("too many requests wait for the disk")

    def _made(self) -> Page:
        """The answer that was awaited."""
        made, self.awaits = self.awaits, None
        try:
            assert made is not None
            page: Page = made.result()
            return page
        except OSError as error:  # of the disk; it may pass
            why = error.strerror or str(error)
            assert isinstance(self._request, h11.Request)
            _log.warning("HTTP request for %r: %s: %s", self._request.target, error.filename, why)
            return unavailable(f"the files cannot be read now: {why}")
        except Exception:
            return self._failed()

    def _failed(self) -> Page:
        assert isinstance(self._request, h11.Request)
        _log.exception("HTTP request for %r", self._request.target)
        return _error(HTTPStatus.INTERNAL_SERVER_ERROR)


def _error(status: HTTPStatus) -> Page:
    return Page(f"{status.phrase}\n".encode(), TEXT, status)


@lru_cache(maxsize=32)
def _write_head(status: HTTPStatus, content_type: str, length: int, more: tuple[tuple[str, str], ...], second: int) -> bytes:
    """The head of an answer, which does not name the software.

    All who ask for the same within a second get the same, which is kept: h11 needs longer for it than for reading a request.
    """
    body = [("Content-Type", content_type), ("Content-Length", str(length))]
    headers = [
        ("Date", formatdate(second, usegmt=True)),
        *(body if status != HTTPStatus.NOT_MODIFIED else []),  # the client has it
        ("X-Content-Type-Options", "nosniff"),
        ("Connection", "close"),
        *more,
    ]
    return h11.Connection(h11.SERVER).send(h11.Response(status_code=status, reason=status.phrase, headers=headers))
