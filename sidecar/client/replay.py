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
from sidecar.pairs.formats import CsvRows, Lines, journal_end, journal_lines, read_form
from sidecar.pairs.line_protocol import Answer
from sidecar.pairs.npz import Archive, ArrayKindError
from sidecar.pairs.request import MAX_LINE_BYTES

_NPZ_ROWS = 256


class ReplayError(Exception):
    """No sidecar at the socket, or the connection was lost; the message names the socket and counts the answered pairs."""


class RequestLine(NamedTuple):
    """One request line, without its newline, and where it was read; numbers begin at 1."""

    name: str
    number: int
    line: bytes

    def where(self) -> str:
        return f"{self.name}: {'row' if self.name.endswith('.npz') else 'line'} {self.number}"


@dataclass
class Summary:
    """What the sidecar answered. accepted + duplicate + refused + retryable are the answered pairs; at the end, all pairs.

    trained: answers that say that steps were run; checkpoints: the paths in answers; first_refusal: the first error, with the
    place of its pair, empty if no pair was refused; seconds: from the first line to the last answer. A latency is the time from
    giving a line to the socket to its answer, in milliseconds, rounded to three digits; None before the first answer. At full
    speed it is mostly the time that a full window waits in the sidecar's own queue.
    """

    sent: int = 0
    accepted: int = 0
    duplicate: int = 0
    refused: int = 0
    retryable: int = 0
    trained: int = 0
    checkpoints: list[str] = field(default_factory=list)
    first_refusal: str = ""
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
        counts = ("sent", "accepted", "duplicate", "refused", "retryable", "trained", "checkpoints", "first_refusal", "seconds")
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
) -> Summary:
    """Send all recorded pairs, in order, to the sidecar that listens at socket_path; what it refuses is counted.

    rate: pairs per second; pairs that a full window delayed are caught up with; None: as fast as the answers arrive. progress:
    called with the number of pairs answered so far. window: the largest number of pairs in flight. clock: seconds.

    Lines of JSON are sent unchanged, with all their fields. Raises RecordedPairsError if a file cannot be read or has a line
    over the limit, or if there are no pairs, and ReplayError if the sidecar cannot be reached or closes the connection.
    """
    summary = Summary()
    requests = read_requests(paths)
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


def read_requests(paths: Sequence[str | Path]) -> Iterator[RequestLine]:
    """The request lines of recorded pairs, in order and unchecked: it is up to the sidecar to refuse a bad one.

    Lines of JSON keep their bytes; rows of numpy archives and CSV become such lines. Blank lines are left out. Raises
    RecordedPairsError if a file cannot be read or a line is over the limit.
    """
    for path in paths:
        for name, number, line in _lines_of(str(path)):
            if len(line) > MAX_LINE_BYTES:
                raise RecordedPairsError(f"{name}: line {number}: longer than {MAX_LINE_BYTES} bytes")
            if line and not line.isspace():
                yield RequestLine(name, number, line)


def _lines_of(name: str) -> Lines:
    return read_form(
        name,
        json_lines=lambda lines: lines,
        archive=lambda archive: _npz_lines(name, archive),
        table=lambda header, rows: _csv_lines(name, rows),
        journal=_journal_so_far,
    )


def _journal_so_far(directory: Path) -> Lines:
    """The journal as it is now: what a sidecar adds while it is sent its own pairs would never end."""
    return journal_lines(directory, until=journal_end(directory))


def _csv_lines(name: str, rows: CsvRows) -> Lines:
    for number, row in rows:
        *features, true_score = map(_cell, row)
        yield name, number, _encoder.encode({"features": features, "true_score": true_score})


def _cell(text: str) -> float | str:
    """The number, or the unchanged text, which the sidecar refuses with the name of the field."""
    with contextlib.suppress(ValueError):
        value = float(text)
        if math.isfinite(value) and "_" not in text:
            return value
    return text


def _npz_lines(name: str, archive: Archive) -> Lines:
    """Lines numbered by row, from 1. One-dimensional text arrays become fields of the line; empty texts are left out."""
    members = {"features": archive.features, "true_score": archive.true_score}
    for key in archive.names:
        if key not in members:
            try:
                members[key] = archive.member(key, 1, "U")
            except ArrayKindError:
                if key in ("group", "job_id"):  # other arrays may hold anything
                    raise
    rows = archive.features.shape[0]
    for start in range(0, rows, _NPZ_ROWS):
        columns = [member.rows(start, min(_NPZ_ROWS, rows - start)).tolist() for member in members.values()]
        for place, values in enumerate(zip(*columns, strict=True), start + 1):
            pair = {key: value for key, value in zip(members, values, strict=True) if value != ""}
            yield name, place, _encoder.encode(pair)


_encoder = msgspec.json.Encoder()
