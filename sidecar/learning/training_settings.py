"""The settings of online training: all that decides, besides the base model, what pairs do to the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from onnx_builder.network import ActivationName


@dataclass(frozen=True)
class TrainingSettings:
    """All that decides, besides the base model, what a sequence of pairs does to the weights."""

    batch_size: int = 32
    replay_mix: float = 0.5
    replay_capacity: int = 10_000
    replay_policy: Literal["ring", "balanced"] = "balanced"
    learning_rate: float = 1e-4
    loss: Literal["huber", "squared"] = "huber"
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-5
    max_grad_norm: float = 1.0
    warmup_steps: int = 100
    steps_per_batch: int = 4
    ema_decay: float = 0.999
    ema_warmup: bool = True
    hidden: int = 64
    activation: ActivationName = "relu"
    score_min: float = 0.0
    score_max: float = 100.0
    seed: int = 0
    tenants: tuple[str, ...] | None = None
    tenant_rank: int = 0
    tenant_share: float = 0.5

    @property
    def new_pairs(self) -> int:
        """New pairs that complete a group."""
        return max(1, self.batch_size - math.floor(self.batch_size * self.replay_mix + 0.5))
