"""What /status, /healthz and /readyz say of a status."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from sidecar.monitoring.status import Finding, Status
from sidecar.monitoring.status_document import STALL_SECONDS, drift_document, encode_status, health, readiness, status_document
from sidecar.monitoring.verdict.findings import Findings
from sidecar.settings import Settings
from tests.monitoring.statuses import FULL, UNKNOWN_AT_FIRST


def encoded(status):
    """The document as a client gets it: one line, of a size that is bounded."""
    body = encode_status(status_document(status))
    assert len(body) <= 4096
    assert body.count(b"\n") == 1
    assert body.endswith(b"\n")
    return json.loads(body)


def test_status_of_a_fresh_sidecar_leaves_out_what_has_no_value():
    assert status_document(Status()) == {
        "phase": "initializing",
        "current_samples": 0,
        "accepting": False,
        "step": 0,
        "pairs": {"accepted": 0, "held_out": 0, "duplicate": 0, "rejected": 0},
        "replay_size": 0,
        "replay_capacity": 0,
        "replay_evictions": 0,
        "held_out_size": 0,
        "held_out_capacity": 0,
        "checkpoints": {"stable": 0, "unstable": 0, "unverified": 0, "incompatible": 0},
        "checkpoint_failures": {"build": 0, "parity": 0, "write": 0, "lock": 0},
        "journal_bytes": 0,
        "journal_errors": 0,
        "connections": 0,
        "skipped_steps": 0,
        "n_features": 0,
        "rejected": {},
    }


def test_the_status_tells_all():
    wrong = Finding(
        "VmafxTrainingPaused", "phase", "critical", "pairs are refused", "no space", "make room", 1e9, 1e9 + 60, True
    )
    worse = wrong._replace(alert="VmafxTrainingNoPairs", firing=False)
    status = dataclasses.replace(FULL, phase="paused", reason="journal: no space left on device", findings=(wrong, worse))
    document = encoded(status)
    assert document == {
        "phase": "paused",
        "current_samples": 123456,
        "last_checkpoint_time": "2025-12-31T23:59:59Z",
        "model_version": "model_v000042",
        "host": "node-0",
        "started": "2026-01-01T00:00:00Z",
        "reason": "journal: no space left on device",
        "accepting": True,
        "degraded": ["000001-snapshot_000000000042.npz"],
        "base_model_refused": "base.onnx takes 4 features, not 2",
        "latest_version": "model_v000043",
        "stable_version": "model_v000041",
        "last_checkpoint_gate": "unstable",
        "last_checkpoint_reason": "PLCC is low",
        "rolled_back": "model_v000040: worse",
        "step": 30000,
        "loss": 3.25,
        "prequential_rmse": 1.5,
        "prequential_winsorized_rmse": 1.25,
        "prequential_constant_rmse": 20.5,
        "prequential_plcc": 0.998,
        "feature_drift": 0.25,
        "drifting_feature": "adm2",
        "feature_distance": 0.125,
        "pairs": {"accepted": 117000, "held_out": 6456, "duplicate": 3, "rejected": 1},
        "replay_size": 9000,
        "replay_capacity": 10000,
        "replay_evictions": 7,
        "held_out_size": 1000,
        "held_out_capacity": 1000,
        "checkpoints": {"stable": 40, "unstable": 2, "unverified": 0, "incompatible": 0},
        "checkpoint_failures": {"build": 0, "parity": 1, "write": 0, "lock": 0},
        "rollbacks": 9,
        "journal_bytes": 12_345_678,
        "disk_free_bytes": 3_200_000_000,
        "journal_errors": 4,
        "connections": 2,
        "step_seconds": 29e-6,
        "skipped_steps": 5,
        "refits": {"adopted": 7, "rejected": 1},
        "outliers": 7,
        "unusual_features": "adm2",
        "divergences": 2,
        "shifts": 3,
        "learning_rate_share": 0.25,
        "tenants": {"used": 2, "unused": 1},
        "tenant_pairs": {"head": 4000, "over_share": 30, "refused": 20},
        "log_dropped": 6,
        "checkpoint_directory_lost": 8,
        "damage": {"snapshot": 1},
        "n_features": 2,
        "findings": [
            {
                "alert": "VmafxTrainingPaused",
                "figure": "phase",
                "severity": "critical",
                "what": "pairs are refused",
                "detail": "no space",
                "do": "make room",
                "since": "2001-09-09T01:46:40Z",
            },
            {
                "alert": "VmafxTrainingNoPairs",
                "severity": "critical",
                "what": "pairs are refused",
                "since": "2001-09-09T01:46:40Z",
                "alert_at": "2001-09-09T01:47:40Z",
            },
        ],
        "target": "vmaf_v0.6.1",
        "rejected": {"features": 1},
        "features": ["adm2", "motion2"],
    }
    # Nothing of the value is forgotten: every field is told, or has its own endpoint.
    assert len(dataclasses.fields(Status)) == len(document) + len(
        ["progress", "base_models", "shifted_features", "shifted", "comparison"]
    )


LONGEST = {
    field.name: 2**63 if field.type == "int" else -1.2345678901234567e-300
    for field in dataclasses.fields(Status)
    if field.type in ("int", "float | None") and field.name != "checkpoint_time"
}


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ('a "quoted" \\ path', 'a "quoted" \\ path'),
        ("two\nlines\r\n\x1b[31mred\x00", "two lines   [31mred "),
        ("x" * 500, "x" * 500),
        ("x" * 501, "x" * 499 + "…"),
        ("x" * 100_000, "x" * 499 + "…"),
        ('"' * 100_000, '"' * 499 + "…"),
        ("\U0001f600" * 100_000, "\U0001f600" * 499 + "…"),
        ("\x01" * 100_000, " " * 499 + "…"),
        ("\udcff caf\u00e9 \u2028\u202e", "  café   "),
    ],
)
def test_hostile_text_neither_breaks_the_status_nor_drives_a_figure_out(reason, told):
    status = dataclasses.replace(FULL, **LONGEST, phase="failed", reason=reason)
    findings = Findings(Settings())
    findings.look(status, 0.0, 0.0)
    status = dataclasses.replace(status, findings=findings.look(status, 3600.0, 3600.0))
    document = encoded(status)
    assert document["reason"] == told
    assert document["n_features"] == 2**63
    assert "findings" in document or len(told.encode()) > 1500


def test_the_status_never_exceeds_its_size_and_keeps_what_readers_rely_on():
    many = {f"\udcff{i}" * 50: i for i in range(1000)}
    document = encoded(dataclasses.replace(FULL, pairs=many, checkpoints=many, checkpoint_gate="\udcff" * 100_000))
    assert list(document)[:4] == ["phase", "current_samples", "last_checkpoint_time", "model_version"]
    exact = {"phase": "running", "rest": "x" * (4096 - len('{"phase": "running", "rest": ""}\n'))}
    assert len(encode_status(exact)) == 4096
    assert json.loads(encode_status({**exact, "rest": exact["rest"] + "x"})) == {"phase": "running"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_absent(value):
    status = dataclasses.replace(FULL, **dict.fromkeys(UNKNOWN_AT_FIRST, value))
    assert not set(UNKNOWN_AT_FIRST) & set(status_document(status))


@pytest.mark.parametrize(
    ("silent", "healthy", "line"),
    [
        (0, True, "making progress (running)"),
        (STALL_SECONDS, True, "making progress (running)"),
        (STALL_SECONDS + 0.01, False, "no progress for more than 10 s (running)"),
    ],
)
def test_health(silent, healthy, line):
    assert health(dataclasses.replace(FULL, progress=5000.0), 5000 + silent) == (healthy, line)


@pytest.mark.parametrize(
    ("phase", "accepting", "line"),
    [
        ("initializing", False, "not accepting pairs (initializing)"),
        ("initializing", True, "accepting pairs (initializing)"),
        ("failed", True, "accepting pairs (failed)"),
        ("paused", False, "not accepting pairs (paused)"),
    ],
)
def test_readiness_is_whether_the_socket_accepts(phase, accepting, line):
    assert readiness(Status(phase=phase, accepting=accepting)) == (accepting, line)


def test_the_drift_of_each_feature_is_told_the_farthest_first():
    since = np.array([-1, 4000])
    told = drift_document(dataclasses.replace(FULL, comparison=dataclasses.replace(FULL.comparison, since=since)))
    assert [each["name"] for each in told["features"]] == ["motion2", "adm2"]
    assert [each.get("since") for each in told["features"]] == [4000, None]
    assert told["features"][0]["latest"] == pytest.approx([3.15, 15.75, 31.5, 47.25, 59.85])
    assert told["limit"] == FULL.comparison.limit
    assert drift_document(Status())["features"] == []
