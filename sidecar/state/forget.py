"""`forget`: remove the pairs of a group for good, so that what is trained from then on is as if they had never come."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sidecar.files import remove_leftovers, sync_directory
from sidecar.journal.blocks import GONE, LOST, RUN, Damage, encode_block
from sidecar.journal.repair import find_end, repair, replace_segment
from sidecar.journal.segments import (
    JournalError,
    first_position,
    journal_segments,
    require_blocks,
    whole_blocks,
    with_ends,
)
from sidecar.pairs.holdout import holdout_position
from sidecar.pairs.request import names_of, tenant_of
from sidecar.state.anchor import ANCHOR, kept_anchors, read_rows, write_rows
from sidecar.state.damage import Damages
from sidecar.state.directory import StateError, locked
from sidecar.state.published_pairs import forget_published_pairs
from sidecar.state.snapshots import snapshots
from sidecar.state.verify import move_damaged_aside


@dataclass(frozen=True)
class Forgotten:
    """What `forget` removed.

    pairs: journalled ones, by group, or by tenant; anchor: pairs of the anchor, and of one that is kept for a checkpoint that
    may come back; first: the first position, None where there was none; from_position: from where the next start trains again.
    """

    pairs: dict[str, int]
    anchor: int
    first: int | None
    from_position: int


def forget(names: Sequence[str], state_directory: Path, of_tenants: bool = False) -> Forgotten:
    """Replace every pair of these groups by a tombstone that keeps its position, and remove what was made of them.

    names: of groups, as pairs name them; of a pair without a group, its job_id. of_tenants: they are names of tenants instead.
    What is damaged is repaired or moved to `damaged/` first, as at a start. Then snapshots that hold such a pair go, with all
    that is in `damaged/` and what a crash left; then the anchor's pairs, then the journal's: stopped in the middle, it is
    finished by running it again. The next start trains on what is left. Where retention has removed the journal's beginning,
    all snapshots go, and where pairs are lost, those that hold them: nobody can tell whose pairs they were.

    Raises StateError if a sidecar holds the directory, or there is no journal in it; JournalError if the journal is of a format
    before the first release, or a segment cannot be read or written, with the segments before it done.
    """
    if not journal_segments(state_directory):
        raise StateError(f"{state_directory}: no journal; expected a sidecar's state directory")
    require_blocks(state_directory)
    with locked(state_directory):
        damages = Damages(state_directory)
        try:
            remove_leftovers(state_directory)
            move_damaged_aside(state_directory, damages)

            def keep_aside(path: Path, reason: str) -> None:
                damages.copy_aside(path, "journal", reason)

            find_end(state_directory, keep_aside)
            segments = journal_segments(state_directory)
            name_of = tenant_of if of_tenants else _group
            found: dict[str, int] = dict.fromkeys(names, 0)
            groups = set() if of_tenants else {*names}
            affected: list[Path] = []
            first: int | None = None
            unknown = [0] if not segments or first_position(segments[0]) > 0 else []
            for segment, end in with_ends(segments):
                damaged: list[Damage] = []
                before = sum(found.values())
                for position, line in _pairs(segment, end, damaged):
                    if line is None:
                        unknown.append(position)
                    elif (name := name_of(line)) in found and name:
                        found[name] += 1
                        first = position if first is None else first
                        if of_tenants:
                            groups.add(_group(line))
                if damaged:
                    repair(segment, end, keep_aside)
                    unknown.append(first_position(segment))
                if sum(found.values()) > before:
                    affected.append(segment)
            doubtful = min([*unknown, *([] if first is None else [first])], default=None)
            for position, snapshot in snapshots(state_directory):
                if doubtful is not None and position >= doubtful:
                    snapshot.unlink()
            if doubtful is not None:
                forget_published_pairs(state_directory)
            damages.clear()
            sync_directory(state_directory)
            anchor = _clear_anchors(state_directory, groups)
            for segment in affected:
                replace_segment(segment, _without(segment, lambda line: name_of(line) in found))
        except OSError as error:
            raise JournalError(f"{error.filename or state_directory}: {error.strerror or error}") from error
        begins = first_position(segments[0]) if segments else 0
        from_position = max([position for position, _ in snapshots(state_directory)], default=begins)
    return Forgotten(found, anchor, first, from_position)


def _pairs(segment: Path, end: int | None, damaged: list[Damage]) -> Iterator[tuple[int, bytes | None]]:
    """Positions and lines of the pairs in a segment, None of one that is lost. damaged: gets what is."""
    for block in whole_blocks(segment, end, lambda segment, damage: damaged.append(damage)):
        position = block.position
        for line in block.lines:
            if not line.startswith(RUN):
                if line == LOST:
                    yield position, None
                elif line != GONE:
                    yield position, line
                position += 1


def _group(line: bytes) -> str:
    job_id, group = names_of(line)
    return group or job_id or ""


def _clear_anchors(state_directory: Path, groups: Collection[str]) -> int:
    """Remove these groups' pairs from the anchors; where a pair has no name, "", nobody can tell which these are: all go."""
    positions = {holdout_position(group, "", b"") for group in groups if group}
    removed = 0
    for path in (state_directory / ANCHOR, *kept_anchors(state_directory)):
        rows = read_rows(path)
        if rows is not None:
            kept = rows[["" not in groups and position not in positions for position in rows[:, -1].tolist()]]
            if len(kept) < len(rows):
                write_rows(path, kept)
            removed += len(rows) - len(kept)
    return removed


def _without(segment: Path, is_forgotten: Callable[[bytes], bool]) -> Iterator[bytes]:
    """The blocks of a segment, with tombstones in the place of some pairs."""
    for block in whole_blocks(segment, None, lambda segment, damage: None):
        kept = (line if line.startswith(b"#") or not is_forgotten(line) else GONE for line in block.lines)
        yield encode_block(block.position, [*kept])
