"""Random and mutated request lines against the protocol, the journal and the learner, without a socket. Run by hand:

    python -m tests.fuzz.fuzz_wire --inputs 1000000 [--seed 1] [--failures DIRECTORY]

Lines arrive in pieces of any size. Each that is not blank is answered once, in order, with JSON that has no null, and is taken
exactly if Python's own JSON reader and the contract say that it is a pair. A refused line changes neither journal nor learner.
What was taken can be decoded anywhere, and a restart makes the same learner of it, bit for bit. Memory is bounded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import resource
import struct
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onnx_builder import Activation, Dense, Network
from sidecar.journal.blocks import encode_blocks
from sidecar.journal.run import Run
from sidecar.journal.segments import read_journal
from sidecar.learning.training_settings import TrainingSettings
from sidecar.online.training import OnlineTraining
from sidecar.pairs.duplicates import RECENT_PAIRS
from sidecar.pairs.line_protocol import LineBuffer, LineTooLongError, encode
from sidecar.pairs.request import MAX_DEPTH, MAX_LINE_BYTES, MAX_NAME_CHARACTERS, decode_request
from sidecar.state.base_models import digest_of
from tests.fuzz.fuzz_read import bound_memory

N_FEATURES = 5
MEGABYTES = 300
SECONDS = 10.0
"""CPU time that some dozens of lines may take, a fresh head's fit included."""
ANSWER_BYTES = 1 << 16
"""A client takes no longer answer."""
SETTINGS = TrainingSettings(hidden=4, replay_capacity=300, batch_size=8, steps_per_batch=2)


def base_model() -> Network:
    numbers = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return numbers.normal(size=shape).astype(np.float32)

    return Network(N_FEATURES, (Dense(normal(4, N_FEATURES), normal(4)), Activation("relu"), Dense(normal(1, 4), normal(1))))


# Inputs.


def _nested(levels: int) -> Any:
    return {"a": [_nested(levels - 2)]} if levels > 1 else [1] * levels


_TOKENS = [
    b"NaN", b"Infinity", b"-Infinity", b"null", b"true", b"false", b"-0", b"0e0", b"-", b"+1", b"01", b".5", b"1.", b"0x1",
    b"1_0", b"1e39", b"-1e39", b"1e400", b"1e-400", b"1e-46", b"3.4028234663852886e38", b"3.4028235677973366e38", b"1E+2",
    b"1e99999999", b"9223372036854775807", b"18446744073709551616", b"9" * 400, b"-" + b"9" * 5000, b"0." + b"3" * 400,
    b"100.00000001", b"-1e-320", b"[]", b"{}", b"[1]", b'{"a":[null]}', b"[" * 70 + b"]" * 70,
    b'{"":' * 40 + b"0" + b"}" * 40, b"[" * 2000, b"[" * 800 + b"]" * 800, b"]", b"}", b"{", b"[", b'""', b'"1"',
    b'"' + b"x" * 257 + b'"', b'"' + b"y" * 256 + b'"', rb'"\ud83d\udca5"', rb'"\ud800"', rb'"\udca5\ud83d"', rb'"\u0000"',
    b'"', b"\\", b",", b":", b"\r", b"\n", b"\n\n", b"\x00", b"\x0b", b"\x0c", b" ", b"\t", b"\x1f", b"\x7f", b"/*", b"#",
    b"#gone\n", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xf0\x9f\x92\xa5", b"\xc3", b"\xe2\x80\xa8", b"\xc2\x85",
    b"\xf4\x90\x80\x80", b'"features":', b'"true_score":', b'"job_id":', b'"group":', b'"job_id":"twice",',
    b'"features":[1,2,3,4,5],', b'"true_score":7,',
]  # fmt: skip
_VALUES: list[Any] = [
    None, True, False, _nested(61), _nested(62), _nested(63), _nested(64), _nested(300), 0, -0.0, 1, 50, 1e38, -1e38, 1e39,
    10**39, 1e300, 10**400, 2**63, 1e-46, "", "1", "a", "é", "💥" * 256, "💥" * 257,
    "x" * 70_000, "\u2028", "\0", [], {}, [1], [[]],
    {"a": None}, [1, 2, 3, 4, 5], [1, 2, 3, 4], [0.5] * 6, ["1", 2, 3, 4, 5], [True, 2, 3, 4, 5],
]  # fmt: skip
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_ALPHABET = b'{}[]",:0123456789.eE+-\\ \t\r\n truefalsnul"features""true_score"job_idgroup\x00\xff\xc3\xa9'


