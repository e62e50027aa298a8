"""The anchor: the held-out pairs as they were when the present stable checkpoint passed.

The gate judges on it too, so that a polluted stream cannot move its own yardstick.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np

from onnx_builder.network import Array
from sidecar.checkpoints import Checkpoint, CheckpointError, promote
from sidecar.files import write_whole
from sidecar.snapshot import read_snapshots

_log = logging.getLogger(__name__)
_NAME = "anchor.npy"


def read_anchor(state_directory: Path) -> Array | None:
    """Held-out pairs as `Learner.held_out` has them; None where there are none, or they cannot be read."""
    path = state_directory / _NAME
    try:
        with path.open("rb") as stream:
            anchor: Array = np.load(stream, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        _log.warning("%s cannot be read: %s", path, error)
        return None
    return anchor if anchor.ndim == 2 and anchor.dtype == np.float64 else None


def write_anchor(state_directory: Path, held_out: Array) -> None:
    """Make these held-out pairs the anchor. Raises OSError."""
    data = io.BytesIO()
    np.save(data, held_out, allow_pickle=False)
    write_whole(state_directory / _NAME, data.getbuffer())


def promote_by_hand(version: int, checkpoint_directory: Path, state_directory: Path) -> Checkpoint:
    """Verify a checkpoint, point `stable.onnx` at it, and renew the anchor from the newest snapshot, where there is one.

    Raises CheckpointError where there is no such checkpoint or it does not pass.
    """
    from sidecar.examine import verify  # which loads onnxruntime; `serve` needs the rest of this file before

    model = Checkpoint(checkpoint_directory, version).model
    if model.is_file():
        (verified,) = verify([model])
        wrong = [f"{check}: {reason}" for check, reason in verified.checks.items() if reason]
        if wrong:
            raise CheckpointError(f"{model} is not promoted: {'; '.join(wrong)}")
    checkpoint = promote(checkpoint_directory, version)
    for _, state in read_snapshots(state_directory):
        try:
            write_anchor(state_directory, state["held_out"])
        except (KeyError, OSError) as error:
            _log.warning("the anchor in %s was not renewed: %s", state_directory, error)
        break
    return checkpoint
