"""vmafx-sidecar: trains a small regression head that predicts VMAF scores from features."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.client.feedback_client import FeedbackClient as FeedbackClient

# One BLAS thread is faster at the size of a head's matrices, and sums in one order. Must be set before numpy loads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# onnxruntime's wheels send usage figures to their makers unless told not to, and a sidecar speaks to nobody.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "FeedbackClient":  # not at once: most commands do not need what it loads
        from sidecar.client.feedback_client import FeedbackClient

        return FeedbackClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
