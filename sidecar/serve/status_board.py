"""The status of the running sidecar: written by the training thread, read by the threads that answer HTTP."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnx_builder.network import Array
from sidecar import log
from sidecar.features.names import name_of
from sidecar.learning.drift.two_samples import Comparison
from sidecar.learning.metrics import plcc, rmse, winsorized_rmse
from sidecar.learning.tenants.tenants import Tenants
from sidecar.monitoring.history import History
from sidecar.monitoring.status import Phase, Status, TenantFigures
from sidecar.monitoring.verdict.findings import Findings
from sidecar.online.training import OnlineTraining
from sidecar.serve.maintenance import Every
from sidecar.settings import Settings

_log = logging.getLogger(__name__)


class StatusBoard:
    """`status` is replaced, never modified; `history` keeps the last hours."""

    def __init__(self, settings: Settings) -> None:
        host = os.environ.get("POD_NAME") or socket.gethostname()  # a pod may have its machine's host name
        self.status = Status(phase="initializing", host=host, started=time.time(), progress=time.monotonic())
        self.history = History()
        self._findings, self._each_look = Findings(settings), Every(1.0)

    def recovered(self, pairs: int) -> None:
        """Note that `pairs` more journalled pairs were trained on again during the start."""
        self.status = replace(self.status, progress=time.monotonic(), position=self.status.position + pairs)

    def update(
        self,
        online: OnlineTraining,
        *,
        accepting: bool,
        failed: str,
        connections: int,
        rejected: Mapping[str, int],
        step_seconds: float | None,
        others: Mapping[str, Any],
    ) -> None:
        """Update the status from `online`.

        failed: why the base model cannot be used, or empty. rejected: refused lines by kind. step_seconds: mean of the last
        steps. others: the fields of a `Status` that are about checkpoints, base models and the disk.
        """
        learner, trainer, counts = online.learner, online.learner.trainer, online.counts
        if self.status.refits and sum(trainer.refits.values()) > sum(self.status.refits.values()):
            log.event(_log, "the model was fitted again to its replay buffer", pairs=trainer.trained, **trainer.refits)
        failed = failed or online.backlog.failed
        seen = trainer.prequential.rows()
        comparison = learner.samples.comparison
        drift = trainer.drift.largest if trainer.drift and trainer.trained else None
        self.status = replace(
            self.status,
            phase=_phase(online, failed),
            reason=failed or (f"journal: {online.journal.error}" if online.journal.error else ""),
            accepting=accepting,
            progress=time.monotonic(),
            n_features=learner.run.n_features,
            features=learner.run.order,
            target=learner.run.target,
            position=online.journal.position,
            step=online.steps,
            pairs={
                "accepted": counts.accepted - counts.held_out, "held_out": counts.held_out,
                "duplicate": counts.duplicate, "rejected": sum(rejected.values()),
            },
            rejected=dict(rejected),
            loss=online.backlog.loss,
            prequential_rmse=rmse(seen[:, 0], seen[:, 1]) if len(seen) else None,
            prequential_winsorized_rmse=winsorized_rmse(seen[:, 0], seen[:, 1]) if len(seen) else None,
            prequential_constant_rmse=float(np.std(seen[:, 1], dtype=np.float64)) if len(seen) else None,
            prequential_plcc=_correlation(seen[:, 0], seen[:, 1]),
            feature_drift=drift[0] if drift else None,
            drifting_feature=name_of(learner.run.order, drift[1]) if drift else "",
            feature_distance=float(comparison.distance.max()) if comparison else None,
            shifted_features=len(comparison.over) if comparison else 0,
            shifted=_in_words(comparison, learner.run.order) if comparison else "",
            comparison=comparison,
            step_seconds=step_seconds,
            replay_size=len(trainer.replay),
            replay_capacity=trainer.replay.capacity,
            replay_evictions=trainer.replay.evictions,
            held_out_size=len(learner.held_out),
            held_out_capacity=learner.held_out.capacity,
            connections=connections,
            journal_bytes=online.journal.disk_bytes,
            journal_errors=online.journal.errors,
            skipped_steps=trainer.skipped_steps,
            outliers=trainer.outliers.count,
            unusual_features=trainer.outliers.in_words(learner.run.order),
            divergences=trainer.divergence.count,
            rate_share=trainer.divergence.share,
            shifts=trainer.shifts,
            **_of_tenants(learner.tenants),
            refits=dict(trainer.refits),
            degraded=tuple(online.damages.names) or tuple(online.damages.counts),
            damage=dict(online.damages.counts),
            log_dropped=log.dropped(),
            **others,
        )  # fmt: skip
        clock, wall = time.monotonic(), time.time()
        if self._each_look.is_due(clock):
            self.status = replace(self.status, findings=self._findings.look(self.status, clock, wall))
        self.history.tell(self.status, clock, wall)


def _in_words(comparison: Comparison, names: Sequence[str]) -> str:
    """The features that are over the limit, the farthest first; the names of no more than three."""
    over = comparison.over
    told = ", ".join(name_of(names, place) for place in over[:3])
    if len(over) > 3:
        told += f" and {len(over) - 3} others"
    return f"{told}; most likely their order" if 2 * len(over) > len(comparison.distance) else told


def _of_tenants(tenants: Tenants | None) -> dict[str, Any]:
    """The fields of a `Status` that are about tenants."""
    if tenants is None:
        return {}
    figures = tuple(
        TenantFigures(name, pairs, compared.rmse_of_shared, compared.rmse, compared.used)
        for name, (pairs, _, compared) in tenants.figures().items()
    )
    pairs = sum(tenant.pairs for tenant in figures)
    return {
        "tenants": figures,
        "tenant_pairs": {"head": pairs, "over_share": tenants.passed, "refused": tenants.refused},
    }


def _correlation(predicted: Array, true: Array) -> float | None:
    """PLCC (n,); 0 if the predictions are all the same, None if the scores are."""
    if len(true) == 0 or np.ptp(true) == 0:
        return None
    value = plcc(predicted, true)
    return 0.0 if math.isnan(value) else value


def _phase(online: OnlineTraining, failed: str) -> Phase:
    if failed:
        return "failed"
    if online.journal.error:
        return "paused"
    if online.learner.trainer.ema is None:
        return "initializing"
    return "running"
