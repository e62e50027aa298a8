"""The HTTP pages: /status, /metrics and the probes; the live page, its files, and its figures as JSON.

What is prepared for one reader is kept for a second, so a thousand readers cost the training no more than one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder

from sidecar import __version__
from sidecar.checkpoints.directory import LATEST, STABLE, Checkpoint, checkpoints, linked
from sidecar.checkpoints.rollbacks import read_rollbacks
from sidecar.models.description import DescriptionError, read_description
from sidecar.monitoring.history import COLUMNS, EVERY_S, TIERS, History
from sidecar.monitoring.model_files import FOLDER, ModelFiles
from sidecar.monitoring.prometheus import metric_families
from sidecar.monitoring.status import Status, one_line
from sidecar.monitoring.status_document import (
    drift_document,
    encode_status,
    finding_document,
    health,
    readiness,
    status_document,
)
from sidecar.monitoring.verdict.rules import DOWN
from sidecar.network.http import TEXT, Page, Read, unchanged

JSON = "application/json"
MOST_CHECKPOINTS = 100
_LARGEST = 1e100
_DESCRIPTION = {  # name in the answer: where the value is in a checkpoint's JSON
    "created_at": ("created_at",),
    "gate": ("gate", "verdict"),
    "reason": ("gate", "reason"),
    "plcc": ("metrics", "plcc"),
    "srocc": ("metrics", "srocc"),
    "rmse": ("metrics", "rmse"),
    "held_out": ("metrics", "pairs"),
    "step": ("step",),
    "pairs_seen": ("pairs_seen",),
    "base_model": ("base_model", "path"),
    "sha256": ("sha256",),
}
_FRESH_S = 1.0
_ONE = "/api/checkpoints/"
_CHECKPOINT = re.compile(r"model_v[0-9]{6,18}")
_NO_CHECKPOINT = b"no such checkpoint, or its JSON file cannot be read\n"
_FIGURES = ("model", "on", "pairs", "plcc", "rmse", "winsorized_rmse")
_MOST_COMPARED = 12
_SINCE = re.compile(r"(?:.*&)?since=(\d{1,12})(?:&.*)?")
_ASSETS = {
    "/": ("live.html", "text/html; charset=utf-8"),
    "/checkpoint": ("checkpoint.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/checkpoint.js": ("checkpoint.js", "text/javascript; charset=utf-8"),
    "/live.js": ("live.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/plot.js": ("plot.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}
_DIRECTIVES = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_POLICY = ("Content-Security-Policy", _DIRECTIVES)
_NOT_HERE = b"not found; available: /, /status, /metrics, /healthz, /readyz, /api/history, /api/drift and /api/checkpoints\n"


class Pages:
    """A sidecar's answers. read_status, read_history: called for each request that needs them, on the HTTP thread.

    models: the checkpoints can be fetched. limits: above which values of figures there is an alert. tenant_labels: there are
    metrics of each tenant.
    """

    def __init__(
        self,
        read_status: Callable[[], Status],
        read_history: Callable[[], History],
        checkpoint_directory: Path,
        settings: Mapping[str, Any],
        models: bool = False,
        limits: Mapping[str, float] = MappingProxyType({}),
        tenant_labels: bool = False,
    ) -> None:
        self._status, self._history, self._directory = read_status, read_history, checkpoint_directory
        self._settings, self._limits = dict(settings), dict(limits)
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(read_status, tenant_labels))
        self._present = _Fresh(self._make_present)
        self._all_history = _Fresh(lambda: self._make_history(0))
        self._drift = _Fresh(lambda: _encode(drift_document(read_status())))
        self._checkpoints = _Fresh(self._make_checkpoints)
        self._models = ModelFiles(checkpoint_directory) if models else None
        self._described: dict[Checkpoint, dict[str, Any]] = {}
        self._rolled_back: dict[str, dict[str, Any]] = {}

    def look_up(self, target: str, headers: Mapping[str, str]) -> Page | Read:
        """The answer to a GET request. What reads the checkpoint directory may have to wait for it."""
        path, _, query = target.partition("?")
        if path in _ASSETS:
            return _asset_page(path, headers)
        if path == "/api/history":
            since = _SINCE.fullmatch(query)
            return _json_page(self._make_history(int(since[1])) if since else self._all_history())
        if path == "/api/drift":
            return _json_page(self._drift())
        if path == "/api/checkpoints":
            return lambda: _json_page(self._checkpoints())
        if path.startswith(_ONE):
            return partial(self._describe, path.removeprefix(_ONE))
        if self._models is not None and path.startswith(FOLDER):
            return partial(self._models.look_up, path.removeprefix(FOLDER), headers)
        if path == "/status":
            return Page(encode_status(status_document(self._status())), JSON)
        if path == "/metrics":
            try:
                encode, content_type = choose_encoder(headers.get("accept", ""))
            except Exception:  # it fails on malformed versions
                encode, content_type = choose_encoder("")
            return Page(encode(self._registry), content_type)
        if path == "/healthz":
            return _probe(*health(self._status(), time.monotonic()))
        if path == "/readyz":
            return _probe(*readiness(self._status()))
        return Page(_NOT_HERE, TEXT, HTTPStatus.NOT_FOUND)

    def _make_present(self) -> bytes:
        """All of `/api/history` except its rows."""
        status, rate = self._status(), self._history().pairs_per_second
        making_progress, _ = health(status, time.monotonic())
        told = {"time": round(time.time(), 3), "making_progress": making_progress, "pairs_per_second": rate}
        now = {name: value for name, value in told.items() if value is not None} | status_document(status)
        now["findings"] = [finding_document(each) for each in status.findings]
        lost = {"what": DOWN.what, "do": DOWN.do}
        about = {
            "now": now, "version": __version__, "limits": self._limits, "lost": lost, "settings": self._settings,
            "every_seconds": EVERY_S, "tiers": TIERS, "columns": COLUMNS,
        }  # fmt: skip
        if status.tenants is not None:
            about["tenants"] = [each._asdict() for each in status.tenants]
        return _encode(about).removesuffix(b"}")

    def _make_history(self, since: int) -> bytes:
        return self._present() + b', "rows": [' + b",".join(self._history().since(since)) + b"]}\n"

    def _make_checkpoints(self) -> bytes:
        """The newest checkpoints in the directory, newest first, and which ones the links point to."""
        found = checkpoints(self._directory)[: -MOST_CHECKPOINTS - 1 : -1]
        latest, stable = linked(self._directory, LATEST), linked(self._directory, STABLE)
        if stable is not None and stable not in found:
            found.append(stable)
        self._read_rollbacks()
        # The JSON of a version never changes: each is read once.
        described = {each: self._described.get(each) or _described(each) for each in found}
        self._described = {each: text for each, text in described.items() if text}
        rows = [_encode((text or _name(each)) | self._mark(each)) for each, text in described.items()]
        links = _encode({"latest": latest.name if latest else None, "stable": stable.name if stable else None})
        return links.removesuffix(b"}") + b', "checkpoints": [' + b",\n".join(rows) + b"]}\n"

    def _describe(self, name: str) -> Page:
        """All that the JSON of a checkpoint says."""
        try:
            about = read_description(self._directory / f"{name}.onnx") if _CHECKPOINT.fullmatch(name) else None
            self._read_rollbacks()
            body = None if about is None else _encode({**about, "name": name, "rolled_back": self._why_rolled_back(name)})
        except (DescriptionError, ValueError):  # ValueError: numbers that JSON has none of
            body = None
        return Page(_NO_CHECKPOINT, TEXT, HTTPStatus.NOT_FOUND) if body is None else _json_page(body)

    def _read_rollbacks(self) -> None:
        with contextlib.suppress(OSError):  # else as it was before
            self._rolled_back = read_rollbacks(self._directory).rolled_back

    def _mark(self, checkpoint: Checkpoint) -> dict[str, str]:
        """What is told of a checkpoint that was taken back, in the place of what the gate said."""
        why = self._why_rolled_back(checkpoint.name)
        return {} if why is None else {"gate": "rolled_back", "reason": why}

    def _why_rolled_back(self, name: str) -> str | None:
        why = self._rolled_back.get(name)
        return None if why is None else one_line(str(why.get("reason", "")))


class _Fresh:
    """The result of `make`, made again once it is a second old."""

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._make = make
        self._made_at, self._made = float("-inf"), b""

    def __call__(self) -> bytes:
        if time.monotonic() - self._made_at >= _FRESH_S:
            self._made = self._make()
            self._made_at = time.monotonic()
        return self._made


class _Collector:
    def __init__(self, read_status: Callable[[], Status], tenant_labels: bool) -> None:
        self._read_status, self._tenant_labels = read_status, tenant_labels

    def collect(self) -> Iterable[Metric]:
        return metric_families(self._read_status(), self._tenant_labels)


def _probe(good: bool, line: str) -> Page:
    return Page(f"{line}\n".encode(), TEXT, HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE)


def _json_page(body: bytes) -> Page:
    return Page(body, JSON, headers=(("Cache-Control", "no-store"), _POLICY))


def _asset_page(path: str, headers: Mapping[str, str]) -> Page:
    body, tag = _asset(path)
    status = HTTPStatus.NOT_MODIFIED if unchanged(headers, tag) else HTTPStatus.OK
    return Page(body, _ASSETS[path][1], status, (("Cache-Control", "no-cache"), ("ETag", tag), _POLICY))


@cache
def _asset(path: str) -> tuple[bytes, str]:
    """A file of the page, read when it is first requested, and its entity tag."""
    body = files("sidecar").joinpath("web", _ASSETS[path][0]).read_bytes()
    return body, f'"{hashlib.sha256(body).hexdigest()[:16]}"'


def _name(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"name": checkpoint.name, "version": checkpoint.version}


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    """The parts of a checkpoint's JSON that people want to see, without those that are malformed.

    Empty if there is no such file or it cannot be read now. Others may write to the directory, so types and sizes are checked.
    """
    try:
        about = read_description(checkpoint.model)
        if about is None:
            return {}
    except DescriptionError:
        about = None
    told = _name(checkpoint)
    for name, (*path, last) in _DESCRIPTION.items():
        within: Any = about
        for key in path:
            within = within.get(key) if isinstance(within, dict) else None
        value = within.get(last) if isinstance(within, dict) else None
        if isinstance(value, str):
            told[name] = one_line(value)
        elif isinstance(value, int | float) and abs(value) <= _LARGEST:
            told[name] = value
    if compared := _compared(about):
        told["compared"] = compared
    return told


def _compared(about: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The figures that the gate compared, as far as they are well formed."""
    gate = (about or {}).get("gate")
    rows = gate.get("compared") if isinstance(gate, dict) else None
    found = [row for row in rows[:_MOST_COMPARED] if isinstance(row, dict)] if isinstance(rows, list) else []
    return [
        {name: one_line(value) if isinstance(value, str) else value for name in _FIGURES if _is_plain(value := row.get(name))}
        for row in found
    ]


def _is_plain(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, int | float) and abs(value) <= _LARGEST)


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, allow_nan=False).encode()
