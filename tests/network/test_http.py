"""HTTP on a connection: tables of bytes in and bytes out. There are no sockets here, and the time stands still."""

from __future__ import annotations

import errno
import subprocess
import sys
from concurrent.futures import Future
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.network.http import HEAD_BYTES, MAX_HEADERS, PIECE_BYTES, TEXT, HttpConversation, Page, unchanged
from tests.conftest import ROOT

NOW = 1767225599.9
EVERY = (
    b"Date: Wed, 31 Dec 2025 23:59:59 GMT\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
    b"X-Content-Type-Options: nosniff\r\nConnection: close\r\nCache-Control: no-store\r\n"
)
HOST = b"Host: x\r\n"
KUBERNETES = (
    b"GET /healthz HTTP/1.1\r\nHost: 10.1.2.3\r\nUser-Agent: kube-probe/1.31\r\nAccept: */*\r\nConnection: close\r\n\r\n"
)
PROMETHEUS = (
    b"GET /healthz HTTP/1.1\r\nHost: 10.1.2.3:9091\r\nUser-Agent: Prometheus/3.5.0\r\n"
    b"Accept: application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=1.0.0,*/*;q=0.1\r\n"
    b"Accept-Encoding: gzip\r\nX-Prometheus-Scrape-Timeout-Seconds: 10\r\n\r\n"
)
CURL = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:9091\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"


def look_up(target, headers):
    """What the tests serve: the target and the headers, a page that has not changed, and one that cannot be made."""
    if target == "/old":
        return Page(b"old", TEXT, HTTPStatus.NOT_MODIFIED, (("ETag", '"1"'),))
    if target == "/broken":
        raise ValueError("broken")
    return Page(f"{target} {headers}".encode())


def talk_of(*received):
    """A conversation that has received this, where nothing is told it after it has closed."""
    talk = HttpConversation(look_up, lambda read: None, lambda: NOW)
    for data in received:
        if not talk.closing:
            talk.receive(data)
    return talk


def answer(*received):
    """The answer to a request, which comes at once and is the only one."""
    talk = talk_of(*received)
    assert talk.closing
    assert talk.waiting
    told = talk.next()
    assert not talk.waiting
    return told


def status_of(told):
    assert told.startswith(b"HTTP/1.1 ")
    return int(told[9:12])


def test_an_answer():
    assert answer(b'GET /status?x=1 HTTP/1.1\r\nHost: a:1\r\nIf-None-Match:  "\xe9" \r\n\r\n') == (
        b"HTTP/1.1 200 OK\r\n" + EVERY % 52 + b"\r\n" + "/status?x=1 {'host': 'a:1', 'if-none-match': '\"é\"'}".encode()
    )


