"""The learner takes accepted pairs in the order of the journal, and holds everything that follows from them.

Its state is a function of the runs and the pairs: from the same journal, every learner makes the same state.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence

import numpy as np

from onnx_builder.network import Array, Network
from sidecar.features.names import in_order
from sidecar.journal.run import Run
from sidecar.learning.device.stacked import Device
from sidecar.learning.drift.two_samples import TwoSamples
from sidecar.learning.online.trainer import Group, Trainer
from sidecar.learning.replay.ring import ReplayBuffer
from sidecar.learning.tenants.tenants import Tenants
from sidecar.learning.training_settings import TrainingSettings
from sidecar.pairs.holdout import is_held_out
from sidecar.pairs.pair import PairBlock

HELD_OUT_PAIRS = 1000


class Learner:
    """One run of training: a trainer, and the pairs that are kept out of training.

    base: the network that `run.base` names. held_out: raw pairs that never train; each row has the features, the score, and the
    hold-out position, by which the pair's group is recognised. samples: whether features are distributed as before. position:
    that of the next pair; first: that of the first pair, which is not 0 if retention has deleted earlier ones. tenants: their
    heads, None if pairs have no tenants. device: as for `Trainer`.
    """

    def __init__(self, run: Run, base: Network | None = None, first: int = 0, device: Device | None = None) -> None:
        self.run = run
        self.first = self.position = first
        self.trainer = Trainer(run.n_features, run.settings, base, device)
        self.tenants = Tenants(run.n_features, run.settings) if run.settings.tenants else None
        self.held_out = ReplayBuffer(HELD_OUT_PAIRS, run.n_features + 2, np.float64)
        self.samples = TwoSamples(run.n_features)

    def take(self, block: PairBlock, finish: bool = True) -> list[Group]:
        """Take the next pairs. Returns the groups that they completed, each with the place of its last pair in the block.

        finish: as in `Trainer.add`.
        """
        groups, done = list[Group](), 0
        while (until := self.until_fit(block.holdout[done:])) is not None:  # a fit is judged by held-out pairs before it begins
            stop = done + until
            groups += self._take(block.part(done, stop), False, done)
            done = stop
        return groups + self._take(block.part(done, len(block.holdout)), finish, done)

    def _take(self, block: PairBlock, finish: bool, start: int) -> list[Group]:
        """Take some pairs of a block, from the place `start` on."""
        features, scores, holdout, tenants = block
        self.position += len(holdout)
        self.samples.add(features, holdout)
        fraction = self.run.holdout_fraction
        held = [is_held_out(position, fraction) for position in holdout]
        held_out = [place for place, is_held in enumerate(held) if is_held]
        train = [place for place, is_held in enumerate(held) if not is_held]
        if held_out:
            rows = np.column_stack([features[held_out], scores[held_out], [holdout[place] for place in held_out]])
            self.held_out.add(rows)
            features, scores, tenants = features[train], scores[train], [tenants[place] for place in train] if tenants else ()
        groups = self._train(features, scores, tenants, finish)
        return [group._replace(place=start + train[group.place]) for group in groups]

    def _train(self, features: Array, scores: Array, tenants: Sequence[str], finish: bool) -> list[Group]:
        if self.tenants is None:
            return self.trainer.add(features, scores, finish, self.evidence)
        return self.tenants.add(self.trainer, features, scores, tenants or [""] * len(scores), finish, self.evidence)

    @property
    def missing(self) -> int:
        """How many more pairs, none of them held out, complete a group, or the first pairs that a new model is fitted to."""
        return self.trainer.missing if self.tenants is None else self.tenants.missing(self.trainer)

    @property
    def learned(self) -> int:
        """How many pairs the weights, or those of a tenant, have been trained on."""
        return self.trainer.trained + (self.tenants.own if self.tenants is not None else 0)

    def evidence(self) -> Array:
        """The rows of `held_out` that are no outliers, by which models are judged."""
        rows = self.held_out.rows()
        return rows[~self.trainer.outliers.among(rows[:, : self.run.n_features])]

    def until_fit(self, holdout: Sequence[float]) -> int | None:
        """How many of the next pairs it takes until a fit begins, at least; None if more than these.

        holdout: their hold-out positions.
        """
        wanted = self.trainer.until_fit if self.tenants is None else self.tenants.until_fit(self.trainer)
        if wanted > len(holdout):
            return None
        fraction = self.run.holdout_fraction
        train = (place for place, position in enumerate(holdout, 1) if not is_held_out(position, fraction))
        return next(itertools.islice(train, wanted - 1, None), None)

    def begin(self, run: Run, base: Network | None) -> None:
        """Continue under another run: with its base's weights if it has another base, else with the present weights.

        Where the new base takes the same features in another order, the pairs so far are put into that.
        """
        if run.order != self.run.order and run.order and self.run.order:
            places = in_order(self.run.order, run.order)
            self.trainer.reorder(places)
            self.samples.reorder(places)
            if self.tenants is not None:
                self.tenants.reorder(places)
            rows = self.held_out.rows()
            rows[:, : len(places)] = rows[:, places]
            self.held_out.restore(rows, self.held_out.added)
        if run.base != self.run.base and base is not None:
            self.trainer = self.trainer.begun_anew(run.settings, base)
        elif run.settings != self.run.settings:
            self.trainer = self.trainer.configured(run.settings)
        if run.settings != self.run.settings:
            self._configure_tenants(run.settings)
        self.run = run

    def _configure_tenants(self, settings: TrainingSettings) -> None:
        before, self.tenants = self.tenants, Tenants(self.run.n_features, settings) if settings.tenants else None
        if before is not None:
            continued, rows, names = before.continued(settings)
            if self.tenants is not None:
                self.tenants = continued
            self._train(rows[:, :-1], rows[:, -1], names, finish=True)

    def pass_over(self) -> None:
        """Skip the next pair, which was forgotten: only its position counts."""
        self.position += 1

    def state(self) -> dict[str, Array]:
        """Everything that later training depends on, as copies by name."""
        run = json.dumps({**self.run.as_json(), "first": self.first, "position": self.position}).encode()
        return {
            "run": np.frombuffer(run, dtype=np.uint8),
            "held_out": self.held_out.rows(),
            "held_out_added": np.array(self.held_out.added),
            **self.samples.state(),
            **self.trainer.state(),
            **(self.tenants.state(self.trainer) if self.tenants is not None else {}),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Array], device: Device | None = None) -> Learner:
        """A learner that continues from a `state`. Raises KeyError, TypeError, ValueError or NetworkError if it is not one."""
        document = json.loads(state["run"].tobytes())
        learner = cls(cls.run_of(state), first=document["first"])
        learner.position = document["position"]
        learner.trainer = Trainer.from_state(learner.run.n_features, learner.run.settings, state, device)
        if "samples_counts" in state:
            learner.samples = TwoSamples.from_state(state)
        if learner.tenants is not None:
            learner.tenants.load(state, learner.trainer)
        learner.held_out.restore(state["held_out"], int(state["held_out_added"]))
        return learner

    @staticmethod
    def run_of(state: Mapping[str, Array]) -> Run:
        """The run of a `state`. Raises the same errors as `from_state`."""
        return Run.from_json(json.loads(state["run"].tobytes()))
