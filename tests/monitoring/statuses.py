"""What a sidecar may say of itself, for tests."""

from __future__ import annotations

from sidecar.monitoring.status import Status

FULL = Status(
    phase="running",
    host="node-0",
    accepting=True,
    n_features=2,
    features=("adm2", "motion2"),
    target="vmaf_v0.6.1",
    position=123456,
    step=30000,
    pairs={"accepted": 117000, "held_out": 6456, "duplicate": 3, "rejected": 1},
    rejected={"features": 1},
    loss=3.25,
    prequential_rmse=1.5,
    prequential_plcc=0.998,
    feature_drift=0.25,
    drifting_feature="adm2",
    step_seconds=29e-6,
    replay_size=9000,
    replay_capacity=10000,
    replay_evictions=7,
    held_out_size=1000,
    held_out_capacity=1000,
    connections=2,
    journal_bytes=12_345_678,
    journal_errors=4,
    skipped_steps=5,
    degraded=("000001-snapshot_000000000042.npz",),
    damage={"snapshot": 1},
    log_dropped=6,
    base_models={"followed": 2, "refused": 1},
    base_refused="base.onnx takes 4 features, not 2",
    checkpoint_directory_lost=8,
    version=42,
    latest_version=43,
    stable_version=41,
    checkpoint_time=1767225599.9,
    checkpoint_gate="unstable",
    checkpoints={"stable": 40, "unstable": 2},
    checkpoint_failures={"parity": 1},
    rollbacks=9,
    rolled_back="model_v000040: worse",
)
UNKNOWN_AT_FIRST = ("loss", "prequential_rmse", "prequential_plcc", "feature_drift", "step_seconds")
