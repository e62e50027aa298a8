"""What a sidecar tells over HTTP: `/status`, `/metrics`, `/healthz` and `/readyz`; and the client that reads them.

Whatever a client does, the process must not grow and training must not wait. So a connection is one request: its head is
small and has to come within seconds, its answer is one write, then it is closed. So many connections are served at a
time, each by a thread of its own; when all places are taken, the connection that has been open longest makes room.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import ipaddress
import json
import logging
import math
import re
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from sidecar.status import Phase, Status

STALL_SECONDS = 10.0  # an event loop that has not turned for longer is stuck
STATUS_BYTES = 4096
REASON_CHARACTERS = 500

MAX_CONNECTIONS = 16
PATIENCE_SECONDS = 0.5  # a connection keeps its place for so long, whoever waits
REQUEST_SECONDS = 5.0  # for the whole head of a request, and again for the answer
LINGER_SECONDS = 1.0  # after the answer, for the client to close first
HEAD_BYTES = 16384
DRAIN_BYTES = 1 << 20
CLIENT_SECONDS = 5.0

RESULTS = ("accepted", "held_out", "duplicate", "rejected")
GATES = ("stable", "unstable", "unverified")
STAGES = ("build", "parity", "write")

_LABEL = r"[A-Za-z0-9_-]{1,63}"
_ADDRESS = re.compile(rf"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>{_LABEL}(?:\.{_LABEL})*|)):(?P<port>[0-9]{{1,5}})")
_LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # where a server on all interfaces is reached
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_TEXT = "text/plain; charset=utf-8"
_LOG = logging.getLogger(__name__)


class HttpError(Exception):
    """A sidecar that does not answer as one; the message names its address and says why."""


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:9091", "name:9091", "[::1]:9091", or ":9091", where the host is "": all interfaces.

    Port 0 stands for any that is free. Raises ValueError that names the address and what is allowed.
    """
    match = _ADDRESS.fullmatch(address)
    try:
        if match is None or int(match["port"]) > 65535:
            raise ValueError
        if match["ipv6"]:
            ipaddress.IPv6Address(match["ipv6"])
        elif re.fullmatch(r"[0-9.]+", match["name"]):
            ipaddress.IPv4Address(match["name"])
    except ValueError:
        allowed = "HOST:PORT, [IPv6]:PORT, or :PORT for all interfaces, with a port from 0 to 65535"
        raise ValueError(f"HTTP address {address!r}: expected {allowed}") from None
    return match["ipv6"] or match["name"], int(match["port"])


# What is told


def status_document(status: Status) -> dict[str, Any]:
    """A status as `/status` tells it: first what every reader relies on. What has no value yet is left out."""
    document = {
        "phase": status.phase,
        "current_samples": status.position,
        "last_checkpoint_time": _rfc3339(status.checkpoint_time),
        "model_version": _model_name(status.version),
        "reason": _one_line(status.reason) or None,
        "accepting": status.accepting,
        "stable_version": _model_name(status.stable_version),
        "last_checkpoint_gate": _one_line(status.checkpoint_gate or "") or None,
        "step": status.step,
        "loss": _finite(status.loss),
        "prequential_rmse": _finite(status.prequential_rmse),
        "prequential_plcc": _finite(status.prequential_plcc),
        "feature_drift": _finite(status.feature_drift),
        "pairs": _counts(RESULTS, status.pairs),
        "replay_size": status.replay_size,
        "replay_capacity": status.replay_capacity,
        "replay_evictions": status.replay_evictions,
        "held_out_size": status.held_out_size,
        "checkpoints": _counts(GATES, status.checkpoints),
        "checkpoint_failures": _counts(STAGES, status.checkpoint_failures),
        "journal_bytes": status.journal_bytes,
        "journal_errors": status.journal_errors,
        "connections": status.connections,
        "step_seconds": _finite(status.step_seconds),
        "skipped_steps": status.skipped_steps,
        "n_features": status.n_features,
    }
    return {name: value for name, value in document.items() if value is not None}


