"""What a sidecar may say of itself, for tests."""

from __future__ import annotations

import numpy as np

from sidecar.learning.drift.two_samples import Comparison
from sidecar.monitoring.status import Status, TenantFigures

FULL = Status(
    phase="running",
    host="node-0",
    started=1767225600.0,
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
    prequential_winsorized_rmse=1.25,
    prequential_constant_rmse=20.5,
    prequential_plcc=0.998,
    feature_drift=0.25,
    drifting_feature="adm2",
    feature_distance=0.125,
    shifted_features=0,
    comparison=Comparison(
        np.array([-1, -1]), np.tile(np.arange(128.0), (2, 1)).T, np.stack([np.arange(64.0) + 1, np.arange(64.0)]).T
    ),
    step_seconds=29e-6,
    replay_size=9000,
    replay_capacity=10000,
    replay_evictions=7,
    held_out_size=1000,
    held_out_capacity=1000,
    connections=2,
    journal_bytes=12_345_678,
    disk_free_bytes=3_200_000_000,
    journal_errors=4,
    skipped_steps=5,
    refits={"adopted": 7, "rejected": 1},
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
    checkpoint_reason="PLCC is low",
    checkpoints={"stable": 40, "unstable": 2},
    checkpoint_failures={"parity": 1},
    rollbacks=9,
    outliers=7,
    unusual_features="adm2",
    divergences=2,
    rate_share=0.25,
    shifts=3,
    tenants=(
        TenantFigures("a", 3000, 2.5, 0.5, True),
        TenantFigures("b", 900, 1.5, 1.25, True),
        TenantFigures("c", 100, 1, 1, False),
    ),
    tenant_pairs={"head": 4000, "over_share": 30, "refused": 20},
    rolled_back="model_v000040: worse",
)
UNKNOWN_AT_FIRST = (
    "loss",
    "prequential_rmse",
    "prequential_winsorized_rmse",
    "prequential_constant_rmse",
    "prequential_plcc",
    "feature_drift",
    "feature_distance",
    "step_seconds",
)
