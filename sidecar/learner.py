"""The learner: accepted pairs in, in the order of the journal, and all that follows from them.

Its state is a function of the runs and of the pairs: of the same journal, every learner makes the same.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from onnx_builder.network import Array, Network
from sidecar.learning.replay import ReplayBuffer
from sidecar.pairs import Pair, holdout_position
from sidecar.trainer import Trainer, TrainingSettings

HELD_OUT_PAIRS = 1000
RECENT_PAIRS = 4096
"""A pair that is equal to one of the last so many, with the same job_id, is a duplicate."""


@dataclass(frozen=True)
class Run:
    """What pairs are trained with: one run lasts until another base model or other settings.

    base: the digest of the base model as it is used, None for a fresh head; kernel: what the arithmetic ran on, for the record.
    """

    n_features: int
    settings: TrainingSettings
    holdout_fraction: float
    base: str | None = None
    kernel: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Run:
        """The run that gave this document. Raises KeyError or TypeError for another."""
        known = {each.name for each in fields(TrainingSettings)}
        settings = TrainingSettings(**{name: value for name, value in document["settings"].items() if name in known})
        return cls(document["n_features"], settings, document["holdout_fraction"], document["base"], document["kernel"])


class Outcome(NamedTuple):
    """What became of a pair. loss: of the group that it completed, before its first step, in score points squared."""

    held_out: bool
    loss: float | None


class Learner:
    """One run of training: a trainer, and what is kept out of it.

    base: the network that `run.base` names. held_out: raw pairs (features, score) that never train. position: of the next
    pair. started: the position at which the weights began.
    """

    def __init__(self, run: Run, base: Network | None = None) -> None:
        self.run = run
        self.trainer = Trainer(run.n_features, run.settings, base)
        self.held_out = ReplayBuffer(HELD_OUT_PAIRS, run.n_features + 1)
        self.position = 0

    def take(self, features: Array, score: float, position: float) -> Outcome:
        """Take the next pair: features (n_features,), score in points, and where it stands for the hold-out, in [0, 1)."""
        self.position += 1
        if position < self.run.holdout_fraction:
            self.held_out.add(np.append(features, np.float32(score))[None])
            return Outcome(True, None)
        return Outcome(False, self.trainer.add(features, score))

    def begin(self, run: Run, base: Network | None) -> None:
        """Go on under another run: with its base's weights where it has another base, else with the present ones."""
        if run.base != self.run.base and base is not None:
            self.trainer = self.trainer.begun_anew(run.settings, base)
        elif run.settings != self.run.settings:
            self.trainer = self.trainer.configured(run.settings)
        self.run = run

    def pass_over(self) -> None:
        """The next pair was forgotten: its position counts, nothing else."""
        self.position += 1

    def state(self) -> dict[str, Array]:
        """All that what comes next depends on, as copies by name."""
        run = json.dumps({**self.run.as_json(), "position": self.position}).encode()
        return {
            "run": np.frombuffer(run, dtype=np.uint8),
            "held_out": self.held_out.rows(),
            "held_out_added": np.array(self.held_out.added),
            **self.trainer.state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Learner:
        """A learner that goes on from a `state`. Raises KeyError, TypeError, ValueError or NetworkError for another."""
        document = json.loads(state["run"].tobytes())
        learner = cls(Run.from_json(document))
        learner.trainer = Trainer.from_state(learner.run.n_features, learner.run.settings, state)
        learner.held_out.restore(state["held_out"], int(state["held_out_added"]))
        learner.position = document["position"]
        return learner


class RecentPairs:
    """The last journalled pairs by name and content, to tell a duplicate: equal non-empty job_id and float32 values."""

    def __init__(self) -> None:
        self._keys: deque[bytes | None] = deque()
        self._counts: dict[bytes, int] = {}
        self._dropped: deque[bytes | None] = deque(maxlen=RECENT_PAIRS)

    def key(self, pair: Pair, packed: bytes) -> bytes | None:
        """What two duplicates have in common; None for a pair without a job_id. packed: its float32 features."""
        if not pair.job_id:
            return None
        values = packed + np.float32(pair.true_score).tobytes()
        return hashlib.blake2b(values + str(pair.job_id).encode(), digest_size=16).digest()

    def __contains__(self, key: bytes | None) -> bool:
        return key is not None and key in self._counts

    def add(self, key: bytes | None) -> None:
        """A pair was journalled; the oldest is forgotten."""
        self._keys.append(key)
        if key is not None:
            self._counts[key] = self._counts.get(key, 0) + 1
        if len(self._keys) > RECENT_PAIRS:
            oldest = self._keys.popleft()
            self._dropped.append(oldest)
            self._drop(oldest)

    def take_back(self, keys: Sequence[bytes | None]) -> None:
        """The last pairs, of these keys, were not journalled after all."""
        for key in reversed(keys):
            self._keys.pop()
            self._drop(key)
            if self._dropped:
                restored = self._dropped.pop()
                self._keys.appendleft(restored)
                if restored is not None:
                    self._counts[restored] = self._counts.get(restored, 0) + 1

    def _drop(self, key: bytes | None) -> None:
        if key is not None:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]


def held_out_at(pair: Pair, packed: bytes) -> float:
    """Where a pair stands for the hold-out. packed: its float32 features."""
    return holdout_position(pair.group, pair.job_id, packed)
