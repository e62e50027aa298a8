"""Pairs read by many workers: the sample of them all, with counts of what was read."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Float32
from sidecar.fleet.parts import Part, divide
from sidecar.fleet.sample import Bounds, Limits, Sample, Sampled, keys
from sidecar.fleet.shared import SharedArray
from sidecar.fleet.workers import Pieces, Workers
from sidecar.journal.segments import JournalError, SegmentGoneError
from sidecar.pairs import rows as checks
from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.holdout import HASHES, group_hash
from sidecar.pairs.recorded import LabelCodes, Reading, RecordedPairs, one_target, ungrouped
from sidecar.pairs.rows import Rows, group_hashes
from sidecar.pairs.tables.choice import Columns
from sidecar.pairs.tables.forms import open_segment, open_table
from sidecar.pairs.tables.table import Labels, Table

_log = logging.getLogger(__name__)
SCORE_BINS = 10
_CODECS = 1024
"""A codec is known by the hash of its name, one of so many: whatever nodes write there, strata stay few."""
_NAMED = 1 << 16
"""The names of at most so many encodes are kept: of those with the smallest hashes, which are the first to be held out."""


class Pod(NamedTuple):
    """What was read of a pod, and kept in the sample. name: its state directory, "" for all files.

    mean_score: of all that was read, in points, NaN if that is nothing.
    """

    name: str
    read: int
    kept: int
    mean_score: float

    def as_json(self) -> dict[str, Any]:
        mean = {"mean_score": self.mean_score} if self.read else {}
        return {"name": self.name or "files", "read": self.read, "kept": self.kept, **mean}


@dataclass(frozen=True)
class Read:
    """What `Sampling.read` gives.

    pairs: the sample, in the order of its keys; pod: (n,), of each pair an index into `pods`. read, kept: pairs by tenth of the
    score range, lowest first. parts: files and segments; left_out: those that are not in it, and why; seconds: how long it
    took; workers: who they were; features: of the pairs, with rows behind them that have no meaning.
    """

    pairs: RecordedPairs
    pod: NDArray[np.intp]
    pods: list[Pod]
    read: list[int]
    kept: list[int]
    parts: int
    left_out: list[str]
    seconds: float
    workers: str
    features: SharedArray

    def as_json(self) -> dict[str, Any]:
        """What was read and kept, in all and by score."""
        return {
            "read": sum(self.read),
            "kept": sum(self.kept),
            "by_score": [{"read": read, "kept": kept} for read, kept in zip(self.read, self.kept, strict=True)],
            "left_out": self.left_out,
        }


class Done(NamedTuple):
    """How far the reading is."""

    parts: int
    of_parts: int
    pairs: int
    pairs_per_second: float
    workers: int


@dataclass(frozen=True)
class Sampling:
    """Reading by workers. limits: of the sample; told: of progress, after each part."""

    workers: Workers
    limits: Limits
    told: Callable[[Done], object] = lambda done: None

    def read(
        self,
        paths: Sequence[str | Path],
        columns: Columns,
        *,
        score_min: float,
        score_max: float,
        skip_bad: bool,
        names: bool = False,
    ) -> Read:
        """The sample of all pairs that paths stand for; see `read_pairs` for the rest. The same pairs give the same.

        The features are those of the first part, by name. skip_bad: what is damaged is left out as a whole, and named. names:
        keep those of encodes, of held-out ones first.

        Raises RecordedPairsError or JournalError if a part cannot be read, a row is wrong, or there are no pairs at all;
        LostError if the workers are lost.
        """
        started = time.monotonic()
        wanted = ", ".join(map(str, paths))[:1000]
        parts, pods = divide(paths, self.workers)
        task = _Task(replace(columns, codec=True), checks.Limits(score_min, score_max, skip_bad), self.limits, names)
        for part in parts:
            ((_, settled),) = self.workers.run(_settle, [(task, part)])
            if settled is not None:
                task = settled
                break
        else:
            raise RecordedPairsError(f"{wanted}: no pairs")
        sample = Sample(task.width or 0, self.limits)
        merged = _Merged(sample, parts)
        for number, summary in self.workers.run(_read_part, ((task, part, sample.bounds) for part in parts)):
            merged.add(number, summary)
            seconds = time.monotonic() - started
            self.told(Done(merged.done, len(parts), merged.pairs, merged.pairs / seconds, self.workers.count))
        if not merged.pairs:
            found = "; ".join(["no pairs", *merged.left_out()[:4], *[each.said() for each in merged.skipped()[:4]]])
            raise RecordedPairsError(f"{wanted}: {found}")
        return merged.result(len(paths), pods, task.columns, time.monotonic() - started, self.workers.name)


class _Task(NamedTuple):
    """How parts are read. columns: with the features that all have; width: how many these are; names: as in `Sampling.read`."""

    columns: Columns
    checks: checks.Limits
    limits: Limits
    names: bool
    width: int | None = None

    def opened(self, part: Part) -> AbstractContextManager[Table]:
        return open_table(part.name, part.piece) if part.span is None else open_segment(part.span)

    @contextlib.contextmanager
    def damage_told(self, left_out: Callable[[str], object]) -> Iterator[None]:
        """What cannot be read ends the reading, or is left out where that is wanted; what was deleted is left out."""
        try:
            yield
        except SegmentGoneError as error:
            left_out(f"{error}: deleted since the reading began")
        except (RecordedPairsError, JournalError) as error:
            if not self.checks.skip_bad:
                raise
            left_out(str(error))


@dataclass
class _Summary:
    """What a part holds.

    sample: the pairs of it that may be in the sample of all, none if nothing of it can be used. score_sum: in 2**-20 points,
    exact to that. encodes: hash → name.
    """

    sample: Pieces[Sampled] = field(default_factory=Pieces)
    pairs: Counter[int] = field(default_factory=Counter)
    score_sum: int = 0
    ungrouped: int = 0
    labels: list[str] = field(default_factory=list)
    encodes: dict[int, str] = field(default_factory=dict)
    skipped: list[checks.Skipped] = field(default_factory=list)
    targets: dict[str, str] = field(default_factory=dict)
    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)
    feature_names: tuple[str, ...] = ()
    left_out: str = ""


def _settle(task: _Task, part: Part) -> _Task | None:
    """The task with the features that a part has; None if there is none in it."""
    reading = Reading(task.columns, task.checks)
    with task.damage_told(lambda why: None), task.opened(part) as table:
        next(reading.rows(table), None)
    return task._replace(columns=reading.columns, width=reading.width) if reading.width else None


def _read_part(task: _Task, part: Part, bounds: Bounds) -> _Summary:
    assert task.width is not None
    reading, sample = Reading(task.columns, task.checks, task.width), Sample(task.width, task.limits, bounds)
    found, labels = _Summary(), LabelCodes()
    why: list[str] = []
    with task.damage_told(why.append), task.opened(part) as table:
        for rows in reading.rows(table):
            group, strata = group_hashes(rows), _strata(rows, part.pod, task.checks)
            label = labels.of(rows.label) if task.columns.label else np.zeros(len(group), np.int32)
            key = keys(rows.features, rows.true_score, group)
            sample.add(Sampled(rows.features, rows.true_score, key, group, strata, label))
            found.pairs.update(dict(zip(*(each.tolist() for each in np.unique(strata, return_counts=True)), strict=True)))
            found.score_sum += sum(map(int, np.rint(rows.true_score.astype(np.float64) * 2**20).tolist()))
            found.ungrouped += ungrouped(rows)
            if task.names:
                found.encodes |= {group_hash(name, "", b""): name for name in rows.group.names if name}
    if why:
        what = f" (left out: the piece of the file from row {part.piece.first} on)" if part.piece else ""
        return _Summary(left_out=why[0] + what)
    return replace(
        found, sample=Pieces(sample.rows().blocks()), labels=labels.names, encodes=_first(found.encodes),
        skipped=reading.skipped, targets=reading.targets, chosen=reading.chosen, feature_names=reading.feature_names,
    )  # fmt: skip


def _first(encodes: dict[int, str]) -> dict[int, str]:
    """Those with the smallest hashes, in their order."""
    return {each: encodes[each] for each in sorted(encodes)[:_NAMED]}


def _strata(rows: Rows, pod: int, limits: checks.Limits) -> NDArray[np.int64]:
    """The number of each row's stratum: pod, codec and tenth of the score range."""
    codec = np.array([_codec(name) for name in rows.codec.names], np.int64)[rows.codec.codes]
    return (pod * _CODECS + codec) * SCORE_BINS + _score_bins(rows.true_score, limits.score_min, limits.score_max)


