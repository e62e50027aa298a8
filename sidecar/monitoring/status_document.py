"""A status as it is reported: as a JSON document, and as the answers to whether the process is alive and ready."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from sidecar.features.names import name_of
from sidecar.learning.drift.two_samples import LATEST_GROUPS, QUANTILES, REFERENCE_GROUPS
from sidecar.monitoring.status import Finding, Status, one_line

STALL_SECONDS = 10.0  # an event loop without a turn for longer than this is stuck
STATUS_BYTES = 4096
_MOST_DEGRADED = 6
_MOST_FINDINGS = 3
_MOST_FEATURES = 256

RESULTS = ("accepted", "held_out", "duplicate", "rejected")
GATES = ("stable", "unstable", "unverified", "incompatible")
DAMAGED = ("journal", "snapshot", "base", "anchor", "published", "history")
FOLLOWED = ("followed", "refused")
REFITS = ("adopted", "rejected")
STAGES = ("build", "parity", "write", "lock")


def status_document(status: Status) -> dict[str, Any]:
    """A status as `/status` reports it: first the fields that every reader relies on. Those without a value are left out."""
    document = {
        "phase": status.phase,
        "current_samples": status.position,
        "last_checkpoint_time": _rfc3339(status.checkpoint_time),
        "model_version": _model_name(status.version),
        "host": one_line(status.host)[:80] or None,
        "started": _rfc3339(status.started),
        "reason": one_line(status.reason) or None,
        "accepting": status.accepting,
        "degraded": [one_line(each)[:80] for each in status.degraded[:_MOST_DEGRADED]] or None,
        "base_model_refused": one_line(status.base_refused)[:200] or None,
        "latest_version": _model_name(status.latest_version),
        "stable_version": _model_name(status.stable_version),
        "last_checkpoint_gate": one_line(status.checkpoint_gate or "") or None,
        "last_checkpoint_reason": one_line(status.checkpoint_reason)[:200] or None,
        "rolled_back": one_line(status.rolled_back) or None,
        "step": status.step,
        "loss": finite(status.loss),
        "prequential_rmse": finite(status.prequential_rmse),
        "prequential_winsorized_rmse": finite(status.prequential_winsorized_rmse),
        "prequential_constant_rmse": finite(status.prequential_constant_rmse),
        "prequential_plcc": finite(status.prequential_plcc),
        "feature_drift": finite(status.feature_drift),
        "drifting_feature": one_line(status.drifting_feature)[:80] or None,
        "feature_distance": finite(status.feature_distance),
        "shifted_features": status.shifted_features or None,
        "shifted": one_line(status.shifted)[:200] or None,
        "pairs": counts(RESULTS, status.pairs),
        "replay_size": status.replay_size,
        "replay_capacity": status.replay_capacity,
        "replay_evictions": status.replay_evictions,
        "held_out_size": status.held_out_size,
        "held_out_capacity": status.held_out_capacity,
        "checkpoints": counts(GATES, status.checkpoints),
        "checkpoint_failures": counts(STAGES, status.checkpoint_failures),
        "rollbacks": status.rollbacks or None,
        "journal_bytes": status.journal_bytes,
        "disk_free_bytes": status.disk_free_bytes,
        "journal_errors": status.journal_errors,
        "connections": status.connections,
        "step_seconds": finite(status.step_seconds),
        "skipped_steps": status.skipped_steps,
        "outliers": status.outliers or None,
        "unusual_features": one_line(status.unusual_features)[:250] or None,
        "divergences": status.divergences or None,
        "shifts": status.shifts or None,
        "learning_rate_share": status.rate_share if status.rate_share < 1 else None,
        "refits": dict(status.refits) if any(status.refits.values()) else None,
        "log_dropped": status.log_dropped or None,
        "checkpoint_directory_lost": status.checkpoint_directory_lost or None,
        "damage": dict(status.damage) or None,
        "n_features": status.n_features,
        "findings": _worst(status),
        "target": one_line(status.target)[:80] or None,
        "rejected": dict(status.rejected),
        "features": [one_line(name)[:80] for name in status.features] or None,
        "tenants": dict(status.heads) or None,
        "tenant_pairs": dict(status.tenant_pairs) or None,
    }
    return {name: value for name, value in document.items() if value is not None}


def encode_status(document: Mapping[str, Any]) -> bytes:
    """A status document as JSON of at most STATUS_BYTES bytes; fields that do not fit are left out, from the end."""
    kept = dict(document)
    while True:
        body = json.dumps(kept, ensure_ascii=False, allow_nan=False).encode(errors="replace") + b"\n"
        if len(body) <= STATUS_BYTES:
            return body
        kept.popitem()


def health(status: Status, now: float) -> tuple[bool, str]:
    """Whether the process makes progress, and a line that says so; now: `time.monotonic()`."""
    if now - status.progress <= STALL_SECONDS:
        return True, f"making progress ({status.phase})"
    return False, f"no progress for more than {STALL_SECONDS:g} s ({status.phase})"


def readiness(status: Status) -> tuple[bool, str]:
    """Whether the socket accepts pairs, and a line that says so."""
    return status.accepting, f"{'accepting' if status.accepting else 'not accepting'} pairs ({status.phase})"


def _worst(status: Status) -> list[dict[str, Any]] | None:
    """The worst finding with what to do, and of a few others only what is wrong and since when."""
    found = [finding_document(each._replace(detail=each.detail[:100])) for each in status.findings[:_MOST_FINDINGS]]
    short = ("alert", "severity", "what", "since", "alert_at")
    return found[:1] + [{name: each[name] for name in short if name in each} for each in found[1:]] or None


def finding_document(finding: Finding) -> dict[str, Any]:
    """A finding as JSON; `alert_at` only if it has not lasted long enough for an alert."""
    times = {"since": _rfc3339(finding.since), "alert_at": None if finding.firing else _rfc3339(finding.alert_at)}
    told = {name: getattr(finding, name) for name in ("alert", "figure", "severity", "what", "detail", "do")}
    return {name: value for name, value in (told | times).items() if value}


def drift_document(status: Status) -> dict[str, Any]:
    """How the latest values of each feature compare with the first ones, the farthest first; without features before that."""
    seen = status.comparison
    told: dict[str, Any] = {
        "reference_groups": REFERENCE_GROUPS, "latest_groups": LATEST_GROUPS, "quantiles": QUANTILES,
        "limit": seen.limit if seen else None, "features": [],
    }  # fmt: skip
    if seen is None:
        return told
    reference, latest = seen.quantiles()
    for place in (-seen.distance).argsort(kind="stable")[:_MOST_FEATURES].tolist():
        about = {"name": name_of(status.features, place), "distance": round(float(seen.distance[place]), 4)}
        since = {"since": int(seen.since[place])} if seen.since[place] >= 0 else {}
        told["features"].append({**about, **since, "reference": reference[place].tolist(), "latest": latest[place].tolist()})
    return told


def counts(known: Iterable[str], given: Mapping[str, int]) -> dict[str, int]:
    return {**dict.fromkeys(known, 0), **given}


def finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _model_name(version: int | None) -> str | None:
    return None if version is None else f"model_v{version:06d}"


def _rfc3339(seconds: float | None) -> str | None:
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError):  # from a checkpoint's JSON, which others may have written
        return None
