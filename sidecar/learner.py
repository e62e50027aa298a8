"""The learner: accepted pairs in, in the order of the journal, and all that follows from them.

Its state is a function of the runs and of the pairs: of the same journal, every learner makes the same.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from onnx_builder.network import Array, Network
from sidecar.learning.replay import ReplayBuffer
from sidecar.pairs import Pair, holdout_position
from sidecar.trainer import Group, Trainer, TrainingSettings

HELD_OUT_PAIRS = 1000
RECENT_PAIRS = 4096
"""A pair that is equal to one of the last so many, with the same job_id, is a duplicate."""


STATE_FORMAT = 1
"""Of the journal's run records and of snapshots. It grows when a program that knows only the one before would go wrong."""


class FormatError(ValueError):
    """A state that a newer program wrote."""


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
        return {"format": STATE_FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Run:
        """The run that gave this document. Raises FormatError for a newer one's, KeyError or TypeError for another."""
        if document["format"] > STATE_FORMAT:
            raise FormatError(f"state of format {document['format']}; this program knows up to {STATE_FORMAT}: use a newer one")
        known = {each.name for each in fields(TrainingSettings)}
        settings = TrainingSettings(**{name: value for name, value in document["settings"].items() if name in known})
        return cls(document["n_features"], settings, document["holdout_fraction"], document["base"], document["kernel"])


class Learner:
    """One run of training: a trainer, and what is kept out of it.

    base: the network that `run.base` names. held_out: raw pairs that never train, each a row of its features, its score, and
    where it stands for the hold-out, by which its group is known again. position: of the next pair; first: of its first one,
    which is not 0 where retention has removed the pairs before.
    """

    def __init__(self, run: Run, base: Network | None = None, first: int = 0) -> None:
        self.run = run
        self.first = self.position = first
        self.trainer = Trainer(run.n_features, run.settings, base)
        self.held_out = ReplayBuffer(HELD_OUT_PAIRS, run.n_features + 2, np.float64)

    def take(self, features: Array, scores: Array, positions: Sequence[float], finish: bool = True) -> list[Group]:
        """Take the next pairs; gives the groups that they completed, each with the place of its last pair among these.

        features: (n, n_features); scores: (n,), in points; positions: n numbers in [0, 1), where each stands for the hold-out;
        finish: as of `Trainer.add`.
        """
        self.position += len(positions)
        fraction = self.run.holdout_fraction
        train = [place for place, position in enumerate(positions) if position >= fraction]
        if len(train) == len(positions):
            return self.trainer.add(features, scores, finish)
        held_out = [place for place, position in enumerate(positions) if position < fraction]
        rows = np.column_stack([features[held_out], scores[held_out], [positions[place] for place in held_out]])
        self.held_out.add(rows)
        groups = self.trainer.add(features[train], scores[train], finish)
        return [group._replace(place=train[group.place]) for group in groups]

    def until_fit(self, positions: Sequence[float]) -> int | None:
        """How many of the next pairs, of these, a fresh head's fit would wait for; None where they do not bring it about."""
        wanted = self.trainer.missing
        if self.trainer.live is not None or wanted > len(positions):
            return None
        train = (place for place, position in enumerate(positions, 1) if position >= self.run.holdout_fraction)
        return next(itertools.islice(train, wanted - 1, None), None)

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
        run = json.dumps({**self.run.as_json(), "first": self.first, "position": self.position}).encode()
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
        learner = cls(cls.run_of(state), first=document["first"])
        learner.position = document["position"]
        learner.trainer = Trainer.from_state(learner.run.n_features, learner.run.settings, state)
        learner.held_out.restore(state["held_out"], int(state["held_out_added"]))
        return learner

    @staticmethod
    def run_of(state: Mapping[str, Array]) -> Run:
        """The run of a `state`. Raises as `from_state`."""
        return Run.from_json(json.loads(state["run"].tobytes()))


class RecentPairs:
    """The last journalled pairs by name and content, to tell a duplicate: equal non-empty job_id and float32 values."""

    def __init__(self) -> None:
        self._count = 0
        self._numbers: dict[bytes, int] = {}  # of each pair that has a job_id

    def key(self, pair: Pair, packed: bytes) -> bytes | None:
        """What two duplicates have in common; None for a pair without a job_id. packed: its float32 features."""
        return packed + _FLOAT.pack(pair.true_score) + pair.job_id.encode() if pair.job_id else None

    def __contains__(self, key: bytes | None) -> bool:
        return key is not None and self._numbers.get(key, -RECENT_PAIRS - 1) >= self._count - RECENT_PAIRS

    def add(self, key: bytes | None) -> None:
        """A pair is to be journalled."""
        if key is not None:
            self._numbers[key] = self._count
        self._count += 1

    def take_back(self, keys: Sequence[bytes | None]) -> None:
        """The last pairs, of these keys, were not journalled after all."""
        self._count -= len(keys)
        for key in keys:
            if key is not None:
                del self._numbers[key]

    def trim(self) -> None:
        """What was added stays: let go of what is no longer recent, once that is as much again."""
        if len(self._numbers) > 2 * RECENT_PAIRS:
            oldest = self._count - RECENT_PAIRS
            self._numbers = {key: number for key, number in self._numbers.items() if number >= oldest}


_FLOAT = struct.Struct("=f")


def held_out_at(pair: Pair, packed: bytes) -> float:
    """Where a pair stands for the hold-out. packed: its float32 features."""
    return holdout_position(pair.group, pair.job_id, packed)