def good_line(chance: random.Random, number: int) -> bytes:
    """A pair as producers send them: some without a name, most with one of their own."""
    pair: dict[str, Any] = {"features": [round(chance.gauss(0, 1), 4) for _ in range(N_FEATURES)]}
    pair["true_score"] = chance.choice([0, 100, 50.5, round(chance.uniform(0, 100), 3)])
    if chance.random() < 0.8:
        pair["job_id"] = f"j{number}"
    if chance.random() < 0.5:
        pair["group"] = f"g{number // 7}"
    if chance.random() < 0.2:
        pair["codec"] = chance.choice(["x264", {"name": "é", "crf": [18, None]}, None, 1e30])
    return json.dumps(pair, ensure_ascii=chance.random() < 0.5).encode()


def next_input(chance: random.Random, number: int, earlier: list[bytes]) -> bytes:
    """A good line, or one sent before, or one that was changed in one to four places, or bytes of any kind."""
    kind = chance.random()
    if kind < 0.15:
        return good_line(chance, number)
    if kind < 0.2 and earlier:
        return chance.choice(earlier)
    if kind < 0.25:
        return chance.randbytes(chance.choice([0, 1, 3, 20, 300]))
    if kind < 0.3:
        return bytes(chance.choices(_ALPHABET, k=chance.choice([1, 5, 40, 200])))
    line = good_line(chance, number)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        line = _changed(line, chance, earlier)
    return line


def _changed(line: bytes, chance: random.Random, earlier: list[bytes]) -> bytes:
    start, end = sorted(chance.randrange(len(line) + 1) for _ in range(2))
    match chance.randrange(11):
        case 0 if line:
            place = min(start, len(line) - 1)
            return line[:place] + bytes([line[place] ^ 1 << chance.randrange(8)]) + line[place + 1 :]
        case 1:
            return line[:start] + chance.randbytes(1) + line[start + 1 :]
        case 2:
            return line[:start]
        case 3:
            return line[:start] + line[min(end, start + chance.choice([1, 4, 1000])) :]
        case 4 if earlier:
            other = chance.choice(earlier)
            return line[:start] + other[chance.randrange(len(other) + 1) :]
        case 5:
            return line[:start] + chance.choice(_TOKENS) + line[start:]
        case 6 | 7 if numbers := list(_NUMBER.finditer(line)):
            number = chance.choice(numbers)
            return line[: number.start()] + chance.choice(_TOKENS) + line[number.end() :]
        case 8:
            return chance.choice([b" ", b"\t", b"\r", b"\xef\xbb\xbf"]) + line + chance.choice([b"\r", b" ", b"\x00", line])
        case _:
            return _changed_json(line, chance)


def _changed_json(line: bytes, chance: random.Random) -> bytes:
    """A line with one of its fields changed in what it means, and perhaps one that is there twice."""
    try:
        pair = json.loads(line)
        fields = list(pair.items())
    except (ValueError, AttributeError, RecursionError):
        return line
    if not fields:
        return line
    place = chance.randrange(len(fields))
    name, value = fields[place]
    match chance.randrange(5):
        case 0:
            del fields[place]
        case 1:
            fields[place] = name, chance.choice(_VALUES)
        case 2:
            fields.insert(
                place, (chance.choice(["features", "true_score", "job_id", "group", "x", ""]), chance.choice(_VALUES))
            )
        case 3 if isinstance(value, list) and value:
            value[chance.randrange(len(value))] = chance.choice(_VALUES)
        case _:
            chance.shuffle(fields)
    comma, colon = chance.choice([(b",", b":"), (b", ", b": "), (b" ,\t", b" :\r")])
    parts = [
        colon.join(json.dumps(each, ensure_ascii=chance.random() < 0.5).encode(errors="surrogatepass") for each in item)
        for item in fields
    ]
    return b"{" + comma.join(parts) + b"}"


# What is right.


class Taken(NamedTuple):
    """What a pair says: float32 features and score, and its job_id."""

    features: bytes
    true_score: bytes
    job_id: str