def encode_status(document: Mapping[str, Any]) -> bytes:
    """A status document as JSON of at most STATUS_BYTES bytes; what would not fit is left out, from the end."""
    kept = dict(document)
    while True:
        body = json.dumps(kept, ensure_ascii=False, allow_nan=False).encode(errors="replace") + b"\n"
        if len(body) <= STATUS_BYTES:
            return body
        kept.popitem()


def metric_families(status: Status) -> list[Metric]:
    """A status as Prometheus metrics: all labels from the start, but no metric that has no value yet."""
    phases = {phase: int(phase == status.phase) for phase in get_args(Phase)}
    families = [
        _counter("pairs", "Pairs that this process has answered, by result.", _counts(RESULTS, status.pairs), "result"),
        _counter("steps", "Gradient steps that made the present weights.", status.step),
        _gauge("loss", "Mean squared error of the last group before its first step, in score points squared.", status.loss),
        _gauge(
            "prequential_rmse",
            "Root mean squared error over the last 1000 pairs, each predicted before it trained, in score points.",
            status.prequential_rmse,
        ),
        _gauge(
            "prequential_plcc",
            "Pearson correlation over the last 1000 pairs, each predicted before it trained.",
            status.prequential_plcc,
        ),
        _gauge(
            "feature_drift",
            "Largest moving mean of a standardised feature, in deviations: a wrong order of the features shows here.",
            status.feature_drift,
        ),
        _gauge("phase", "1 for the phase that the sidecar is in, 0 for the others.", phases, "phase"),
        _gauge("replay_size", "Pairs in the replay buffer.", status.replay_size),
        _counter("replay_evictions", "Pairs that the full replay buffer has dropped.", status.replay_evictions),
        _counter("checkpoints", "Checkpoints published, by verdict of the gate.", _counts(GATES, status.checkpoints), "gate"),
        _counter(
            "checkpoint_failures",
            "Checkpoints that could not be published, by the stage that failed.",
            _counts(STAGES, status.checkpoint_failures),
            "stage",
        ),
        _gauge("checkpoint_version", "Version of the newest checkpoint.", status.version),
        _gauge("checkpoint_timestamp_seconds", "Unix time of the newest checkpoint.", status.checkpoint_time),
        _gauge("step_seconds", "Mean time of a gradient step in the last group.", status.step_seconds),
        _gauge("journal_bytes", "Size of the journal of accepted pairs.", status.journal_bytes),
        _counter("journal_errors", "Failed writes and fsyncs of the journal.", status.journal_errors),
        _gauge("connections", "Open connections on the Unix socket.", status.connections),
    ]
    return [family for family in families if family.samples]


def health(status: Status, now: float) -> tuple[bool, str]:
    """Whether the process makes progress, in one line too; now: `time.monotonic()`."""
    if now - status.progress <= STALL_SECONDS:
        return True, f"making progress ({status.phase})"
    return False, f"no progress for more than {STALL_SECONDS:g} s ({status.phase})"


def readiness(status: Status) -> tuple[bool, str]:
    """Whether the socket accepts, in one line too."""
    return status.accepting, f"{'accepting' if status.accepting else 'not accepting'} pairs ({status.phase})"


def _counter(name: str, help_text: str, value: int | Mapping[str, int], label: str = "") -> Metric:
    """A counter; `_total` is added to its name where it is written."""
    return _with_samples(CounterMetricFamily(f"vmafx_training_{name}", help_text, labels=[label] if label else []), value)


def _gauge(name: str, help_text: str, value: float | Mapping[str, int] | None, label: str = "") -> Metric:
    return _with_samples(GaugeMetricFamily(f"vmafx_training_{name}", help_text, labels=[label] if label else []), value)


def _with_samples(
    family: CounterMetricFamily | GaugeMetricFamily, value: float | Mapping[str, int] | None
) -> CounterMetricFamily | GaugeMetricFamily:
    """A family with one sample by label, or one without; with none where there is no finite value."""
    if isinstance(value, Mapping):
        for label, count in value.items():
            family.add_metric([label], count)
    elif (known := _finite(value)) is not None:
        family.add_metric([], known)
    return family


