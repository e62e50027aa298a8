"""The anchor: the held-out pairs as they were when the present stable checkpoint passed.

The gate judges on it too, so that a polluted stream cannot move its own yardstick. While that checkpoint may be taken back, the
anchor of the one before it is kept beside, under its name: `anchor_model_v000042.npy`.
"""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import numpy as np

from onnx_builder.network import Array
from sidecar.files import sync_directory
from sidecar.state.checked import DamagedError, NewerFormatError, read_checked, write_checked

_log = logging.getLogger(__name__)
ANCHOR = "anchor.npy"
_KIND = "anchor"


def read_anchor(state_directory: Path) -> Array | None:
    """Held-out pairs as `Learner.held_out` has them; None if there are none, or they are damaged, with a warning.

    Raises OSError if they cannot be read now.
    """
    return read_rows(state_directory / ANCHOR)


def read_rows(path: Path) -> Array | None:
    """The rows of an anchor's file, as `read_anchor` gives them."""
    try:
        anchor: Array = np.load(io.BytesIO(read_checked(path, _KIND)), allow_pickle=False)
    except FileNotFoundError:
        return None
    except (DamagedError, NewerFormatError, ValueError, EOFError) as error:
        _log.warning("%s cannot be read: %s", path, error)
        return None
    return anchor if anchor.ndim == 2 and anchor.dtype == np.float64 else None


def write_anchor(state_directory: Path, held_out: Array, predecessor: str = "") -> None:
    """Make these held-out pairs the anchor. Raises OSError.

    predecessor: the name of the checkpoint that may come back; the anchor so far is kept for it, unless there is one already.
    What is kept for others goes.
    """
    kept = kept_anchors(state_directory)
    if predecessor and _kept_for(state_directory, predecessor) not in kept:
        before = read_anchor(state_directory)
        write_rows(_kept_for(state_directory, predecessor), held_out[:0] if before is None else before)
    write_rows(state_directory / ANCHOR, held_out)
    for path in kept:
        if path != _kept_for(state_directory, predecessor):
            path.unlink(missing_ok=True)


def restore_anchor(state_directory: Path, stable: str) -> None:
    """Make what is kept for the checkpoint that is stable again the anchor; if nothing is, it stays. Raises OSError."""
    kept = _kept_for(state_directory, stable)
    if kept.exists():
        os.replace(kept, state_directory / ANCHOR)
        sync_directory(state_directory)


def kept_anchors(state_directory: Path) -> list[Path]:
    """The files of the anchors that are kept for checkpoints which may come back."""
    return sorted(state_directory.glob("anchor_model_v*.npy"))


def write_rows(path: Path, held_out: Array) -> None:
    """Write an anchor's file. Raises OSError."""
    data = io.BytesIO()
    np.save(data, held_out, allow_pickle=False)
    write_checked(path, _KIND, data.getbuffer())


def _kept_for(state_directory: Path, name: str) -> Path:
    return state_directory / f"anchor_{name}.npy"
