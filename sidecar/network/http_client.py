"""One request over HTTP and its answer, within a deadline that nothing extends, and of a size that is known before.

The standard library's client has a time limit for each read, not for all of them: a server that sends a byte of a header now
and then holds it for as long as it likes. Here h11 knows the grammar, and the time left is the limit of every read. Redirects
are not followed, and the proxies in the environment are not asked.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import h11

_READ_BYTES = 1 << 16
_HEAD_BYTES = 1 << 14
_SHOWN = 40
_NOTHING: Mapping[str, str] = MappingProxyType({})


class NotHttpError(Exception):
    """What answers does not speak HTTP as it should, or sends more than is wanted; the message says how."""


@dataclass(frozen=True)
class Answer:
    """headers: their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def get(
    host: str, port: int, target: str, *, headers: Mapping[str, str] = _NOTHING, most: int, until: float, tls: bool = False
) -> Answer:
    """The answer to GET for a target, such as `/status`, on a connection of its own.

    headers: in addition to those of every request. most: bytes that a body may have. until: the time on the monotonic clock by
    which the answer is complete. tls: with the certificates that the system trusts.

    Raises OSError if nothing answers in time, NotHttpError for an answer that is none.
    """
    with _connect(host, port, until, tls) as connection:
        own = {"Host": _authority(host, port, tls), "Accept-Encoding": "identity", "Connection": "close"}
        conversation = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
        fields = [(name.encode("ascii"), value.encode("latin-1")) for name, value in {**own, **headers}.items()]
        asked = conversation.send(h11.Request(method="GET", target=target, headers=fields))
        connection.settimeout(_left(until))
        connection.sendall((asked or b"") + (conversation.send(h11.EndOfMessage()) or b""))
        return _receive(conversation, connection, most, until)


def _connect(host: str, port: int, until: float, tls: bool) -> socket.socket:
    connection = socket.create_connection((host, port), timeout=_left(until))
    if not tls:
        return connection
    try:
        connection.settimeout(_left(until))
        return ssl.create_default_context().wrap_socket(connection, server_hostname=host)
    except BaseException:
        connection.close()
        raise


def _receive(conversation: h11.Connection, connection: socket.socket, most: int, until: float) -> Answer:
    answer: h11.Response | None = None
    body, began = bytearray(), b""
    while True:
        try:
            event = conversation.next_event()
        except h11.RemoteProtocolError as error:
            raise NotHttpError(f"{error}, in an answer that begins with {began!a}") from error
        if event is h11.NEED_DATA:
            connection.settimeout(_left(until))
            data = connection.recv(_READ_BYTES)
            if not data and not began:
                raise ConnectionAbortedError("the connection was closed without an answer")
            began = began or data[:_SHOWN]
            conversation.receive_data(data)
        elif isinstance(event, h11.Response):
            answer = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > most:
                raise NotHttpError(f"more than {most:,} bytes")
        elif isinstance(event, h11.EndOfMessage):
            assert answer is not None
            known = {name.decode("ascii"): value.decode("latin-1") for name, value in answer.headers}
            return Answer(answer.status_code, known, bytes(body))


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _authority(host: str, port: int, tls: bool) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port == (443 if tls else 80) else f"{name}:{port}"