def _score_bins(scores: Float32, low: float, high: float) -> NDArray[np.int64]:
    if not math.isfinite(high - low):
        return np.zeros(len(scores), np.int64)
    return np.clip(((scores.astype(np.float64) - low) / (high - low) * SCORE_BINS).astype(np.int64), 0, SCORE_BINS - 1)


def _codec(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % _CODECS if name else 0


class _Merged:
    """The summaries of parts, in whatever order they come."""

    def __init__(self, sample: Sample, parts: Sequence[Part]) -> None:
        self._sample, self._labels, self._parts = sample, LabelCodes(), parts
        self._summaries: list[_Summary] = [_Summary()] * len(parts)
        self._strata: Counter[int] = Counter()
        self._encodes: dict[int, str] = {}
        self.done = self.pairs = 0

    def add(self, number: int, summary: _Summary) -> None:
        for rows in summary.sample:
            if summary.labels:
                rows = rows._replace(label=self._labels.of(Labels(rows.label.astype(np.intp), summary.labels)))
            self._sample.add(rows)
        self._summaries[number] = replace(summary, sample=Pieces(), labels=[], encodes={})
        self._encodes |= summary.encodes
        if len(self._encodes) > 2 * _NAMED:
            self._encodes = _first(self._encodes)
        self._strata.update(summary.pairs)
        self.done += 1
        self.pairs += summary.pairs.total()

    def left_out(self) -> list[str]:
        return [each.left_out for each in self._summaries if each.left_out]

    def skipped(self) -> list[checks.Skipped]:
        """Of each file with rows that were, in all its parts."""
        found: dict[str, checks.Skipped] = {}
        for part, each in zip(self._parts, self._summaries, strict=True):
            of_file = found.setdefault(part.name, checks.Skipped(part.name))
            of_file.rows += each.pairs.total()
            for skipped in each.skipped:
                of_file.rows += skipped.counts.total()
                for reason, count in skipped.counts.items():
                    of_file.add(reason, skipped.first[reason], count)
        return [each for each in found.values() if each.counts]

    def result(self, n_paths: int, pods: Sequence[str], columns: Columns, seconds: float, workers: str) -> Read:
        """Raises RecordedPairsError if the scores are of different models."""
        rows = self._sample.rows()
        pod = (rows.stratum // (_CODECS * SCORE_BINS)).astype(np.intp)
        read, by_score, score_sums = np.zeros(len(pods), np.int64), np.zeros(SCORE_BINS, np.int64), [0] * len(pods)
        for stratum, count in self._strata.items():
            read[stratum // (_CODECS * SCORE_BINS)] += count
            by_score[stratum % SCORE_BINS] += count
        of_path = [0] * n_paths
        targets: dict[str, str] = {}
        chosen: dict[str, dict[str, Any]] = {}
        files: dict[str, set[str]] = {}
        for part, each in zip(self._parts, self._summaries, strict=True):
            of_path[part.path] += each.pairs.total()
            score_sums[part.pod] += each.score_sum
            for model, name in each.targets.items():
                targets.setdefault(model, name)
            for key, about in each.chosen.items():
                chosen.setdefault(key, about)
                files.setdefault(key, set()).add(part.name)
        skipped = self.skipped()
        group, names = self._sorted_labels(rows.label) if columns.label else self._named(rows.group)
        pairs = RecordedPairs(
            rows.features,
            rows.true_score,
            rows.group / HASHES,
            group,
            names,
            sum(each.counts.total() for each in skipped),
            next((first for each in skipped for first in each.first.values()), ""),
            file_pairs=of_path,
            feature_names=next((each.feature_names for each in self._summaries if each.feature_names), ()),
            target=one_target(targets, columns),
            ungrouped=sum(each.ungrouped for each in self._summaries),
            skips=[each.said() for each in skipped],
            chosen=[{**about, "files": len(files[key])} for key, about in chosen.items()],
            notes=self.left_out(),
        )
        kept = np.bincount(pod, minlength=len(pods)).tolist()
        means = [total / 2**20 / count if count else math.nan for total, count in zip(score_sums, read.tolist(), strict=True)]
        of_pods = [Pod(*each) for each in zip(pods, read.tolist(), kept, means, strict=True)]
        by_score_kept = np.bincount(rows.stratum % SCORE_BINS, minlength=SCORE_BINS).tolist()
        return Read(
            pairs, pod, of_pods, by_score.tolist(), by_score_kept, len(self._parts), self.left_out(), seconds, workers,
            self._sample.shared_features(),
        )  # fmt: skip

    def _named(self, group: NDArray[np.uint64]) -> tuple[NDArray[np.int32] | None, list[str]]:
        """Encodes numbered by hash, "" for those without a known name; None if none has one."""
        if not (encodes := _first(self._encodes)):
            return None, []
        hashes = np.array([*encodes], np.uint64)
        place = np.minimum(np.searchsorted(hashes, group), len(hashes) - 1)
        return np.where(hashes[place] == group, place + 1, 0).astype(np.int32), ["", *encodes.values()]

    def _sorted_labels(self, label: NDArray[np.int32]) -> tuple[NDArray[np.int32], list[str]]:
        """Labels numbered by name, those of the sample alone."""
        names = self._labels.names
        present = sorted(np.unique(label).tolist(), key=lambda code: names[code])
        numbers = np.zeros(len(names), np.int32)
        numbers[present] = np.arange(len(present))
        return numbers[label], [names[code] for code in present]
