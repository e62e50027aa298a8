"""Fits: the offline recipe on the pairs of the replay buffer, first for a new model, later from the average of one that learns.

Online, a pair is trained on a few times, at a rate that does not end. A fit trains on it many times, at one that falls to zero,
and so gets more from the same pairs. It begins at a position of the stream, and the pairs after it wait for its result, however
long it takes: the weights are a function of the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Executor, Future
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Array, Network
from sidecar.learning import recipe as offline
from sidecar.learning.conditioning import Conditioning, condition
from sidecar.learning.head import Head
from sidecar.learning.metrics import mean_absolute_error, winsorized_rmse
from sidecar.learning.recipe import Recipe, TrainingError, fit
from sidecar.learning.training_settings import TrainingSettings

FIRST_PAIRS = 256
"""A new model is fitted to this many first pairs. Later fits begin after so many times each power of √2."""
FIRST_RATE = 0.04
"""The learning rate of that fit, twice that of `train-offline`: with it, one pass of the recorded pairs has an RMSE of 0.43
from the first prediction on, and 0.47 without."""
FIRST_LOOK_EPOCHS, FIRST_TRUSTED_ERRORS = 50, 10.0
"""Before that fit, one of so few epochs leaves out pairs whose error is more than so many times the median: in 50 epochs a
model learns what most pairs have in common, in 3,000 each wrong score by heart. Measured on unseen clips, RMSE after 256
pairs: 0.92 with 1 % of the scores wrong and 0.97 with 5 %, instead of 2.4 and 2.5, and 0.90 with none, with or without this."""
LEAST_ERROR = 0.05
"""An error up to this share of the range of scores leaves no pair out of a fit."""
LATER_SHARE = 16
"""A later fit makes this fraction of the steps of `train-offline`: 6,000, a quarter of the first fit's."""
_MEASURED_PAIRS = 1024
JUDGED_PAIRS, CAREFUL_SHARE = 30, 0.8
"""With fewer pairs that never train, a later fit is adopted unjudged: in the first thousand pairs it is nearly always better
than a new model, or than a base model that was far off. Where the base model was good from the start, it is not, and later its
errors must be this share of the present ones. Measured on recorded pairs: of seven fits to the first 2,352 pairs after a base
model that had been trained on them, all were adopted without this, and the RMSE went from 0.56 to 0.75."""
NEWEST_JUDGED = 100
"""So many of the newest of these judge: with more, a model that follows scores which have changed loses to one that does
not."""
LEAST_TRUSTED = 0.9
"""If fewer of the pairs count, scores contradict each other, and there is none: it would hold on to what they meant before."""

Rows = NDArray[np.intp]
Evidence = Callable[[], Array]
"""Gives pairs that never train: each row has the features and the score first."""


def no_evidence() -> Array:
    """No pairs."""
    return np.empty((0, 0))


def next_fit(trained: int) -> int:
    """After how many training pairs the next fit begins, if so many have been trained on."""
    level = (trained * trained >> 16).bit_length()  # floor(2 log2(trained / 256)) + 1
    return math.isqrt((1 << 16 + level) - 1) + 1


class Result(NamedTuple):
    """The network, with averaged weights, and the units in which to train it on, measured on some of the pairs."""

    network: Network
    conditioning: Conditioning