def pair_of(line: bytes) -> Taken | None:
    """The pair of a line as the contract has it, by another JSON reader than the sidecar's; None where it is none."""
    try:
        fields = json.loads(line.decode(), parse_constant=_no_constant, object_pairs_hook=_Fields)
        too_deep = _depth(fields) > MAX_DEPTH
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, _Fields) or too_deep:
        return None
    if b"\\u" in line and re.search("[\ud800-\udfff]", _all_text(fields)):
        return None
    last: dict[str, Any] = {"job_id": "", "group": ""}
    for name, value in fields:  # one that is there twice has to be of its type both times
        if name == "features":
            numbers = [each for _, each in value] if type(value) is _Fields else value  # an object names its numbers
            if type(numbers) is not list or any(type(each) not in (int, float) for each in numbers):
                return None
            if any(_as_float(each) is None for each in numbers):
                return None
        elif name == "true_score":
            if type(value) not in (int, float) or _as_float(value) is None:
                return None
        elif name in ("job_id", "group") and (type(value) is not str or len(value) > MAX_NAME_CHARACTERS):
            return None
        last[name] = value
    features, score = last.get("features"), last.get("true_score")
    if type(features) is not list or score is None or len(features) != N_FEATURES or not 0 <= score <= 100:
        return None
    try:
        packed = struct.pack(f"={N_FEATURES}f", *map(float, features))
    except OverflowError:
        return None
    return Taken(packed, struct.pack("=f", score), last["job_id"])


