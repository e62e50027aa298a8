"""Schedules of the learning rate: warm-up and cosine decay."""

from __future__ import annotations

import math


def warmed_up(peak: float, step: int, warmup_steps: int, start: float = 0.0) -> float:
    """Learning rate at step 0, 1, …: rises linearly over warmup_steps from the share `start` of the peak, then is constant."""
    return peak * min(1.0, start + (1 - start) * (step + 1) / warmup_steps) if warmup_steps else peak


def cosine_decay(step: int, total_steps: int) -> float:
    """Factor for the learning rate at step 0, 1, …: half a cosine from 1 to 0 over `total_steps`.

    Loshchilov, Hutter: SGDR (2017), arXiv:1608.03983, without restarts.
    """
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / total_steps)))
