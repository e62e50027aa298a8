"""States of a small model: their files are a few kilobytes, and a start takes milliseconds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onnx_builder import Activation, Clip, Dense, Elementwise, Network
from onnx_builder.write import to_bytes
from sidecar.journal.run import Run
from sidecar.journal.segments import first_kept, read_journal
from sidecar.learning.training_settings import TrainingSettings
from sidecar.monitoring.history import read_history
from sidecar.online.start import where_to_start
from sidecar.online.training import OnlineTraining
from sidecar.settings import Fsync, Settings
from sidecar.state.anchor import read_anchor
from sidecar.state.base_models import digest_of
from sidecar.state.published_pairs import read_published_pairs

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
    with _warnings() as warnings:
        online = small_online(state, run)
        online.backlog.wait()
        found = Opened(online.journal.position, state_digest(online), bool(online.damages.counts) or warnings.seen)
        online.close()
    return found


def small_settings(checkpoint_dir: Path, base_model: Path, **changes: Any) -> Settings:
    """Those of `serve` that make `RUN`, where the base model is `BASE`."""
    settings = {each.name: getattr(SETTINGS, each.name) for each in fields(SETTINGS)}
    return Settings(checkpoint_dir=checkpoint_dir, base_model=base_model, holdout_fraction=0.1, **{**settings, **changes})


def open_as_serve_does(settings: Settings) -> Opened:
    """Start as `serve` does, and let go of it. The digest is of all that was read from the state directory."""
    with _warnings() as warnings:
        base, begins_with, run, failed = where_to_start(settings)
        assert not failed, failed
        online = OnlineTraining(settings.state, run, begins_with)
        online.backlog.wait()
        anchor = read_anchor(settings.state)
        parts = [state_digest(online).encode(), b"" if anchor is None else anchor.tobytes()]
        parts += [str(read_published_pairs(settings.state)).encode(), repr(read_history(settings.state).rows).encode()]
        parts += [to_bytes(base.network) if base else b""]
        parts += [entry.line or b"" for entry in read_journal(settings.state, first_kept(settings.state))]
        digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
        found = Opened(online.journal.position, digest, bool(online.damages.counts) or warnings.seen)
        online.close()
    return found


@contextlib.contextmanager
def _warnings() -> Iterator[_Warnings]:
    warnings = _Warnings()
    logger = logging.getLogger("sidecar")
    before, logger.propagate = logger.propagate, False
    logger.addHandler(warnings)
    try:
        yield warnings
    finally:
        logger.removeHandler(warnings)
        logger.propagate = before


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