class _Fields(list[tuple[str, Any]]):
    """An object's fields, those with the same name too."""


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _as_float(value: float) -> float | None:
    """The number, None where it is not finite in float64."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) != float("inf") else None


def _depth(value: Any) -> int:
    if isinstance(value, _Fields):
        return 1 + max((_depth(each) for _, each in value), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _all_text(value: Any) -> str:
    if isinstance(value, _Fields):
        return "".join(name + _all_text(each) for name, each in value)
    if isinstance(value, list):
        return "".join(map(_all_text, value))
    return value if isinstance(value, str) else ""


def decode_deep_down(line: bytes, calls: int = 300) -> Any:
    """Decode a line as something that is called from far away would."""
    return decode_request(line) if not calls else decode_deep_down(line, calls - 1)


# The run.


@dataclass
class Result:
    """What came of it. failures: the bytes that led to it, and what was wrong."""

    inputs: int = 0
    lines: int = 0
    accepted: int = 0
    duplicates: int = 0
    refused: int = 0
    too_long: int = 0
    states_compared: int = 0
    restarts: int = 0
    slowest: float = 0.0  # CPU seconds of some dozens of lines
    slowest_input: bytes = b""
    failures: list[tuple[bytes, str]] = field(default_factory=list)


class WrongError(Exception):
    """A promise that was not kept."""


class Fuzz:
    """Feeds a state directory, and checks after each piece. fresh: begin without a base model."""

    def __init__(self, directory: Path, seed: int, fresh: bool) -> None:
        self.result = Result()
        self._directory, self._chance = directory, random.Random(seed)
        self._base = None if fresh else base_model()
        self._run = Run(N_FEATURES, SETTINGS, 0.05, digest_of(self._base) if self._base else None)
        self._online = self._open()
        self._buffer = LineBuffer()
        self._earlier: list[bytes] = []
        self._recent: dict[Taken, int] = {}
        self._written = hashlib.blake2b()

    def run(self, inputs: int, restarts: int) -> Result:
        restart_every = max(1, inputs // restarts)
        while self.result.inputs < inputs:
            before = self.result.inputs // restart_every
            data = self._some_bytes()
            start = time.process_time()
            try:
                self._send(data)
            except Exception as error:
                self.result.failures.append((data, "".join(traceback.format_exception(error)[-4:])))
                if len(self.result.failures) >= 20:
                    break
                self._online.close()  # what it was left with is not what is asked about
                self._online, self._buffer = self._open(), LineBuffer()
            seconds = time.process_time() - start
            if seconds > self.result.slowest:
                self.result.slowest, self.result.slowest_input = seconds, data
            if seconds > SECONDS:
                self.result.failures.append((data, f"took {seconds:.1f} s"))
            if self.result.inputs // restart_every > before:
                self._restart()
        self._restart()
        self._online.close()
        kept = hashlib.blake2b()
        for entry in read_journal(self._directory):
            kept.update(b"" if entry.line is None else entry.line + b"\n")
        if not self.result.failures and kept.digest() != self._written.digest():
            self.result.failures.append((b"", "the journal does not hold the lines that were taken, as they came"))
        return self.result

    def _open(self) -> OnlineTraining:
        return OnlineTraining(self._directory, self._run, self._base, "never")

    def _some_bytes(self) -> bytes:
        """Some dozens of inputs, each a line or more, and seldom a line that is too long."""
        chance, inputs = self._chance, []
        for _ in range(chance.choice([1, 1, 5, 40])):
            line = next_input(chance, self.result.inputs, self._earlier)
            self.result.inputs += 1
            if chance.random() < 0.0002:
                length = MAX_LINE_BYTES + chance.choice([-1000, 0, 1, 1000])
                line = line[:1] + b" " * (length - len(line)) + line[1:]
            inputs.append(line + b"\n" * chance.choice([1, 1, 1, 2]))
            if len(line) < 10_000:
                self._earlier.append(line)
        if len(self._earlier) > 2000:
            chance.shuffle(self._earlier)
            del self._earlier[1000:]
        return b"".join(inputs)

    def _send(self, data: bytes) -> None:
        wanted = [line for line in data.split(b"\n") if line.strip()]
        too_long = next((place for place, line in enumerate(data.split(b"\n")) if len(line) > MAX_LINE_BYTES), None)
        if too_long is not None:
            wanted = [line for line in data.split(b"\n")[:too_long] if line.strip()]
        got: list[bytes] = []
        try:
            for piece in self._pieces(data):
                self._buffer.feed(piece)
                lines = self._buffer.take(1 << 20) if self._buffer.has_line else []
                got += lines
                self._accept(lines)
                if self._buffer.size > MAX_LINE_BYTES:
                    raise WrongError("more than a line is kept")
        except LineTooLongError as error:
            if too_long is None:
                raise
            got += error.lines
            self._accept(error.lines)
            self.result.too_long += 1
            self._buffer = LineBuffer()
        else:
            if too_long is not None:
                raise WrongError("a line that is too long was taken")
            if self._buffer.size:
                raise WrongError("something is left of whole lines")
        if got != wanted:
            raise WrongError(f"{len(wanted)} lines came out as {len(got)} others")
        self.result.lines += len(got)

    def _pieces(self, data: bytes) -> list[bytes]:
        chance = self._chance
        size = chance.choice([len(data), len(data), 1 + len(data) // 7, 1 if len(data) < 2000 else 997])
        if chance.random() < 0.5:
            return [data[start : start + size] for start in range(0, len(data), size)]
        cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(6)))
        return [data[start:end] for start, end in pairwise([0, *cuts, len(data)])]

    def _accept(self, lines: list[bytes]) -> None:
        online, result = self._online, self.result
        compared = self._chance.random() < 0.02
        state = self._state() if compared else {}
        before = self._figures()
        answers = encode(online.accept(lines)).split(b"\n")
        online.backlog.wait()
        if answers.pop() != b"" or len(answers) != len(lines):
            raise WrongError(f"{len(lines)} lines have {len(answers)} answers")
        taken, kept = 0, list[bytes]()
        for line, answer in zip(lines, answers, strict=True):
            if self._check(line, answer, before[0] + taken):
                taken += 1
                kept.append(line)
                self._written.update(line + b"\n")
        after = self._figures()
        if after[:2] != (before[0] + taken, before[1] + taken):
            raise WrongError(f"positions {before[:2]} became {after[:2]}; {taken} pairs were taken")
        if not taken and after != before:
            raise WrongError(f"{before} became {after}, though nothing was taken")
        run = online.journal.last_run or b""  # which begins a segment
        expected = {len(encode_blocks(before[0], lines)) for lines in (kept, [run, *kept])} if kept else {0}
        if after[2] - before[2] not in expected:
            raise WrongError(f"the journal grew from {before[2]} to {after[2]} bytes; {taken} pairs were taken")
        if compared and not taken:
            result.states_compared += 1
            if not _same(state, self._state()):
                raise WrongError("the learner changed, though nothing was taken")

    def _check(self, line: bytes, answer: bytes, position: int) -> bool:
        """Check the answer to one line; gives whether that was journalled. position: the next one of the journal."""
        result, pair = self.result, pair_of(line)
        said = json.loads(answer.decode(), parse_constant=_no_constant)
        if type(said) is not dict or any(type(value) not in (bool, int, float, str) for value in said.values()):
            raise WrongError(f"{answer!r} is no answer")
        if len(answer) > ANSWER_BYTES:
            raise WrongError(f"an answer of {len(answer)} bytes")
        if said["ok"] is not (pair is not None):
            raise WrongError(f"{line[:300]!r} was answered with {answer[:300]!r}")
        if pair is None:
            if not said.keys() <= {"ok", "job_id", "error"} or not said["error"]:
                raise WrongError(f"{answer!r} is no refusal")
            result.refused += 1
            return False
        if not {"ok", "step", "trained"} <= said.keys() <= {"ok", "job_id", "step", "trained", "loss", "duplicate"}:
            raise WrongError(f"{answer!r} is no confirmation")
        if said.get("job_id", "") != pair.job_id:
            raise WrongError(f"{answer!r} is of another job than {line[:300]!r}")
        known = bool(pair.job_id) and self._recent.get(pair, -RECENT_PAIRS - 1) >= position - RECENT_PAIRS
        if said.get("duplicate", False) is not known:
            raise WrongError(f"{line[:300]!r} was answered with {answer!r}; duplicate: {known}")
        if known:
            result.duplicates += 1
            return False
        if pair.job_id:
            self._recent[pair] = position
            if len(self._recent) > 3 * RECENT_PAIRS:
                self._recent = {key: at for key, at in self._recent.items() if at >= position - RECENT_PAIRS}
        decoded = decode_deep_down(line)
        if struct.pack(f"={N_FEATURES}f", *decoded.features) != pair.features:
            raise WrongError(f"{line[:300]!r} was decoded as {decoded}")
        result.accepted += 1
        return True

    def _figures(self) -> tuple[int, int, int, int, int]:
        """What is cheap to compare: positions of journal and learner, the journal's bytes, steps, counts."""
        online = self._online
        path = self._directory / "journal"
        size = sum(each.stat().st_size for each in path.iterdir())
        if size != online.journal.disk_bytes:
            raise WrongError(f"the journal has {size} bytes and says {online.journal.disk_bytes}")
        return online.journal.position, online.learner.position, size, online.learner.trainer.step, online.counts.accepted

    def _state(self) -> dict[str, Any]:
        return self._online.learner.state()

    def _restart(self) -> None:
        """Close and open again, with or without a snapshot: the state is the same."""
        self.result.restarts += 1
        before, failed = self._state(), self._online.backlog.failed
        write = self._online.snapshot() if self._chance.random() < 0.5 else None
        if write:
            write()
        self._online.close()
        self._online = self._open()
        if not _same(before, self._state()) or failed != self._online.backlog.failed:
            self.result.failures.append((b"", f"a restart at position {self._online.journal.position} made another learner"))


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


