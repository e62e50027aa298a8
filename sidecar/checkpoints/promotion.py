"""Promotion by hand."""

from __future__ import annotations

import logging
from pathlib import Path

from sidecar.checkpoints.directory import Checkpoint, CheckpointError, promote
from sidecar.learning.drift.outliers import Outliers
from sidecar.state.anchor import write_anchor
from sidecar.state.snapshots import read_snapshots

_log = logging.getLogger(__name__)


def promote_by_hand(version: int, checkpoint_directory: Path, state_directory: Path) -> Checkpoint:
    """Verify a checkpoint, point `stable.onnx` at it, and renew the anchor from the newest snapshot, if there is one.

    Raises CheckpointError if there is no such checkpoint or it does not pass.
    """
    from sidecar.checkpoints.verify import verify  # imported here, because it loads onnxruntime

    model = Checkpoint(checkpoint_directory, version).model
    if model.is_file():
        (verified,) = verify([model])
        wrong = [f"{check}: {reason}" for check, reason in verified.checks.items() if reason]
        if wrong:
            raise CheckpointError(f"{model} was not promoted: {'; '.join(wrong)}")
    checkpoint = promote(checkpoint_directory, version)
    for _, state in read_snapshots(state_directory):
        try:
            held_out, outliers = state["held_out"], Outliers.from_state(state)
            write_anchor(state_directory, held_out[~outliers.among(held_out[:, : outliers.usual.shape[1]])])
        except (KeyError, OSError) as error:
            _log.warning("the anchor in %s was not renewed: %s", state_directory, error)
        break
    return checkpoint
