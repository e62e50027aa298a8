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
from sidecar.pairs.pair import PairBlock
from sidecar.pairs.rows import Limits, Rows, Skipped, checked_rows, positions, windows
from sidecar.pairs.tables.choice import Choice, Columns, choose
from sidecar.pairs.tables.forms import open_table
from sidecar.pairs.tables.source import expand
from sidecar.pairs.tables.table import Block, Table, listed


@dataclass
class RecordedPairs:
    """Pairs as arrays, in the order recorded.

    features: (n, n_features) float32; true_score: (n,) float32; position: (n,) float64 in [0, 1), see
    `holdout_position`; group: (n,) int32, an index into group_names, if `group_by` was asked for; job: the job_id of each pair
    or "", if names were asked for; file_pairs: how many came from each path; feature_names: in order, empty if they are not
    known; target: the model whose scores these are, where the files name one, else ""; ungrouped: how many pairs have no group,
    by which the hold-out keeps pairs of an encode together. skipped: how many rows were; skips: for each file with such rows, a
    line with their number by reason; chosen: which columns were taken as what, in how many files; notes: what else to tell.
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
    column that every pair must then have. skip_bad: count wrong rows instead of stopping at the first. names: keep the job_ids.

    Raises RecordedPairsError if a file cannot be read, a row is wrong, or there are no pairs at all.
    """
    columns = Columns(tuple(features), target, group, job, group_by, window, any_target, block)
    return read_columns(paths, columns, score_min=score_min, score_max=score_max, skip_bad=skip_bad, names=names)


def read_columns(
    paths: Sequence[str | Path], columns: Columns, *, score_min: float, score_max: float, skip_bad: bool, names: bool = False
) -> RecordedPairs:
    """`read_pairs`, with the columns as one value."""
    return _Reading(columns, Limits(score_min, score_max, skip_bad), names).of(paths)


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

    @property
    def width(self) -> int | None:
        """Of its rows, None before the first."""
        return self._array.shape[1] if self._array.ndim > 1 else None

    def array(self) -> NDArray[Any]:
        self._array.resize((self.count, *self._array.shape[1:]), refcheck=False)
        return self._array


class _Reading:
    """What is collected from all files."""

    def __init__(self, columns: Columns, limits: Limits, names: bool) -> None:
        self._columns, self._limits, self._names = columns, limits, names
        self._features, self._true_score = _Growing(np.float32), _Growing(np.float32)
        self._position, self._group = _Growing(np.float64), _Growing(np.int32)
        self._group_names: dict[str, int] = {}
        self._job: list[str] = []
        self._feature_names: tuple[str, ...] = ()
        self._targets: dict[str, str] = {}  # each model, and the first file with scores of it
        self._chosen: dict[str, dict[str, Any]] = {}
        self._notes: list[str] = []
        self._skipped: list[Skipped] = []
        self._ungrouped = 0

    def of(self, paths: Sequence[str | Path]) -> RecordedPairs:
        file_pairs = []
        for path in paths:
            before = self._features.count
            for name in expand(str(path)):
                with open_table(name) as table:
                    if table.columns or table.width is not None:
                        self._read(table)
            file_pairs.append(self._features.count - before)
        skips = [each.said() for each in self._skipped]
        if not self._features.count:
            found = "; ".join(["no pairs", *skips[:4]])
            raise RecordedPairsError(f"{', '.join(map(str, paths))[:1000]}: {found}")
        if len(self._targets) > 1 and not self._columns.any_target:
            found = ", ".join(f"{model} ({name})" for model, name in [*self._targets.items()][:4])
            raise RecordedPairsError(f"scores of different models: {found}; --any-target takes them together")
        return RecordedPairs(
            self._features.array(),
            self._true_score.array(),
            self._position.array(),
            self._group.array() if self._columns.label is not None else None,
            list(self._group_names),
            sum(each.counts.total() for each in self._skipped),
            next((first for each in self._skipped for first in each.first.values()), ""),
            self._job,
            file_pairs,
            self._feature_names,
            next(iter(self._targets)) if len(self._targets) == 1 else "",
            self._ungrouped,
            skips,
            [*self._chosen.values()],
            self._notes,
        )

    def _read(self, table: Table) -> None:
        choice = choose(table, self._columns)
        blocks = table.read(choice.wanted())
        if choice.by_default:
            choice, blocks = self._without_empty(table, choice, blocks)
        width = len(choice.names) or table.width or 0
        self._check_width(table, width)
        if choice.names:
            self._columns = replace(self._columns, features=self._columns.features or choice.names)
            self._feature_names = self._feature_names or choice.names
        skipped = Skipped(table.name)
        if self._columns.window is not None:
            blocks = windows(table, blocks, self._columns.window, skipped)
        about = choice.as_json() | ({"group": "the file"} if table.group else {})
        if self._columns.window is not None:
            about["window"] = self._columns.window
        self._chosen.setdefault(repr(about), {**about, "files": 0})["files"] += 1
        for rows in checked_rows(table, choice, blocks, self._limits, skipped, self._columns.block):
            self._add(table, choice, rows)
        if skipped.counts:
            self._skipped.append(skipped)

    def _check_width(self, table: Table, width: int) -> None:
        known = self._features.width
        if not width:
            raise RecordedPairsError(f"{table.where(1)}: features: expected at least one number, got 0")
        if known is not None and width != known:
            raise RecordedPairsError(f"{table.name}: features: expected {known} numbers, got {width}")

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
        self._notes.append(f"{table.name}: left out, as no row has a value: {listed(gone)}")
        columns = np.append(kept, len(choice.features))
        features, names = (tuple(each[place] for place in kept) for each in (choice.features, choice.names))
        return replace(choice, features=features, names=names), (
            each._replace(values=each.values[:, columns]) for each in blocks
        )

    def _add(self, table: Table, choice: Choice, rows: Rows) -> None:
        self._features.append(rows.features)
        self._true_score.append(rows.true_score)
        self._position.append(positions(rows.group, rows.job, rows.features))
        empty = np.array([not name for name in rows.group.names], dtype=np.bool_)
        self._ungrouped += int(empty[rows.group.codes].sum())
        if self._names:
            self._job += rows.job.texts()
        if self._columns.label is not None:
            label = rows.label if choice.label else rows.group
            used = np.unique(label.codes)
            places = np.zeros(len(label.names), dtype=np.int32)
            for code in sorted(used.tolist(), key=lambda code: int(np.argmax(label.codes == code))):
                places[code] = self._group_names.setdefault(label.names[code], len(self._group_names))
            self._group.append(places[label.codes])
        for code in np.unique(rows.model.codes).tolist():
            if name := rows.model.names[code]:
                self._targets.setdefault(name, table.name)


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
