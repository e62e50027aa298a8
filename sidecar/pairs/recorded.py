"""Recorded pairs, read by streaming: JSON lines, gzipped or not, numpy archives, CSV, standard input, a state directory.

Each format yields blocks of checked float32 rows, and `read_pairs` joins the blocks of several files. A bad row stops the
reading, with an error that names its file and line; with `skip_bad` it is counted instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from onnx_builder.network import Float32
from sidecar.pairs.errors import PairError, RecordedPairsError
from sidecar.pairs.formats import CsvRows, read_form
from sidecar.pairs.holdout import holdout_position
from sidecar.pairs.npz import Archive
from sidecar.pairs.pair import Pair, PairBlock, PairReader, check_score
from sidecar.pairs.request import Request, decode_request

_BLOCK_ROWS = 8192


@dataclass
class RecordedPairs:
    """Pairs as arrays, in the order recorded.

    features: (n, n_features) float32; true_score: (n,) float32; position: (n,) float64 in [0, 1), see
    `holdout_position`; group: (n,) int32, an index into group_names, if `group_by` was asked for; job: the job_id of each pair
    or "", if names were asked for; file_pairs: how many came from each path; feature_names: those in the header of the first
    CSV file.
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
    feature_names: list[str] = field(default_factory=list)

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


class _Block(NamedTuple):
    features: Float32
    true_score: Float32
    position: NDArray[np.float64]
    labels: list[str]
    jobs: list[str]


