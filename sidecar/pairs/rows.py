"""The rows of a table: the chosen columns, checked; what cannot be used is counted by reason, or stops the reading."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Float32
from sidecar.features.encoder_block import EncoderBlock, EncoderBlockError
from sidecar.features.names import name_of
from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.holdout import group_hash
from sidecar.pairs.pair import shown
from sidecar.pairs.tables.choice import Choice
from sidecar.pairs.tables.libvmaf import model_name
from sidecar.pairs.tables.table import Block, Labels, Table, listed, number_of_text

MISSING, WRONG, LEFT_OVER = "missing value", "wrong", "left over, too few for a window"
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class Rows(NamedTuple):
    """Checked rows: numbers (n,), features (n, k), scores (n,); group, job, label, model, codec: of each row."""

    numbers: NDArray[np.int64]
    features: Float32
    true_score: Float32
    group: Labels
    job: Labels
    label: Labels
    model: Labels
    codec: Labels


@dataclass
class Skipped:
    """The rows of a file that were not used: how many by reason, and the place and reason of the first of each."""

    name: str
    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, first: str, count: int = 1) -> None:
        self.counts[reason] += count
        self.first.setdefault(reason, first)

    def said(self) -> str:
        """One line."""
        reasons = "; ".join(f"{count:,} {reason}, the first: {self.first[reason]}" for reason, count in self.counts.items())
        return f"{self.name}: {self.counts.total():,} of {self.rows:,} rows skipped: {reasons}"


@dataclass(frozen=True)
class Limits:
    """What rows are checked against."""

    score_min: float
    score_max: float
    skip_bad: bool


def checked_rows(
    table: Table, choice: Choice, blocks: Iterator[Block], limits: Limits, skipped: Skipped, block: EncoderBlock | None
) -> Iterator[Rows]:
    """The rows of a table that can be used.

    Raises RecordedPairsError for a wrong row, naming file, row, column, value and what is allowed, unless it may be skipped.
    """
    for each in blocks:
        yield _checked(table, choice, each, limits, skipped, block)


def _checked(
    table: Table, choice: Choice, block: Block, limits: Limits, skipped: Skipped, encoder: EncoderBlock | None
) -> Rows:
    count = len(block.numbers)
    wrong = dict(block.wrong)
    texts = dict(zip(choice.wanted().texts, block.texts, strict=True))
    none = Labels.same("", count)
    if choice.label:
        label = Labels.joined([texts[each] for each in choice.label])
        for row in np.flatnonzero(np.array([not name for name in label.names])[label.codes]).tolist():
            wrong.setdefault(row, f"{'/'.join(choice.label)}: missing, but the pairs are to be grouped by it")
    else:
        label = none
    values, scores = block.values[:, :-1], block.values[:, -1]
    if choice.encode and encoder:
        values = _with_encode(choice, values, {each: texts[each] for each in choice.encode}, encoder, wrong)
    with np.errstate(over="ignore"):
        features = np.ascontiguousarray(values, dtype=np.float32)
    good = (scores >= limits.score_min) & (scores <= limits.score_max)
    missing = np.isnan(scores)
    if not np.isfinite(features).all():  # rare: whether a number is missing or too large is looked at then
        missing |= np.isnan(features).any(axis=1)
        good &= np.isfinite(features).all(axis=1)
    for row in np.flatnonzero(~missing & ~good).tolist():
        wrong.setdefault(row, _why(choice, values[row], float(scores[row]), limits))
    good[[*wrong]] = False
    skipped.rows += count
    for row in sorted(wrong):
        message = f"{table.where(int(block.numbers[row]), block.name)}: {wrong[row]}"
        if not limits.skip_bad:
            raise RecordedPairsError(message)
        skipped.add(WRONG, message)
    missing[[*wrong]] = False
    if missing.any():
        row = int(np.argmax(missing))
        gone = [_column(choice, place) for place in np.flatnonzero(np.isnan(values[row])).tolist()]
        gone += [choice.target] if math.isnan(scores[row]) else []
        first = f"{table.unit} {block.numbers[row]} ({listed(gone, 3)})"
        skipped.add(f"with a {MISSING}", first, int(missing.sum()))
    numbers = block.numbers
    if not good.all():
        rows = np.flatnonzero(good)
        numbers, features, scores = numbers[rows], features[rows], scores[rows]
        texts = {key: each.only(rows) for key, each in texts.items()}
        label, none = label.only(rows), none.only(rows)
    group = Labels.joined([texts[each] for each in choice.group]) if choice.group else none
    if table.group:
        group = Labels.same(table.group, len(features))
    job = texts.get(choice.job, none)
    if choice.model:
        names = [model_name(name) or name if name not in ("", "unknown") else "" for name in texts[choice.model].names]
        model = Labels(texts[choice.model].codes, names)
    else:
        model = Labels.same(table.target, len(features))
    codec = texts.get(choice.codec, Labels.same("", len(features)))
    return Rows(numbers, features, scores.astype(np.float32), group, job, label if choice.label else group, model, codec)


def _column(choice: Choice, place: int) -> str:
    return choice.features[place] if choice.features and not choice.encode else name_of(choice.names, place)


def _why(choice: Choice, values: NDArray[np.float64], score: float, limits: Limits) -> str:
    large = np.flatnonzero(~(np.abs(values) <= _FLOAT32_MAX))
    if len(large):
        return f"{_column(choice, int(large[0]))}: {values[large[0]]:g} does not fit float32; expected a finite number"
    allowed = f"{shown(limits.score_min)} to {shown(limits.score_max)}"
    return f"{choice.target}: {shown(score)} is outside {allowed}"


def _with_encode(
    choice: Choice, values: NDArray[np.float64], texts: dict[str, Labels], encoder: EncoderBlock, wrong: dict[int, str]
) -> NDArray[np.float64]:
    """The features with those of the encoder block, which are the same for all rows of an encode."""
    made = [name for name in choice.names if name in encoder.names]
    keys, codes = np.unique(np.stack([each.codes for each in texts.values()], axis=1), axis=0, return_inverse=True)
    table = np.full((len(keys), len(made)), np.nan)
    for row, key in enumerate(keys.tolist()):
        given: dict[str, Any] = {name: each.names[code] or None for (name, each), code in zip(texts.items(), key, strict=True)}
        try:
            crf = None if given.get("crf") is None else number_of_text("crf", given["crf"])
            found = encoder.numbers(given["encoder"], given.get("preset"), crf)
            table[row] = [found.get(name, math.nan) for name in made]
        except (EncoderBlockError, ValueError) as error:
            for place in np.flatnonzero(codes.reshape(-1) == row).tolist():
                wrong.setdefault(place, str(error))
    columns, places = iter(range(values.shape[1])), {name: place for place, name in enumerate(made)}
    block = table[codes.reshape(-1)]
    parts = [block[:, places[name]] if name in places else values[:, next(columns)] for name in choice.names]
    return np.stack(parts, axis=1)


def group_hashes(rows: Rows) -> NDArray[np.uint64]:
    """Of each row, (n,): of its group, else of its job, else of its features; see `group_hash`. Each name is hashed once."""
    hashes = np.array([group_hash(name, "", b"") if name else 0 for name in rows.group.names], dtype=np.uint64)
    found = hashes[rows.group.codes]
    without = np.flatnonzero(np.array([not name for name in rows.group.names])[rows.group.codes])
    if len(without):
        job = rows.job
        hashes = np.array([group_hash("", name, b"") if name else 0 for name in job.names], dtype=np.uint64)
        found[without] = hashes[job.codes[without]]
        nameless = np.array([not name for name in job.names])[job.codes[without]]
        for row in without[nameless].tolist():
            found[row] = group_hash("", "", rows.features[row].tobytes())
    return found


def windows(table: Table, blocks: Iterator[Block], count: int, skipped: Skipped) -> Iterator[Block]:
    """Means of each `count` rows of a log, or of all of them for 0; a window with a wrong or missing value has it too.

    Raises RecordedPairsError for a table that is no log.
    """
    if not table.group:
        raise RecordedPairsError(f"{table.name}: --window is for logs of libvmaf, whose rows are the frames of one encode")
    waiting: list[Block] = []
    size = 0
    for block in blocks:
        waiting.append(block)
        size += len(block.numbers)
        if count and size >= count:
            joined = _joined(waiting)
            whole = size // count * count
            yield _means(joined, whole, count)
            waiting, size = [_tail(joined, whole)], size - whole
    if not count and size:
        yield _means(_joined(waiting), size, size)
    elif size:
        left = _joined(waiting)
        skipped.rows += 1
        skipped.add(LEFT_OVER, f"{size} from {left.numbers[0]}")


def _joined(blocks: list[Block]) -> Block:
    wrong: dict[int, str] = {}
    start = 0
    for block in blocks:
        wrong |= {start + row: why for row, why in block.wrong.items()}
        start += len(block.numbers)
    numbers, values = (np.concatenate(part) for part in zip(*((each.numbers, each.values) for each in blocks), strict=True))
    return Block(blocks[0].name, numbers, values, [], wrong)


def _tail(block: Block, start: int) -> Block:
    wrong = {row - start: why for row, why in block.wrong.items() if row >= start}
    return Block(block.name, block.numbers[start:], block.values[start:], [], wrong)


def _means(block: Block, stop: int, count: int) -> Block:
    values = block.values[:stop].reshape(stop // count, count, -1).mean(axis=1)
    wrong = {row // count: f"{block.numbers[row]}: {why}" for row, why in reversed(block.wrong.items()) if row < stop}
    return Block(block.name, block.numbers[:stop:count], values, [], wrong)
