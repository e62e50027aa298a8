"""Online training that outlives its process: journal, learner and snapshots as one. No sockets, no clock.

A pair is journalled before it is answered and trained on. After a restart, the newest good snapshot and the journal after it
give the state that a process which was never stopped would have, bit for bit.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from onnx_builder.network import Float32, Network, NetworkError
from onnx_builder.read import from_bytes
from onnx_builder.write import to_bytes
from sidecar.files import write_whole
from sidecar.journal import Entry, Journal, JournalError, first_position, journal_segments, read_journal
from sidecar.learner import RECENT_PAIRS, Learner, RecentPairs, Run, held_out_at
from sidecar.pairs import Packer, Pair, PairError, decode_pair
from sidecar.settings import Fsync
from sidecar.snapshot import read_snapshots, snapshots, write_snapshot
from sidecar.wire import Answer, read_request, refused

_log = logging.getLogger(__name__)


class StateError(JournalError):
    """A state directory that cannot be used; the message names it and says why."""


@dataclass
class Counts:
    """Request lines of this process, by what became of them."""

    accepted: int = 0
    held_out: int = 0
    duplicate: int = 0
    rejected: int = 0
    journal_errors: int = 0


class OnlineTraining:
    """Takes request lines, journals and trains on them, and gives their answers.

    state_directory: made where it is missing, and locked. run, base: what pairs from now on are trained with; `run.base` is
    `digest_of(base)`, or None for a fresh head. A run that is not the last one of the journal is written down there.

    train: False only records; then nothing is recovered, and `learner` stays as it was made. recovered: pairs that were
    trained again at the start. Raises StateError where another process holds the directory, or
    it cannot be used with `run`; JournalError where the journal is damaged or cannot be written.
    """

    def __init__(
        self, state_directory: Path, run: Run, base: Network | None = None, fsync: Fsync = "everysec", train: bool = True
    ) -> None:
        self._directory = state_directory
        self.counts = Counts()
        self._recent = RecentPairs()
        self._packer = Packer(run.n_features, run.settings.score_min, run.settings.score_max)
        self._row = bytearray(self._packer.row_bytes)
        self._train_pairs = train
        self._snapshot_at = self.recovered = 0
        self.learner = Learner(run, base)
        self._lock = locked(state_directory)
        try:
            self.journal = Journal(state_directory, fsync)
            if base is not None and run.base is not None:
                _keep_base(state_directory, run.base, base)
            if train:
                recorded = self._recover(run, base)
                if recorded != run:
                    self.journal.append_run(run.as_json())
                    self.learner.begin(run, base)
            else:
                for entry in read_journal(state_directory, self._recent_from()):
                    self._remember(entry)
        except BaseException:
            self._lock.close()
            raise

    def accept(self, lines: Sequence[bytes]) -> list[Answer]:
        """The answers to request lines, in their order: all that can be are journalled with one write, then trained on."""
        answers: list[Answer] = []
        accepted: dict[int, tuple[Float32, float, float]] = {}  # by place among the answers: features, score, hold-out position
        journalled: list[bytes] = []
        keys: list[bytes | None] = []
        for line in lines:
            request = read_request(line)
            if isinstance(request, Pair):
                try:
                    self._packer.pack(request, self._row)
                except PairError as error:
                    request = refused(str(error), request.job_id)
            if isinstance(request, Answer):
                self.counts.rejected += 1
                answers.append(request)
                continue
            packed = bytes(self._row)
            key = self._recent.key(request, packed)
            answer = Answer(ok=True, job_id=request.job_id, step=self.learner.trainer.step, trained=False)
            if key in self._recent:
                answer.duplicate = True
            else:
                self._recent.add(key)
                keys.append(key)
                journalled.append(line)
                features = np.frombuffer(packed, dtype=np.float32)
                accepted[len(answers)] = features, request.true_score, held_out_at(request, packed)
            answers.append(answer)
        if journalled:
            try:
                self.journal.append(journalled)
            except JournalError as error:
                self._recent.take_back(keys)
                self.counts.journal_errors += 1
                return [self._not_now(answer, str(error)) for answer in answers]
        self.counts.duplicate += sum(answer.duplicate is True for answer in answers)
        self.counts.accepted += len(accepted)
        if self._train_pairs:
            self._train(answers, accepted)
        return answers

    def snapshot(self) -> Callable[[], object] | None:
        """What writes the present state down, to be called once, on any thread; None where the last snapshot holds it.

        It brings the journal up to here to disk before. Raises OSError when called.
        """
        position = self.learner.position
        if position == self._snapshot_at:
            return None
        state = self.learner.state()
        self._snapshot_at = position
        sync = self.journal.syncer()

        def write() -> None:
            sync()
            write_snapshot(self._directory, position, state)

        return write

    def needed_from(self) -> int:
        """The first position that a restart may need: that of the older snapshot, and the last pairs for duplicates."""
        kept = [position for position, _ in snapshots(self._directory)]
        return min(kept[-1] if len(kept) > 1 else 0, max(0, self.journal.position - RECENT_PAIRS))

    def close(self) -> None:
        """Let go of the directory, as it is."""
        self.journal.close()
        self._lock.close()

    def _train(self, answers: list[Answer], accepted: dict[int, tuple[Float32, float, float]]) -> None:
        for place, answer in enumerate(answers):
            if place in accepted:
                outcome = self.learner.take(*accepted[place])
                self.counts.held_out += outcome.held_out
                if outcome.loss is not None:
                    answer.trained, answer.loss = True, outcome.loss
            if answer.ok is True:
                answer.step = self.learner.trainer.step

    def _not_now(self, answer: Answer, error: str) -> Answer:
        """What a line is answered with where the journal cannot be written: refused lines are refused all the same."""
        if answer.ok is False:
            return answer
        return refused(error, answer.job_id, retryable=True)

    def _recover(self, run: Run, base: Network | None) -> Run | None:
        """Bring the learner to the end of the journal; gives the last run that is written down."""
        learner = self._from_snapshot()
        recorded = learner.run if learner else None
        begun_at = learner.position if learner else 0
        for entry in read_journal(self._directory, min(begun_at, self._recent_from())):
            if entry.run is not None:
                if learner is None or entry.position >= learner.position:
                    recorded = Run.from_json(entry.run)
                    if learner is None:
                        learner = Learner(recorded, kept_base(self._directory, recorded))
                    else:
                        learner.begin(recorded, kept_base(self._directory, recorded))
                continue
            if learner is None:  # pairs that were recorded while no base model could be used train under the first run after
                recorded = first_run(self._directory)
                learner = Learner(recorded, kept_base(self._directory, recorded)) if recorded else Learner(run, base)
            self._take_again(learner, entry)
        self.learner = learner or self.learner
        if self.learner.run.n_features != run.n_features:
            raise StateError(
                f"{self._directory}: its pairs have {self.learner.run.n_features} features, {run.n_features} are set; "
                "use another state directory"
            )
        self._snapshot_at, self.recovered = begun_at, self.learner.position - begun_at
        return recorded

    def _from_snapshot(self) -> Learner | None:
        for position, state in read_snapshots(self._directory):
            if position > self.journal.position:
                _log.warning("snapshot at position %d is after the journal's end at %d", position, self.journal.position)
                continue
            try:
                return Learner.from_state(state)
            except (KeyError, TypeError, ValueError) as error:
                _log.warning("snapshot at position %d cannot be used: %s", position, error)
        return None

    def _take_again(self, learner: Learner, entry: Entry) -> None:
        pair = self._remember(entry)
        if entry.position < learner.position:
            return
        if pair is None:
            learner.pass_over()
        else:
            features = np.array(pair.features, dtype=np.float32)
            learner.take(features, pair.true_score, held_out_at(pair, features.tobytes()))

    def _remember(self, entry: Entry) -> Pair | None:
        """Know a journalled pair's duplicates; gives the pair, None where it was forgotten or the entry is a run record."""
        if entry.line is None:
            if entry.run is None:
                self._recent.add(None)
            return None
        pair: Pair = decode_pair(entry.line)
        self._recent.add(self._recent.key(pair, np.array(pair.features, dtype=np.float32).tobytes()))
        return pair

    def _recent_from(self) -> int:
        """The position from which the journal is needed to know duplicates."""
        return max(_first_kept(self._directory), self.journal.position - RECENT_PAIRS)


