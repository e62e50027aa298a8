"""Recorded pairs, read by streaming from tables of any form, and joined into arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Float32
from sidecar.features.encoder_block import EncoderBlock
from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.holdout import HASHES
from sidecar.pairs.pair import PairBlock
from sidecar.pairs.rows import Limits, Rows, Skipped, checked_rows, group_hashes, windows
from sidecar.pairs.tables.choice import Choice, Columns, choose
from sidecar.pairs.tables.forms import open_table
from sidecar.pairs.tables.source import expand
from sidecar.pairs.tables.table import Block, Labels, Table, listed


@dataclass
class RecordedPairs:
    """Pairs as arrays, in the order recorded.

    features: (n, n_features) float32; true_score: (n,) float32; position: (n,) float64 in [0, 1), see `holdout_position`;
    group: (n,) int32, an index into group_names, if `group_by` was asked for, or else names: then of its encode, "" where none
    is known; job: the job_id of each pair or "", if names were asked for; file_pairs: how many came from each path;
    feature_names: in order, empty if they are not known; target: the model whose scores these are, where the files name one,
    else ""; ungrouped: how many pairs have no group, by which the hold-out keeps pairs of an encode together. skipped: how many
    rows were; skips: for each file with such rows, a line with their number by reason; chosen: which columns were taken as
    what, in how many files; notes: what else to tell.
    """

    features: Float32
    true_score: Float32
    position: NDArray[np.float64]
    group: NDArray[np.int32] | None = None
    group_names: list[str] = field(default_factory=list)
    skipped: int = 0
    first_skipped: str = ""
    job: list[str] = field(default_factory=list)
    file_pairs: list[int] = field(default_factory=list)
    feature_names: tuple[str, ...] = ()
    target: str = ""
    ungrouped: int = 0
    skips: list[str] = field(default_factory=list)
    chosen: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.true_score)

    def only(self, rows: NDArray[np.intp]) -> RecordedPairs:
        """Some of the pairs, by their rows in ascending order; groups that have none left are gone."""
        starts = np.cumsum([0, *self.file_pairs])
        group, names = self.group, self.group_names
        if group is not None:
            left, index = np.unique(group[rows], return_inverse=True)
            group, names = index.astype(np.int32), [names[each] for each in left]
        return replace(
            self,
            features=self.features[rows],
            true_score=self.true_score[rows],
            position=self.position[rows],
            group=group,
            group_names=names,
            job=[self.job[row] for row in rows] if self.job else [],
            file_pairs=np.diff(np.searchsorted(rows, starts)).tolist(),
        )

    def block(self, start: int, stop: int) -> PairBlock:
        """The pairs from `start` up to `stop`, as a learner takes them."""
        return PairBlock(self.features[start:stop], self.true_score[start:stop], self.position[start:stop].tolist())


def read_pairs(
    paths: Sequence[str | Path],
    *,
    features: Sequence[str] = (),
    target: str | None = None,
    group: str | None = None,
    job: str | None = None,
    window: int | None = None,
    any_target: bool = False,
    block: EncoderBlock | None = None,
    score_min: float = 0.0,
    score_max: float = 100.0,
    group_by: str | None = None,
    skip_bad: bool = False,
    names: bool = False,
) -> RecordedPairs:
    """All pairs in the given files, in order; "-" is JSON lines on standard input.

    >>> pairs = read_pairs(["examples/recorded-80.jsonl.gz"], group_by="codec")
    >>> pairs.features.shape, pairs.true_score.shape
    ((2496, 80), (2496,))
    >>> pairs.group_names
    ['libx264', 'libvpx-vp9', 'libsvtav1', 'libx265']

    A path is a file of any of the forms in docs/training.md, a state directory, a directory of files, or a glob.

    features: their names in order, by default those in the first file; every file must have them, in any order, or as many
    where they have no names. target, group, job: columns that are not called as usual. window: how many frames of a libvmaf log
    become one pair, their mean; 0 is all of them. any_target: take scores of different models together. block: how the features
    with its names are made from columns encoder, preset and crf. Every score must be from score_min to score_max. group_by: a
    column that every pair must then have. skip_bad: count wrong rows instead of stopping at the first. names: keep those of
    jobs and encodes.

    Raises RecordedPairsError if a file cannot be read, a row is wrong, or there are no pairs at all.
    """
    columns = Columns(tuple(features), target, group, job, group_by, window, any_target, block)
    return read_columns(paths, columns, score_min=score_min, score_max=score_max, skip_bad=skip_bad, names=names)


def read_columns(
    paths: Sequence[str | Path], columns: Columns, *, score_min: float, score_max: float, skip_bad: bool, names: bool = False
) -> RecordedPairs:
    """`read_pairs`, with the columns as one value."""
    return _Collected(Reading(columns, Limits(score_min, score_max, skip_bad)), names).of(paths)


def require_target(pairs: RecordedPairs, target: str, columns: Columns) -> None:
    """Raises RecordedPairsError if the scores are of another model than `target`, as far as both are known."""
    if pairs.target and target and pairs.target != target and not columns.any_target:
        raise RecordedPairsError(
            f"scores of {pairs.target}, but the base model predicts {target}; --any-target trains it on them all the same"
        )


class _Growing:
    """An array that grows by a 32nd, in place if the allocator can, so that 1 GB of pairs needs little more memory."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._array: NDArray[Any] = np.empty(0, dtype=dtype)
        self.count = 0

    def append(self, block: NDArray[Any]) -> None:
        needed = self.count + len(block)
        if self._array.shape[1:] != block.shape[1:]:
            self._array = np.empty((0, *block.shape[1:]), dtype=self._array.dtype)
        if needed > len(self._array):
            self._array.resize((max(needed, len(self._array) * 33 // 32), *block.shape[1:]), refcheck=False)
        self._array[self.count : needed] = block
        self.count = needed

    def array(self) -> NDArray[Any]:
        self._array.resize((self.count, *self._array.shape[1:]), refcheck=False)
        return self._array


class Reading:
    """Reads tables of one kind: with the same features, and scores of one model.

    columns: with the features of the first table, once that is known. width: how many these are, None before. feature_names:
    as in `RecordedPairs`; targets: each model whose scores there are, and the first file with such; chosen, notes: see there;
    skipped: of each file with rows that were.
    """

    def __init__(self, columns: Columns, limits: Limits, width: int | None = None) -> None:
        self.columns, self.width = columns, width
        self._limits = limits
        self.feature_names: tuple[str, ...] = ()
        self.targets: dict[str, str] = {}
        self.chosen: dict[str, dict[str, Any]] = {}
        self.notes: list[str] = []
        self.skipped: list[Skipped] = []

    def rows(self, table: Table) -> Iterator[Rows]:
        """The rows of a table that can be used. Raises RecordedPairsError if it is of another kind, or one is wrong."""
        if not table.columns and table.width is None:
            return
        choice = choose(table, self.columns)
        blocks = table.read(choice.wanted())
        if choice.by_default:
            choice, blocks = self._without_empty(table, choice, blocks)
        self._check_width(table, len(choice.names) or table.width or 0)
        if choice.names:
            self.columns = replace(self.columns, features=self.columns.features or choice.names)
            self.feature_names = self.feature_names or choice.names
        skipped = Skipped(table.name)
        if self.columns.window is not None:
            blocks = windows(table, blocks, self.columns.window, skipped)
        about = choice.as_json() | ({"group": "the file"} if table.group else {})
        if self.columns.window is not None:
            about["window"] = self.columns.window
        self.chosen.setdefault(repr(about), {**about, "files": 0})["files"] += 1
        for rows in checked_rows(table, choice, blocks, self._limits, skipped, self.columns.block):
            for code in np.unique(rows.model.codes).tolist():
                if name := rows.model.names[code]:
                    self.targets.setdefault(name, table.name)
            yield rows
        if skipped.counts:
            self.skipped.append(skipped)

    def _check_width(self, table: Table, width: int) -> None:
        if not width:
            raise RecordedPairsError(f"{table.where(1)}: features: expected at least one number, got 0")
        if self.width is not None and width != self.width:
            raise RecordedPairsError(f"{table.name}: features: expected {self.width} numbers, got {width}")
        self.width = width

    def _without_empty(self, table: Table, choice: Choice, blocks: Iterator[Block]) -> tuple[Choice, Iterator[Block]]:
        """Without the features that have no value in the first rows: nobody asked for them, and no row could be used."""
        first = next(blocks, None)
        if first is None:
            return choice, iter(())
        sound = np.ones(len(first.numbers), dtype=np.bool_)
        sound[[*first.wrong]] = False
        empty = np.isnan(first.values[sound, :-1]).all(axis=0)
        blocks = chain([first], blocks)
        if not sound.any() or not empty.any():
            return choice, blocks
        if empty.all():
            missing = f"every feature is missing in every row: {listed(choice.features)}"
            raise RecordedPairsError(f"{table.name}: {missing}")
        kept = np.flatnonzero(~empty)
        gone = [choice.features[place] for place in np.flatnonzero(empty)]
        self.notes.append(f"{table.name}: left out, as no row has a value: {listed(gone)}")
        columns = np.append(kept, len(choice.features))
        features, names = (tuple(each[place] for place in kept) for each in (choice.features, choice.names))
        return replace(choice, features=features, names=names), (
            each._replace(values=each.values[:, columns]) for each in blocks
        )


def one_target(targets: dict[str, str], columns: Columns) -> str:
    """The model whose scores were read, "" if none is known. Raises RecordedPairsError if there are several."""
    if len(targets) > 1 and not columns.any_target:
        found = ", ".join(f"{model} ({name})" for model, name in [*targets.items()][:4])
        raise RecordedPairsError(f"scores of different models: {found}; --any-target takes them together")
    return next(iter(targets)) if len(targets) == 1 else ""


def ungrouped(rows: Rows) -> int:
    """How many rows have no group."""
    empty = np.array([not name for name in rows.group.names], dtype=np.bool_)
    return int(empty[rows.group.codes].sum())


class LabelCodes:
    """The names of labels, numbered as they come. names: in that order."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        return [*self._numbers]

    def of(self, labels: Labels) -> NDArray[np.int32]:
        """The number of each row's label, (n,)."""
        used, first = np.unique(labels.codes, return_index=True)
        places = np.zeros(len(labels.names), dtype=np.int32)
        for code in used[np.argsort(first)].tolist():
            places[code] = self._numbers.setdefault(labels.names[code], len(self._numbers))
        return places[labels.codes]


class _Collected:
    """All pairs of all files, in order."""

    def __init__(self, reading: Reading, names: bool) -> None:
        self._reading, self._names = reading, names
        self._features, self._true_score = _Growing(np.float32), _Growing(np.float32)
        self._position, self._group = _Growing(np.float64), _Growing(np.int32)
        self._labels = LabelCodes()
        self._job: list[str] = []
        self._ungrouped = 0

    def of(self, paths: Sequence[str | Path]) -> RecordedPairs:
        file_pairs = []
        for path in paths:
            before = self._features.count
            for name in expand(str(path)):
                with open_table(name) as table:
                    for rows in self._reading.rows(table):
                        self._add(rows)
            file_pairs.append(self._features.count - before)
        reading = self._reading
        skips = [each.said() for each in reading.skipped]
        if not self._features.count:
            found = "; ".join(["no pairs", *skips[:4]])
            raise RecordedPairsError(f"{', '.join(map(str, paths))[:1000]}: {found}")
        target = one_target(reading.targets, reading.columns)
        has_groups = reading.columns.label is not None or any(self._labels.names)
        return RecordedPairs(
            self._features.array(),
            self._true_score.array(),
            self._position.array(),
            self._group.array() if has_groups else None,
            self._labels.names if has_groups else [],
            sum(each.counts.total() for each in reading.skipped),
            next((first for each in reading.skipped for first in each.first.values()), ""),
            self._job,
            file_pairs,
            reading.feature_names,
            target,
            self._ungrouped,
            skips,
            [*reading.chosen.values()],
            reading.notes,
        )

    def _add(self, rows: Rows) -> None:
        self._features.append(rows.features)
        self._true_score.append(rows.true_score)
        self._position.append(group_hashes(rows) / HASHES)
        self._ungrouped += ungrouped(rows)
        if self._names:
            self._job += rows.job.texts()
        if self._names or self._reading.columns.label is not None:
            self._group.append(self._labels.of(rows.label))


def said(chosen: dict[str, Any]) -> str:
    """What was chosen, in a line."""
    features = chosen["features"]
    taken = "the array" if features == "array" else f"{len(features)} columns: {listed(features, 8)}"
    words = [f"features: {taken}", f"score: {chosen['true_score']}", f"group: {chosen.get('group', 'none')}"]
    if "job_id" in chosen:
        words.append(f"job: {chosen['job_id']}")
    if "window" in chosen:
        words.append(f"window: {chosen['window'] or 'the whole file'}")
    return "; ".join(words) + (f" ({chosen['files']:,} files)" if chosen["files"] > 1 else "")
