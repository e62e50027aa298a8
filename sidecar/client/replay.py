"""Sends recorded pairs to a running sidecar as a node would, and measures its answers."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sidecar.client.pipeline import Pipeline
from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.line_protocol import Answer
from sidecar.pairs.lines import Lines
from sidecar.pairs.request import MAX_LINE_BYTES
from sidecar.pairs.rows import Limits, Skipped, checked_rows, windows
from sidecar.pairs.tables.choice import Columns, choose
from sidecar.pairs.tables.forms import open_table
from sidecar.pairs.tables.source import expand
from sidecar.pairs.tables.table import Table


class ReplayError(Exception):
    """No sidecar at the socket, or the connection was lost; the message names the socket and counts the answered pairs."""


class RequestLine(NamedTuple):
    """One request line, without its newline, and where it was read; numbers begin at 1."""

    name: str
    number: int
    line: bytes
    unit: str = "line"

    def where(self) -> str:
        return f"{self.name}: {self.unit} {self.number}"


@dataclass
class Summary:
    """What the sidecar answered. accepted + duplicate + refused + retryable are the answered pairs; at the end, all pairs.

    trained: answers that say that steps were run; checkpoints: the paths in answers; first_refusal: the first error, with the
    place of its pair, empty if no pair was refused; skips: for each table with rows that were not sent, a line; seconds: from
    the first line to the last answer. A latency is the time from giving a line to the socket to its answer, in milliseconds,
    rounded to three digits; None before the first answer. At full speed it is mostly the time that a full window waits in the
    sidecar's own queue.
    """

    sent: int = 0
    accepted: int = 0
    duplicate: int = 0
    refused: int = 0
    retryable: int = 0
    trained: int = 0
    checkpoints: list[str] = field(default_factory=list)
    first_refusal: str = ""
    skips: list[str] = field(default_factory=list)
    seconds: float = 0.0
    latencies_ms: Counter[float] = field(default_factory=Counter)

    @property
    def answered(self) -> int:
        return self.accepted + self.duplicate + self.refused + self.retryable

    @property
    def pairs_per_second(self) -> float:
        return self.answered / self.seconds if self.seconds else 0.0

    def latency_ms(self, share: float) -> float | None:
        """The latency that this share of the answers, 0 to 1, did not exceed."""
        needed = math.ceil(share * self.answered)
        for latency_ms, count in sorted(self.latencies_ms.items()):
            needed -= count
            if needed <= 0:
                return latency_ms
        return None

    def as_json(self) -> dict[str, Any]:
        counts = (
            "sent",
            "accepted",
            "duplicate",
            "refused",
            "retryable",
            "trained",
            "checkpoints",
            "first_refusal",
            "skips",
            "seconds",
        )
        shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
        return {
            **{name: getattr(self, name) for name in counts},
            "pairs_per_second": self.pairs_per_second,
            "latency_ms": {name: self.latency_ms(share) for name, share in shares.items()},
        }

    def count(self, answer: Answer, latency_s: float, request: RequestLine) -> None:
        self.latencies_ms[float(f"{latency_s * 1000:.3g}")] += 1  # rounded, so that memory does not grow with the pairs
        if answer.ok and answer.duplicate:
            self.duplicate += 1
        elif answer.ok:
            self.accepted += 1
        else:
            self.retryable += bool(answer.retryable)
            self.refused += not answer.retryable
            self.first_refusal = self.first_refusal or f"{request.where()}: {answer.error or 'no reason given'}"
        self.trained += bool(answer.trained)
        if answer.checkpoint:
            self.checkpoints.append(answer.checkpoint)


def replay(
    paths: Sequence[str | Path],
    socket_path: str | Path,
    *,
    rate: float | None = None,
    progress: Callable[[int], None] = lambda answered: None,
    window: int = 512,
    clock: Callable[[], float] = time.perf_counter,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
) -> Summary:
    """Send all recorded pairs, in order, to the sidecar that listens at socket_path; what it refuses is counted.

    rate: pairs per second; pairs that a full window delayed are caught up with; None: as fast as the answers arrive. progress:
    called with the number of pairs answered so far. window: the largest number of pairs in flight. clock: seconds. columns:
    what is read as what.

    Lines of JSON are sent unchanged, with all their fields. Raises RecordedPairsError if a file cannot be read or has a line
    over the limit, or if there are no pairs, and ReplayError if the sidecar cannot be reached or closes the connection.
    """
    summary = Summary()
    requests = read_requests(paths, columns, lambda skipped: summary.skips.append(skipped.said()))
    upcoming = next(requests, None)
    if upcoming is None:
        raise RecordedPairsError(f"{', '.join(map(str, paths))}: no pairs")
    with contextlib.closing(_connect(socket_path, window)) as pipeline:
        started = clock()
        while upcoming is not None or pipeline.unanswered:
            wait_s = math.inf
            while upcoming is not None and pipeline.has_room():
                now = clock()
                if rate is not None and (wait_s := started + summary.sent / rate - now) > 0:
                    break
                pipeline.add(upcoming.line, (now, upcoming))
                summary.sent += 1
                upcoming = next(requests, None)
            _take_answers(pipeline, wait_s, summary, clock, socket_path)
            summary.seconds = clock() - started
            progress(summary.answered)
    return summary


_InFlight = tuple[float, RequestLine]
"""When a line was given to the socket, and where it was read."""


def _connect(socket_path: str | Path, window: int) -> Pipeline[_InFlight]:
    try:
        return Pipeline(socket_path, window)
    except OSError as error:
        reason = str(error.strerror or error)
        hint = "; is the sidecar running?" if isinstance(error, FileNotFoundError | ConnectionRefusedError) else ""
        raise ReplayError(f"{socket_path}: {reason}{hint} (0 pairs answered)") from error


def _take_answers(
    pipeline: Pipeline[_InFlight], wait_s: float, summary: Summary, clock: Callable[[], float], socket_path: str | Path
) -> None:
    try:
        for (sent_at, request), answer in pipeline.exchange(wait_s):
            summary.count(answer, clock() - sent_at, request)
    except OSError as error:
        raise ReplayError(f"{socket_path}: {error.strerror or error}; pairs answered: {summary.answered}") from error


def read_requests(
    paths: Sequence[str | Path],
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    on_skipped: Callable[[Skipped], object] = lambda skipped: None,
) -> Iterator[RequestLine]:
    """The request lines of recorded pairs, in order.

    Request lines go as they stand, unchecked: it is up to the sidecar to refuse a bad one. Rows of other tables become request
    lines, with their features by name; as an array where they have no names, or where `columns` gives their order. Blank lines
    are left out, and rows with a missing value, of which on_skipped is told after each file. Raises RecordedPairsError if a
    file cannot be read, a row is wrong, or a line is over the limit.
    """
    for path in paths:
        for file in expand(str(path)):
            with open_table(file) as table:
                if table.lines is not None and columns == Columns() and (table.requests or not table.columns):
                    yield from _as_they_stand(table.lines)
                elif table.columns or table.width is not None:
                    yield from _of_table(table, columns, on_skipped)


def _as_they_stand(lines: Lines) -> Iterator[RequestLine]:
    for name, number, line in lines:
        if len(line) > MAX_LINE_BYTES:
            raise RecordedPairsError(f"{name}: line {number}: longer than {MAX_LINE_BYTES} bytes")
        yield RequestLine(name, number, line)


def _of_table(table: Table, columns: Columns, on_skipped: Callable[[Skipped], object]) -> Iterator[RequestLine]:
    choice = choose(table, columns)
    skipped = Skipped(table.name)
    blocks = table.read(choice.wanted())
    if columns.window is not None:
        blocks = windows(table, blocks, columns.window, skipped)
    any_score = Limits(-math.inf, math.inf, skip_bad=False)  # which scores it takes, the sidecar says
    names = () if columns.features else choice.names
    for rows in checked_rows(table, choice, blocks, any_score, skipped, None):
        texts = zip(rows.group.texts(), rows.job.texts(), rows.model.texts(), strict=True)
        values = zip(rows.numbers.tolist(), rows.features.tolist(), rows.true_score.tolist(), texts, strict=True)
        for number, features, score, (group, job, model) in values:
            pair: dict[str, Any] = {"features": dict(zip(names, features, strict=True)) if names else features}
            pair |= {"true_score": score}
            pair |= {key: text for key, text in (("group", group), ("job_id", job), ("target", model)) if text}
            yield RequestLine(table.name, number, _encoder.encode(pair), table.unit)
    if skipped.counts:
        on_skipped(skipped)


_encoder = msgspec.json.Encoder()
