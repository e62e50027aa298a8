"""Running a program for each new model: once it has succeeded, not again; while it fails, again and again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sidecar.consumer.source import SourceError
from sidecar.consumer.verified import RefusedError, VerifiedModel

_log = logging.getLogger(__name__)
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
"""A program that has failed is run again after the first, then after twice as long each time, at most the last."""


@dataclass(frozen=True)
class Ran:
    """A program was run for a model. failed: why it failed, else empty; then it is run again after so many seconds."""

    model: VerifiedModel
    attempt: int
    seconds: float
    failed: str
    retry_s: float

    def __str__(self) -> str:
        how = f"{self.failed}; again in {self.retry_s:g} s" if self.failed else "done"
        return f"{self.model.name}: {how} (run {self.attempt}, {self.seconds:.1f} s)"

    def as_json(self) -> dict[str, Any]:
        said = {"model": self.model.name, "version": self.model.version, "sha256": self.model.sha256, "ok": not self.failed}
        failed = {"failed": self.failed, "retry_seconds": self.retry_s} if self.failed else {}
        return {**said, **failed, "attempt": self.attempt, "seconds": round(self.seconds, 3)}


@dataclass(frozen=True)
class Refused:
    """A model is not to be used, for this reason. The program is not run for it."""

    reason: str

    def __str__(self) -> str:
        return f"refused: {self.reason}"

    def as_json(self) -> dict[str, Any]:
        return {"ok": False, "refused": self.reason}


def runs(
    news: Callable[[], VerifiedModel | None],
    run: Callable[[VerifiedModel], str],
    interval_s: float,
    sleep: Callable[[float], None],
) -> Iterator[Ran | Refused]:
    """What was done about each model, without an end.

    One program runs at a time. What comes meanwhile, or before a program that has failed is run again, takes the place of what
    waits: the next run is for the newest model alone. A source that cannot be read is a warning, once for each reason.

    news: as `Follower.news`. run: runs the program and says why it failed, empty if it did not. interval_s: between two looks.
    """
    model: VerifiedModel | None = None
    attempt, retry_s, due, told = 0, 0.0, 0.0, ""
    while True:
        try:
            if (newer := news()) is not None:
                model, attempt, retry_s, due = newer, 0, FIRST_RETRY_S, 0.0
            told = ""
        except SourceError as error:
            if str(error) != told:
                told = str(error)
                _log.warning("%s", told)
        except RefusedError as error:
            yield Refused(str(error))
        if model is not None and time.monotonic() >= due:
            began = time.monotonic()
            failed = run(model)
            ended = time.monotonic()
            attempt, due = attempt + 1, ended + retry_s
            yield Ran(model, attempt, ended - began, failed, retry_s if failed else 0.0)
            retry_s = min(2 * retry_s, LAST_RETRY_S)
            model = model if failed else None
        sleep(interval_s)
