"""What a status says to others: a JSON document, Prometheus metrics, and whether the process is alive and ready."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sidecar.status import Phase, Status, one_line

STALL_SECONDS = 10.0  # an event loop that has not turned for longer is stuck
STATUS_BYTES = 4096

RESULTS = ("accepted", "held_out", "duplicate", "rejected")
GATES = ("stable", "unstable", "unverified")
STAGES = ("build", "parity", "write")


def status_document(status: Status) -> dict[str, Any]:
    """A status as `/status` tells it: first what every reader relies on. What has no value yet is left out."""
    document = {
        "phase": status.phase,
        "current_samples": status.position,
        "last_checkpoint_time": _rfc3339(status.checkpoint_time),
        "model_version": _model_name(status.version),
        "reason": one_line(status.reason) or None,
        "accepting": status.accepting,
        "stable_version": _model_name(status.stable_version),
        "last_checkpoint_gate": one_line(status.checkpoint_gate or "") or None,
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
        "held_out_capacity": status.held_out_capacity,
        "checkpoints": _counts(GATES, status.checkpoints),
        "checkpoint_failures": _counts(STAGES, status.checkpoint_failures),
        "journal_bytes": status.journal_bytes,
        "journal_errors": status.journal_errors,
        "connections": status.connections,
        "step_seconds": _finite(status.step_seconds),
        "skipped_steps": status.skipped_steps,
        "n_features": status.n_features,
        "rejected": dict(status.rejected),
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
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError):  # of a checkpoint's JSON, which others may have written
        return None
