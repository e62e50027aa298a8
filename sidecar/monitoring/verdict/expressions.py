"""What rules are made of: each part says what it is worth in the running process, and how it is written in PromQL.

The process looks at its own counters as Prometheus does at those that it has scraped. Two things differ, and no rule depends on
them: Prometheus extrapolates an increase to its whole window, and its windows go on across restarts.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import eq, gt, itemgetter
from typing import Literal, Protocol

from sidecar.monitoring.status import Status
from sidecar.settings import Settings

JOB = "{{- $job }}"
"""What the chart fills in: the label that the metrics of one release have in common."""
COUNTERS = ("journal_errors", "pairs", "checkpoint_failures", "checkpoints", "rollbacks", "outliers", "divergences", "shifts")
"""The fields of a `Status` that only grow; the metric has `_total` behind the name."""
_COMPARE = {">": gt, "==": eq}


class Past:
    """The status of now, and the counters of the last hours.

    longest: the longest window that is asked for, in seconds.
    """

    def __init__(self, settings: Settings, longest: float) -> None:
        self.settings, self.status = settings, Status()
        self._first, self._clock = math.inf, 0.0
        self._spans = [_Span(10.0, 3600.0), _Span(longest / 360, longest)]

    def take(self, status: Status, clock: float) -> None:
        """Note the status of now; clock: `time.monotonic()`."""
        self.status, self._first, self._clock = status, min(self._first, clock), clock
        for span in self._spans:
            span.take(clock, status)

    def increase(self, counter: str, labels: tuple[str, ...], seconds: float) -> int | None:
        """By how much a counter has grown in the last so many seconds, or since the first look; without labels, all count.

        None if it has not grown since the first look, and that is not so long ago.
        """
        span = next(span for span in self._spans if seconds <= span.kept)
        then = span.at(self._clock - seconds)[COUNTERS.index(counter)]
        grown = _total(getattr(self.status, counter), labels) - _total(then, labels)
        return grown or (0 if self._clock - self._first >= seconds else None)


_Counter = int | Mapping[str, int]


def _total(counter: _Counter, labels: tuple[str, ...]) -> int:
    counts = counter if isinstance(counter, Mapping) else {"": counter}
    return sum(count for label, count in counts.items() if not labels or label in labels)


class _Span:
    """COUNTERS at moments that are at least `every` seconds apart, in the last `kept` seconds, and at the one before."""

    def __init__(self, every: float, kept: float) -> None:
        self.every, self.kept = every, kept
        self._samples: list[tuple[float, tuple[_Counter, ...]]] = []

    def take(self, clock: float, status: Status) -> None:
        if not self._samples or clock - self._samples[-1][0] >= self.every:
            self._samples.append((clock, tuple(getattr(status, name) for name in COUNTERS)))
            del self._samples[: self._last_before(clock - self.kept)]

    def at(self, clock: float) -> tuple[_Counter, ...]:
        return self._samples[self._last_before(clock)][1]

    def _last_before(self, clock: float) -> int:
        return max(0, bisect_right(self._samples, clock, key=itemgetter(0)) - 1)


@dataclass(frozen=True)
class Number:
    """A number that depends on the settings. text: the same in PromQL, with the chart's variables."""

    text: str
    of: Callable[[Settings], float]


def number(value: float) -> Number:
    """A number that depends on nothing."""
    return Number(f"{value:g}", lambda settings: value)


class Expression(Protocol):
    """A quantity, or a condition on one. A condition has the value of its first quantity if it holds, as in PromQL, or None."""

    def value(self, past: Past) -> float | None: ...

    def promql(self) -> str: ...


@dataclass(frozen=True)
class Gauge:
    """A field of a `Status`, now. label, of a field that is one of several words: 1 where it is that word, else 0."""

    field: str
    label: str = ""

    def value(self, past: Past) -> float | None:
        found = getattr(past.status, self.field)
        if self.label:
            return float(found == self.label)
        return None if found is None else float(found)

    def promql(self) -> str:
        chosen = f', {self.field}="{self.label}"' if self.label else ""
        return f"vmafx_training_{self.field}{{ {JOB}{chosen}}}"


@dataclass(frozen=True)
class Increase:
    """By how much a counter has grown in a window of seconds. labels, of the name `name`: those that count, else all do.

    by: a label that Prometheus tells apart.
    """

    counter: str
    seconds: Number
    name: str = ""
    labels: tuple[str, ...] = ()
    by: str = ""

    def value(self, past: Past) -> float | None:
        return past.increase(self.counter, self.labels, self.seconds.of(past.settings))

    def promql(self) -> str:
        chosen = f', {self.name}=~"' + "|".join(self.labels) + '"' if self.labels else ""
        by = f"namespace, pod, {self.by}" if self.by else "namespace, pod"
        return f"sum by ({by}) (increase(vmafx_training_{self.counter}_total{{ {JOB}{chosen}}}[{self.seconds.text}s]))"


@dataclass(frozen=True)
class Ratio:
    """One quantity divided by another; no value where that is 0."""

    above: Expression
    below: Expression

    def value(self, past: Past) -> float | None:
        above, below = self.above.value(past), self.below.value(past)
        return above / below if above is not None and below else None

    def promql(self) -> str:
        return f"{self.above.promql()}\n/ {self.below.promql()}"


@dataclass(frozen=True)
class Compare:
    """Whether a quantity is above a limit, or equal to it."""

    quantity: Expression
    sign: Literal[">", "=="]
    limit: Number

    def value(self, past: Past) -> float | None:
        value = self.quantity.value(past)
        return value if value is not None and _COMPARE[self.sign](value, self.limit.of(past.settings)) else None

    def promql(self) -> str:
        return f"{self.quantity.promql()} {self.sign} {self.limit.text}"


@dataclass(frozen=True)
class Combined:
    """One condition and another, or unless another holds."""

    one: Expression
    word: Literal["and", "unless"]
    other: Expression

    def value(self, past: Past) -> float | None:
        return self.one.value(past) if (self.other.value(past) is None) == (self.word == "unless") else None

    def promql(self) -> str:
        return f"{self.one.promql()}\n{self.word} {self.other.promql()}"


@dataclass(frozen=True)
class FromOutside:
    """What only Prometheus can see: the sidecar that it is about does not run, say."""

    query: str

    def value(self, past: Past) -> float | None:
        return None

    def promql(self) -> str:
        return self.query
