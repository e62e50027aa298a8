"""Online training that outlives its process: journal, learner and snapshots as one. No sockets, no clock.

A pair is journalled before it is answered and trained on. After a restart, the newest good snapshot and the journal after it
give the state that a process which was never stopped would have, bit for bit.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

from onnx_builder.network import Network
from sidecar.journal.run import Run
from sidecar.journal.segments import JournalError, first_kept
from sidecar.journal.writer import Journal
from sidecar.learning.recipe import TrainingError
from sidecar.online.learner import Learner
from sidecar.online.recovery import newest_snapshot, rebuild, remember
from sidecar.online.trainer import Group
from sidecar.pairs.duplicates import RECENT_PAIRS, RecentPairs
from sidecar.pairs.line_protocol import Answer, read_request, refused
from sidecar.pairs.pair import Packer, Pair, PairError, PairRows
from sidecar.settings import Fsync
from sidecar.state.base_models import keep_base
from sidecar.state.directory import StateError, locked
from sidecar.state.snapshots import snapshots, write_snapshot

_log = logging.getLogger(__name__)
_MOST_BEHIND = 100_000
"""Pairs that may wait for a fresh head's fit; then its end is waited for."""
_TOGETHER = 128
"""Pairs that come a few at a time are trained on so many together, at most twice."""


@dataclass
class Counts:
    """Request lines of this process, by what became of them. accepted: with those held out."""

    accepted: int = 0
    held_out: int = 0
    duplicate: int = 0
    rejected: int = 0
    journal_errors: int = 0


