"""A model that follows a sidecar: for nodes in Python that predict while it is trained."""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self, overload

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Float32, NetworkError
from onnx_builder.runtime import Input
from onnx_builder.write import to_bytes
from sidecar.checkpoints.judging.compatibility import Interface, differences
from sidecar.consumer.follower import Follower
from sidecar.consumer.metrics import RESULTS, Metrics, Result
from sidecar.consumer.serving import Serving, by_numpy
from sidecar.consumer.source import SourceError
from sidecar.consumer.trial import Trial
from sidecar.consumer.verified import RefusedError, VerifiedModel
from sidecar.learning.intervals import IntervalError
from sidecar.log import Complaints, event
from sidecar.models.base_model import load

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_KEPT_CALLS, _KEPT_ROWS = 64, 16
"""The last rows that were predicted: of so many calls, so many of each."""
_BASE = "base"
_END_S = 5.0
"""For looks that are under way when the interpreter ends."""

_logger = logging.getLogger(__name__)


class NoModelError(Exception):
    """There is no model to begin with; the message says why."""


class Prediction(NamedTuple):
    """scores: (n,), in score points. version: the name of the model that gave all of them, such as `model_v000042`."""

    scores: NDArray[np.float32]
    version: str


class PredictionInterval(NamedTuple):
    """scores, and the bounds between which the true ones should lie: each (n,), in score points. version: as above."""

    scores: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    version: str


