"""The `vmafx-sidecar` command. Importing it prepares this process, before numpy and onnxruntime are loaded.

A program that imports the library instead keeps its own settings.
"""

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


open_standard_streams()
# One BLAS thread is faster for matrices of this size, and always sums in the same order.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Without this, onnxruntime's wheels report usage data to their makers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