class OnlineTraining:
    """Takes request lines, journals and trains on them, and gives their answers.

    state_directory: made where it is missing, and locked. run, base: what pairs from now on are trained with; `run.base` is
    `digest_of(base)`, or None for a fresh head. A run that is not the last one of the journal is written down there.

    train: False only records; then nothing is recovered, and `learner` stays as it was made. worker: where a fresh head is
    fitted, which takes a second; None fits at once. progress: told of pairs that were trained again, as they are.

    `accept` leaves to `catch_up` what answers need not wait for: the pairs that complete no group, the steps of the last group
    once its loss is known, and the pairs that come while a fresh head is being fitted.

    recovered: pairs that were trained again. loss: of the last group, before its first step, in score points squared. failed:
    why a fresh head could not be fitted, else empty. Raises StateError where another process holds the directory, or it cannot
    be used with `run`; JournalError where the journal is damaged or not writable.
    """

    def __init__(
        self,
        state_directory: Path,
        run: Run,
        base: Network | None = None,
        fsync: Fsync = "everysec",
        train: bool = True,
        worker: Executor | None = None,
        progress: Callable[[int], object] = lambda pairs: None,
    ) -> None:
        self._directory = state_directory
        self.counts = Counts()
        self._recent = RecentPairs()
        self._packer = Packer(run.n_features, run.settings.score_min, run.settings.score_max)
        self._train_pairs, self._worker = train, worker
        self._snapshot_at = self.recovered = 0
        self._fitting: Future[object] | None = None
        self._behind: deque[PairRows] = deque()
        self.failed = ""
        self.loss: float | None = None
        self.learner = Learner(run, base)
        self._lock = locked(state_directory)
        try:
            self.journal = Journal(state_directory, fsync)
            if base is not None:
                keep_base(state_directory, base)
            self._recover(run, base, progress)
        except BaseException:
            self.close()
            raise

    def accept(self, lines: Sequence[bytes]) -> list[Answer]:
        """The answers to request lines, in their order: all that can be are journalled with one write, then trained on."""
        answers: list[Answer] = []
        journalled: list[bytes] = []
        keys: list[bytes | None] = []
        rows, recent, counts = PairRows(self._packer.n_features), self._recent, self.counts
        for line in lines:
            request = read_request(line)
            if isinstance(request, Pair):
                try:
                    packed = self._packer.pack(request)
                except PairError as error:
                    request = refused(str(error), request.job_id)
            if isinstance(request, Answer):
                counts.rejected += 1
                answers.append(request)
                continue
            answer = Answer(ok=True, job_id=request.job_id, trained=False)
            answers.append(answer)
            key = recent.key(request, packed)
            if key in recent:
                answer.duplicate = True
                continue
            recent.add(key)
            keys.append(key)
            rows.add(request, packed)
            journalled.append(line)
        step = self._step
        groups: Iterator[Group] = iter(())
        if journalled:
            try:
                self.journal.append(journalled)
            except JournalError as error:
                recent.take_back(keys)
                counts.journal_errors += 1
                return [_not_now(answer, str(error)) for answer in answers]
            recent.trim()
            counts.accepted += len(rows)
            counts.held_out += sum(position < self.learner.run.holdout_fraction for position in rows.positions)
            groups = iter(self._train(rows))
        counts.duplicate += _fill_in(answers, groups, step)
        return answers

    @property
    def busy(self) -> bool:
        """A fresh head is being fitted, on the worker: the learner is not to be looked into."""
        return self._fitting is not None

    @property
    def behind(self) -> int:
        """Journalled pairs that wait to be trained on: for a fresh head's fit, or until their answers are on their way."""
        return self.journal.position - self.learner.position if self._fitting is not None or self._behind else 0

    @property
    def has_work(self) -> bool:
        """`catch_up` has something to do."""
        return self._fitting is None and (bool(self._behind) or self.learner.trainer.steps_left > 0)

    def catch_up(self) -> None:
        """Run one of the steps that are left, or else train on some of the pairs that wait, where that can be done."""
        if self._fitting is not None and self._fitting.done():
            error = self._fitting.exception()
            self._fitting = None
            if error is not None:
                self._fail(error)
        if self._fitting is None:
            if self.learner.trainer.steps_left:
                self.learner.trainer.advance()
            elif self._behind:
                self._take(self._behind.popleft())

    def wait(self) -> None:
        """Train on all that waits."""
        while self._fitting is not None or self.has_work:
            if self._fitting is not None:
                self._fitting.exception()
            self.catch_up()

    def snapshot(self) -> Callable[[], object] | None:
        """What writes the present state down, to be called once, on any thread; None where the last snapshot holds it.

        It brings the journal up to here to disk before. Raises OSError when called.
        """
        position = self.learner.position
        if self.busy or self.failed or not self._train_pairs or position == self._snapshot_at:
            return None
        state = self.learner.state()
        self._snapshot_at = position
        sync = self.journal.syncer()

        def write() -> None:
            if sync is not None:
                sync()
            write_snapshot(self._directory, position, state)

        return write

    def snapshot_failed(self) -> None:
        """What `snapshot` gave could not be written: the next one is wanted whether or not anything came since."""
        self._snapshot_at = -1

    def needed_from(self) -> int:
        """The first position that a restart may need: that of the older snapshot, and the last pairs for duplicates."""
        kept = [position for position, _ in snapshots(self._directory)]
        return min(kept[-1] if len(kept) > 1 else 0, max(0, self.journal.position - RECENT_PAIRS))

    def close(self) -> None:
        """Let go of the directory, as it is."""
        if self._fitting is not None:
            self._fitting.exception()
        if hasattr(self, "journal"):
            self.journal.close()
        self._lock.close()

    @property
    def _step(self) -> int:
        return 0 if self.busy else self.learner.trainer.step + self.learner.trainer.steps_left

    def _train(self, rows: PairRows) -> list[Group]:
        """Train on journalled pairs where they complete a group, up to the loss of the last one, else keep them."""
        if not self._train_pairs or self.failed:
            return []
        waiting = self.journal.position - self.learner.position
        if self._fitting is None and waiting >= self.learner.trainer.missing:
            for _ in range(2):  # more than come, so that a fit's backlog grows less
                if self._behind:
                    self._take(self._behind.popleft())
            if self.failed:
                return []
            if not self._behind:
                first = self.learner.until_fit(rows.positions) if self._worker else None
                if first is not None:
                    assert self._worker is not None
                    self._fitting = self._worker.submit(_take, self.learner, rows.part(0, first))
                    rows = rows.part(first, len(rows))
                elif len(rows) >= self.learner.trainer.missing:
                    return self._take(rows, finish=False)
        if rows and self._behind and len(self._behind[-1]) < _TOGETHER:
            self._behind[-1].extend(rows)
        elif rows:
            self._behind.append(rows)
        if self.behind > _MOST_BEHIND:
            self.wait()
        return []

    def _take(self, rows: PairRows, finish: bool = True) -> list[Group]:
        try:
            groups = _take(self.learner, rows, finish)
        except TrainingError as error:
            self._fail(error)
            return []
        if groups:
            self.loss = groups[-1].loss
        return groups

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, TrainingError | MemoryError):
            raise error
        self.failed = f"a fresh head could not be fitted to its first pairs: {error}"
        self._behind.clear()

    def _recover(self, run: Run, base: Network | None, progress: Callable[[int], object]) -> None:
        """Bring the learner to the end of the journal, and write down with what it goes on."""
        directory, position, first = self._directory, self.journal.position, first_kept(self._directory)
        recent_from = max(first, position - RECENT_PAIRS)

        def seen(pair: Pair | None, packed: bytes) -> None:
            self._recent.add(self._recent.key(pair, packed) if pair is not None else None)

        if not self._train_pairs:
            remember(directory, recent_from, run.n_features, seen)
            return
        learner = newest_snapshot(directory, position)
        if learner is None and first:
            _log.warning("no snapshot can be used: training begins anew with position %d, the first that retention kept", first)
        begun_at = learner.position if learner else first
        try:
            rebuilt = rebuild(directory, learner, run, base, start=recent_from, seen=seen, progress=progress)
        except TrainingError as error:
            self._fail(error)
            return
        assert rebuilt is not None
        self.learner = rebuilt
        before = rebuilt.run
        if before.n_features != run.n_features:
            found = f"its pairs have {before.n_features} features, {run.n_features} are set"
            raise StateError(f"{directory}: {found}; use another state directory")
        self._snapshot_at, self.recovered = begun_at, rebuilt.position - begun_at
        if before != run or self.journal.last_run is None:
            if position and before.kernel != run.kernel:
                _log.warning("the state comes from %s; on %s its last bits may differ", before.kernel, run.kernel)
            try:
                self.journal.append_run(run.as_json())
            except JournalError as error:
                raise JournalError(f"{directory}: {error}") from error
            self.learner.begin(run, base)


def _take(learner: Learner, rows: PairRows, finish: bool = True) -> list[Group]:
    return learner.take(*rows.arrays(), rows.positions, finish)


def _fill_in(answers: list[Answer], groups: Iterator[Group], step: int) -> int:
    """Say of each answered pair how many steps were run by then, and of a group's last one its loss; gives the duplicates."""
    duplicates = place = 0
    group = next(groups, None)
    for answer in answers:
        if answer.ok is not True:
            continue
        if answer.duplicate is True:
            duplicates += 1
        else:
            if group is not None and group.place == place:
                answer.trained, step = True, group.step
                if math.isfinite(group.loss):
                    answer.loss = group.loss
                group = next(groups, None)
            place += 1
        answer.step = step
    return duplicates


def _not_now(answer: Answer, error: str) -> Answer:
    """What a line is answered with where the journal cannot be written: refused lines are refused all the same."""
    if answer.ok is False:
        return answer
    return refused(error, answer.job_id, retryable=True)
