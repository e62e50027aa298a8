"""The status over the last seven days, kept across restarts: a row for every ten seconds of the last hour, fewer from before.

A row is kept as the JSON text that readers get, so that sending two thousand of them takes one `join`. In the state directory
the rows are the lines of `history.jsonl`, below one with the names of the columns. It is written anew once a minute and at the
end.
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
TIERS = ((3600, EVERY_S), (86_400, 60), (7 * 86_400, 600))
"""Ages in seconds, and how many seconds the rows up to that age are apart."""
_THIN_S = 60
_NOW_S = 2.0
_WHOLE = 1 << 53
_COLUMNS: dict[str, Callable[[Status], float | None]] = {
    "prequential_rmse": lambda status: status.prequential_rmse,
    "prequential_winsorized_rmse": lambda status: status.prequential_winsorized_rmse,
    "prequential_constant_rmse": lambda status: status.prequential_constant_rmse,
    "prequential_plcc": lambda status: status.prequential_plcc,
    "loss": lambda status: status.loss,
    "feature_drift": lambda status: status.feature_drift,
    "journal_bytes": lambda status: status.journal_bytes,
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
            before = self.rows[: bisect_left(self.rows, time, key=_time)]  # without later ones, in case the clock was set back
            if before and before[-1][0] // _THIN_S < time // _THIN_S:
                before = _thinned(before, time)
            self.rows = (*before, row)

    def since(self, time: int) -> list[bytes]:
        """The JSON of the rows after a time in seconds since the epoch."""
        rows = self.rows
        return [row for _, row in rows[bisect_right(rows, time, key=_time) :]]


_time = itemgetter(0)


def _thinned(rows: Sequence[Row], now: int) -> tuple[Row, ...]:
    """The last row of each span of time, as long as the spans are at its age, and none that is older than all tiers."""
    kept = []
    for (time, row), after in zip(rows, [*(time for time, _ in rows[1:]), now], strict=True):
        every = next((every for age, every in TIERS if now - time <= age), 0)
        if every and time // every < after // every:
            kept.append((time, row))
    return tuple(kept)


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
    lines = [json.dumps(COLUMNS).encode(), *(row for _, row in history.rows)]
    write_checked(state_directory / HISTORY, "history", b"".join(line + b"\n" for line in lines))


def read_history(state_directory: Path) -> History:
    """The history that was written there. It is empty if there is no such file or, with a warning, if the file is damaged."""
    path = state_directory / HISTORY
    try:
        names, *lines = read_checked(path, "history").splitlines()
        places = _places(names)
        rows = tuple(_read(line, places) for line in lines)
        if any(after[0] <= before[0] for before, after in pairwise(rows)):
            raise ValueError("its times are not increasing")
    except FileNotFoundError:
        return History()
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("%s is damaged; it was ignored: %s", path, error)
        return History()
    return History(rows)


def _places(line: bytes) -> list[int | None]:
    """Where each column is in a file that another version may have written, from its first line; None: it is not there."""
    names = json.loads(line)
    if not isinstance(names, list) or "time" not in names:
        raise ValueError(f"expected the names of columns, `time` among them: {line[:80]!r}")
    return [names.index(name) if name in names else None for name in COLUMNS]


def _read(line: bytes, places: Sequence[int | None]) -> Row:
    values = json.loads(line)
    most = max(place for place in places if place is not None)
    if not isinstance(values, list) or len(values) <= most:
        raise ValueError(f"expected more than {most} numbers: {line[:80]!r}")
    told = [None if place is None else values[place] for place in places]
    if type(told[0]) is not int:
        raise ValueError(f"expected a time in whole seconds: {line[:80]!r}")
    if not all(value is None or type(value) is float or (type(value) is int and abs(value) < _WHOLE) for value in told):
        raise ValueError(f"expected numbers: {line[:80]!r}")
    return told[0], _encode(told)