def test_head_is_get_without_the_body():
    got = answer(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    head = answer(b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert got == head + b"/ {'host': 'x'}"
    assert head.endswith(b"\r\n\r\n")


def test_what_has_not_changed_has_no_body():
    assert answer(b"GET /old HTTP/1.1\r\n" + HOST + b"\r\n") == (
        b"HTTP/1.1 304 Not Modified\r\nDate: Wed, 31 Dec 2025 23:59:59 GMT\r\nX-Content-Type-Options: nosniff\r\n"
        b'Connection: close\r\nETag: "1"\r\n\r\n'
    )


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /healthz HTTP/1.0\r\n\r\n",
        b"GET /healthz HTTP/1.1\nHost: x\n\n",
        b"GET /healthz HTTP/1.1\r\nhost:x\r\nExpect: 100-continue\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 16_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /readyz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + b"\x00\xff garbage\r\n" * 10_000,
        b"\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        KUBERNETES,
        PROMETHEUS,
        CURL,
    ],
)
def test_requests_that_are_answered(request_bytes):
    told = answer(request_bytes)
    assert told.startswith(b"HTTP/1.1 200 OK\r\n")
    assert told.partition(b"\r\n\r\n")[2].startswith(b"/healthz ")
    assert answer(*(bytes([byte]) for byte in request_bytes)) == told


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (b"GET /healthz\r\n\r\n", 400),  # HTTP/0.9
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),  # without a host
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX : y\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET /healthz HTTP/one\r\n\r\n", 400),
        (b"GET /health z HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET \xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b" GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"garbage\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        (b"\x00", 400),
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
        (b"GET /healthz HTTP/0.9\r\n\r\n", 505),
        (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"x" * HEAD_BYTES, 431),
        (b"x" * 900_000, 431),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: x\r\n" * MAX_HEADERS + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 20_000, 431),
        (b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n", 500),
        (b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n" + bytes(500_000), 405),
    ],
)
def test_requests_that_are_refused_get_one_answer(request_bytes, code):
    told = answer(request_bytes)
    head, _, body = told.partition(b"\r\n\r\n")
    assert status_of(told) == code
    assert f"Content-Length: {len(body)}" in head.decode()
    assert len(body) < 1000
    assert body.decode().removesuffix("\n").isprintable()
    assert status_of(answer(*(request_bytes[i : i + 1] for i in range(len(request_bytes))))) == code


def test_so_many_headers_and_no_more():
    request_bytes = b"GET / HTTP/1.1\r\n" + HOST + b"X: x\r\n" * (MAX_HEADERS - 1) + b"\r\n"
    for allowed in (request_bytes, request_bytes + b"\n" * 1000):
        assert status_of(answer(allowed)) == status_of(answer(*(bytes([byte]) for byte in allowed))) == 200
    assert status_of(answer(request_bytes.replace(HOST, HOST + b"Y: y\r\n"))) == 431


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "__class__"])
def test_other_methods_are_refused(method):
    told = answer(f"{method} /status HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert told.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
    assert b"\r\nAllow: GET, HEAD\r\n" in told
    assert told.endswith(b"\r\n\r\nonly GET and HEAD\n")


def test_a_method_that_is_none_is_malformed():
    assert status_of(answer(b"G<b>ET /status HTTP/1.1\r\nHost: x\r\n\r\n")) == 400


@pytest.mark.parametrize("received", [[b""], [b"\r\n", b""], [b"\r", b"\n", b"\r\n\r\n\n", b""]])
def test_nothing_asked_is_nothing_answered(received):
    talk = talk_of(*received)
    assert (talk.closing, talk.waiting, talk.lingers) == (True, False, False)


@pytest.mark.parametrize("received", [b"G", b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r"])
def test_a_request_that_ends_too_early_is_malformed(received):
    talk = talk_of(received)
    assert not talk.closing
    assert status_of(answer(received, b"")) == 400


@pytest.mark.parametrize(
    ("request_bytes", "lingers"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", False),
        (b"POST /healthz HTTP/1.1\r\nHost: x\r\n\r\n", False),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nmore", True),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n", True),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", True),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (HEAD_BYTES - 39) + b"\r\n\r\n", True),
        (b"garbage\r\n\r\n", True),
        (b"x" * HEAD_BYTES, True),
    ],
)
def test_where_more_may_come_than_was_read_it_lingers(request_bytes, lingers):
    talk = talk_of(request_bytes)
    talk.next()
    assert talk.lingers == lingers


def test_no_more_is_kept_of_a_request_than_its_head_may_have():
    assert talk_of(b"GET /").kept == 5
    assert talk_of(b"x" * 900_000).kept == HEAD_BYTES


def test_a_page_that_cannot_be_made_is_an_error_of_that_request_alone(caplog):
    assert answer(b"GET /broken HTTP/1.1\r\n" + HOST + b"\r\n") == (
        b"HTTP/1.1 500 Internal Server Error\r\n" + EVERY % 22 + b"\r\nInternal Server Error\n"
    )
    assert "ValueError: broken" in caplog.text
    assert answer(b"HEAD /broken HTTP/1.1\r\n" + HOST + b"\r\n").endswith(b"\r\n\r\n")


def test_no_answer_names_the_software():
    told = answer(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n").lower() + answer(b"garbage\r\n\r\n").lower()
    for name in (b"server:", b"h11", b"python", b"sidecar"):
        assert name not in told


@given(
    st.lists(
        st.sampled_from([b"GET ", b"/", b" HTTP/1.1", b"\r\n", b"\n", b"Host: x", b":", b"\x00", b"a", b"\xff"]), max_size=40
    )
)
def test_whatever_is_sent_there_is_one_answer_at_most_however_it_comes(pieces):
    whole, in_pieces = talk_of(b"".join(pieces) or b"\n", b""), talk_of(*pieces, b"")
    assert whole.waiting == in_pieces.waiting
    if whole.waiting:
        told = whole.next()
        assert status_of(told) in (200, 400, 405, 431, 505)
        assert status_of(in_pieces.next()) == status_of(told)
    assert whole.closing
    assert in_pieces.closing


def test_a_sidecar_without_http_does_not_load_it():
    program = "import sidecar.serve.server, sys; sys.exit('h11' in sys.modules or 'sidecar.network.http' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ('"a"', True), ("*", True), (" * ", True), ('W/"a"', True), ('"b", W/"c" ,"a"', True), ('"x, y","a"', True),
        ("", False), ("a", False), ('"A"', False), ('"b", "c"', False), ('"a', False), ('"aa"', False), ('"*"', False),
    ],
)  # fmt: skip
def test_what_a_client_knows_already(known, expected):
    assert unchanged({"if-none-match": known}, '"a"') is expected
    assert unchanged({}, '"a"') is False


def test_a_header_that_comes_twice_is_one_list():
    told = answer(b'GET / HTTP/1.1\r\nHost: x\r\nIf-None-Match: "a"\r\nIf-None-Match: "b"\r\n\r\n')
    assert told.endswith(b"""'if-none-match': '"a", "b"'}""")


def deferred(made):
    """A conversation that has asked for something that another thread makes."""
    talk = HttpConversation(lambda target, headers: lambda: Page(b""), lambda read: made, lambda: NOW)
    talk.receive(CURL)
    assert (talk.next(), talk.awaits, talk.waiting) == (b"", made, True)
    return talk


def test_an_answer_that_another_thread_makes_comes_once_it_is_made():
    made = Future()
    talk = deferred(made)
    made.set_result(Page(b"abc"))
    assert talk.next().endswith(b"\r\n\r\nabc")
    assert (talk.awaits, talk.waiting) == (None, False)


def test_an_answer_that_another_thread_cannot_make_is_an_error(caplog):
    made = Future()
    talk = deferred(made)
    made.set_exception(ValueError("broken"))
    assert status_of(talk.next()) == 500
    assert (talk.awaits, talk.waiting) == (None, False)
    assert "broken" in caplog.text


def test_where_the_disk_cannot_be_read_now_it_may_be_asked_again_and_the_log_has_a_line(caplog):
    made = Future()
    talk = deferred(made)
    made.set_exception(OSError(errno.ESTALE, "Stale file handle", "/models/model_v000001.onnx"))
    told = talk.next()
    assert status_of(told) == 503
    assert told.endswith(b"the files cannot be read now: Stale file handle\n")
    (record,) = caplog.records
    assert record.getMessage() == "HTTP request for b'/healthz': /models/model_v000001.onnx: Stale file handle"
    assert record.exc_info is None


def test_where_too_many_wait_for_another_thread_the_next_may_come_again():
    talk = HttpConversation(lambda target, headers: lambda: Page(b""), lambda read: None, lambda: NOW)
    talk.receive(CURL)
    told = talk.next()
    assert status_of(told) == 503
    assert b"\r\nRetry-After: 1\r\n" in told


def test_a_long_body_comes_in_pieces_and_is_kept_no_longer_than_needed():
    body = bytes(range(256)) * 4000
    for shared in (True, False):
        page = Page(body, shared=shared)
        talk = HttpConversation(lambda target, headers, page=page: page, lambda read: None, lambda: NOW)
        talk.receive(CURL)
        told, kept = [], []
        while talk.waiting:
            told.append(talk.next())
            kept.append(talk.kept)
        assert b"".join(told).partition(b"\r\n\r\n")[2] == body
        assert [len(each) for each in told[1:-1]] == [PIECE_BYTES] * (len(told) - 2)
        assert kept == [0 if shared else len(body) - PIECE_BYTES * number for number in range(1, len(told))] + [0]