def kept_base(state_directory: Path, run: Run) -> Network | None:
    """The base model of a recorded run, as it was kept beside the journal. Raises StateError where it cannot be read."""
    if run.base is None:
        return None
    path = _base_path(state_directory, run.base)
    try:
        return from_bytes(path.read_bytes())
    except (OSError, NetworkError) as error:
        raise StateError(f"{path}: the base model of a recorded run cannot be read: {error}") from error


def last_run(state_directory: Path) -> Run | None:
    """The run that the newest snapshot was under, else the first of the journal; None where there is no state."""
    for _, state in read_snapshots(state_directory):
        with contextlib.suppress(KeyError, TypeError, ValueError):
            return Learner.from_state(state).run
    return first_run(state_directory)


def first_run(state_directory: Path) -> Run | None:
    """The first run that the journal names, None where it names none."""
    entries = read_journal(state_directory, _first_kept(state_directory))
    return next((Run.from_json(entry.run) for entry in entries if entry.run is not None), None)


def digest_of(base: Network) -> str:
    """The digest of a base model as it is used: scaling baked in, whatever file it came from."""
    return hashlib.sha256(to_bytes(base)).hexdigest()


def _base_path(state_directory: Path, digest: str) -> Path:
    return state_directory / f"base_{digest[:16]}.onnx"


def _keep_base(state_directory: Path, digest: str, base: Network) -> None:
    """The base model beside the journal: the state can be made again when the file that it came from is gone."""
    path = _base_path(state_directory, digest)
    if not path.exists():
        try:
            write_whole(path, to_bytes(base))
        except OSError as error:
            raise StateError(f"{path}: {error.strerror or error}") from error


def _first_kept(state_directory: Path) -> int:
    segments = journal_segments(state_directory)
    return first_position(segments[0]) if segments else 0


def locked(state_directory: Path) -> IO[bytes]:
    """The lock file of a state directory, which is made where it is missing; the lock is held until it is closed.

    Raises StateError where another process holds it, or the directory cannot be made.
    """
    try:
        state_directory.mkdir(parents=True, exist_ok=True)
        lock = (state_directory / ".lock").open("ab")
    except OSError as error:
        raise StateError(f"{state_directory}: {error.strerror or error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise StateError(f"{state_directory}: another sidecar holds this state directory") from None
    return lock
