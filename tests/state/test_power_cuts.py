"""A power cut at any moment: the start works, and what was promised is there."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from bisect import bisect_right
from pathlib import Path
from typing import NamedTuple

import pytest

from sidecar.checkpoints.directory import LATEST, STABLE, checkpoints, read_digest
from sidecar.checkpoints.publishing import Terms
from sidecar.journal.retention import compress_closed
from sidecar.journal.segments import read_journal
from sidecar.online.publication import publication
from sidecar.state.forget import forget
from sidecar.state.snapshots import snapshots
from tests.small_states import open_state, small_lines, small_online
from tests.state.power_cuts import Recorder, make_again

LINES = small_lines(400)
GROUP = "g17"
FORGOTTEN = {34, 35}


class Recorded(NamedTuple):
    """surely: numbers of operations, and how many pairs are surely there after each; forgotten: after which a group is gone."""

    recorder: Recorder
    surely: list[tuple[int, int]]
    forgotten: int


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
                forget([GROUP], state)
                forgotten = len(recorder.operations)
    return Recorded(recorder, surely, forgotten)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    known = {}

    def of(fsync):
        if fsync not in known:
            known[fsync] = record(tmp_path_factory.mktemp("cuts") / fsync, fsync)
        return known[fsync]

    return of


@pytest.mark.parametrize("cuts", [8, pytest.param(84, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["lost", "torn", "holed", "reordered"])
@pytest.mark.parametrize("fsync", ["always", "everysec", "never"])
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


def check(root: Path, found: Recorded, cut: int) -> list[str]:
    """What is wrong with what a cut has left."""
    problems = _wrong_checkpoints(root / "checkpoints")
    state = root / "checkpoints" / "state"
    opened = open_state(state)
    surely = found.surely[bisect_right([at for at, _ in found.surely], cut) - 1][1]
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
        elif line is None and not opened.told:
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
