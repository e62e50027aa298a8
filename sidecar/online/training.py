"""Online training that outlives its process: journal, learner and snapshots as one. No sockets, no clock.

A pair is journalled before it is answered and trained on. After a restart, the newest good snapshot and the journal after it
give the state that a process which was never stopped would have, bit for bit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from onnx_builder.network import Network
from sidecar.files import remove_leftovers
from sidecar.journal.blocks import Damage
from sidecar.journal.repair import find_end, try_to_repair
from sidecar.journal.run import Run
from sidecar.journal.segments import JournalError, first_kept, journal_segments, with_ends
from sidecar.journal.writer import Journal
from sidecar.learning.device.stacked import Device
from sidecar.learning.online.trainer import Group
from sidecar.learning.recipe import TrainingError
from sidecar.online.backlog import Backlog
from sidecar.online.learner import Learner
from sidecar.online.recovery import journalled_pairs, newest_snapshot, reader_of, rebuild, snapshot_end
from sidecar.pairs.duplicates import RECENT_PAIRS, RecentPairs
from sidecar.pairs.errors import PairError
from sidecar.pairs.holdout import is_held_out
from sidecar.pairs.line_protocol import Answer, refusal, refused
from sidecar.pairs.pair import Pair, PairReader
from sidecar.settings import Fsync
from sidecar.state.anchor import ANCHOR, kept_anchors
from sidecar.state.base_models import keep_base
from sidecar.state.damage import Damages
from sidecar.state.directory import StateError, locked
from sidecar.state.snapshots import snapshots, write_snapshot
from sidecar.state.verify import move_damaged_aside

_log = logging.getLogger(__name__)
_MOST_BEFORE = 1024
"""Of pairs that wait, for another run to begin now: they take some milliseconds."""


@dataclass
class Counts:
    """Request lines of this process, by what became of them. accepted: with those held out."""

    accepted: int = 0
    held_out: int = 0
    duplicate: int = 0
    rejected: int = 0


class _Next(NamedTuple):
    """The run that begins with the next pair. begun: called once it has."""

    run: Run
    base: Network
    reader: PairReader
    begun: Callable[[], object]


class OnlineTraining:
    """Takes request lines, journals and trains on them, and gives their answers.

    state_directory: made if it is missing, and locked. run, base: what pairs are trained with from now on; `run.base` is
    `digest_of(base)`, or None for a new head. A run that is not the last one of the journal is recorded there.

    train: False only records; nothing is recovered then, and `learner` stays as it was made. worker: where fits run, which
    take up to a second; None runs them at once. progress: told of pairs that are trained again, as they are. device:
    where steps run, None in numpy.

    `accept` leaves to `catch_up` what answers need not wait for: see `Backlog`.

    recovered: pairs that were trained again. Raises StateError if another process holds the directory, or it cannot be used
    with `run`; JournalError if the journal is damaged or cannot be written.
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
        device: Device | None = None,
    ) -> None:
        self._directory, self._trains, self._device = state_directory, train, device
        self.counts = Counts()
        self._recent = RecentPairs()
        self._reader = _reader_of_new(run)
        self._next: _Next | None = None
        self._snapshot_at = self.recovered = 0
        self._lock = locked(state_directory)
        try:
            remove_leftovers(state_directory)
            self.damages = Damages(state_directory)
            move_damaged_aside(state_directory, self.damages)
            end = find_end(state_directory, self._keep_aside, lambda: snapshot_end(state_directory))
            self.journal = Journal(state_directory, end, fsync)
            if base is not None:
                keep_base(state_directory, base)
            try:
                self.learner, failure = self._recover(run, base, progress), None
            except TrainingError as error:
                self.learner, failure = Learner(run, base, device=device), error
        except OSError as error:
            self.close()
            raise StateError(f"{error.filename or state_directory}: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise
        self.backlog = Backlog(self.learner, worker)
        if failure is not None:
            self.backlog.fail(failure)

    def accept(self, lines: Sequence[bytes]) -> list[Answer]:
        """The answers to request lines, in their order. All pairs are journalled with one write, then trained on."""
        answers: list[Answer] = []
        pairs: list[Pair] = []
        journalled: list[bytes] = []
        begins = self._next if self._next is not None and self._may_begin else None
        read, recent = (begins.reader if begins else self._reader).read, self._recent
        for line in lines:
            try:
                pair = read(line)
            except PairError as error:
                answers.append(refusal(line, error))
                continue
            answer = Answer(ok=True, job_id=pair.job_id, trained=False)
            answers.append(answer)
            if not recent.add(pair):
                answer.duplicate = True
                continue
            pairs.append(pair)
            journalled.append(line)
        self.counts.rejected += sum(answer.ok is False for answer in answers)
        step, groups = self.step_when_answered, list[Group]()
        if pairs:
            try:
                self.journal.append(journalled, begins.run.as_json() if begins else None)
            except JournalError as error:
                recent.take_back(pairs)
                return [_not_now(answer, str(error)) for answer in answers]
            if begins is not None:
                self._begin(begins)
            recent.trim()
            self.counts.accepted += len(pairs)
            fraction = self.learner.run.holdout_fraction
            self.counts.held_out += sum(is_held_out(pair.holdout, fraction) for pair in pairs)
            groups = self.backlog.take(pairs) if self._trains else []
        self.counts.duplicate += _fill_in(answers, iter(groups), step)
        return answers

    def follow(self, run: Run, base: Network, begun: Callable[[], object]) -> None:
        """Let another run begin, from `base`, with the next pair that is accepted; instead of one that has not begun.

        run: with features and scores as at present. base: kept in the state directory. begun: called once it has begun.
        """
        self._next = _Next(run, base, _reader_of_new(run), begun) if run != self.learner.run else None

    @property
    def _may_begin(self) -> bool:
        """The pairs before, which are trained under the run before, take no time that an answer would have to wait for."""
        backlog = self.backlog
        return self._trains and not (backlog.busy or backlog.failed or backlog.waiting > _MOST_BEFORE)

    def _begin(self, begins: _Next) -> None:
        self.backlog.wait()
        self.learner.begin(begins.run, begins.base)
        self._reader, self._next = begins.reader, None
        begins.begun()

    @property
    def steps(self) -> int:
        """Gradient steps that were run."""
        return self.learner.trainer.step

    @property
    def step_when_answered(self) -> int:
        """As answers tell it: with those of the last group that are still to be run."""
        return self.steps + self.learner.trainer.steps_left

    def snapshot(self) -> Callable[[], object] | None:
        """What writes the present state down, to be called once, on any thread; None where the last snapshot holds it.

        It brings the journal up to here to disk before. Raises OSError when called.
        """
        position = self.learner.position
        if self.backlog.busy or self.backlog.failed or not self._trains or position == self._snapshot_at:
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
        if hasattr(self, "learner") and (fit := self.learner.trainer.fit) is not None:
            fit.give_up()
        if hasattr(self, "journal"):
            self.journal.close()
        self._lock.close()

    def _recover(self, run: Run, base: Network | None, progress: Callable[[int], object]) -> Learner:
        """The learner at the end of the journal, under `run`. Raises TrainingError if a new head cannot be fitted."""
        directory, position, first = self._directory, self.journal.position, first_kept(self._directory)
        recent_from = max(first, position - RECENT_PAIRS)
        damaged: dict[Path, None] = {}

        def on_damage(path: Path, damage: Damage) -> None:
            if path.suffix in (".gz", ".jsonl"):
                damaged[path] = None
            else:
                self.damages.note(path, "journal", damage.reason)

        if not self._trains:
            for _, _, pair in journalled_pairs(directory, recent_from, run, on_damage):
                self._recent.add(pair)
            self._repair([*damaged])
            return Learner(run, base, device=self._device)
        learner = newest_snapshot(directory, position, self.damages, self._device)
        if learner is None and first:
            _log.warning("no snapshot can be used: training begins anew with position %d, the first that retention kept", first)
        begun_at = learner.position if learner else first
        learner = rebuild(
            directory, learner, run, base, start=recent_from, seen=self._recent.add, progress=progress, on_damage=on_damage,
            device=self._device,
        )  # fmt: skip
        assert learner is not None
        self._repair([*damaged])
        before = learner.run
        if before.n_features != run.n_features:
            found = f"its pairs have {before.n_features} features, {run.n_features} are set"
            raise StateError(f"{directory}: {found}; use another state directory")
        self._snapshot_at, self.recovered = begun_at, learner.position - begun_at
        if before != run or self.journal.last_run is None:
            if position and before.kernel != run.kernel:
                _log.warning("the state comes from %s; on %s its last bits may differ", before.kernel, run.kernel)
            if before.order != run.order and before.order:
                for path in (directory / ANCHOR, *kept_anchors(directory)):
                    path.unlink(missing_ok=True)  # its rows have the order before
            try:
                self.journal.append_run(run.as_json())
            except JournalError as error:
                raise JournalError(f"{directory}: {error}") from error
            learner.begin(run, base)
        return learner

    def _repair(self, segments: list[Path]) -> None:
        """Write damaged segments anew, if there is room, so that they hold what is whole and nothing else. Raises OSError."""
        ends = dict(with_ends(journal_segments(self._directory)))
        for segment in segments:
            try_to_repair(segment, ends[segment], self._keep_aside)

    def _keep_aside(self, segment: Path, reason: str) -> None:
        self.damages.copy_aside(segment, "journal", reason)


def _reader_of_new(run: Run) -> PairReader:
    """What makes pairs from lines that are not in the journal yet."""
    return reader_of(run, run.settings.score_min, run.settings.score_max, run.target)


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
