"""Asking a running sidecar over HTTP, for `status` and `probe`: at HOST:PORT, or at a URL."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from sidecar.monitoring.status import one_line
from sidecar.network.address import Url, parse_address, parse_url
from sidecar.network.http_client import NotHttpError, get

CLIENT_SECONDS = 5.0
_MOST_BYTES = 1 << 20
_LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # how to reach a server on all interfaces


class HttpError(Exception):
    """The sidecar does not answer; the message has its address and the reason."""


class NoSidecarError(HttpError):
    """Something other than a sidecar answers; the message says what is wrong with the answer."""


_Time = Annotated[float, msgspec.Meta(ge=0, le=1e11)]  # seconds since the epoch, up to the year 5138
_Number = Annotated[float, msgspec.Meta(ge=-1e100, le=1e100)]  # its squares and sums are finite
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Status(TypedDict):
    phase: str
    current_samples: _Count
    journal_bytes: NotRequired[_Number]
    step_seconds: NotRequired[_Number]


class _Now(_Status):
    time: _Time
    making_progress: bool
    reason: NotRequired[str]
    pairs_per_second: NotRequired[_Number]
    prequential_rmse: NotRequired[_Number]
    prequential_plcc: NotRequired[_Number]
    loss: NotRequired[_Number]
    feature_drift: NotRequired[_Number]
    drifting_feature: NotRequired[str]
    replay_size: _Count
    replay_capacity: _Count
    held_out_size: _Count
    held_out_capacity: _Count
    pairs: dict[str, _Count]
    rejected: dict[str, _Count]


class _History(TypedDict):
    now: _Now
    settings: dict[str, str | int | float | bool | None]
    every_seconds: _Number
    columns: list[str]
    rows: list[list[_Number | None]]


class _Checkpoint(TypedDict):
    name: str
    gate: NotRequired[str]
    rmse: NotRequired[_Number]
    plcc: NotRequired[_Number]
    held_out: NotRequired[_Count]
    sha256: NotRequired[str]


class _Checkpoints(TypedDict):
    latest: str | None
    stable: str | None
    checkpoints: list[_Checkpoint]


def fetch_status(address: str) -> dict[str, Any]:
    """The `/status` document of the sidecar at an address. If the address means all interfaces, this machine is asked.

    Raises ValueError for a bad address, HttpError if nothing answers, NoSidecarError if something other than a sidecar does.
    """
    return _fetch(address, "/status", _Status)


def fetch_history(address: str) -> dict[str, Any]:
    """The same for `/api/history`: the current figures, and a row for every ten seconds of the last hours."""
    history = _fetch(address, "/api/history", _History)
    columns = history["columns"]
    if columns[:1] != ["time"] or any(len(row) != len(columns) for row in history["rows"]):
        raise NoSidecarError(
            f"{address}: /api/history is not from a sidecar: expected rows as long as `columns`, with `time` first"
        )
    _check(address, "/api/history", [row[0] for row in history["rows"]], list[_Time])
    return history


def fetch_checkpoints(address: str) -> dict[str, Any]:
    """The same for `/api/checkpoints`."""
    return _fetch(address, "/api/checkpoints", _Checkpoints)


def _fetch(address: str, path: str, shape: Any) -> dict[str, Any]:
    """The whole document, including what is not in `shape`: the sidecar may have another version."""
    code, body = _get(address, path)
    try:
        document: Any = msgspec.json.decode(body) if code == HTTPStatus.OK else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise NoSidecarError(f"{address}: {path} is not from a sidecar: answered {code} with {one_line(ascii(body[:40]))}")
    _check(address, path, document, shape)
    return document


def _check(address: str, path: str, document: object, shape: Any) -> None:
    try:
        msgspec.convert(document, shape)
    except msgspec.ValidationError as error:
        why = str(error)
        raise NoSidecarError(f"{address}: {path} is not from a sidecar: {one_line(why[0].lower() + why[1:])}") from error


def probe(address: str) -> tuple[bool, str]:
    """Whether the sidecar at an address is ready, and one line that says so. Raises ValueError for a bad address."""
    try:
        code, body = _get(address, "/readyz")
    except HttpError as error:
        return False, str(error)
    return code == HTTPStatus.OK, f"{address}: {one_line(body.decode(errors='replace').strip())}"


def _get(address: str, path: str) -> tuple[int, bytes]:
    url = parse_url(address) if "://" in address else Url(*parse_address(address), "", False)
    try:
        until = time.monotonic() + CLIENT_SECONDS
        host = _LOOPBACK.get(url.host, url.host)
        answer = get(host, url.port, url.path + path, most=_MOST_BYTES, until=until, tls=url.tls)
    except OSError as error:
        raise HttpError(f"{address}: no answer: {error.strerror or error or type(error).__name__}") from error
    except NotHttpError as error:
        raise NoSidecarError(f"{address}: not a sidecar: {one_line(str(error))}") from error
    return answer.status, answer.body
