"""Learners that take a pair at a time: ours, river's, and recursive least squares on random features."""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
from fine_tuning import HOLDOUT
from river import compose, linear_model, optim, preprocessing

from onnx_builder.network import Network
from sidecar.journal.run import Run
from sidecar.learning.online.fits import FIRST_PAIRS
from sidecar.learning.training_settings import TrainingSettings
from sidecar.online import learner as online
from sidecar.pairs.pair import PairBlock
from sidecar.pairs.recorded import RecordedPairs

Row = np.ndarray


class Learner(Protocol):
    def predict(self, features: Row) -> float | None: ...
    def learn(self, features: Row, score: float) -> None: ...

    def hold_out(self, features: Row, score: float) -> None:
        """A pair that is not to be trained on."""


Make = Callable[[int, int], Learner]
"""Makes a learner, given the number of features and a seed."""


class Ours(Learner):
    def __init__(self, n_features: int, settings: TrainingSettings, base: Network | None = None) -> None:
        self.run, self.base = Run(n_features, settings, HOLDOUT, base="base" if base else None), base
        self.learner = online.Learner(self.run, base)

    def predict(self, features: Row) -> float | None:
        ema = self.learner.trainer.ema
        return float(ema.predict(features[None])[0]) if ema else None

    def learn(self, features: Row, score: float) -> None:
        self._take(features, score, 1.0)

    def hold_out(self, features: Row, score: float) -> None:
        self._take(features, score, 0.0)

    def configure(self, settings: TrainingSettings) -> None:
        self.run = replace(self.run, settings=settings)
        self.learner.begin(self.run, self.base)

    def _take(self, features: Row, score: float, position: float) -> None:
        self.learner.take(PairBlock(features[None], np.array([score], dtype=np.float32), [position]))


class River(Learner):
    def __init__(self, *steps: object) -> None:
        self.model = compose.Pipeline(*steps)

    def predict(self, features: Row) -> float:
        return self.model.predict_one(dict(enumerate(features.tolist())))

    def learn(self, features: Row, score: float) -> None:
        self.model.learn_one(dict(enumerate(features.tolist())), score)


class RecursiveLeastSquares(Learner):
    """Recursive least squares with forgetting (Haykin, Adaptive Filter Theory, chapter 10), linear in features and more.

    Besides the standardised features themselves, it has random Fourier features of them, which approximate a Gaussian kernel
    exp(-gamma |x - y|²) (Rahimi and Recht 2007, "Random Features for Large-Scale Kernel Machines"). The first 256 pairs are
    learned when all are there; nothing is predicted before.

    scaling: features (n, n_features) whose centre and deviation are taken, instead of those of the first 256 pairs. clip:
    features are clipped at this many deviations. ridge: what the diagonal of the matrix starts with, whose inverse is kept.
    """

    def __init__(
        self,
        n_features: int,
        seed: int,
        *,
        random_features: int = 256,
        gamma: float = 3e-4,
        forgetting: float = 0.9995,
        clip: float = 10,
        ridge: float = 0.01,
        scaling: np.ndarray | None = None,
    ) -> None:
        generator = np.random.default_rng(seed)
        self.directions = generator.normal(scale=math.sqrt(2 * gamma), size=(n_features, random_features))
        self.phases = generator.uniform(0, 2 * math.pi, random_features)
        terms = random_features + n_features + 1
        self.inverse, self.weights = np.eye(terms) / ridge, np.zeros(terms)
        self.forgetting, self.clip, self.scaling = forgetting, clip, scaling
        self.first: list[tuple[Row, float]] = []

    def terms(self, features: Row) -> Row:
        scaled = np.clip((features - self.centre) / self.deviation, -self.clip, self.clip)
        return np.concatenate([np.cos(scaled @ self.directions + self.phases), scaled, [1]])

    def predict(self, features: Row) -> float | None:
        return float(self.terms(features) @ self.weights) + self.mean if len(self.first) == FIRST_PAIRS else None

    def learn(self, features: Row, score: float) -> None:
        if len(self.first) == FIRST_PAIRS:
            self.update(features, score)
            return
        self.first.append((features, score))
        if len(self.first) == FIRST_PAIRS:
            x, y = (np.array(column, dtype=np.float64) for column in zip(*self.first, strict=True))
            scaling = x if self.scaling is None else self.scaling.astype(np.float64)
            self.centre, self.deviation, self.mean = scaling.mean(axis=0), scaling.std(axis=0), y.mean()
            self.deviation[self.deviation == 0] = 1
            for first in self.first:
                self.update(*first)

    def update(self, features: Row, score: float) -> None:
        terms = self.terms(features)
        projected = self.inverse @ terms
        gain = projected / (self.forgetting + terms @ projected)
        self.weights += gain * (score - self.mean - terms @ self.weights)
        self.inverse -= np.outer(gain, projected)
        self.inverse /= self.forgetting


def linear(rate: float, intercept_rate: float) -> linear_model.LinearRegression:
    return linear_model.LinearRegression(optimizer=optim.SGD(rate), intercept_lr=intercept_rate)


def river(regressor: Callable[[], object], scaled_scores: bool = False) -> Make:
    """With standardised features, and scores where asked for."""

    def make(n_features: int, seed: int) -> Learner:
        scores = preprocessing.TargetStandardScaler
        return River(preprocessing.StandardScaler(), scores(regressor()) if scaled_scores else regressor())

    return make


def bayesian(smoothing: float | None) -> Callable[[], object]:
    return lambda: linear_model.BayesianLinearRegression(beta=10, smoothing=smoothing)


def leaf() -> object:
    return linear(1e-3, 0.1)


def prequential(pairs: RecordedPairs, learner: Learner) -> np.ndarray:
    """What the learner made of each pair (n,) before it was trained on; NaN where it made nothing."""
    predicted = np.full(len(pairs), np.nan)
    for row, (features, score) in enumerate(zip(pairs.features, pairs.true_score.tolist(), strict=True)):
        prediction = learner.predict(features)
        if prediction is not None:
            predicted[row] = np.clip(np.nan_to_num(prediction), 0, 100)
        give = learner.learn if pairs.position[row] >= HOLDOUT else learner.hold_out
        give(features, score)
    return predicted


def train_all(learner: Learner, pairs: RecordedPairs) -> None:
    for features, score in zip(pairs.features, pairs.true_score.tolist(), strict=True):
        learner.learn(features, score)
