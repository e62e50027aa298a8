"""The status over the last six hours: a row for every ten seconds, kept across restarts.

A row is kept as the JSON text that readers get, so that sending two thousand of them takes one `join`. In the state directory
the rows are the lines of `history.jsonl`, which is written anew once a minute and at the end.
"""

from __future__ import annotations

import json
import logging
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from operator import itemgetter
from pathlib import Path

from sidecar.monitoring.status import Status
from sidecar.state.checked import read_checked, write_checked

_log = logging.getLogger(__name__)
HISTORY = "history.jsonl"
EVERY_S = 10
KEPT_S = 6 * 3600
_NOW_S = 2.0
_WHOLE = 1 << 53
_COLUMNS: dict[str, Callable[[Status], float | None]] = {
    "prequential_rmse": lambda status: status.prequential_rmse,
    "prequential_plcc": lambda status: status.prequential_plcc,
    "loss": lambda status: status.loss,
    "replay_size": lambda status: status.replay_size,
    "held_out_size": lambda status: status.held_out_size,
}
COLUMNS = ("time", "pairs_per_second", *_COLUMNS)
"""time: whole seconds since the epoch. Figures that had no value are null, and so is the first rate after a start."""
Row = tuple[int, bytes]
"""The time of a row, and the whole row as a JSON array."""


class History:
    """rows: oldest first, in a tuple that is replaced, never modified, so that any thread may read it.

    pairs_per_second: over the last few seconds; None at the beginning.
    """

    def __init__(self, rows: tuple[Row, ...] = ()) -> None:
        self.rows = rows
        self.pairs_per_second: float | None = None
        self._now, self._row = _Rate(_NOW_S), _Rate(EVERY_S)

    def tell(self, status: Status, clock: float, wall: float) -> None:
        """Add a row if the last one is old enough. clock: `time.monotonic()`; wall: seconds since the epoch."""
        if self._now.is_due(clock):
            self.pairs_per_second = self._now.next(clock, status.position)
        if self._row.is_due(clock):
            rate, time = self._row.next(clock, status.position), int(wall)
            row = time, _encode([time, rate, *(column(status) for column in _COLUMNS.values())])
            first, end = bisect_left(self.rows, time - KEPT_S, key=_time), bisect_left(self.rows, time, key=_time)
            self.rows = (*self.rows[first:end], row)  # drops later rows, in case the clock was set back

    def since(self, time: int) -> list[bytes]:
        """The JSON of the rows after a time in seconds since the epoch."""
        rows = self.rows
        return [row for _, row in rows[bisect_right(rows, time, key=_time) :]]


_time = itemgetter(0)


class _Rate:
    """Pairs per second between two moments that are at least `every` seconds apart."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._before: tuple[float, int] | None = None

    def is_due(self, clock: float) -> bool:
        return self._before is None or clock - self._before[0] >= self._every

    def next(self, clock: float, position: int) -> float | None:
        before, self._before = self._before, (clock, position)
        return (position - before[1]) / (clock - before[0]) if before else None


def _encode(values: Sequence[float | None]) -> bytes:
    """JSON, with six significant digits per number."""
    known = (None if value is None or not math.isfinite(value) else value for value in values)
    words = ("null" if value is None else str(value) if isinstance(value, int) else f"{value:.6g}" for value in known)
    return f"[{','.join(words)}]".encode()


def write_history(state_directory: Path, history: History) -> None:
    """Raises OSError."""
    write_checked(state_directory / HISTORY, "history", b"".join(row + b"\n" for _, row in history.rows))


def read_history(state_directory: Path) -> History:
    """The history that was written there. It is empty if there is no such file or, with a warning, if the file is damaged."""
    path = state_directory / HISTORY
    try:
        rows = tuple(_read(line) for line in read_checked(path, "history").splitlines())
        if any(after[0] <= before[0] for before, after in pairwise(rows)):
            raise ValueError("its times are not increasing")
    except FileNotFoundError:
        return History()
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("%s is damaged; it was ignored: %s", path, error)
        return History()
    return History(rows)


def _read(line: bytes) -> Row:
    values = json.loads(line)
    if not isinstance(values, list) or len(values) != len(COLUMNS) or type(values[0]) is not int:
        raise ValueError(f"expected {len(COLUMNS)} numbers: {line[:80]!r}")
    if not all(value is None or type(value) is float or (type(value) is int and abs(value) < _WHOLE) for value in values):
        raise ValueError(f"expected numbers: {line[:80]!r}")
    return values[0], _encode(values)
