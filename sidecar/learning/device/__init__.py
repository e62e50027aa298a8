"""Training on a GPU: the calls of the passes and the optimizers, recorded once and launched as one CUDA graph."""

from __future__ import annotations


class DeviceError(ValueError):
    """Training on a GPU is not possible here; the message says what is missing."""