def fuzz(directory: Path, inputs: int, seed: int, fresh: bool, restarts: int = 20) -> Result:
    """Send so many inputs to a sidecar's training in an empty directory; reproducible by the seed."""
    digits = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return Fuzz(directory, seed, fresh).run(inputs, restarts)
    finally:
        sys.set_int_max_str_digits(digits)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, help="half of them without a base model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="where to save inputs that fail")
    arguments = parser.parse_args()
    failed = False
    bound_memory(MEGABYTES)
    for fresh in (False, True):
        with tempfile.TemporaryDirectory() as directory:
            result = fuzz(Path(directory), arguments.inputs // 2, arguments.seed, fresh)
        for number, (data, message) in enumerate(result.failures):
            arguments.failures.mkdir(parents=True, exist_ok=True)
            path = arguments.failures / f"{arguments.seed}-{fresh:d}-{number}.lines"
            path.write_bytes(data)
            print(f"{path}: {message}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        print(f"{'a fresh head' if fresh else 'a base model'}: {result.inputs} inputs, {result.lines} lines:", end=" ")
        print(
            f"{result.accepted} accepted, {result.duplicates} duplicates, {result.refused} refused, {result.too_long} too long"
        )
        print(
            f"{len(result.failures)} failures; {result.restarts} restarts, {result.states_compared} states compared;", end=" "
        )
        print(f"slowest {result.slowest * 1000:.0f} ms, of {len(result.slowest_input)} bytes; peak memory {peak:.0f} MB")
        failed |= bool(result.failures)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
