"""The online trainer: pairs in, in order, and weights that follow them.

A function of its settings, its base model and the pairs: it knows neither clock nor disk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnx_builder.network import ActivationName, Array, Float32, Network
from sidecar.learning.conditioning import Conditioning, condition
from sidecar.learning.head import Head
from sidecar.learning.optimizer import Adam, Optimizer, Sgd, clip_gradient, warmed_up
from sidecar.learning.polyak import PolyakAverage
from sidecar.learning.recipe import Recipe, fit
from sidecar.learning.replay import ReplayBuffer

FIRST_PAIRS = 256
"""A fresh head is fitted to so many first pairs; the units of a base model are final once so many have trained."""
MEASURED_AT = (64, FIRST_PAIRS)
"""Training pairs after which a base model's units are measured again."""
RATE_UNIT = 100.0
"""The learning rate that is set is multiplied by this: 1e-4 is 0.01 in the units that the head trains in (see
`learning/conditioning.py`). Measured in `benchmarks/fine_tuning.py`: half of it learns slower from every base model, twice as
much makes live weights unsteady at one step a batch."""


@dataclass(frozen=True)
class TrainingSettings:
    """All that decides what a sequence of pairs makes of the weights, besides the base model."""

    batch_size: int = 32
    replay_mix: float = 0.5
    replay_capacity: int = 10_000
    learning_rate: float = 1e-4
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

    @property
    def new_pairs(self) -> int:
        """New pairs that complete a group."""
        return max(1, self.batch_size - math.floor(self.batch_size * self.replay_mix + 0.5))


class Trainer:
    """Trains a head on groups of new pairs and on pairs drawn again from the replay buffer.

    The first step of a group trains on its new pairs and on replayed ones, up to `batch_size`; then they enter the buffer,
    and each further step trains on pairs drawn from there.

    A fresh head (no base) is fitted to the first 256 pairs by the offline recipe, and is None until then; its units are
    measured on these. A base model learns from the first group on, in units measured on that group, and again once 64 and
    256 pairs have trained: that changes how its weights learn, not what they compute.

    base: takes n_features. live, ema: heads of the last step's weights and of their average; `network` gives either in
    the units of the base. step: steps run; skipped_steps: those left out because their gradient was not finite.
    """

    def __init__(self, n_features: int, settings: TrainingSettings, base: Network | None = None) -> None:
        self.n_features, self.settings = n_features, settings
        self.live: Head | None = None
        self.ema: Head | None = None
        self.step = self.skipped_steps = 0
        self.replay = ReplayBuffer(settings.replay_capacity, n_features + 2)
        self._conditioning: Conditioning | None = None
        self._new_features = np.empty((FIRST_PAIRS if base is None else settings.new_pairs, n_features), dtype=np.float32)
        self._new_scores = np.empty(len(self._new_features), dtype=np.float32)
        self._waiting = 0
        self._seen: list[tuple[Float32, Float32]] = []  # groups so far, until the units are final
        self._generator = np.random.default_rng(settings.seed)
        self._batch = np.empty((settings.batch_size, n_features + 2), dtype=np.float32)
        self._optimizer: Optimizer
        self._average: PolyakAverage
        if base is not None:
            self._begin(base, base)

    def add(self, features: Array, score: float) -> float | None:
        """Take a pair to train on: features (n_features,), score in points.

        Where it completes a group, the steps are run, and the mean squared error of the first step's batch before that step
        is given, in score points squared; None otherwise.
        """
        self._new_features[self._waiting] = features
        self._new_scores[self._waiting] = score
        self._waiting += 1
        if self._waiting < len(self._new_scores):
            return None
        self._waiting = 0
        if self.live is None:
            self._fit_fresh()
            return None
        if self._conditioning is None or self._seen:
            self._measure_units()
        return self._train(self.live.rows(self._new_features, self._new_scores))

    def network(self, head: Head) -> Network:
        """The function of `live` or `ema` as a network of the base's own units."""
        network = head.network()
        return self._conditioning.remove(network) if self._conditioning else network

    def _begin(self, live: Network, ema: Network, averaged_steps: int = 0) -> Head:
        """Train these weights from here on; the momentum starts anew."""
        settings = self.settings
        self.live = head = Head(live)
        parameters, gradient = head.parameters, head.gradient
        self._average = PolyakAverage(parameters, settings.ema_decay, settings.ema_warmup)
        self._average.parameters[:] = Head(ema).parameters
        self._average.steps = averaged_steps
        self.ema = head.at(self._average.parameters)
        if settings.optimizer == "sgd":
            self._optimizer = Sgd(parameters, gradient, settings.momentum, settings.weight_decay)
        else:
            self._optimizer = Adam(parameters, gradient, settings.weight_decay)
        return head

    def _fit_fresh(self) -> None:
        settings = self.settings
        recipe = Recipe(
            hidden=settings.hidden, activation=settings.activation, seed=settings.seed,
            score_min=settings.score_min, score_max=settings.score_max,
        )  # fmt: skip
        features, scores = self._new_features, self._new_scores
        fitted = fit(features, scores, np.arange(len(scores)), recipe).ema.network()
        self._conditioning = condition(fitted, features, settings.score_min, settings.score_max)
        head = self._begin(self._conditioning.apply(fitted), self._conditioning.apply(fitted))
        self.replay.add(head.rows(features, scores))
        self._new_features, self._new_scores = features[: settings.new_pairs].copy(), scores[: settings.new_pairs].copy()

    def _measure_units(self) -> None:
        """Condition the head anew where enough pairs have come since; the replayed rows are put into the new units."""
        seen = sum(len(scores) for _, scores in self._seen)
        self._seen.append((self._new_features.copy(), self._new_scores.copy()))
        now = seen + len(self._new_scores)
        if self._conditioning is not None and not any(seen < count <= now for count in MEASURED_AT):
            return
        assert self.live is not None
        assert self.ema is not None
        live, ema = self.network(self.live), self.network(self.ema)
        features = np.concatenate([group for group, _ in self._seen])
        scores = np.concatenate([group for _, group in self._seen])
        self._conditioning = condition(live, features, self.settings.score_min, self.settings.score_max)
        head = self._begin(self._conditioning.apply(live), self._conditioning.apply(ema), self._average.steps)
        self.replay = ReplayBuffer(self.settings.replay_capacity, self.n_features + 2)
        self.replay.add(head.rows(features[:seen], scores[:seen]))
        if now >= FIRST_PAIRS:
            self._seen = []

    def _train(self, new_rows: Array) -> float:
        """The steps of one group; gives the loss before the first."""
        assert self.live is not None
        settings, batch = self.settings, self._batch
        n_new = len(new_rows)
        batch[:n_new] = new_rows
        count = n_new + self.replay.sample(self._generator, batch[n_new:])
        loss = self._step(batch[:count])
        self.replay.add(new_rows)
        for _ in range(settings.steps_per_batch - 1 if settings.replay_mix else 0):
            self._step(batch[: self.replay.sample(self._generator, batch)])
        return loss * self.live.score_scale**2

    def _step(self, rows: Array) -> float:
        """One gradient step, unless its gradient is not finite; gives the loss before it, in the head's units."""
        assert self.live is not None
        settings = self.settings
        with np.errstate(over="ignore", invalid="ignore"):
            loss = self.live.loss_and_gradient(rows)
            if clip_gradient(self.live.gradient, settings.max_grad_norm) < math.inf:
                rate = warmed_up(RATE_UNIT * settings.learning_rate, self.step, settings.warmup_steps)
                self._optimizer.step(rate)
                self._average.update()
            else:
                self.skipped_steps += 1
        self.step += 1
        return loss
