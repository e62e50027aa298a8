"""Standard streams: there are three, whoever started the process."""

from __future__ import annotations

import os
import sys


def open_standard_streams() -> None:
    """Open each of descriptors 0, 1 and 2 that is closed, to nowhere.

    Else the next file that is opened becomes, say, standard error, and whatever a library prints is written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor is this one
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
