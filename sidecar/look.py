"""A look at a running sidecar from outside: `status` and `probe`."""

from __future__ import annotations

import http.client
import json
import textwrap
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from sidecar.address import parse_address
from sidecar.status import one_line

CLIENT_SECONDS = 5.0
_MOST_BYTES = 1 << 20
_LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # where a server on all interfaces is reached


class HttpError(Exception):
    """A sidecar that does not answer as one; the message names its address and says why."""


def fetch_status(address: str) -> dict[str, Any]:
    """The `/status` document of the sidecar at an address; where that is all interfaces, of this machine's.

    Raises ValueError for a bad address, HttpError where no sidecar answers.
    """
    return _fetch(address, "/status")


def fetch_history(address: str) -> dict[str, Any]:
    """Likewise `/api/history`: what it says now, and a row every ten seconds of the last hours."""
    return _fetch(address, "/api/history")


def fetch_checkpoints(address: str) -> dict[str, Any]:
    """Likewise `/api/checkpoints`."""
    return _fetch(address, "/api/checkpoints")


def _fetch(address: str, path: str) -> dict[str, Any]:
    code, body = _get(address, path)
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if code != HTTPStatus.OK or not isinstance(document, dict):
        raise HttpError(f"{address}: {path} is not a sidecar's: answered {code} with {one_line(ascii(body[:40]))}")
    return document


def probe(address: str) -> tuple[bool, str]:
    """Whether the sidecar at an address is ready, and one line that says so. Raises ValueError for a bad address."""
    try:
        code, body = _get(address, "/readyz")
    except HttpError as error:
        return False, str(error)
    return code == HTTPStatus.OK, f"{address}: {one_line(body.decode(errors='replace').strip())}"


def _get(address: str, path: str) -> tuple[int, bytes]:
    host, port = parse_address(address)
    connection = http.client.HTTPConnection(_LOOPBACK.get(host, host), port, timeout=CLIENT_SECONDS)
    try:
        connection.request("GET", path)
        with connection.getresponse() as response:
            return response.status, response.read(_MOST_BYTES)
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
    "held_out_capacity": ("held out at most", "pairs", 1),
    "checkpoints": ("checkpoints", "", 1),
    "checkpoint_failures": ("failed checkpoints", "", 1),
    "journal_bytes": ("journal", "MB", 1e-6),
    "step_seconds": ("a gradient step takes", "µs", 1e6),
    "n_features": ("features of a pair", "", 1),
    "rejected": ("rejected, by reason", "", 1),
}


def format_status(document: Mapping[str, Any], width: int = 80) -> str:
    """A status document for a person: names and values in two columns, in lines of at most `width` characters."""
    rows = []
    for name, value in document.items():
        label, unit, scale = _IN_WORDS.get(name, (one_line(name).replace("_", " ")[:24], "", 1))
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
        return ", ".join(f"{one_line(name).replace('_', ' ')} {_in_words(each)}" for name, each in value.items())
    return one_line(str(value))