def read_pairs(
    paths: Sequence[str | Path],
    *,
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

    Every pair must have as many features as the first, and a score from score_min to score_max. group_by: a field that
    every pair must then have. skip_bad: count bad rows instead of stopping at the first. names: keep the job_ids.

    Raises RecordedPairsError if a file cannot be read, a row is bad, or there are no pairs at all.
    """
    checks = _Checks(score_min, score_max, group_by, skip_bad, names)
    features, true_score, position, group = _Growing(np.float32), _Growing(np.float32), _Growing(np.float64), _Growing(np.int32)
    group_names: dict[str, int] = {}
    job: list[str] = []
    file_pairs = []
    for path in paths:
        before = features.count
        for block in _read(str(path), checks):
            features.append(block.features)
            true_score.append(block.true_score)
            position.append(block.position)
            job += block.jobs
            if group_by is not None:
                indices = [group_names.setdefault(label, len(group_names)) for label in block.labels]
                group.append(np.array(indices, dtype=np.int32))
        file_pairs.append(features.count - before)
    if not features.count:
        found = f"all {checks.skipped} rows are bad; the first: {checks.first_skipped}" if checks.skipped else "no pairs"
        raise RecordedPairsError(f"{', '.join(map(str, paths))}: {found}")
    return RecordedPairs(
        features.array(),
        true_score.array(),
        position.array(),
        group.array() if group_by is not None else None,
        list(group_names),
        checks.skipped,
        checks.first_skipped,
        job,
        file_pairs,
        checks.feature_names,
    )


class _Checks:
    """What all rows are checked against, and what is counted; the first good row decides the number of features."""

    def __init__(self, score_min: float, score_max: float, group_by: str | None, skip_bad: bool, names: bool) -> None:
        self.score_min, self.score_max = score_min, score_max
        self.group_by, self.skip_bad, self.names = group_by, skip_bad, names
        self.feature_names: list[str] = []
        self.reader: PairReader | None = None
        self.skipped = 0
        self.first_skipped = ""

    def reader_for(self, n_features: int) -> PairReader:
        if self.reader is None:
            if not n_features:
                raise PairError("features: expected at least one number, got 0")
            self.reader = PairReader(n_features, self.score_min, self.score_max)
        return self.reader

    def bad(self, where: str, reason: object) -> None:
        message = f"{where}: {reason}"
        if not self.skip_bad:
            raise RecordedPairsError(message)
        self.first_skipped = self.first_skipped or message
        self.skipped += 1


class _Growing:
    """An array that grows by an eighth, in place if the allocator can, so that 1 GB of pairs needs little more memory."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._array: NDArray[Any] = np.empty(0, dtype=dtype)
        self.count = 0

    def append(self, block: NDArray[Any]) -> None:
        needed = self.count + len(block)
        if self._array.shape[1:] != block.shape[1:]:
            self._array = np.empty((0, *block.shape[1:]), dtype=self._array.dtype)
        if needed > len(self._array):
            self._array.resize((max(needed, len(self._array) * 9 // 8), *block.shape[1:]), refcheck=False)
        self._array[self.count : needed] = block
        self.count = needed

    def array(self) -> NDArray[Any]:
        self._array.resize((self.count, *self._array.shape[1:]), refcheck=False)
        return self._array


def _read(path: str, checks: _Checks) -> Iterator[_Block]:
    return read_form(
        path,
        json_lines=lambda lines: _read_json_lines(lines, checks),
        archive=lambda archive: _read_npz(path, archive, checks),
        table=lambda header, rows: _read_csv(path, header, rows, checks),
    )


class _Builder:
    """Collects checked pairs into blocks of float32 rows."""

    def __init__(self, checks: _Checks) -> None:
        self._checks = checks
        self._pairs: list[Pair] = []
        self._labels: list[str] = []
        self._jobs: list[str] = []

    def add(self, request: Request, label: str = "") -> None:
        """Raises PairError if the pair does not pass the checks; then nothing is added."""
        self._pairs.append(self._checks.reader_for(len(request.features)).check(request))
        self._labels.append(label)
        if self._checks.names:
            self._jobs.append(request.job_id or "")

    def full(self) -> bool:
        return len(self._labels) == _BLOCK_ROWS

    def take(self) -> Iterator[_Block]:
        """The block collected so far, if there is one."""
        if self._pairs:
            features, scores, holdout = PairBlock.of(self._pairs)
            yield _Block(features, scores, np.array(holdout), self._labels, self._jobs)
            self._pairs, self._labels, self._jobs = [], [], []


def _read_json_lines(lines: Iterable[tuple[str, int, bytes]], checks: _Checks) -> Iterator[_Block]:
    group_by = checks.group_by
    extra = group_by if group_by not in (None, *Request.__struct_fields__) else None
    kind = (
        msgspec.defstruct("LabelledRequest", [("label", Any, UNSET)], bases=(Request,), rename={"label": extra})
        if extra
        else Request
    )
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)
    builder = _Builder(checks)
    for name, number, line in lines:
        if not line or line.isspace():
            continue
        try:
            request = decode_request(line, decoder)
            builder.add(request, _label(request, "label" if extra else group_by, group_by) if group_by else "")
        except PairError as error:
            checks.bad(f"{name}: line {number}", error)
        if builder.full():
            yield from builder.take()
    yield from builder.take()


def _label(request: Any, attribute: str | None, group_by: str) -> str:
    value = getattr(request, attribute or "")
    if attribute == "group" and not value:
        value = request.job_id
    if value is UNSET:
        raise PairError(f"{group_by}: missing, but the pairs are to be grouped by it")
    if not isinstance(value, str | int | float):
        raise PairError(f"{group_by}: expected text or a number to group by, got {type(value).__name__}")
    return str(value)


def _read_csv(name: str, header: list[str], rows: CsvRows, checks: _Checks) -> Iterator[_Block]:
    if checks.group_by is not None:
        raise RecordedPairsError(f"{name}: CSV has only features and true_score, no field {checks.group_by!r} to group by")
    checks.feature_names = checks.feature_names or header[:-1]
    builder = _Builder(checks)
    for number, row in rows:
        try:
            builder.add(_request_of_cells(header, row))
        except PairError as error:
            checks.bad(f"{name}: line {number}", error)
        if builder.full():
            yield from builder.take()
    yield from builder.take()


def _request_of_cells(header: list[str], cells: list[str]) -> Request:
    if len(cells) != len(header):
        raise PairError(f"expected {len(header)} columns, got {len(cells)}")
    *features, true_score = (_number(column, text) for column, text in zip(header, cells, strict=True))
    return Request(features, true_score)


def _number(column: str, text: str) -> float:
    try:
        value = float(text) if "_" not in text else float("nan")
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise PairError(f"{column}: expected a finite number, got {text[:40]!r}")
    return value


def _read_npz(name: str, archive: Archive, checks: _Checks) -> Iterator[_Block]:
    features, scores = archive.features, archive.true_score
    keys = ["group", "job_id"] + ([checks.group_by] if checks.group_by else [])
    texts = {key: archive.member(key, 1, "U") for key in keys if key in archive.names}
    if checks.group_by and checks.group_by not in texts:
        raise RecordedPairsError(f"{name}: no array {checks.group_by!r} to group by")
    for start in range(0, features.shape[0], _BLOCK_ROWS):
        count = min(_BLOCK_ROWS, features.shape[0] - start)
        values, true = features.rows(start, count), scores.rows(start, count)
        with np.errstate(over="ignore"):
            packed = values.astype(np.float32)
        columns = {key: text.rows(start, count) for key, text in texts.items()}
        good = []
        for row in range(count):
            try:
                if checks.reader_for(features.shape[1]).n_features != features.shape[1]:
                    raise PairError(f"features: expected {checks.reader_for(0).n_features} numbers, got {features.shape[1]}")
                if not np.isfinite(packed[row]).all():
                    at = int(np.argmin(np.isfinite(packed[row])))
                    raise PairError(f"features[{at}]: {values[row, at]} is not a finite float32 number")
                check_score(float(true[row]), checks.score_min, checks.score_max)
                good.append(row)
            except PairError as error:
                checks.bad(f"{name}: row {start + row + 1}", error)
        empty = [""] * count
        groups, jobs = columns.get("group", empty), columns.get("job_id", empty)
        yield _Block(
            packed[good],
            true[good].astype(np.float32),
            np.array([holdout_position(str(groups[i]), str(jobs[i]), packed[i].tobytes()) for i in good], dtype=np.float64),
            [str(columns[checks.group_by][i]) for i in good] if checks.group_by else [],
            [str(jobs[i]) for i in good] if checks.names else [],
        )
