"""HTTP on one connection, without I/O: one request comes in, its answer goes out, and that is the end.

h11 knows the grammar, and `monitoring/pages.py` what there is to see.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

import h11

from sidecar.network.conversation import Bounds, Conversation

_log = logging.getLogger(__name__)
BOUNDS = Bounds(connections=64, patience_s=0.5, one_request=True, request_s=5.0, linger_s=1.0)
HEAD_BYTES = 16384
MAX_HEADERS = 100
TEXT = "text/plain; charset=utf-8"
_NO_STORE = ("Cache-Control", "no-store")
_BODY = {"content-length", "transfer-encoding"}


@dataclass(frozen=True)
class Page:
    """An answer. headers: names and values, in addition to those of every answer."""

    body: bytes
    content_type: str = TEXT
    status: HTTPStatus = HTTPStatus.OK
    headers: tuple[tuple[str, str], ...] = (_NO_STORE,)


_ONLY_GET = Page(b"only GET and HEAD\n", TEXT, HTTPStatus.METHOD_NOT_ALLOWED, (_NO_STORE, ("Allow", "GET, HEAD")))

LookUp = Callable[[str, Mapping[str, str]], Page]
"""The answer to GET for a target, `/status?since=3`, and the request's headers, their names in lower case."""


class HttpConversation(Conversation):
    """One request, GET or HEAD, and its answer. clock: the time for the answer, in seconds since the epoch."""

    lingers = True

    def __init__(self, look_up: LookUp, clock: Callable[[], float]) -> None:
        self._look_up, self._clock = look_up, clock
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES - 1)
        self._request: h11.Request | HTTPStatus  # or what is wrong with it
        self._headers: dict[str, str] = {}
        self._lines = 0  # of its head

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
            self._headers = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
            self.closing = self.waiting = True
            has_more = self.kept == HEAD_BYTES or bool(self._h11.trailing_data[0])
            self.lingers = has_more or not _BODY.isdisjoint(self._headers)
        elif isinstance(event, h11.ConnectionClosed):
            self.closing, self.lingers = True, False

    def next(self, waiting: int = 1) -> bytes:
        """The answer; for HEAD, without its body."""
        request, self.waiting = self._request, False
        if not isinstance(request, h11.Request):
            return self._write(_error(request))
        head_alone = request.method == b"HEAD"
        try:
            return self._write(self._answer(request), head_alone)
        except Exception:
            _log.exception("HTTP request for %r", request.target)
            return self._write(_error(HTTPStatus.INTERNAL_SERVER_ERROR), head_alone)

    def _answer(self, request: h11.Request) -> Page:
        if not request.http_version.startswith(b"1."):
            return _error(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        if request.method not in (b"GET", b"HEAD"):
            return _ONLY_GET
        return self._look_up(request.target.decode("ascii"), self._headers)

    def _write(self, page: Page, head_alone: bool = False) -> bytes:
        head = _write_head(page.status, page.content_type, len(page.body), page.headers, int(self._clock()))
        return head if head_alone or page.status == HTTPStatus.NOT_MODIFIED else head + page.body


def _error(status: HTTPStatus) -> Page:
    return Page(f"{status.phrase}\n".encode(), TEXT, status)


@lru_cache(maxsize=32)
def _write_head(status: HTTPStatus, content_type: str, length: int, more: tuple[tuple[str, str], ...], second: int) -> bytes:
    """The head of an answer, which does not name the software.

    All who ask for the same within a second get the same, which is kept: h11 needs longer for it than for reading a request.
    """
    headers = [
        ("Date", formatdate(second, usegmt=True)),
        ("Content-Type", content_type),
        ("Content-Length", str(length)),
        ("X-Content-Type-Options", "nosniff"),
        ("Connection", "close"),
        *more,
    ]
    return h11.Connection(h11.SERVER).send(h11.Response(status_code=status, reason=status.phrase, headers=headers))
