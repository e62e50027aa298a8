"""`verify STATE_DIR`: reads all of a state directory, changes nothing, and says what is whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sidecar.files import TEMPORARY
from sidecar.journal.blocks import Damage
from sidecar.journal.segments import (
    JournalError,
    first_position,
    journal_segments,
    read_journal,
    require_blocks,
    whole_blocks,
    with_ends,
)
from sidecar.state.anchor import kept_anchors
from sidecar.state.base_models import base_path, damage_of_base, kept_bases
from sidecar.state.checked import DamagedError, NewerFormatError, read_checked
from sidecar.state.damage import ASIDE, Damages
from sidecar.state.directory import StateError
from sidecar.state.snapshots import read_snapshot, snapshots

_CHECKED = {"anchor.npy": "anchor", "published": "published", "history.jsonl": "history"}
_COSTS = {
    "anchor": "the gate judges without it until the next stable checkpoint",
    "history": "the charts of the last hours",
    "published": "the next checkpoint counts its new pairs from the beginning",
}


class Finding(NamedTuple):
    """A file of a state directory. wrong: what is wrong with it, empty if it is whole; lost: what that costs."""

    path: Path
    wrong: str
    lost: str = ""


def is_state_directory(path: Path) -> bool:
    """Whether a directory holds a sidecar's state."""
    return (path / "journal").is_dir()


def check_state(state_directory: Path) -> list[Finding]:
    """All files of a state directory, checked. Raises StateError if it is none, JournalError for a format without checksums."""
    if not is_state_directory(state_directory):
        raise StateError(f"{state_directory}: no journal; expected a sidecar's state directory")
    require_blocks(state_directory)
    segments, end = _segments(state_directory)
    found = [*segments, *_snapshots(state_directory, end), *_bases(state_directory)]
    for name, kind in _checked_files(state_directory).items():
        if (state_directory / name).exists() or (state_directory / name).is_symlink():
            found.append(_checked(state_directory / name, kind))
    for directory in (state_directory, state_directory / "journal"):
        leftovers = sorted(path for path in directory.iterdir() if path.name.startswith(TEMPORARY))
        found += [Finding(path, "a crash left it while it was being written", "nothing") for path in leftovers]
    aside = state_directory / ASIDE
    if aside.is_dir():
        found += [Finding(path, "was moved aside because it was damaged") for path in sorted(aside.iterdir())]
    return found


def move_damaged_aside(state_directory: Path, damages: Damages) -> None:
    """Move the small files that are damaged aside: anchor, history, counter, base models. Training goes on without them."""
    for name, kind in _checked_files(state_directory).items():
        try:
            read_checked(state_directory / name, kind)
        except DamagedError as error:
            damages.move_aside(state_directory / name, kind, str(error))
        except (OSError, NewerFormatError):  # not there, or not readable now: who needs it will say so
            continue
    for path in kept_bases(state_directory):
        with contextlib.suppress(OSError):
            if wrong := damage_of_base(path):
                damages.move_aside(path, "base", wrong)


def _checked_files(state_directory: Path) -> dict[str, str]:
    """The names of the small files, and their kinds."""
    return _CHECKED | {path.name: "anchor" for path in kept_anchors(state_directory)}


def _segments(state_directory: Path) -> tuple[list[Finding], int | None]:
    """Also gives the position at which the journal ends, None if its last segment is damaged."""
    found, last = list[Finding](), 0
    for segment, end in with_ends(journal_segments(state_directory)):
        finding, last = _segment(segment, end)
        found.append(finding)
    return found, None if found and found[-1].wrong else last


def _segment(segment: Path, end: int | None) -> tuple[Finding, int]:
    damage: list[Damage] = []
    pairs, stop = 0, first_position(segment)
    try:
        for block in whole_blocks(segment, end, lambda segment, found: damage.append(found)):
            pairs, stop = pairs + block.end - block.position, block.end
    except JournalError as error:
        return Finding(segment, f"cannot be read: {error}", "unknown"), stop
    known_end = end if end is not None else max([stop, *(each.end for each in damage)])
    wrong = "; ".join(dict.fromkeys(f"{each.reason} (bytes {each.start} to {each.stop})" for each in damage))
    missing = known_end - first_position(segment) - pairs
    return Finding(segment, wrong, f"{missing} pairs" if missing else "at most the last write" if damage else ""), stop


def _snapshots(state_directory: Path, end: int | None) -> Iterator[Finding]:
    for position, path in snapshots(state_directory):
        try:
            read_snapshot(path)
        except (DamagedError, NewerFormatError, OSError) as error:
            yield Finding(path, str(error), "a start trains again from an older one, or from the beginning of the journal")
        else:
            missing = end is not None and position > end
            wrong = f"it is of position {position}; the journal ends at {end}" if missing else ""
            yield Finding(path, wrong, f"{position - end} pairs of the journal" if missing and end is not None else "")


def _bases(state_directory: Path) -> Iterator[Finding]:
    digests = set()
    try:
        first = journal_segments(state_directory)
        entries = read_journal(state_directory, first_position(first[0]) if first else 0, lambda segment, damage: None)
        digests = {str(entry.run["base"]) for entry in entries if entry.run is not None and entry.run.get("base")}
    except JournalError:
        pass  # the segment is named above
    expected = {base_path(state_directory, digest): digest for digest in sorted(digests)}
    others = {path: "" for path in kept_bases(state_directory) if path not in expected}
    for path, digest in (expected | others).items():
        try:
            wrong = damage_of_base(path, digest)
        except OSError as error:
            yield Finding(path, str(error.strerror or error), "the state cannot be made again from the journal alone")
        else:
            yield Finding(path, wrong, "that base model" if wrong else "")


def _checked(path: Path, kind: str) -> Finding:
    try:
        read_checked(path, kind)
    except (DamagedError, NewerFormatError, OSError) as error:
        return Finding(path, str(error), _COSTS[kind])
    return Finding(path, "")