class LiveModel:
    """Predicts with the newest stable model of a sidecar, in any number of threads, and takes over each new one meanwhile.

    >>> with LiveModel("/mnt/vmafx-models/online") as model:
    ...     scores = model.predict([[0.97, 0.81, 31.2]])
    >>> scores.shape
    (1,)

    source: a checkpoint directory, the path of a link in one, or `http://HOST:9091` of a sidecar that runs with
    `--http-models 1`. policy: `latest-stable`, `latest`, or `pinned` with a version. tenant: whose model it is; a tenant
    without one of its own has the shared one. base: an ONNX file or a PyTorch state-dict
    to predict with until there is a model; scaling that its JSON leaves outside of its graph is applied. wait_s: how long to
    wait for a model if there is none and no base. poll_s: how often to look. swap_drain_timeout: how long, in seconds, a model
    that was replaced is kept for calls that are still in it; what takes longer keeps it for itself. score_deviation: a new
    model is refused if its scores on the last rows that were predicted differ from those of the present one by more than this,
    as root mean square in score points; by default they may. fallback_threshold: see `observe`; 0: never. registry: where the
    Prometheus metrics are registered, by default the global registry.

    A thread of its own looks for a new model, reads its JSON, digest and file, of one version, and checks them as
    `vmafx-sidecar verify` does: then that the model takes the same features in the same order, has the same range of scores,
    and computes in onnxruntime what numpy does on the last rows that were predicted. Only then it is used. Whatever fails, the
    present model stays. No call waits for any of this, and each call is answered by one model.

    version: the name of the model in use, `base` for that. swaps: how often a new model took over (`ok`), was `refused`, none
    could be read (`failed`), or the one before took over again (`fallback`). reason: why the last look failed, or the last
    model is not in use; empty if all is well.

    In a child of a fork it goes on with the same model, in a session and a thread of its own, from the first call on.

    Raises NoModelError if there is no model to begin with, ValueError for arguments that cannot be used.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        policy: str = "latest-stable",
        version: int | None = None,
        tenant: str | None = None,
        base: str | os.PathLike[str] | None = None,
        wait_s: float = 0.0,
        poll_s: float = 0.5,
        swap_drain_timeout: float = 30.0,
        score_deviation: float | None = None,
        fallback_threshold: float = 0.05,
        registry: CollectorRegistry | None = None,
    ) -> None:
        if not 0 < poll_s <= threading.TIMEOUT_MAX:
            raise ValueError(f"poll_s={poll_s!r}: expected a number of seconds above 0, at most {threading.TIMEOUT_MAX:.0f}")
        if score_deviation is not None and not score_deviation > 0:
            raise ValueError(f"score_deviation={score_deviation!r}: expected a number above 0")
        from_0 = {"wait_s": wait_s, "swap_drain_timeout": swap_drain_timeout, "fallback_threshold": fallback_threshold}
        for name, value in from_0.items():
            if not value >= 0:
                raise ValueError(f"{name}={value!r}: expected a number from 0")
        self._source, self._poll_s, self._drain_s = source, poll_s, swap_drain_timeout
        self._deviation, self._threshold = score_deviation, fallback_threshold
        self._follower = Follower(source, policy, version, self._take, tenant)
        self._metrics = Metrics(registry)
        self._swaps: dict[Result, int] = dict.fromkeys(RESULTS, 0)
        self._failure = self._refusal = ""
        self._recent: deque[Float32] = deque(maxlen=_KEPT_CALLS)
        self._retired: list[tuple[Serving, float]] = []
        self._model: VerifiedModel | None = None
        self._serving: Serving | None = None
        self._trial: Trial | None = None
        self._closed = threading.Event()
        self._begin()
        if base is not None:
            self._use(Serving(_base_model(Path(base))))
        self._look()
        until = time.monotonic() + wait_s
        while self._serving is None and (left := until - time.monotonic()) > 0:
            time.sleep(min(poll_s, left))
            self._look()
        if self._serving is None:
            raise NoModelError(self.reason)
        self._start()
        _models.add(self)

    @overload
    def predict(self, features: Any, *, interval: None = None) -> NDArray[np.float32]: ...
    @overload
    def predict(self, features: Any, *, interval: float) -> PredictionInterval: ...
    def predict(self, features: Any, *, interval: float | None = None) -> NDArray[np.float32] | PredictionInterval:
        """Scores (n,), in score points, of n rows of features, as the node measures them.

        features: an array (n, n_features) in the model's order; or, if the model's features have names, a sequence of n
        mappings by name, in any order and any of libvmaf's spellings, or a data frame. A single row, (n_features,) or one
        mapping, counts as n = 1. Where the model's JSON says how it takes an encoder, mappings may have `encoder`, `preset` and
        `crf`. Raises ValueError that names the row, the feature, the value and what is allowed.

        interval: 0.5 or 0.9, the share of true scores that should lie between two bounds, which are then given too, within the
        range of scores. The model in use must have a table of intervals in its JSON; docs/training.md says which ones have, and
        what such tables covered. Raises IntervalError, a ValueError, if it has none, or none for this share.
        """
        if interval is None:
            return self.predict_with_version(features).scores
        serving, scores = self._predict(features)
        model = serving.model
        if model.intervals is None:
            raise IntervalError(f"interval={interval!r}: {model.name} has no table of prediction intervals in its JSON")
        low, high = model.intervals.bounds(interval, scores, model.interface.score_range)
        return PredictionInterval(scores, low.astype(np.float32), high.astype(np.float32), model.name)

    def predict_with_version(self, features: Any) -> Prediction:
        """The same, with the name of the model that gave the scores."""
        serving, scores = self._predict(features)
        return Prediction(scores, serving.model.name)

    def observe(self, features: Any, true_score: float | Sequence[float] | NDArray[Any], group: str | None = None) -> None:
        """Tell what the true scores of some rows were, so that a new model that is worse than the one before is replaced by it.

        features: one or n rows, as for `predict`, measured after the model in use came; true_score: one or n; group: the encode
        that they are of, by default each row is of its own.

        Once for each newer version, when there are 200 pairs of 30 groups, both models are compared on them. If the new one's
        error is above the other's by more than the share `fallback_threshold`, and that is not chance, the one before is used
        again, here and until the source has another model. The source is not changed. Raises ValueError as `predict` does.
        """
        rows = self._present().rows.rows(features)
        true = np.atleast_1d(np.asarray(true_score, dtype=np.float64))
        if true.shape != (len(rows),) or not np.isfinite(true).all():
            raise ValueError(f"true_score: expected {len(rows)} finite numbers, got {str(true_score)[:64]}")
        if self._trial is not None and self._threshold:
            self._trial.add(rows, true, group)

    @property
    def version(self) -> str:
        return self._present().model.name

    @property
    def about(self) -> Mapping[str, Any]:
        """What the JSON beside the model in use says."""
        return self._present().model.about

    @property
    def swaps(self) -> Mapping[str, int]:
        return {str(result): count for result, count in self._swaps.items()}

    @property
    def reason(self) -> str:
        return self._failure or self._refusal

    def close(self, timeout_s: float = 5.0) -> None:
        """Follow no longer. The model in use can still be used. timeout_s: how long to wait for a look that is under way."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a LiveModel cannot be copied or pickled: give its arguments to the other process, and make one there")

    def _predict(self, features: Any) -> tuple[Serving, NDArray[np.float32]]:
        serving = self._present()
        rows = serving.rows.rows(features)
        if len(rows):
            self._recent.append(rows[-_KEPT_ROWS:].copy())
        return serving, serving.predict(rows)

    def _present(self) -> Serving:
        return self._serving or self._revived()

    def _look(self) -> None:
        """Look for a new model once. If there is one that may be used, it is used when this returns."""
        try:
            self._follower.news()
        except SourceError as error:
            self._failure = str(error)
            self._count("failed")
            self._complaints.warn("failed", "%s%s", error, self._stays())
        except RefusedError as error:
            self._failure, self._refusal = "", str(error)
            self._count("refused")
            _logger.warning("%s%s", error, self._stays())
        else:
            self._failure = ""

    def _take(self, model: VerifiedModel) -> None:
        """Use a verified model. Raises RefusedError if it does not fit what is asked of the present one."""
        present = self._model
        if present is not None and (model.name, model.sha256) == (present.name, present.sha256):
            self._refusal = ""  # the source went back to it
            return
        if present is not None and (wrong := _differences(model, present)):
            raise RefusedError(f"{model.name}: {wrong}")
        if present is not None and not model.inputs.names:
            model = _named_as(present, model)
        try:
            serving = Serving(model)
        except NetworkError as error:
            raise RefusedError(f"{model.name}: {error}") from error
        if kept := self._recent.copy():
            rows = np.concatenate(kept)
            serving.check_parity(rows)
            if present is not None:
                self._check_deviation(serving, present, rows)
        self._failure = self._refusal = ""
        self._count("ok")
        self._use(serving)
        event(_logger, "model in use", model=model.name, sha256=model.sha256, before=present.name if present else "none")

    def _check_deviation(self, serving: Serving, present: VerifiedModel, rows: Float32) -> None:
        if self._deviation is None:
            return
        off = serving.predict(rows) - by_numpy(present, rows)
        deviation = float(np.sqrt(np.square(off, dtype=np.float64).mean()))
        if not deviation <= self._deviation:
            said = f"differ by {deviation:.3g} points from those of {present.name} on the last {len(rows)} rows"
            raise RefusedError(f"{serving.model.name}: its scores {said}; at most {self._deviation:g} is allowed")

    def _judge(self) -> None:
        """Go back to the model before if the present one has turned out to be worse."""
        trial = self._trial
        found = trial.decide(self._threshold) if trial is not None else None
        if trial is None or found is None:
            return
        self._trial = None
        if found.worse:
            model, before = trial.model.name, trial.before.name
            said = f"{found.error:.3g} points against {found.predecessor_error:.3g} of {before}"
            self._count("fallback")
            self._refusal = f"{model}: median error of {said}, on {found.pairs} pairs of {found.groups} groups"
            self._use(Serving(trial.before))
            _logger.warning("%s; %s is in use again", self._refusal, before)

    def _use(self, serving: Serving) -> None:
        model, before = self._model, self._serving
        self._model, self._serving = serving.model, serving
        self._trial = None
        if model is not None and serving.model.version > model.version:  # an earlier one was gone back to with intent
            self._trial = Trial(serving.model, model)
        if before is not None:
            self._retired.append((before, time.monotonic() + self._drain_s))
        self._metrics.in_use(serving.model.version, serving.model.about)

    def _let_go(self) -> None:
        """Let those models go that no call is in any more, or for too long. A call that is in one keeps it to its end."""
        waiting, now = list[tuple[Serving, float]](), time.monotonic()
        for serving, until in self._retired:
            if serving.calls and now < until:
                waiting.append((serving, until))
            elif serving.calls:
                text = "%s: replaced for %.3g s, and %d calls are still in it; it ends with them"
                _logger.warning(text, serving.model.name, self._drain_s, serving.calls)
        self._retired = waiting

    def _count(self, result: Result) -> None:
        self._swaps[result] += 1
        self._metrics.count(result)

    def _stays(self) -> str:
        return f"; {self._model.name} stays in use" if self._model is not None else ""

    def _run(self) -> None:
        while not self._closed.wait(self._poll_s):
            try:
                self._look()
                self._judge()
                self._let_go()
            except Exception as error:  # whatever it is, the program goes on with the model that it has
                self._failure = repr(error)
                self._count("failed")
                self._complaints.warn("error", "%s: %r%s", self._source, error, self._stays())

    def _begin(self) -> None:
        self._lock, self._complaints = threading.Lock(), Complaints(_logger)
        self._thread: threading.Thread | None = None

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="vmafx-live-model", daemon=True)
        self._thread.start()

    def _after_fork(self) -> None:
        _inherited.extend([self._serving, *self._retired])
        self._serving, self._retired = None, []
        closed, self._closed = self._closed.is_set(), threading.Event()
        if closed:
            self._closed.set()
        self._begin()

    def _revived(self) -> Serving:
        """The model again, in a child of a fork: threads do not live there, and its parent's session is not touched."""
        with self._lock:
            if self._serving is None:
                assert self._model is not None
                self._serving = Serving(self._model)
                if not self._closed.is_set():
                    self._start()
            return self._serving


