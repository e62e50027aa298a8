"""The anchor: the held-out pairs as they were when the present stable checkpoint passed.

The gate judges on it too, so that a polluted stream cannot move its own yardstick.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np

from onnx_builder.network import Array
from sidecar.files import write_whole

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
