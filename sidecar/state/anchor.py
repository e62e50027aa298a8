"""The anchor: the held-out pairs as they were when the present stable checkpoint passed.

The gate judges on it too, so that a polluted stream cannot move its own yardstick.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np

from onnx_builder.network import Array
from sidecar.state.checked import DamagedError, NewerFormatError, read_checked, write_checked

_log = logging.getLogger(__name__)
ANCHOR = "anchor.npy"
_KIND = "anchor"


def read_anchor(state_directory: Path) -> Array | None:
    """Held-out pairs as `Learner.held_out` has them; None if there are none, or they are damaged, with a warning.

    Raises OSError if they cannot be read now.
    """
    path = state_directory / ANCHOR
    try:
        anchor: Array = np.load(io.BytesIO(read_checked(path, _KIND)), allow_pickle=False)
    except FileNotFoundError:
        return None
    except (DamagedError, NewerFormatError, ValueError, EOFError) as error:
        _log.warning("%s cannot be read: %s", path, error)
        return None
    return anchor if anchor.ndim == 2 and anchor.dtype == np.float64 else None


def write_anchor(state_directory: Path, held_out: Array) -> None:
    """Make these held-out pairs the anchor. Raises OSError."""
    data = io.BytesIO()
    np.save(data, held_out, allow_pickle=False)
    write_checked(state_directory / ANCHOR, _KIND, data.getbuffer())
