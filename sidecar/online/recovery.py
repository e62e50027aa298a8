"""From the journal to the learner that it makes: what recovery, `--stream` and the start after `forget` have in common."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onnx_builder.network import Network
from sidecar.journal.blocks import Damage
from sidecar.journal.run import FormatError, Run
from sidecar.journal.segments import Entry, OnDamage, damaged, first_kept, first_position, journal_segments, read_journal
from sidecar.learning.device.stacked import Device
from sidecar.online.learner import Learner
from sidecar.pairs.errors import PairError
from sidecar.pairs.named_features import NamedFeatures
from sidecar.pairs.pair import Pair, PairBlock, PairReader
from sidecar.state.base_models import BaseLostError, kept_base
from sidecar.state.checked import DamagedError, NewerFormatError
from sidecar.state.damage import Damages
from sidecar.state.directory import StateError
from sidecar.state.snapshots import read_snapshot, read_snapshots, snapshots

_log = logging.getLogger(__name__)
_BLOCK_PAIRS = 256

Seen = Callable[[Pair | None], object]
"""Told of each pair, and with None of each that was forgotten or is lost."""


def rebuild(
    state_directory: Path,
    learner: Learner | None,
    run: Run | None = None,
    base: Network | None = None,
    *,
    start: int = 0,
    until: int | None = None,
    seen: Seen = lambda pair: None,
    progress: Callable[[int], object] = lambda pairs: None,
    on_damage: OnDamage = damaged,
    on_run: Callable[[int, Run], object] = lambda position, run: None,
    device: Device | None = None,
) -> Learner | None:
    """Bring a learner to the end of the journal, or to the pair at position `until`; None if nothing says how to begin.

    learner: as a snapshot has it, None to begin with the first pair kept, under the first run that is recorded, else under
    `run` from `base`. start: the position from which `seen` wants to be told. progress: called with the number of pairs since
    the last call. on_damage: as in `read_journal`. on_run: told of each run and the position of its first pair, when it comes.
    device: where a new learner trains.

    Raises JournalError or StateError if the journal is damaged and `on_damage` raises, or does not hold what is needed.
    """
    if learner is None:
        recorded = first_run(state_directory, on_damage)
        if recorded is not None:
            try:
                run, base = recorded, kept_base(state_directory, recorded)
            except BaseLostError as error:
                if run is None or on_damage is damaged:
                    raise
                on_damage(state_directory, Damage(0, 0, f"{error}; it begins anew with another"))
        if run is None:
            return None
        learner = Learner(run, base, first=first_kept(state_directory), device=device)
    reader, pairs = reader_of(learner.run), list[Pair]()

    def train() -> None:
        if pairs:
            learner.take(PairBlock.of(pairs))
            progress(len(pairs))
            pairs.clear()

    for entry in read_journal(state_directory, min(start, learner.position), on_damage):
        if until is not None and entry.position > until:
            break
        ahead = entry.position >= learner.position + len(pairs)
        if entry.run is not None:
            run = _run(state_directory, entry.run)
            reader = reader_of(run)
            if ahead:
                train()
                on_run(entry.position, run)
                _begin(learner, run, state_directory, on_damage)
            continue
        pair = _pair(state_directory, entry, reader, on_damage)
        seen(pair)
        if ahead and pair is not None:
            pairs.append(pair)
            if len(pairs) == _BLOCK_PAIRS:
                train()
        elif ahead:
            train()
            learner.pass_over()
    train()
    return learner


def journalled_pairs(
    state_directory: Path, start: int, run: Run | None = None, on_damage: OnDamage = damaged
) -> Iterator[tuple[int, Run, Pair | None]]:
    """The pairs from position `start` on, None for one that was forgotten or is lost, each with its position and its run.

    run: that of pairs for which none is recorded; None passes these over. Raises JournalError as `read_journal` does.
    """
    reader = reader_of(run) if run else None
    for entry in read_journal(state_directory, start, on_damage):
        if entry.run is not None:
            run = _run(state_directory, entry.run)
            reader = reader_of(run)
        elif run and reader:
            yield entry.position, run, _pair(state_directory, entry, reader, on_damage)


def reader_of(run: Run, score_min: float = -math.inf, score_max: float = math.inf, target: str = "") -> PairReader:
    """What makes pairs from the lines of a run. The limits and the target are for lines that are not in the journal yet."""
    named = NamedFeatures(run.features, run.order, run.encoder) if run.features else None
    return PairReader(run.n_features, score_min, score_max, named, target, tenants=bool(run.settings.tenants))


def _begin(learner: Learner, run: Run, state_directory: Path, on_damage: OnDamage) -> None:
    if run != learner.run:
        base = None
        if run.base != learner.run.base:
            try:
                base = kept_base(state_directory, run)
            except BaseLostError as error:
                if on_damage is damaged:
                    raise
                on_damage(state_directory, Damage(0, 0, f"{error}; the weights go on"))
        learner.begin(run, base)


def _pair(state_directory: Path, entry: Entry, reader: PairReader, on_damage: OnDamage) -> Pair | None:
    if entry.line is None:
        return None
    try:
        return reader.read(entry.line)
    except PairError as error:
        reason = f"the pair at position {entry.position} is none: {error}"
        on_damage(state_directory / "journal", Damage(0, 0, reason))
        return None


def newest_snapshot(state_directory: Path, position: int, damages: Damages, device: Device | None = None) -> Learner | None:
    """The learner of the newest good snapshot that is not after `position`, the journal's end; None if there is none.

    What is no good is moved aside; what cannot be read now is left where it is. Raises StateError for a newer program's state,
    and if none can be read now.
    """
    unreadable = ""
    for at, path in snapshots(state_directory):
        if at > position:
            damages.move_aside(path, "snapshot", f"it is of position {at}; the journal ends at {position}")
            continue
        try:
            return Learner.from_state(read_snapshot(path), device)
        except (FormatError, NewerFormatError) as error:
            raise StateError(f"{state_directory}: {error}") from error
        except (DamagedError, KeyError, TypeError, ValueError) as error:
            damages.move_aside(path, "snapshot", str(error))
        except OSError as error:
            unreadable = f"{path}: {error.strerror or error}"
            _log.warning("%s: it is left where it is", unreadable)
    if unreadable and first_kept(state_directory):
        raise StateError(f"{unreadable}; nothing was changed")
    return None


def snapshot_end(state_directory: Path) -> int:
    """The position up to which the newest whole snapshot holds the pairs; 0 if there is none that can be read now."""
    try:
        return next((position for position, _ in read_snapshots(state_directory)), 0)
    except (OSError, NewerFormatError):
        return 0


def newest_run(state_directory: Path) -> Run | None:
    """The last run of the journal, else that of the newest good snapshot; None if there is no state.

    Raises StateError for a newer program's state.
    """
    for segment in reversed(journal_segments(state_directory)):  # each begins with the run that goes on there, or is empty
        entries = read_journal(state_directory, first_position(segment), lambda segment, damage: None)
        runs = [entry.run for entry in entries if entry.run is not None]
        if runs:
            return _run(state_directory, runs[-1])
    try:
        for _, state in read_snapshots(state_directory):
            try:
                return Learner.run_of(state)
            except (KeyError, TypeError, ValueError) as error:
                if isinstance(error, FormatError):
                    raise
    except (FormatError, NewerFormatError) as error:
        raise StateError(f"{state_directory}: {error}") from error
    except OSError as error:
        _log.warning("%s: %s", error.filename or state_directory, error.strerror or error)
    return first_run(state_directory, lambda segment, damage: None)


def first_run(state_directory: Path, on_damage: OnDamage = damaged) -> Run | None:
    """The first run that the journal names, None if it names none. Raises as `read_journal`, and StateError."""
    entries = read_journal(state_directory, first_kept(state_directory), on_damage)
    return next((_run(state_directory, entry.run) for entry in entries if entry.run is not None), None)


def _run(state_directory: Path, record: dict[str, Any]) -> Run:
    try:
        return Run.from_json(record)
    except FormatError as error:
        raise StateError(f"{state_directory}: {error}") from error
    except (KeyError, TypeError) as error:  # its bytes are as they were written
        raise StateError(f"{state_directory}: a run record of the journal is of another make: {error}") from error
