"""The trial of the stable checkpoint: pairs that came after it decide whether it stays, or its predecessor comes back.

They need no memory of their own. They are in the journal, after the last position that the checkpoint was trained on, so that
the trial is the same after a restart. Nothing that is trained is touched by it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onnx_builder.network import NetworkError
from sidecar.checkpoints.directory import STABLE, Checkpoint, end_trial, linked, named
from sidecar.checkpoints.judging.gate import Evidence
from sidecar.checkpoints.judging.references import published_model
from sidecar.checkpoints.judging.rollback import LEVEL, MINIMUM_GROUPS, MINIMUM_PAIRS, Comparison, compare
from sidecar.checkpoints.rollbacks import read_rollbacks
from sidecar.journal.blocks import Damage
from sidecar.journal.run import Run
from sidecar.journal.segments import JournalError, first_kept
from sidecar.log import event
from sidecar.models.description import DescriptionError, read_description
from sidecar.online.recovery import journalled_pairs
from sidecar.pairs.pair import Pair, PairBlock
from sidecar.state.anchor import restore_anchor

_log = logging.getLogger(__name__)
MOST_PAIRS = 20_000
"""If so many pairs after a checkpoint are still of too few groups, they decide nothing."""


class Trial(NamedTuple):
    """What came of looking at it.

    again_at: the position from which it is worth looking again, None if nothing is on trial. taken_back: as
    `last_rollback` tells of one; empty if it stays, or nothing was decided.
    """

    again_at: int | None
    taken_back: str = ""


def hold_trial(
    directory: Path, state_directory: Path, position: int, threshold: float, score_range: float, lock_s: float
) -> Trial:
    """Decide on the stable checkpoint of `directory`, if it is on trial, this state has published it, and there is evidence.

    Evidence are the first pairs after it of which at least 200 are there, of at least 30 groups. position: that of the next
    pair of the journal. threshold, score_range: as in `compare`. lock_s: as in `publish`.

    Raises CheckpointError or JournalError, and then nothing is decided.
    """
    stable = linked(directory, STABLE)
    if stable is None:
        return Trial(None)
    try:
        before = named(directory, read_rollbacks(directory).on_trial.get(stable.name, ""))
        about = read_description(stable.model) or {}
    except (OSError, DescriptionError) as error:
        raise JournalError(f"{stable.name}: {error}") from error
    journal = about.get("journal")
    trained = journal if isinstance(journal, dict) and journal.get("directory") == str(state_directory.resolve()) else {}
    if before is None or not isinstance(trained.get("last"), int):
        return Trial(None)
    first = max(trained["last"] + 1, first_kept(state_directory))
    if position < first + MINIMUM_PAIRS:
        return Trial(first + MINIMUM_PAIRS)
    pairs, last, groups = list[Pair](), first, set[float]()
    for at, run, pair in journalled_pairs(state_directory, first, on_damage=_pass_over):
        if len(pairs) == MOST_PAIRS or not _fits(run, about):
            return Trial(None)
        if pair is not None:
            pairs.append(pair)
            groups.add(pair.holdout)
            last = at
        if len(pairs) >= MINIMUM_PAIRS and len(groups) >= MINIMUM_GROUPS:
            break
    else:
        missing = max(MINIMUM_PAIRS - len(pairs), MINIMUM_GROUPS - len(groups))
        if groups:  # each look reads the segment: not one for every few pairs, if groups are as large as so far
            missing = max(missing, min((MINIMUM_GROUPS - len(groups)) * len(pairs) // len(groups), len(pairs) // 2))
        return Trial(position + missing)
    block = PairBlock.of(pairs)
    try:
        predicted, predicted_before = (published_model(each).predict(block.features) for each in (stable, before))
    except (NetworkError, DescriptionError) as error:
        _log.warning("%s stays stable, whatever comes: it is not compared with %s: %s", stable.name, before.name, error)
        end_trial(stable, None, lock_s)
        return Trial(None)
    found = compare(np.array(block.holdout), block.scores, predicted, predicted_before, threshold, score_range)
    figures = {**found._asdict(), "reason": _words(found, before, threshold)}
    if not found.worse:
        if end_trial(stable, None, lock_s):
            event(_log, "the stable checkpoint stays", version=stable.name, reason=figures["reason"])
        return Trial(None)
    positions = {"directory": trained["directory"], "first": first, "last": last}
    now = datetime.now(UTC).replace(microsecond=0).isoformat()
    if not end_trial(stable, {**figures, "rolled_back_at": now, "journal": positions}, lock_s):
        return Trial(None)
    try_to_restore_anchor(state_directory, before)
    told = {"version": stable.name, "stable": before.name, "reason": figures["reason"]}
    event(_log, "the stable checkpoint was taken back", logging.WARNING, **told)
    return Trial(None, last_rollback(directory))


def last_rollback(directory: Path) -> str:
    """The last checkpoint of `directory` that was taken back, and why; empty if none was, or that cannot be read now."""
    with contextlib.suppress(OSError):
        for name, why in reversed(read_rollbacks(directory).rolled_back.items()):
            return f"{name}: {why.get('reason', '')}"
    return ""


def try_to_restore_anchor(state_directory: Path, stable: Checkpoint) -> None:
    """Make the anchor that is kept for a checkpoint the anchor, if one is; where that cannot be done now, a warning."""
    try:
        restore_anchor(state_directory, stable.name)
    except OSError as error:
        _log.warning("%s: the anchor of %s was not put back: %s", state_directory, stable.name, error.strerror or error)


def evidence_of_rollback(directory: Path, state_directory: Path, about: Mapping[str, Any]) -> Evidence | None:
    """The pairs by which the stable checkpoint of `directory` came back, if it did and this state has them still.

    Whatever is to replace it must not be worse than it on these, so that the two do not take turns. about: what the JSON of
    that says; pairs that it does not take are no evidence.
    """
    stable = linked(directory, STABLE)
    if stable is None:
        return None
    with contextlib.suppress(OSError, JournalError, KeyError, TypeError):
        for name, why in reversed(read_rollbacks(directory).rolled_back.items()):
            journal, pairs = why["journal"], list[Pair]()
            if why["predecessor"] != stable.name or journal["directory"] != str(state_directory.resolve()):
                continue
            for at, run, pair in journalled_pairs(state_directory, journal["first"], on_damage=_pass_over):
                if at > journal["last"] or not _fits(run, about):
                    break
                pairs += [pair] if pair is not None else []
            if pairs:
                block = PairBlock.of(pairs)
                return Evidence(f"pairs that took {name} back", block.features, block.scores, rmse_ratio=1.0)
    return None


def _pass_over(path: Path, damage: Damage) -> None:
    """Pairs that damage has taken are no evidence."""


def _fits(run: Run, about: Mapping[str, Any]) -> bool:
    """Whether the pairs of a run are what a checkpoint takes and gives, as its JSON says."""
    names, target = about.get("feature_order") or [], about.get("target") or ""
    return (
        run.n_features == about.get("n_features")
        and (not names or not run.order or [*run.order] == names)
        and (not target or not run.target or run.target == target)
    )


def _words(found: Comparison, before: Checkpoint, threshold: float) -> str:
    return (
        f"on {found.pairs} pairs of {found.groups} groups that came after it, its median error is {found.error:.3f}, "
        f"that of {before.name} {found.predecessor_error:.3f}; it is more than {threshold:.0%} worse in {found.worse_in} "
        f"groups (by chance with a probability of at most {found.chance:.2g}; {LEVEL:g} is allowed)"
    )
