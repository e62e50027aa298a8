"""`followBase`: whether another model stands at the base model's path, and what becomes of it.

The looker sees whether the files there are others; once they have stayed the same for a while, the worker reads them; and the
run of a model that can be used begins with the next pair.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import Any

from onnx_builder.network import Array
from sidecar.journal.run import Run
from sidecar.log import Complaints, event
from sidecar.models.base_model import BaseModel
from sidecar.models.evidence import compared
from sidecar.online.start import next_base
from sidecar.online.training import OnlineTraining
from sidecar.serve.base.check import COMPARED_PAIRS
from sidecar.serve.maintenance import Every
from sidecar.settings import Settings
from sidecar.state.base_models import keep_base
from sidecar.state.directory import StateError

_log = logging.getLogger(__name__)
LOOK_S = 0.5
LOOKS = 4
"""After so many looks that saw the same, nobody is writing any more."""
_Seen = tuple[tuple[str | int, ...], ...]
"""What tells the files from others, and from themselves after a change; empty if there is no model."""


class BaseWatch:
    """Looks after the base model's file. follow: called with each base model that has taken the place of the one before.

    base: the present one, if there is one.
    """

    def __init__(
        self,
        settings: Settings,
        online: OnlineTraining,
        base: BaseModel | None,
        worker: Executor,
        looker: Executor,
        follow: Callable[[BaseModel], object],
    ) -> None:
        self._settings, self._online, self._base = settings, online, base
        self._worker, self._looker, self._follow = worker, looker, follow
        self._each_look, self._complaints = Every(LOOK_S), Complaints(_log)
        self._looking: Future[_Seen] | None = None
        self._reading: Future[tuple[BaseModel, Run] | None] | None = None
        self._seen: _Seen = ()
        self._times = 0  # in a row
        self._known: _Seen = ()  # was read
        self._counts: dict[str, int] = {}
        self._refused = ""

    def turn(self, now: float) -> None:
        """Take what the last look or reading has found, and begin another one if it is time. now: `time.monotonic()`."""
        if self._reading is not None:
            if self._reading.done():
                self._end(self._reading)
        elif self._looking is None:
            if self._each_look.is_due(now):
                self._looking = self._looker.submit(_look, self._settings.base_model)
        elif self._looking.done():
            seen, self._looking = self._looking.result(), None
            self._times = self._times + 1 if seen == self._seen else 1
            self._seen = seen
            if seen and seen != self._known and self._times >= LOOKS and not self._online.backlog.busy:
                self._known = seen
                learner = self._online.learner
                features = learner.trainer.replay.rows(newest=COMPARED_PAIRS)[:, :-1]
                self._reading = self._worker.submit(self._read, seen, learner.run, self._base, features)

    def as_status(self) -> dict[str, Any]:
        """The fields of a `Status` that are about this."""
        return {"base_models": dict(self._counts), "base_refused": self._refused}

    def _read(self, seen: _Seen, run: Run, present: BaseModel | None, features: Array) -> tuple[BaseModel, Run] | None:
        """On the worker: the base model and its run, None if the files have changed meanwhile. Raises ValueError.

        features: of real pairs, on which onnxruntime has to agree with what was read.
        """
        settings = self._settings
        try:
            base, run = next_base(settings, run, present)
            if len(features):
                compared(base, features, settings.score_max - settings.score_min)
        except ValueError:
            if _look(settings.base_model) != seen:
                return None
            raise
        if _look(settings.base_model) != seen:
            return None
        keep_base(settings.state, base.network)
        return base, run

    def _end(self, reading: Future[tuple[BaseModel, Run] | None]) -> None:
        self._reading = None
        error = reading.exception()
        if isinstance(error, StateError | OSError):  # the state directory cannot be written now
            self._complaints.warn("kept", "the new base model is not followed yet: %s", error)
            self._known = ()
        elif error is not None:
            told, self._refused = self._refused, str(error) or type(error).__name__
            self._count("refused")
            if self._refused != told:
                event(_log, "base model not followed", logging.WARNING, reason=self._refused)
        elif (found := reading.result()) is None:
            self._known = ()
        else:
            base, run = found
            self._refused = ""
            self._online.follow(run, base.network, partial(self._begun, base))
            before = self._base
            same = before is not None and (base.sha256, base.inputs) == (before.sha256, before.inputs)
            if run == self._online.learner.run and not same:  # its JSON is another one
                self._take(base)

    def _begun(self, base: BaseModel) -> None:
        self._take(base)
        self._count("followed")
        event(
            _log, "base model followed: a new run begins", path=str(base.path), sha256=base.sha256,
            position=self._online.learner.position,
        )  # fmt: skip

    def _take(self, base: BaseModel) -> None:
        self._base = base
        self._follow(base)

    def _count(self, result: str) -> None:
        self._counts[result] = self._counts.get(result, 0) + 1


def _look(path: Path) -> _Seen:
    """The model, its JSON, and the weights that an ONNX file may have beside it; in Kubernetes, each may be behind links."""
    seen: dict[str, tuple[int, ...]] = {}
    with contextlib.suppress(OSError):
        beside = sorted(name for name in os.listdir(path.parent) if name.startswith(path.name))
        for name in (path.with_suffix(".json").name, *beside):
            with contextlib.suppress(OSError):
                about = os.stat(path.parent / name)
                seen[name] = about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
    return tuple((name, *state) for name, state in seen.items()) if path.name in seen else ()
