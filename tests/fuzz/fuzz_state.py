"""Flipped bits and cuts in every file of a state directory: `verify` names each of them, and a start goes on with the state
that was there or tells of the damage. Run by hand:

    python -m tests.fuzz.fuzz_state --inputs 200000 [--seed 1] [--every 10] [--no-headers] [--minutes 10]

A start, as `serve` does it, is tried on a sample: one input in ten, and all bits of each file's header. What it makes of the
state is the learner, the journal's pairs, the anchor, the counter, the history and the base model; a second start makes the
same of it, without a word, and `verify` finds nothing wrong but in `damaged/`. Every other start has no base model but the one
that is kept in the state: if that is lost, each start tells of it. The older snapshot is not read while the newer one is whole.

A cut in the last block of the open segment cannot be told from what a crash leaves of a write that was never answered: there
the state up to the block before is right.
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

from onnx_builder.write import to_bytes
from sidecar.journal.blocks import Block
from sidecar.journal.retention import compress_closed
from sidecar.journal.segments import journal_segments, segment_parts
from sidecar.monitoring.history import History, write_history
from sidecar.online.start import where_to_start
from sidecar.online.training import OnlineTraining
from sidecar.state.anchor import write_anchor
from sidecar.state.base_models import kept_bases
from sidecar.state.damage import ASIDE
from sidecar.state.published_pairs import write_published_pairs
from sidecar.state.snapshots import snapshots
from sidecar.state.verify import check_state
from tests.small_states import BASE, Opened, open_as_serve_does, small_lines, small_settings

_HEADER_BYTES = 96
_LAST_RATE = 2e-4


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


class Bench:
    """A checkpoint directory with a state and a base model, and copies of it in which starts are tried.

    The state has a file of each kind, three segments (one gzipped) and two snapshots, both before the last block.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.state = directory / "checkpoints" / "state"
        self._base = directory / "base.onnx"
        self._base.write_bytes(to_bytes(BASE))
        self._make()
        self.open_segment = journal_segments(self.state)[-1]
        blocks = [part for part in segment_parts(self.open_segment) if isinstance(part, Block)]
        self.last_block = self.open_segment.read_bytes().index(b"#block %012d" % blocks[-1].position)
        self._stays = {snapshots(self.state)[-1][1].name, *(path.name for path in kept_bases(self.state))}
        copy = self._copy() / "state" / "journal" / self.open_segment.name
        self.whole = [self._open(with_base) for with_base in (False, True)]
        with copy.open("r+b") as stream:
            stream.truncate(self.last_block)
        self.without_last_block = [self._open(with_base) for with_base in (False, True)]
        for opened in (*self.whole, *self.without_last_block):
            assert not opened.told
        assert self.without_last_block[0].position < self.whole[0].position == 170

    def _make(self) -> None:
        lines, settings = small_lines(170), small_settings(self.state.parent, self._base)
        online = OnlineTraining(self.state, where_to_start(settings).run, BASE)
        online.accept(lines[:50])
        online.journal.roll()
        online.accept(lines[50:55])
        compress_closed(self.state, 0)
        online.accept(lines[55:100])
        online.journal.roll()
        online.accept(lines[100:120])
        _snapshot(online)
        write_anchor(self.state, online.learner.held_out.rows())
        write_published_pairs(self.state, 100)
        write_history(self.state, History(((1, b"[1,2,3,4,5,6,7,8,9]"), (11, b"[11,2,3,4,5,6,7,8,9]"))))
        online.close()
        online = OnlineTraining(self.state, where_to_start(replace(settings, learning_rate=_LAST_RATE)).run, BASE)
        online.accept(lines[120:150])
        _snapshot(online)
        online.accept(lines[150:])
        online.close()

    def _copy(self) -> Path:
        copy = self._directory / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.state.parent, copy)
        return copy

    def _open(self, with_base: bool) -> Opened:
        copy = self._directory / "copy"
        base = self._base if with_base else copy / "latest.onnx"  # of this directory: the state goes on without a word
        return open_as_serve_does(small_settings(copy, base, learning_rate=_LAST_RATE))

    def start(self, torn: bool, with_base: bool) -> str:
        """What is wrong with a start from the state as it is, empty if nothing is."""
        expected = (self.without_last_block if torn else self.whole)[with_base]
        copy = self._copy()
        try:
            first = self._open(with_base)
            again = self._open(with_base)
        except Exception as error:
            return f"does not start: {error!r}"
        if [*copy.glob("state.*")]:
            return "the state is moved aside"
        if first.digest != expected.digest and not first.told:
            return "silently another state"
        if again.digest != first.digest:
            return "the state changes with each start"
        found = [finding for finding in check_state(copy / "state") if finding.wrong and finding.path.parent.name != ASIDE]
        left = [finding for finding in found if finding.path.name not in self._stays]
        if again.told and not (found and not with_base):
            return "the second start tells of damage"
        return f"a start leaves {left}" if left else ""


def _snapshot(online: OnlineTraining) -> None:
    online.backlog.wait()
    write = online.snapshot()
    assert write is not None
    write()


def fuzz(
    directory: Path, inputs: int, seed: int = 1, every: int = 10, headers: bool = True, seconds: float = math.inf
) -> Result:
    """headers: begin with all bits of each file's header, whatever they count. seconds: after which it stops short."""
    until = time.monotonic() + seconds
    bench, result = Bench(directory), Result()
    state = bench.state
    whole = {str(path.relative_to(state)): path.read_bytes() for path in sorted(state.rglob("*")) if path.is_file()}
    del whole[".lock"]
    assert len(journal_segments(state)) == 3
    assert len(snapshots(state)) == 2
    assert not any(finding.wrong for finding in check_state(state))
    chance = random.Random(seed)
    damages = itertools.chain(_headers(whole) if headers else (), _random(whole, chance))
    for number, damage in enumerate(itertools.islice(damages, inputs)):
        if time.monotonic() > until:
            break
        result.inputs[damage.name] += 1
        path = state / damage.name
        data = damage.of(whole[damage.name])
        path.write_bytes(data)
        torn = damage.bit is None and path == bench.open_segment and damage.byte >= bench.last_block
        started = time.monotonic()
        try:
            if not torn and not any(finding.wrong for finding in check_state(state)):
                result.failures.append(f"{damage}: verify finds nothing")
        except Exception as error:
            result.failures.append(f"{damage}: verify: {error!r}")
        result.verify_s += time.monotonic() - started
        if number % every == 0 or (headers and damage.bit is not None and damage.byte < _HEADER_BYTES):
            started = time.monotonic()
            if wrong := bench.start(torn, with_base=bool(result.starts % 2)):
                result.failures.append(f"{damage}: {wrong}")
            result.starts += 1
            result.start_s += time.monotonic() - started
        path.write_bytes(whole[damage.name])
    return result


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
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--headers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--minutes", type=float, default=math.inf)
    arguments = parser.parse_args()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        seconds = 60 * arguments.minutes
        result = fuzz(Path(directory), arguments.inputs, arguments.seed, arguments.every, arguments.headers, seconds)
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
