"""All tenants: from pairs in their order to a head for each, and to what the shared weights are trained on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from functools import partial
from typing import NamedTuple

import numpy as np

from onnx_builder.network import Array, Network
from sidecar.learning.online.fits import Evidence, no_evidence
from sidecar.learning.online.trainer import Group, Trainer
from sidecar.learning.online.weights import Weights
from sidecar.learning.replay.ring import ReplayBuffer
from sidecar.learning.tenants.comparison import Comparison
from sidecar.learning.tenants.head import adapter_of, row_of
from sidecar.learning.tenants.share import Share
from sidecar.learning.tenants.tenant import HELD_PAIRS, Tenant
from sidecar.learning.tenants.trunk import Own, Trunk
from sidecar.learning.training_settings import TrainingSettings
from sidecar.settings import MOST_TENANTS

ANY = "*"
"""In the settings, in place of names: the first tenants that come."""


class Model(NamedTuple):
    """A tenant's head, on its own. pairs, comparison: copies of the tenant's; network: makes its network, in the base model's
    units, on any thread."""

    name: str
    pairs: ReplayBuffer
    comparison: Comparison
    network: Callable[[], Network]


class Tenants:
    """Makes heads for tenants, and feeds the trainer of the weights that they share.

    A pair trains its tenant's head, and the shared weights: while the head is used, with what these predict plus the error that
    the head leaves, so that tenants whose scores contradict each other do not spoil the trunk.

    tenants: by name, in the order in which they came. refused: pairs of others, which train the shared weights alone.
    """

    def __init__(self, n_features: int, settings: TrainingSettings) -> None:
        self.n_features, self.settings = n_features, settings
        self.tenants: dict[str, Tenant] = {}
        self.refused = 0
        self._share = Share(settings)
        self._rows = np.empty((settings.new_pairs, n_features + 1), dtype=np.float32)
        self._names: list[str] = []
        """The tenants of the pairs that wait in the first of these rows, "" for none."""
        self._made_for: Weights | None = None
        self._own: Own
        """What heads add to these weights, by number; the last one adds nothing, for pairs of no tenant."""

    @property
    def passed(self) -> int:
        """Pairs that did not train the shared weights, because their tenant has had its share."""
        return self._share.passed

    @property
    def own(self) -> int:
        """Pairs that have trained heads, and the shared weights not, or not yet."""
        return self.passed + sum(tenant.held for tenant in self.tenants.values())

    def missing(self, trainer: Trainer) -> int:
        """How many more pairs complete a round, or the first pairs that a new model is fitted to."""
        return trainer.missing if _has_no_model(trainer) else len(self._rows) - len(self._names)

    def until_fit(self, trainer: Trainer) -> int:
        """How many more pairs it takes, at least, until the trainer begins a fit: it does so only when a round is complete."""
        if _has_no_model(trainer):
            return trainer.until_fit
        waiting = len(self._names) + sum(tenant.held for tenant in self.tenants.values())
        return max(self.missing(trainer), trainer.until_fit - waiting)

    def add(
        self,
        trainer: Trainer,
        features: Array,
        scores: Array,
        names: Sequence[str],
        finish: bool = True,
        evidence: Evidence = no_evidence,
    ) -> list[Group]:
        """Take pairs to train on, in order: features (n, n_features), scores (n,), and their tenants, "" for none.

        Returns the groups of the trainer that they completed, the last one where there are several at the same place; finish,
        evidence: as in `Trainer.add`. Pairs are taken in rounds, so that it does not matter how many come at once.
        """
        groups: list[Group] = []
        names = [self._admitted(name) for name in names]
        start, count = 0, len(scores)
        while start < count:
            stop = min(count, start + self.missing(trainer))
            rows = np.column_stack([features[start:stop], scores[start:stop]]).astype(np.float32)
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is left out
                completed = self._take(trainer, rows, names[start:stop], evidence)
            groups += [group._replace(place=stop - 1) for group in completed[-1:]]
            start = stop
        if finish:
            trainer.finish()
        return groups

    def models(self, trainer: Trainer) -> list[Model]:
        """The heads that were made, each on the averaged shared weights as they are now."""
        trainer.finish()
        weights = trainer.weights
        if weights is None:
            return []
        self._keep_up(weights)
        shared, own = weights.ema.network(), Own(*(values.copy() for values in self._own))

        def network(number: int) -> Network:
            steps = Trunk.of(shared.steps).with_own(own.of(number))
            return weights.in_base_units(dataclasses.replace(shared, steps=steps))

        return [
            Model(name, deepcopy(tenant.pairs), copy(tenant.comparison), partial(network, tenant.number))
            for name, tenant in self.tenants.items()
            if tenant.heads
        ]

    def reorder(self, places: Sequence[int]) -> None:
        """Take the features of all pairs so far from these places, as `Trainer.reorder` does."""
        for pairs in (self._rows, *(tenant.pairs.data for tenant in self.tenants.values())):
            pairs[:, : self.n_features] = pairs[:, places]

    def continued(self, settings: TrainingSettings) -> tuple[Tenants, Array, list[str]]:
        """The tenants that other settings allow, and the pairs that the shared weights have not been given and no such tenant
        holds: rows (n, n_features + 1), in order, and whose they are."""
        others, rows, names = Tenants(self.n_features, settings), [self._rows[: len(self._names)]], list[str]()
        others._share.restore(self._share.recent, self._share.passed)
        for name, tenant in self.tenants.items():
            if others._admitted(name):
                tenant.number = others.tenants[name].number
                others.tenants[name] = tenant
            else:
                rows.insert(-1, tenant.pairs.rows(newest=tenant.held))
                names += [""] * tenant.held
        others.refused = self.refused
        return others, np.concatenate(rows), [*names, *self._names]

    def state(self, trainer: Trainer) -> dict[str, Array]:
        """Everything that later training depends on, as copies by name; `load` continues from it bit for bit."""
        trainer.finish()
        if trainer.weights is not None:
            self._keep_up(trainer.weights)
        tenants = [*self.tenants.values()]
        texts = {
            "names": [*self.tenants], "waiting": self._names, "recent": [*self._share.recent], "passed": self._share.passed,
            "refused": self.refused,
        }  # fmt: skip
        counts = [(tenant.pairs.added, len(tenant.pairs), tenant.held) for tenant in tenants]
        state: dict[str, Array] = {
            "tenants": np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8),
            "tenants_waiting": self._rows[: len(self._names)].copy(),
            "tenants_counts": np.array(counts, dtype=np.int64).reshape(-1, 3),
            "tenants_pairs": np.concatenate([self._rows[:0], *(tenant.pairs.rows() for tenant in tenants)]),
            "tenants_compared": np.array([tenant.comparison.state() for tenant in tenants]).reshape(-1, 4),
        }
        if self._made_for is not None:
            state |= {f"tenants_{name}": values[: len(tenants)].copy() for name, values in self._own._asdict().items()}
        return state

    def load(self, state: Mapping[str, Array], trainer: Trainer) -> None:
        """Continue from a `state`, with the trainer that its trainer continues as."""
        texts = json.loads(state["tenants"].tobytes())
        self.refused = texts["refused"]
        self._share.restore(texts["recent"], texts["passed"])
        self._names = texts["waiting"]
        self._rows[: len(self._names)] = state["tenants_waiting"]
        start = 0
        for number, name in enumerate(texts["names"]):
            tenant = self.tenants[name] = Tenant(number, self.n_features)
            added, size, tenant.held = state["tenants_counts"][number].tolist()
            tenant.pairs.restore(state["tenants_pairs"][start : start + size], added)
            tenant.comparison.load(state["tenants_compared"][number])
            start += size
        if trainer.weights is not None:
            self._made_for = trainer.weights
            self._own = Trunk.of(trainer.weights.ema.steps()).nothing(self.settings.tenant_rank, MOST_TENANTS + 1)
            for mine, kept in zip(self._own, (state[f"tenants_{name}"] for name in Own._fields), strict=True):
                mine[: len(kept)] = kept

    def _take(self, trainer: Trainer, rows: Array, names: list[str], evidence: Evidence) -> list[Group]:
        """Take pairs of one round, or some that a new model is fitted to."""
        if _has_no_model(trainer):
            for row, name in zip(rows, names, strict=True):
                if name:
                    self.tenants[name].pairs.add(row[None])
            return self._train(trainer, rows, names, evidence)
        waiting = len(self._names)
        self._rows[waiting : waiting + len(rows)] = rows
        self._names += names
        if len(self._names) < len(self._rows):
            return []
        trainer.finish()
        assert trainer.weights is not None
        self._keep_up(trainer.weights)
        rows, names, self._names = self._rows, self._names, []
        for place in np.flatnonzero(trainer.outliers.among(rows[:, :-1])):
            names[place] = ""
        return self._train(trainer, *self._learn(Trunk.of(trainer.weights.ema.steps(shared=True)), rows, names), evidence)

    def _learn(self, trunk: Trunk, rows: Array, names: list[str]) -> tuple[Array, list[str]]:
        """Learn the heads from the pairs of a round. Returns what the shared weights are trained on, and the tenants."""
        hidden, scores = trunk.see(rows[:, :-1]), rows[:, -1]
        own = self._own.of(np.array([self.tenants[name].number if name else -1 for name in names]))
        shared = trunk.scores(trunk.outputs(hidden))
        left = trunk.errors(trunk.scores(trunk.outputs(hidden, own)), scores)
        corrected, now, released = rows.copy(), np.ones(len(rows), dtype=bool), list[tuple[Array, str]]()
        for name, *errors in zip(names, trunk.errors(shared, scores).tolist(), left.tolist(), strict=True):
            if name:
                self.tenants[name].comparison.add(*errors)
        for name in dict.fromkeys(filter(None, names)):
            tenant, its = self.tenants[name], np.array([each == name for each in names])
            heads, is_held = tenant.heads, tenant.pairs.added < HELD_PAIRS
            tenant.pairs.add(rows[its])
            if tenant.heads > heads:
                self._make(trunk, tenant)
            if is_held:
                now[its] = False
                tenant.held += int(its.sum())
                if tenant.pairs.added >= HELD_PAIRS:
                    released.append((self._released(trunk, tenant), name))
            elif tenant.comparison.used:
                corrected[its, -1] = self._corrected(scores[its], shared[its] + left[its])
        names = [name for name, is_now in zip(names, now, strict=True) if is_now]
        names += [name for its, name in released for _ in its]
        return np.concatenate([corrected[now], *(its for its, _ in released)]), names

    def _released(self, trunk: Trunk, tenant: Tenant) -> Array:
        """The pairs of a tenant that have waited, as the shared weights are trained on them."""
        rows, tenant.held = tenant.pairs.rows(newest=tenant.held), 0
        if tenant.comparison.used:
            hidden = trunk.see(rows[:, :-1])
            own = trunk.scores(trunk.outputs(hidden, self._own.of(tenant.number)))
            left = trunk.errors(own, rows[:, -1])
            rows[:, -1] = self._corrected(rows[:, -1], trunk.scores(trunk.outputs(hidden)) + left)
        return rows

    def _train(self, trainer: Trainer, rows: Array, names: Sequence[str], evidence: Evidence) -> list[Group]:
        """Train the shared weights on the rows whose tenants have not had their share."""
        rows = rows[[self._share.admits(name) for name in names]]
        return trainer.add(rows[:, :-1], rows[:, -1], False, evidence)

    def _corrected(self, scores: Array, corrected: Array) -> Array:
        """Scores without what is particular to a tenant, as they are where that is not known."""
        within = np.clip(corrected, self.settings.score_min, self.settings.score_max)
        return np.where(np.isfinite(within), within, scores)

    def _make(self, trunk: Trunk, tenant: Tenant) -> None:
        """Make a tenant's head from its newest pairs."""
        rows, span, at = tenant.pairs.rows(), self.settings.score_max - self.settings.score_min, tenant.number
        rows = rows[np.isfinite(trunk.outputs(trunk.see(rows[:, :-1])))]
        features, scores = rows[:, :-1], rows[:, -1]
        if self._own.down.size and tenant.has_adapter_due:
            self._own.up[at], self._own.down[at] = 0.0, 0.0
            self._own.row[at] = row_of(trunk, self._own.of(at), features, scores, span)
            self._own.up[at], self._own.down[at] = adapter_of(trunk, self._own.of(at), features, scores, span)
        self._own.row[at] = row_of(trunk, self._own.of(at), features, scores, span)

    def _keep_up(self, weights: Weights) -> None:
        """Make all heads again if the shared weights have become others, or are in other units."""
        if weights is self._made_for:
            return
        self._made_for, trunk = weights, Trunk.of(weights.ema.steps())
        self._own = trunk.nothing(self.settings.tenant_rank, MOST_TENANTS + 1)
        with np.errstate(over="ignore", invalid="ignore"):
            for tenant in self.tenants.values():
                if tenant.heads:
                    self._make(trunk, tenant)

    def _admitted(self, name: str) -> str:
        """The name of a tenant, which is made if it may be, "" in its place if it may not."""
        if name and name not in self.tenants:
            if len(self.tenants) == MOST_TENANTS or not {name, ANY} & {*(self.settings.tenants or ())}:
                self.refused += 1
                return ""
            self.tenants[name] = Tenant(len(self.tenants), self.n_features)
        return name


def _has_no_model(trainer: Trainer) -> bool:
    """Whether the trainer collects the first pairs of a new model."""
    return trainer.weights is None and trainer.fit is None
