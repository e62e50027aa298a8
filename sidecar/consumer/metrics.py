"""What a model that reloads itself tells Prometheus."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge

Result = Literal["ok", "refused", "failed", "fallback"]
"""What happened: a new model took over, one was refused, nothing could be read, or the model before took over again."""

RESULTS: tuple[Result, ...] = ("ok", "refused", "failed", "fallback")


class Metrics:
    """The metrics of a registry, by default the global one; models with the same registry share them."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        self._swaps, self._version, self._age = _of(registry)

    def count(self, result: Result) -> None:
        self._swaps.labels(result).inc()

    def in_use(self, version: int, about: Mapping[str, Any]) -> None:
        """version: 0 for a model that is no checkpoint. about: its JSON, for when it was made."""
        made = _made(about)
        self._version.set(version)
        self._age.set_function(lambda: time.time() - made)


def _made(about: Mapping[str, Any]) -> float:
    """When a model was made, in seconds since the epoch, as its JSON says; not a number where it does not."""
    try:
        return datetime.fromisoformat(str(about.get("created_at"))).timestamp()
    except (ValueError, OverflowError, OSError):
        return math.nan


def _of(registry: CollectorRegistry | None) -> tuple[Counter, Gauge, Gauge]:
    from prometheus_client import REGISTRY, Counter, Gauge  # imported here: it takes 60 ms

    registry = REGISTRY if registry is None else registry
    with _registering:
        if registry not in _registered:
            swaps = Counter(
                "vmafx_model_checkpoint_swaps",
                "New models that took over, and that did not, by result.",
                ["result"],
                registry=registry,
            )
            for result in RESULTS:
                swaps.labels(result)
            version = Gauge("vmafx_model_checkpoint_version", "The version in use; 0: no checkpoint.", registry=registry)
            age = Gauge("vmafx_model_checkpoint_age_seconds", "How long ago the model in use was made.", registry=registry)
            _registered[registry] = swaps, version, age
        return _registered[registry]


_registered: weakref.WeakKeyDictionary[CollectorRegistry, tuple[Counter, Gauge, Gauge]] = weakref.WeakKeyDictionary()
_registering = threading.Lock()
