"""Journalled pairs on their way to the learner: which are trained on before they are answered, and which wait.

Two kinds of pairs wait: those that do not complete a group, for others that do; and those that arrive while a new model is
fitted to its first pairs, which takes about a second and runs on a worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future

from sidecar.learning.online.trainer import Group
from sidecar.learning.recipe import TrainingError
from sidecar.online.learner import Learner
from sidecar.pairs.pair import Pair, PairBlock

MOST_WAITING = 100_000
"""Pairs that may wait while a new model is fitted. If there are more, the next one waits for the fit to end."""
_TOGETHER = 128
"""Pairs that arrive a few at a time are trained on in blocks of about this size."""


class Backlog:
    """Trains a learner on pairs in the order of the journal.

    worker: where a new model is fitted; None fits it at once, on the calling thread.

    loss: that of the last group before its first step, in score points squared; None before the first group. failed: why
    no pair is trained on any more, else empty.
    """

    def __init__(self, learner: Learner, worker: Executor | None) -> None:
        self._learner, self._worker = learner, worker
        self._fitting: Future[list[Group]] | None = None
        self._blocks: deque[list[Pair]] = deque()
        self._fitting_pairs = self._waiting_pairs = 0
        self.failed = ""
        self.loss: float | None = None

    @property
    def busy(self) -> bool:
        """A new model is being fitted on the worker: the learner must not be read now."""
        return self._fitting is not None

    @property
    def waiting(self) -> int:
        """Pairs that wait, including those that a new model is being fitted to."""
        return self._waiting_pairs + self._fitting_pairs

    @property
    def has_work(self) -> bool:
        """`catch_up` has steps to run, or enough pairs for the next ones."""
        trainer = self._learner.trainer
        return not self.busy and (trainer.steps_left > 0 or bool(self._blocks and self._waiting_pairs >= trainer.missing))

    def take(self, pairs: list[Pair]) -> list[Group]:
        """Train on pairs that complete a group, up to the loss of the last group; keep others for `catch_up`."""
        if self.failed:
            return []
        if not self.busy and self._waiting_pairs + len(pairs) >= self._learner.trainer.missing:
            for _ in range(2):  # more than arrive, so that the pairs that waited for a fit become fewer
                if self._blocks:
                    self._train(self._next())
            if self.failed:
                return []
            if not self._blocks:
                fitted = self._learner.until_fit(pairs) if self._worker else None
                if fitted is not None:
                    self._fit(pairs[:fitted])
                    pairs = pairs[fitted:]
                elif len(pairs) >= self._learner.trainer.missing:
                    return self._train(pairs, finish=False)
        self._keep(pairs)
        return []

    def catch_up(self) -> None:
        """Run one of the remaining steps, or train on one block of the waiting pairs."""
        if self._fitting is not None and self._fitting.done():
            error, self._fitting, self._fitting_pairs = self._fitting.exception(), None, 0
            if error is not None:
                self.fail(error)
        if not self.busy:
            if self._learner.trainer.steps_left:
                self._learner.trainer.advance()
            elif self._blocks:
                self._train(self._next())

    def wait(self) -> None:
        """Train on all waiting pairs."""
        while self.busy or self.has_work or self._blocks:
            self.wait_for_fit()
            self.catch_up()

    def wait_for_fit(self) -> None:
        """Wait until the worker no longer uses the learner."""
        if self._fitting is not None:
            self._fitting.exception()

    def fail(self, error: BaseException) -> None:
        """Stop training because a new model could not be fitted. Errors that mean something else are raised."""
        if not isinstance(error, TrainingError | MemoryError):
            raise error
        self.stop(f"a new model could not be fitted to its first pairs: {error}")

    def stop(self, why: str) -> None:
        """Train on no pair any more."""
        self.failed = why
        self._blocks.clear()
        self._waiting_pairs = 0

    def _next(self) -> list[Pair]:
        pairs = self._blocks.popleft()
        self._waiting_pairs -= len(pairs)
        return pairs

    def _fit(self, pairs: list[Pair]) -> None:
        assert self._worker is not None
        self._fitting_pairs = len(pairs)
        self._fitting = self._worker.submit(self._learner.take, PairBlock.of(pairs))

    def _keep(self, pairs: Sequence[Pair]) -> None:
        self._waiting_pairs += len(pairs)
        if pairs and self._blocks and len(self._blocks[-1]) < _TOGETHER:
            self._blocks[-1].extend(pairs)
        elif pairs:
            self._blocks.append([*pairs])
        if self.waiting > MOST_WAITING:
            self.wait()

    def _train(self, pairs: list[Pair], finish: bool = True) -> list[Group]:
        try:
            groups = self._learner.take(PairBlock.of(pairs), finish)
        except TrainingError as error:
            self.fail(error)
            return []
        if groups:
            self.loss = groups[-1].loss
        return groups
