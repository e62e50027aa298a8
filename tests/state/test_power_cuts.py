"""A power cut at any moment: the start works, and what was promised is there."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import random
import shutil
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sidecar.checkpoints.directory import LATEST, STABLE, checkpoints, read_digest
from sidecar.checkpoints.publishing import Terms
from sidecar.journal.retention import Retention, compress_closed
from sidecar.journal.segments import first_kept, journal_segments, read_journal
from sidecar.online.publication import publication
from sidecar.state.damage import Damages
from sidecar.state.forget import forget
from sidecar.state.snapshots import snapshots
from tests.small_states import open_state, small_lines, small_online, state_digest
from tests.state.power_cuts import Recorder, make_again

LINES = small_lines(400)
GROUP = "g17"
FORGOTTEN = {34, 35}


class Recorded(NamedTuple):
    """surely: numbers of operations, and how many pairs are surely there after each; forgotten: after which a group is gone;
    pruned: as `surely`, the first position that retention has to leave.
    """

    recorder: Recorder
    surely: list[tuple[int, int]]
    forgotten: float = math.inf
    pruned: tuple[tuple[int, int], ...] = ((0, 0),)


def record(root: Path, fsync: str) -> Recorded:
    recorder, surely = Recorder(root), [(0, 0)]
    state, sent = root / "checkpoints" / "state", 0
    terms = Terms(root / "checkpoints", keep=2)
    root.mkdir()
    with recorder.recording():
        for part in range(3):
            online = small_online(state, fsync=fsync)
            for number in range(1, 11):
                online.accept(LINES[sent : sent + 11])
                sent += 11
                sync = online.journal.syncer() if fsync == "everysec" and number % 3 == 0 else None
                if sync:
                    sync()
                if fsync == "always" or sync:
                    surely.append((len(recorder.operations), sent))
                online.backlog.wait()
                if number % 4 == 0:
                    online.snapshot()()
                    surely.append((len(recorder.operations), sent))
                if number % 5 == 0:
                    assert online.journal.roll()
                    surely.append((len(recorder.operations), sent))
                if number == 7:
                    compress_closed(state, 0)
                if number in (6, 9):
                    publication(online.learner, terms, state)()
            online.close()
            surely.append((len(recorder.operations), sent))
            if part == 1:
                damages = Damages(state)
                for segment in journal_segments(state):
                    damages.copy_aside(segment, "journal", "a copy with the group in it")
                forget([GROUP], state)
                forgotten = len(recorder.operations)
    return Recorded(recorder, surely, forgotten)


def record_retention(root: Path, fsync: str) -> Recorded:
    """Snapshots, and the segments before the older of them deleted, two or three at a time."""
    recorder, surely, pruned = Recorder(root), [(0, 0)], [(0, 0)]
    state, sent = root / "checkpoints" / "state", 0
    root.mkdir()
    with recorder.recording():
        online = small_online(state, fsync=fsync)
        for number in range(1, 31):
            online.accept(LINES[sent : sent + 11])
            sent += 11
            if fsync == "always":
                surely.append((len(recorder.operations), sent))
            online.backlog.wait()
            if number % 2 == 0:
                assert online.journal.roll()
                surely.append((len(recorder.operations), sent))
            if number % 5 == 0:
                online.snapshot()()
            if number % 8 == 0:
                compress_closed(state, 0)
                kept_from = snapshots(state)[-1][0]
                pruned.append((len(recorder.operations), kept_from))
                assert Retention(state, 0, 1).prune(kept_from, 0, 0)
        online.close()
        surely.append((len(recorder.operations), sent))
    return Recorded(recorder, surely, pruned=tuple(pruned))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    known = {}

    def of(fsync, how=record):
        if (fsync, how) not in known:
            known[fsync, how] = how(tmp_path_factory.mktemp("cuts") / fsync, fsync)
        return known[fsync, how]

    return of


@pytest.fixture(scope="module")
def digests(tmp_path_factory):
    """That of the state without a cut, by how many pairs were accepted."""
    online, found = small_online(tmp_path_factory.mktemp("whole") / "state"), {}
    for number, line in enumerate(LINES):
        online.backlog.wait()
        found[number] = state_digest(online)
        online.accept([line])
    online.close()
    return found


def with_cuts(few: int, many: int) -> Any:
    """For the three settings of fsync and all modes of cuts."""

    def decorated(test: Any) -> Any:
        test = pytest.mark.parametrize("cuts", [few, pytest.param(many, marks=pytest.mark.slow)])(test)
        test = pytest.mark.parametrize("mode", ["lost", "torn", "holed", "reordered"])(test)
        return pytest.mark.parametrize("fsync", ["always", "everysec", "never"])(test)

    return decorated


@with_cuts(8, 84)
def test_after_a_power_cut_it_starts_with_all_that_was_promised(tmp_path, recorded, fsync, mode, cuts):
    found = recorded(fsync)
    chance = random.Random(f"{fsync} {mode} {cuts}")
    for number in range(cuts):
        cut = chance.randrange(len(found.recorder.operations) + 1)
        root = tmp_path / str(number)
        make_again(found.recorder, cut, mode, chance, root)
        problems = check(root, found, cut)
        assert not problems, f"after operation {cut} of {len(found.recorder.operations)}: {problems}"
        shutil.rmtree(root)


@with_cuts(4, 84)
def test_after_a_second_cut_while_it_recovers_from_the_first_all_that_was_promised_is_there(
    tmp_path, recorded, fsync, mode, cuts
):
    found = recorded(fsync)
    chance = random.Random(f"{fsync} {mode} {cuts} twice")
    for number in range(cuts):
        cut = chance.randrange(len(found.recorder.operations) + 1)
        first, second = tmp_path / f"{number}", tmp_path / f"{number}-again"
        make_again(found.recorder, cut, mode, chance, first)
        again = Recorder(first)
        begun = len(again.operations)
        with again.recording():
            told = open_state(first / "checkpoints" / "state").told
        second_cut = chance.randrange(begun, len(again.operations) + 1)
        make_again(again, second_cut, mode, chance, second)
        problems = check(second, found, cut, told)
        assert not problems, f"after operation {cut} and {second_cut - begun} of {len(again.operations) - begun}: {problems}"
        shutil.rmtree(first)
        shutil.rmtree(second)


@with_cuts(4, 84)
def test_after_a_cut_with_retention_the_state_is_that_of_all_pairs(tmp_path, recorded, digests, fsync, mode, cuts):
    found = recorded(fsync, record_retention)
    chance = random.Random(f"{fsync} {mode} {cuts} retention")
    for number in range(cuts):
        cut = chance.randrange(len(found.recorder.operations) + 1)
        state = tmp_path / str(number) / "checkpoints" / "state"
        make_again(found.recorder, cut, mode, chance, tmp_path / str(number))
        opened = open_state(state)
        surely, may_be_gone = _as_of(found.surely, cut), _as_of(found.pruned, cut)
        kept = {entry.position: entry.line for entry in read_journal(state, first_kept(state)) if entry.run is None}
        where = f"after operation {cut} of {len(found.recorder.operations)}"
        assert all(line in (None, LINES[position]) for position, line in kept.items()), where
        assert first_kept(state) <= may_be_gone, where
        assert opened.position >= surely, where
        lost = [position for position in range(first_kept(state), opened.position) if kept.get(position) is None]
        assert opened.told or not lost, where
        assert [position for position in lost if may_be_gone <= position < surely] == [], where
        assert opened.told or opened.digest == digests[opened.position], where
        if may_be_gone <= surely and not lost:
            assert opened.digest == digests[opened.position], where
        shutil.rmtree(tmp_path / str(number))


def _as_of(counts: Sequence[tuple[int, int]], cut: int) -> int:
    return counts[bisect_right([at for at, _ in counts], cut) - 1][1]


def check(root: Path, found: Recorded, cut: int, told: bool = False) -> list[str]:
    """What is wrong with what a cut has left. told: of damage, by a start before."""
    problems = _wrong_checkpoints(root / "checkpoints")
    state = root / "checkpoints" / "state"
    if cut >= found.forgotten:
        texts = [path.read_bytes() for path in state.rglob("*") if path.is_file()]
        texts += [gzip.decompress(path.read_bytes()) for path in journal_segments(state) if path.suffix == ".gz"]
        problems += [f"{position} is in a file" for position in FORGOTTEN if any(LINES[position] in text for text in texts)]
    opened = open_state(state)
    surely = _as_of(found.surely, cut)
    kept = {entry.position: entry.line for entry in read_journal(state) if entry.run is None}
    for position in range(max(surely, len(kept))):
        line = kept.get(position)
        if position in FORGOTTEN and (cut >= found.forgotten or line is None):
            if line is not None:
                problems.append(f"{position} was forgotten")
        elif line is None and position < surely:
            problems.append(f"{position} is lost, {surely} are surely there")
        elif line not in (None, LINES[position]):
            problems.append(f"{position} is another pair")
        elif line is None and not (told or opened.told):
            problems.append(f"{position} is lost silently")
    for _, path in snapshots(state):
        path.unlink()
    if open_state(state).digest != opened.digest:
        problems.append("the journal alone makes another state")
    return problems


def _wrong_checkpoints(directory: Path) -> list[str]:
    problems = []
    for checkpoint in checkpoints(directory):
        digest = hashlib.sha256(checkpoint.model.read_bytes()).hexdigest()
        if read_digest(checkpoint.model) != digest:
            problems.append(f"{checkpoint.name} has another digest or none")
        if not checkpoint.description.is_file() or json.loads(checkpoint.description.read_bytes())["sha256"] != digest:
            problems.append(f"{checkpoint.name} has another JSON or none")
    for link in (LATEST, STABLE):
        if (directory / link).is_symlink() and not (directory / os.readlink(directory / link)).is_file():
            problems.append(f"{link} leads nowhere")
    return problems