class Fit:
    """A fit that has begun. It runs on a worker, once `start` has been called, or else when its result is asked for.

    pairs: (n, n_features + 1), as they arrived (features, score). base: the network to start from; None for a new model.
    trusted: pairs for which `base` is further off than this, in score points, do not count: their scores are likely wrong.
    judged: pairs that never train, oldest first, in the same form, with more columns or not: the result must be better on the
    newest than `base`, in mean absolute error, to which a wrong score adds no more than the two differ, and in winsorized RMSE.
    careful: `base` is good, so the result must be clearly better, and is not adopted where there are too few of these.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        pairs: Array,
        base: Network | None = None,
        trusted: float = math.inf,
        judged: Array | None = None,
        careful: bool = False,
    ) -> None:
        self.pairs = pairs
        self._settings, self._base, self._trusted, self._judged, self._careful = settings, base, trusted, judged, careful
        self._running: Future[Result | None] | None = None
        self._is_wanted = True

    def start(self, worker: Executor) -> None:
        """Run it on a worker, if none has it."""
        if self._running is None:
            self._running = worker.submit(self._run)

    @property
    def is_running(self) -> bool:
        """Whether a worker has it and is not done."""
        return self._running is not None and not self._running.done()

    def wait(self, patience_s: float = math.inf) -> None:
        """Wait for the worker, if one has it, for so long at most."""
        if self._running is not None:
            futures.wait([self._running], None if patience_s == math.inf else patience_s)

    def give_up(self) -> None:
        """Let a worker that has it end soon: nobody will ask for the result."""
        self._is_wanted = self._running is None

    def result(self) -> Result | None:
        """What it gives; None if that is no better than `base`, or too few pairs count.

        Raises TrainingError if a new model cannot be fitted.
        """
        return self._run() if self._running is None else self._running.result()

    def _run(self) -> Result | None:
        with np.errstate(over="ignore", invalid="ignore"):  # a prediction that is not finite is not better than any other
            try:
                network = self._fit_new() if self._base is None else self._fit_again(self._base)
            except TrainingError:
                if self._base is None:
                    raise
                return None
            if network is None or (self._base is not None and not self._is_better(network, self._base)):
                return None
            measured = self.pairs[:: max(1, len(self.pairs) // _MEASURED_PAIRS), :-1]
            return Result(network, condition(network, measured, self._settings.score_min, self._settings.score_max))

    def _fit_new(self) -> Network:
        rows, settings = np.arange(len(self.pairs)), self._settings
        errors = self._errors(self._fit(rows, FIRST_LOOK_EPOCHS, FIRST_RATE))
        usual, score_range = float(np.median(errors)), settings.score_max - settings.score_min
        likely = errors <= max(FIRST_TRUSTED_ERRORS * usual, LEAST_ERROR * score_range)
        return self._fit(rows[likely], None, FIRST_RATE)

    def _fit_again(self, base: Network) -> Network | None:
        rows = np.flatnonzero(self._errors(base) <= self._trusted)
        if len(rows) < LEAST_TRUSTED * len(self.pairs):
            return None
        return self._fit(rows, math.ceil(offline.TRAINED_PAIRS / LATER_SHARE / len(rows)), None, base)

    def _fit(self, rows: Rows, epochs: int | None, learning_rate: float | None, base: Network | None = None) -> Network:
        settings = self._settings
        recipe = Recipe(
            epochs=epochs, learning_rate=learning_rate, seed=settings.seed,
            hidden=settings.hidden, activation=settings.activation, loss=settings.loss,
            score_min=settings.score_min, score_max=settings.score_max,
        )  # fmt: skip
        return fit(self.pairs[:, :-1], self.pairs[:, -1], rows, recipe, self._end_if_given_up, base).ema.network()

    def _end_if_given_up(self, pairs: int, loss: float) -> None:
        if not self._is_wanted:
            raise futures.CancelledError

    def _errors(self, network: Network) -> Array:
        return np.abs(Head(network).predict(self.pairs[:, :-1]) - self.pairs[:, -1])

    def _is_better(self, network: Network, base: Network) -> bool:
        if self._judged is None or len(self._judged) < JUDGED_PAIRS:
            return not self._careful
        features, scores = np.split(self._judged[-NEWEST_JUDGED:], [base.n_features], axis=1)
        after, before = (Head(each).predict(features) for each in (network, base))
        figures, share = (mean_absolute_error, winsorized_rmse), CAREFUL_SHARE if self._careful else 1.0
        return all(figure(after, scores[:, 0]) < share * figure(before, scores[:, 0]) for figure in figures)
