"""From the journal to the learner that it makes: what recovery, `--stream` and the start after `forget` have in common."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnx_builder.network import Network
from sidecar.journal.run import FormatError, Run
from sidecar.journal.segments import WHAT_TO_DO, Entry, JournalError, first_kept, read_journal
from sidecar.online.learner import Learner
from sidecar.pairs.errors import PairError
from sidecar.pairs.pair import Pair, PairBlock, PairReader
from sidecar.state.base_models import kept_base
from sidecar.state.directory import StateError
from sidecar.state.snapshots import read_snapshots

_log = logging.getLogger(__name__)
_BLOCK_PAIRS = 256

Seen = Callable[[Pair | None], object]
"""Told of each pair, and with None of each that was forgotten."""


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
) -> Learner | None:
    """Bring a learner to the end of the journal, or to the pair at position `until`; None where nothing says how to begin.

    learner: where a snapshot stands, None to begin with the first pair kept, under the first run that is written down, else
    under `run` from `base`. start: the position from which `seen` wants to be told. progress: called with the number of pairs
    since the last call. Raises JournalError or StateError where the journal is damaged or does not hold what is needed.
    """
    if learner is None:
        recorded = first_run(state_directory)
        if recorded is not None:
            run, base = recorded, kept_base(state_directory, recorded)
        if run is None:
            return None
        learner = Learner(run, base, first=first_kept(state_directory))
    reader, pairs = PairReader(learner.run.n_features, -math.inf, math.inf), list[Pair]()

    def train() -> None:
        if pairs:
            learner.take(PairBlock.of(pairs))
            progress(len(pairs))
            pairs.clear()

    for entry in read_journal(state_directory, min(start, learner.position)):
        if until is not None and entry.position > until:
            break
        ahead = entry.position >= learner.position + len(pairs)
        if entry.run is not None:
            if ahead:
                train()
                _begin(learner, entry, state_directory)
        elif entry.line is None:
            seen(None)
            if ahead:
                train()
                learner.pass_over()
        else:
            pair = _pair(state_directory, entry, reader)
            seen(pair)
            if ahead:
                pairs.append(pair)
                if len(pairs) == _BLOCK_PAIRS:
                    train()
    train()
    return learner


def read_pairs_from(state_directory: Path, start: int, n_features: int, seen: Seen) -> None:
    """Tell `seen` of the pairs from position `start` on. Raises JournalError where the journal is damaged."""
    reader = PairReader(n_features, -math.inf, math.inf)
    for entry in read_journal(state_directory, start):
        if entry.line is not None:
            seen(_pair(state_directory, entry, reader))
        elif entry.run is None:
            seen(None)


def _begin(learner: Learner, entry: Entry, state_directory: Path) -> None:
    assert entry.run is not None
    run = _run(state_directory, entry.run)
    if run != learner.run:
        learner.begin(run, kept_base(state_directory, run) if run.base != learner.run.base else None)


def _pair(state_directory: Path, entry: Entry, reader: PairReader) -> Pair:
    assert entry.line is not None
    try:
        return reader.read(entry.line)
    except PairError as error:
        where = f"{state_directory / 'journal'}: the pair at position {entry.position}"
        raise JournalError(f"{where} is damaged: {error}; {WHAT_TO_DO}") from error


def newest_snapshot(state_directory: Path, position: int) -> Learner | None:
    """The learner of the newest good snapshot that is not after `position`, the journal's end; None where there is none."""
    for at, state in read_snapshots(state_directory):
        if at > position:
            _log.warning("snapshot at position %d is after the journal's end at %d", at, position)
            continue
        try:
            return Learner.from_state(state)
        except FormatError as error:
            raise StateError(f"{state_directory}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            _log.warning("snapshot at position %d cannot be used: %s", at, error)
    return None


def newest_run(state_directory: Path) -> Run | None:
    """The run that the newest good snapshot was under, else the first of the journal; None where there is no state."""
    for _, state in read_snapshots(state_directory, only="run"):
        try:
            return Learner.run_of(state)
        except FormatError as error:
            raise StateError(f"{state_directory}: {error}") from error
        except (KeyError, TypeError, ValueError):
            continue
    return first_run(state_directory)


def first_run(state_directory: Path) -> Run | None:
    """The first run that the journal names, None where it names none."""
    entries = read_journal(state_directory, first_kept(state_directory))
    return next((_run(state_directory, entry.run) for entry in entries if entry.run is not None), None)


def _run(state_directory: Path, record: dict[str, Any]) -> Run:
    try:
        return Run.from_json(record)
    except FormatError as error:
        raise StateError(f"{state_directory}: {error}") from error
    except (KeyError, TypeError) as error:
        raise StateError(f"{state_directory}: a run record of the journal is damaged: {error}; {WHAT_TO_DO}") from error
