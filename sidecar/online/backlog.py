"""Journalled pairs on their way to the learner: which are trained on before they are answered, and which wait.

Two kinds of pairs wait: those that do not complete a group, for others that do; and those that come while a fit runs on a
worker, which takes up to a second.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor

from sidecar.learning.online.trainer import Group
from sidecar.learning.recipe import TrainingError
from sidecar.online.learner import Learner
from sidecar.pairs.pair import Pair, PairBlock

MOST_WAITING = 100_000
"""Pairs that may wait for a fit. If there are more, the next one waits for its end."""
_TOGETHER = 128
"""Pairs that arrive a few at a time are trained on in blocks of about this size."""


class Backlog:
    """Trains a learner on pairs in the order of the journal.

    worker: where fits run; None runs them on the calling thread.

    loss: that of the last group before its first step, in score points squared; None before the first group. failed: why
    no pair is trained on any more, else empty.
    """

    def __init__(self, learner: Learner, worker: Executor | None) -> None:
        self._learner, self._worker = learner, worker
        self._blocks: deque[list[Pair]] = deque()
        self._waiting_pairs = 0
        self.failed = ""
        self.loss: float | None = None

    @property
    def busy(self) -> bool:
        """A fit runs on the worker, for whose result the learner would wait."""
        fit = self._learner.trainer.fit
        return fit is not None and fit.is_running

    @property
    def waiting(self) -> int:
        """Pairs that wait to be trained on."""
        return self._waiting_pairs

    @property
    def is_behind(self) -> bool:
        """A fit is not taken over yet, or pairs wait behind one that was."""
        trainer = self._learner.trainer
        return trainer.fit is not None or self._waiting_pairs >= self._learner.missing

    @property
    def has_work(self) -> bool:
        """`catch_up` has steps to run, a fit to take over, or enough pairs for the next steps."""
        trainer = self._learner.trainer
        if trainer.steps_left or self.busy or self.failed:
            return trainer.steps_left > 0 and not self.failed
        return self.is_behind

    def take(self, pairs: list[Pair]) -> list[Group]:
        """Train on pairs that complete a group, up to the loss of the last group; keep others for `catch_up`."""
        if self.failed:
            return []
        if not self.busy and self._waiting_pairs + len(pairs) >= self._learner.missing:
            for _ in range(2):  # more than arrive, so that the pairs that waited for a fit become fewer
                if self._blocks and not self.busy:
                    self._train(self._next())
            if self.failed:
                return []
            if not self._blocks and len(pairs) >= self._learner.missing:
                return self._train(pairs)
        self._keep(pairs)
        return []

    def catch_up(self) -> None:
        """Run one of the remaining steps, take over a fit, or train on one block of the waiting pairs."""
        trainer = self._learner.trainer
        if self.failed or (self.busy and not trainer.steps_left):
            return
        if trainer.steps_left or trainer.fit is not None:
            with self._failing():
                trainer.advance()
        elif self._blocks:
            self._train(self._next())

    def wait(self, patience_s: float = math.inf) -> None:
        """Train on the waiting pairs: all, or those for which there is time. The others stay in the journal.

        In the second half of the time no fit begins, so that none is under way when it is over.
        """
        until = time.monotonic() + patience_s
        while (self.busy or self.has_work or self._blocks) and (left := until - time.monotonic()) > 0:
            if (fit := self._learner.trainer.fit) is not None:
                fit.wait(left)
            elif left < patience_s / 2 and self._blocks and self._begins_fit(self._blocks[0]):
                return
            self.catch_up()

    def _begins_fit(self, pairs: Sequence[Pair]) -> bool:
        return self._learner.until_fit([pair.holdout for pair in pairs]) is not None

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

    def _keep(self, pairs: Sequence[Pair]) -> None:
        self._waiting_pairs += len(pairs)
        if pairs and self._blocks and len(self._blocks[-1]) < _TOGETHER:
            self._blocks[-1].extend(pairs)
        elif pairs:
            self._blocks.append([*pairs])
        if self.waiting > MOST_WAITING:
            self.wait()

    def _train(self, pairs: list[Pair]) -> list[Group]:
        """Train on pairs, up to one with which a fit begins that runs on the worker; those after it wait, before all others."""
        groups, done = list[Group](), 0
        with self._failing():
            while done < len(pairs) and not self.busy:
                until = self._learner.until_fit([pair.holdout for pair in pairs[done:]]) if self._worker else None
                stop = len(pairs) if until is None else done + until
                completed = self._learner.take(PairBlock.of(pairs[done:stop]), finish=False)
                groups += [group._replace(place=done + group.place) for group in completed]
                done = stop
                fit = self._learner.trainer.fit
                if fit is not None and self._worker is not None:
                    fit.start(self._worker)
        if done < len(pairs) and not self.failed:
            self._blocks.appendleft(pairs[done:])
            self._waiting_pairs += len(pairs) - done
        if groups:
            self.loss = groups[-1].loss
        return groups

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """If a new model cannot be fitted, no pair is trained on any more."""
        try:
            yield
        except (TrainingError, MemoryError) as error:
            self.fail(error)