def _base_model(path: Path) -> VerifiedModel:
    """A base model, read as a sidecar reads it, with scaling that its JSON states and its graph does not hold."""
    base = load(path)
    data, fed = to_bytes(base.network), Input("features", np.float32, (base.network.n_features,))
    about, sha256 = {"base_model": base.as_json()}, hashlib.sha256(data).hexdigest()
    interface = Interface((fed,), base.network.output.name, 0, None, base.inputs.names)
    return VerifiedModel(_BASE, 0, data, sha256, about, base.network, base.left_out, base.inputs, interface)


def _differences(new: VerifiedModel, present: VerifiedModel) -> str:
    """In words, why a model cannot take the place of another here, where it is fed by its interface; empty if it can."""
    if new.inputs.target and present.inputs.target and new.inputs.target != present.inputs.target:
        return f"its scores are {new.inputs.target}, those of {present.name} {present.inputs.target}"
    return differences(_as_fed(new.interface), _as_fed(present.interface), present.name)


def _named_as(present: VerifiedModel, model: VerifiedModel) -> VerifiedModel:
    """A model that does not say what its features are called, for callers who give them by the names of the present one."""
    inputs = replace(model.inputs, names=present.inputs.names, block=present.inputs.block)
    return replace(model, inputs=inputs, interface=model.interface._replace(names=present.interface.names))


def _as_fed(interface: Interface) -> Interface:
    """Without what callers do not see: how the inputs are divided and called, and how many rows go in at a time."""
    return interface._replace(inputs=(Input("features", np.float32, (interface.n_features,)),), output="score", fixed_batch=0)


def _after_fork_in_child() -> None:
    for model in list(_models):
        model._after_fork()


def _close_all() -> None:
    models, until = list(_models), time.monotonic() + _END_S
    for model in models:
        model.close(0)
    for model in models:
        model.close(max(0.0, until - time.monotonic()))


_models: weakref.WeakSet[LiveModel] = weakref.WeakSet()
_inherited: list[object] = []
"""What a child of a fork has from its parent and must not end, because threads that it needs may not live there."""
os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_all)  # a thread in the middle of onnxruntime would not survive the end of the interpreter
