"""Flipped bits and cuts in every file of a state directory: `verify` names each of them, and a start goes on with the state
that was there or tells of the damage. Run by hand:

    python -m tests.fuzz.fuzz_state --inputs 200000 [--seed 1] [--minutes 10]

A start is tried on a sample: one input in fifty, and all bits of each file's header. A cut in the last block of the open
segment cannot be told from what a crash leaves of a write that was never answered: there the state up to the block before is
right.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from sidecar.journal.blocks import Block
from sidecar.journal.retention import compress_closed
from sidecar.journal.segments import journal_segments, segment_parts
from sidecar.online.training import OnlineTraining
from sidecar.state.anchor import write_anchor
from sidecar.state.checked import write_checked
from sidecar.state.published_pairs import write_published_pairs
from sidecar.state.snapshots import snapshots
from sidecar.state.verify import check_state
from tests.small_states import RUN, Opened, open_state, small_lines, small_online

_HEADER_BYTES = 96
_LAST_RUN = replace(RUN, settings=replace(RUN.settings, learning_rate=2e-4))


class Damage(NamedTuple):
    """A cut at a byte (bit: None), or a flipped bit of it."""

    name: str
    byte: int
    bit: int | None

    def of(self, data: bytes) -> bytes:
        if self.bit is None:
            return data[: self.byte]
        return b"".join([data[: self.byte], bytes([data[self.byte] ^ 1 << self.bit]), data[self.byte + 1 :]])


@dataclass
class Result:
    """inputs: by file. starts: how many inputs a start was tried on. seconds: of both."""

    inputs: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    verify_s: float = 0.0
    start_s: float = 0.0
    failures: list[str] = field(default_factory=list)


def make_state(state: Path) -> None:
    """A state with one file of each kind, three segments (one gzipped) and two snapshots, both before the last block."""
    lines = small_lines(170)
    online = small_online(state)
    online.accept(lines[:50])
    online.journal.roll()
    online.accept(lines[50:55])
    compress_closed(state, 0)
    online.accept(lines[55:100])
    online.journal.roll()
    online.accept(lines[100:120])
    _snapshot(online)
    write_anchor(state, online.learner.held_out.rows())
    write_published_pairs(state, 100)
    write_checked(state / "history.jsonl", "history", b'{"time": 1}\n' * 5)
    online.close()
    online = small_online(state, _LAST_RUN)
    online.accept(lines[120:150])
    _snapshot(online)
    online.accept(lines[150:])
    online.close()


def _snapshot(online: OnlineTraining) -> None:
    online.backlog.wait()
    online.snapshot()()


def fuzz(
    directory: Path, inputs: int, seed: int = 1, every: int = 50, headers: bool = True, seconds: float = math.inf
) -> Result:
    """headers: begin with all bits of each file's header, whatever they count. seconds: after which it stops short."""
    until = time.monotonic() + seconds
    state, copy, result = directory / "state", directory / "copy", Result()
    make_state(state)
    whole = {str(path.relative_to(state)): path.read_bytes() for path in sorted(state.rglob("*")) if path.is_file()}
    del whole[".lock"]
    assert len(journal_segments(state)) == 3
    assert len(snapshots(state)) == 2
    assert not any(finding.wrong for finding in check_state(state))
    rightly = _Expected(directory, state)
    chance = random.Random(seed)
    damages = itertools.chain(_headers(whole) if headers else (), _random(whole, chance))
    for number, damage in enumerate(itertools.islice(damages, inputs)):
        if time.monotonic() > until:
            break
        result.inputs[damage.name] += 1
        path = state / damage.name
        data = damage.of(whole[damage.name])
        path.write_bytes(data)
        torn = damage.bit is None and path == rightly.open_segment and damage.byte >= rightly.last_block
        started = time.monotonic()
        try:
            if not torn and not any(finding.wrong for finding in check_state(state)):
                result.failures.append(f"{damage}: verify finds nothing")
        except Exception as error:
            result.failures.append(f"{damage}: verify: {error!r}")
        result.verify_s += time.monotonic() - started
        if number % every == 0 or (headers and damage.bit is not None and damage.byte < _HEADER_BYTES):
            result.starts += 1
            started = time.monotonic()
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(state, copy)
            if wrong := _start(copy, rightly.without_last_block if torn else rightly.whole):
                result.failures.append(f"{damage}: {wrong}")
            result.start_s += time.monotonic() - started
        path.write_bytes(whole[damage.name])
    return result


class _Expected:
    """What a start makes of the state while nothing is damaged, and with the last block cut off."""

    def __init__(self, directory: Path, state: Path) -> None:
        self.open_segment = journal_segments(state)[-1]
        blocks = [part for part in segment_parts(self.open_segment) if isinstance(part, Block)]
        data = self.open_segment.read_bytes()
        self.last_block = data.index(b"#block %012d" % blocks[-1].position)
        copy = directory / "expected"
        shutil.copytree(state, copy)
        self.whole = open_state(copy, _LAST_RUN)
        with (copy / "journal" / self.open_segment.name).open("r+b") as stream:
            stream.truncate(self.last_block)
        self.without_last_block = open_state(copy, _LAST_RUN)
        assert not self.whole.told
        assert not self.without_last_block.told
        assert self.without_last_block.position < self.whole.position


def _start(copy: Path, expected: Opened) -> str:
    """What is wrong with a start, empty if nothing is. It is tried twice: what was repaired has to stay as it is."""
    try:
        first = open_state(copy, _LAST_RUN)
        again = open_state(copy, _LAST_RUN)
    except Exception as error:
        return f"does not start: {error!r}"
    if first.digest != expected.digest and not first.told:
        return "silently another state"
    if again.digest != first.digest:
        return "the state changes with each start"
    return ""


def _headers(whole: dict[str, bytes]) -> Iterator[Damage]:
    for name, data in whole.items():
        for byte, bit in itertools.product(range(min(_HEADER_BYTES, len(data))), range(8)):
            yield Damage(name, byte, bit)


def _random(whole: dict[str, bytes], chance: random.Random) -> Iterator[Damage]:
    names = [*whole]
    while True:
        name = chance.choice(names)
        yield Damage(name, chance.randrange(len(whole[name])), chance.randrange(8) if chance.random() < 0.7 else None)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf)
    arguments = parser.parse_args()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        result = fuzz(Path(directory), arguments.inputs, arguments.seed, seconds=60 * arguments.minutes)
    for failure in result.failures[:50]:
        print(failure)
    checked = sum(result.inputs.values())
    print(f"{checked:,} inputs, {checked / result.verify_s:,.0f} a second; {result.starts:,} starts,", end=" ")
    print(f"{result.starts / result.start_s:,.0f} a second; {len(result.failures):,} failures")
    for name, count in sorted(result.inputs.items()):
        print(f"{count:8,}  {name}")
    raise SystemExit(bool(result.failures))


if __name__ == "__main__":
    main()
