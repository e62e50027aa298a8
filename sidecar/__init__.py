"""vmafx-sidecar: trains a small regression head that predicts VMAF scores from features."""

import os

# One BLAS thread is faster at the size of a head's matrices, and sums in one order. Must be set before numpy loads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.1.0"
