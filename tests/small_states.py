"""States of a small model: their files are a few kilobytes, and a start takes milliseconds."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onnx_builder import Activation, Clip, Dense, Elementwise, Network
from sidecar.journal.run import Run
from sidecar.learning.training_settings import TrainingSettings
from sidecar.online.training import OnlineTraining
from sidecar.settings import Fsync
from sidecar.state.base_models import digest_of

N_FEATURES, _HIDDEN = 4, 3


def _base() -> Network:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.normal(size=shape).astype(np.float32)

    scale, offset = np.asarray(20, dtype=np.float32), np.asarray(60, dtype=np.float32)
    steps = [Elementwise("Sub", normal(N_FEATURES)), Elementwise("Mul", abs(normal(N_FEATURES)) + 0.5)]
    steps += [Dense(normal(_HIDDEN, N_FEATURES), normal(_HIDDEN)), Activation("relu")]
    steps += [Dense(normal(1, _HIDDEN), normal(1)), Elementwise("Mul", scale), Elementwise("Add", offset), Clip(0, 100)]
    return Network(N_FEATURES, tuple(steps))


BASE = _base()
SETTINGS = TrainingSettings(batch_size=8, replay_capacity=24, hidden=_HIDDEN)
RUN = Run(N_FEATURES, SETTINGS, 0.1, digest_of(BASE))


def small_lines(count: int) -> list[bytes]:
    """Request lines of a linear problem, in groups of two."""
    features = np.random.default_rng(1).normal(size=(count, N_FEATURES)).round(3)
    scores = np.clip(60 + 12 * features.sum(axis=1), 0, 100).round(3)
    return [
        json.dumps({"job_id": f"j{i}", "group": f"g{i // 2}", "features": x, "true_score": y}).encode()
        for i, (x, y) in enumerate(zip(features.tolist(), scores.tolist(), strict=True))
    ]


def small_online(state: Path, run: Run = RUN, fsync: Fsync = "everysec") -> OnlineTraining:
    return OnlineTraining(state, run, BASE, fsync)


class Opened(NamedTuple):
    """What a start makes of a state directory. digest: of all that later training depends on; told: of damage."""

    position: int
    digest: str
    told: bool


def open_state(state: Path, run: Run = RUN) -> Opened:
    """Start on a state directory, and let go of it. Raises what that raises."""
    warnings = _Warnings()
    logger = logging.getLogger("sidecar")
    before, logger.propagate = logger.propagate, False
    logger.addHandler(warnings)
    try:
        online = small_online(state, run)
        online.backlog.wait()
        found = Opened(online.journal.position, state_digest(online), bool(online.damages.counts) or warnings.seen)
        online.close()
    finally:
        logger.removeHandler(warnings)
        logger.propagate = before
    return found


def state_digest(online: OnlineTraining) -> str:
    """Of all that later training depends on."""
    digest = hashlib.sha256()
    for name, array in sorted(online.learner.state().items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen = False

    def emit(self, record: logging.LogRecord) -> None:
        self.seen = True
