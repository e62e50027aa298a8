"""Refused lines: counted by kind of error, and logged at most once a minute for each kind."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from sidecar.log import Complaints
from sidecar.monitoring.status import one_line
from sidecar.pairs.line_protocol import Answer, LineTooLongError, refused

_log = logging.getLogger(__name__)
_MOST_KINDS = 16
_KIND_CHARACTERS = 60


class Refusals:
    """counts: refused lines by kind. The number and length of kinds are bounded, since clients choose some of the words."""

    def __init__(self) -> None:
        self._complaints = Complaints(_log)
        self.counts: dict[str, int] = {}

    def add(self, answers: Iterable[Answer]) -> None:
        """Count and log the answers that refuse a line for good."""
        for answer in answers:
            if answer.ok is False and answer.retryable is not True:
                kind = str(answer.error).partition(":")[0].partition("[")[0]
                self._complaints.warn(kind, "a pair was refused: %s", answer.error)
                kind = one_line(kind)[:_KIND_CHARACTERS]
                self._count(kind if kind in self.counts or len(self.counts) < _MOST_KINDS else "other")

    def too_long(self, error: LineTooLongError) -> Answer:
        """Count and log a line over the limit; returns its answer."""
        self._complaints.warn("too long", "a pair was refused: %s", error)
        self._count("line too long")
        return refused(str(error))

    def _count(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