def _counts(known: Iterable[str], given: Mapping[str, int]) -> dict[str, int]:
    return {**dict.fromkeys(known, 0), **given}


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _model_name(version: int | None) -> str | None:
    return None if version is None else f"model_v{version:06d}"


def _rfc3339(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _one_line(text: str) -> str:
    """Text of any origin made fit for a terminal: printable, one line, of bounded length."""
    line = "".join(each if each.isprintable() else " " for each in text[: REASON_CHARACTERS + 1])
    return line if len(line) <= REASON_CHARACTERS else line[:-2] + "…"


# The server


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
        self._answer(status, f"{_one_line(message or status.phrase)}\n".encode(), _TEXT)


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


# The client


def fetch_status(address: str) -> dict[str, Any]:
    """The `/status` document of the sidecar at an address; where that is all interfaces, of this machine's.

    Raises ValueError for a bad address, HttpError where no sidecar answers.
    """
    code, body = _get(address, "/status")
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if code != HTTPStatus.OK or not isinstance(document, dict):
        raise HttpError(f"{address}: /status is not a sidecar's: answered {code} with {_one_line(ascii(body[:40]))}")
    return document


def probe(address: str) -> tuple[bool, str]:
    """Whether the sidecar at an address is ready, and one line that says so. Raises ValueError for a bad address."""
    try:
        code, body = _get(address, "/readyz")
    except HttpError as error:
        return False, str(error)
    return code == HTTPStatus.OK, f"{address}: {_one_line(body.decode(errors='replace').strip())}"


def _get(address: str, path: str) -> tuple[int, bytes]:
    host, port = parse_address(address)
    connection = http.client.HTTPConnection(_LOOPBACK.get(host, host), port, timeout=CLIENT_SECONDS)
    try:
        connection.request("GET", path)
        with connection.getresponse() as response:
            return response.status, response.read(65536)
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise HttpError(f"{address}: no sidecar answers: {why}") from error
    finally:
        connection.close()


_IN_WORDS = {  # name in the document: what a person calls it, its unit, and how many of these it is in the document's
    "current_samples": ("pairs in the journal", "", 1),
    "last_checkpoint_time": ("last checkpoint", "", 1),
    "model_version": ("newest model", "", 1),
    "accepting": ("accepts pairs", "", 1),
    "stable_version": ("stable model", "", 1),
    "last_checkpoint_gate": ("verdict of the gate", "", 1),
    "step": ("gradient steps", "", 1),
    "loss": ("loss", "score points squared", 1),
    "prequential_rmse": ("RMSE, last 1000 pairs", "score points", 1),
    "prequential_plcc": ("PLCC, last 1000 pairs", "", 1),
    "feature_drift": ("feature drift", "deviations", 1),
    "pairs": ("pairs since the start", "", 1),
    "replay_size": ("replay buffer", "pairs", 1),
    "replay_capacity": ("replay buffer holds", "pairs", 1),
    "replay_evictions": ("dropped from it", "pairs", 1),
    "held_out_size": ("held out", "pairs", 1),
    "checkpoints": ("checkpoints", "", 1),
    "checkpoint_failures": ("failed checkpoints", "", 1),
    "journal_bytes": ("journal", "MB", 1e-6),
    "step_seconds": ("a gradient step takes", "µs", 1e6),
    "n_features": ("features of a pair", "", 1),
}


def format_status(document: Mapping[str, Any], width: int = 80) -> str:
    """A status document for a person: names and values in two columns, in lines of at most `width` characters."""
    rows = []
    for name, value in document.items():
        label, unit, scale = _IN_WORDS.get(name, (_one_line(name).replace("_", " ")[:24], "", 1))
        scaled = value * scale if scale != 1 and isinstance(value, int | float) else value
        rows.append((label, f"{_in_words(scaled)} {unit}".strip() or "–"))
    column = max((len(label) for label, _ in rows), default=0) + 2
    return "\n".join(
        textwrap.fill(value, width, initial_indent=f"{label:{column}}", subsequent_indent=" " * column) for label, value in rows
    )


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_one_line(name).replace('_', ' ')} {_in_words(each)}" for name, each in value.items())
    return _one_line(str(value))
