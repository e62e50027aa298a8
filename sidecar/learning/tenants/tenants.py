"""All tenants: from pairs in their order to a head for each, and to what the shared weights are trained on."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
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
from sidecar.learning.tenants.comparison import LEAST_PAIRS, Comparison
from sidecar.learning.tenants.head import adapter_of, row_of
from sidecar.learning.tenants.share import Share
from sidecar.learning.tenants.tenant import FAR_OFF, HELD_ERROR, HELD_PAIRS, RING_PAIRS, Tenant
from sidecar.learning.tenants.trunk import Hidden, Own, Trunk
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


class _Errors(NamedTuple):
    """The errors of the shared weights in n pairs, and those of the tenants' heads, which are the same for a pair of none.

    without_own: (n,), the scores without what is particular to a tenant: what the shared weights predict, what all heads add to
    it, and the error that the tenant's own head leaves.
    """

    shared: list[float]
    own: list[float]
    without_own: Array


class Tenants:
    """Makes heads for tenants, and feeds the trainer of the weights that they share.

    A pair trains its tenant's head, and the shared weights: while the head is used, without what is particular to the tenant,
    so that tenants whose scores contradict each other do not spoil the trunk.

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
        self._trunk: Trunk
        self._own: Own
        """What heads add to these weights, by number; the last one adds nothing, for pairs of no tenant."""

    @property
    def passed(self) -> int:
        """Pairs that did not train the shared weights, because their tenant has had its share, or its scores are far off."""
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
        """The heads that were made, each on the averaged shared weights as they are now.

        The pairs that wait to complete a round have been predicted by them, and count in what compares a head.
        """
        trainer.finish()
        weights = trainer.weights
        if weights is None:
            return []
        self._keep_up(weights)
        shared, own = weights.ema.network(), Own(*(values.copy() for values in self._own))

        def network(number: int) -> Network:
            steps = Trunk.of(shared.steps).with_own(own.of(number))
            return weights.in_base_units(dataclasses.replace(shared, steps=steps))

        models = {
            name: Model(name, deepcopy(tenant.pairs), copy(tenant.comparison), partial(network, tenant.number))
            for name, tenant in self.tenants.items()
            if tenant.heads
        }
        rows = self._rows[: len(self._names)]
        features, scores = rows[:, :-1].copy(), rows[:, -1]
        names = [name if name in models else "" for name in self._without_outliers(trainer, features, self._names)]
        with np.errstate(over="ignore", invalid="ignore"):
            errors = self._errors(features, scores, names)
        for place, name in enumerate(names):
            if name:
                models[name].pairs.add(rows[place : place + 1])
                models[name].comparison.add(errors.shared[place], errors.own[place])
        return [*models.values()]

    def reorder(self, places: Sequence[int]) -> None:
        """Take the features of all pairs so far from these places, as `Trainer.reorder` does."""
        for pairs in (self._rows, *(tenant.pairs.data for tenant in self.tenants.values())):
            pairs[:, : self.n_features] = pairs[:, places]

    def continued(self, settings: TrainingSettings) -> tuple[Tenants, Array, list[str]]:
        """The tenants that other settings allow, and the pairs that the shared weights have not been given and no such tenant
        holds: rows (n, n_features + 1), in order, and whose they are."""
        others, rows, names = Tenants(self.n_features, settings), [self._rows[: len(self._names)]], list[str]()
        others._share.restore(self._share.recent, self._share.passed, self._share.run)
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
            "run": self._share.run, "refused": self.refused,
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
        self._share.restore(texts["recent"], texts["passed"], tuple(texts["run"]))
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
            self._follow(trainer.weights)
            for mine, kept in zip(self._own, (state[f"tenants_{name}"] for name in Own._fields), strict=True):
                mine[: len(kept)] = kept

    def _take(self, trainer: Trainer, rows: Array, names: list[str], evidence: Evidence) -> list[Group]:
        """Take pairs of one round, or some that a new model is fitted to."""
        if _has_no_model(trainer):
            for row, name in zip(rows, names, strict=True):
                self._share.note([name])
                if name:
                    self.tenants[name].pairs.add(row[None])
                self._train(trainer, row[None], [name], evidence)
            return []
        waiting = len(self._names)
        self._rows[waiting : waiting + len(rows)] = rows
        self._names += names
        if len(self._names) < len(self._rows):
            return []
        trainer.finish()
        assert trainer.weights is not None
        self._keep_up(trainer.weights)
        features = self._rows[:, :-1].copy()  # numpy takes less time with it than with a part of rows
        names, self._names = self._without_outliers(trainer, features, self._names), []
        self._share.note(names)
        return self._train(trainer, *self._learn(features, self._rows, names), evidence)

    def _learn(self, features: Array, rows: Array, names: list[str]) -> tuple[Array, list[str]]:
        """Learn the heads from the rows of a round, whose features these are.

        Returns what the shared weights are trained on, and its tenants.
        """
        errors, places = self._errors(features, rows[:, -1], names), defaultdict[str, list[int]](list)
        for place, (name, shared, own) in enumerate(zip(names, errors.shared, errors.own, strict=True)):
            if name:
                self.tenants[name].comparison.add(shared, own)
                places[name].append(place)
        now, without_own, released = np.ones(len(rows), dtype=bool), list[int](), list[tuple[Array, str]]()
        for name, its in places.items():
            tenant = self.tenants[name]
            heads, waited = tenant.heads, tenant.pairs.rows(newest=tenant.held) if tenant.held else rows[:0]
            tenant.pairs.add(rows[its])
            if tenant.heads > heads:
                self._make(tenant)
            if self._waits(tenant):
                now[its] = False
                tenant.held += len(its)
            elif self._is_far_off(tenant):
                now[its] = False
                self._share.passed += tenant.held + len(its)
                tenant.held = 0
            elif tenant.held:
                now[its] = False
                released.append((self._released(name, np.concatenate([waited, rows[its]])), name))
                tenant.held = 0
            elif tenant.comparison.used:
                without_own += its
        given = rows.copy()
        given[without_own, -1] = errors.without_own[without_own]
        if np.count_nonzero(now) == len(now):  # a fraction of the time that `all` takes
            return given, names
        names = [name for name, is_now in zip(names, now, strict=True) if is_now]
        names += [name for its, name in released for _ in its]
        return np.concatenate([given[now], *(its for its, _ in released)]), names

    def _errors(self, features: Array, scores: Array, names: Sequence[str]) -> _Errors:
        """The errors of the shared weights, and of the heads of their tenants, in pairs."""
        trunk = self._trunk
        hidden = trunk.see(features)
        numbers = np.array([self.tenants[name].number if name else -1 for name in names], dtype=np.intp)
        shared = trunk.outputs(hidden)
        own, typical = trunk.outputs(hidden, self._own.of(numbers)), shared + self._common(hidden)
        predicted = trunk.scores(np.array([shared, own, typical]))
        errors = trunk.errors(predicted[:2], scores)
        of_shared, of_own = errors.tolist()
        return _Errors(of_shared, of_own, self._corrected(scores, predicted[2] + errors[1]))

    def _common(self, hidden: Hidden) -> Array | float:
        """What all heads add to the shared weights' outputs (n,), none less: no tenant's own.

        Without it, shared weights that are wrong for all would stay so, being right with each tenant's head.
        """
        compared = [tenant for tenant in self.tenants.values() if tenant.comparison.pairs >= LEAST_PAIRS]
        if not compared or not all(tenant.comparison.used for tenant in compared):
            return 0.0
        added = hidden.values @ self._own.row[[tenant.number for tenant in compared]].T
        return np.asarray(np.minimum(np.maximum(0.0, added.min(axis=1)), added.max(axis=1)))

    def _waits(self, tenant: Tenant) -> bool:
        """Whether a tenant's pairs wait to train the shared weights."""
        if tenant.pairs.added >= RING_PAIRS:
            return False
        shared, own = self._rmse(tenant)
        return shared > HELD_ERROR and tenant.pairs.added < (HELD_PAIRS if min(shared, own) <= FAR_OFF else RING_PAIRS)

    def _is_far_off(self, tenant: Tenant) -> bool:
        """Whether neither the shared weights nor its head explain a tenant's scores, while one of them does so for another."""
        return min(self._rmse(tenant)) > FAR_OFF and any(
            each.heads and min(self._rmse(each)) <= FAR_OFF for each in self.tenants.values()
        )

    def _rmse(self, tenant: Tenant) -> tuple[float, float]:
        """RMSE of the shared weights and of the head on a tenant's pairs, as shares of the range of scores."""
        shared, own = tenant.comparison.rmse
        span = self.settings.score_max - self.settings.score_min
        return shared / span, own / span

    def _released(self, name: str, rows: Array) -> Array:
        """The pairs of a tenant that have waited, as the shared weights are trained on them."""
        if self.tenants[name].comparison.used:
            rows[:, -1] = self._errors(rows[:, :-1], rows[:, -1], [name] * len(rows)).without_own
        return rows

    def _train(self, trainer: Trainer, rows: Array, names: Sequence[str], evidence: Evidence) -> list[Group]:
        """Train the shared weights on the rows whose tenants have not had their share."""
        admitted = self._share.admit(names)
        rows = rows if all(admitted) else rows[admitted]
        return trainer.add(rows[:, :-1], rows[:, -1], False, evidence)

    def _corrected(self, scores: Array, corrected: Array) -> Array:
        """Scores without what is particular to a tenant, as they are where that is not known."""
        within = np.minimum(np.maximum(corrected, self.settings.score_min), self.settings.score_max)
        return np.where(np.isfinite(within), within, scores)

    def _make(self, tenant: Tenant) -> None:
        """Make a tenant's head from its newest pairs."""
        trunk, rows, at = self._trunk, tenant.pairs.rows(), tenant.number
        span = self.settings.score_max - self.settings.score_min
        seen, scores = trunk.see(rows[:, :-1]), rows[:, -1]
        if not (finite := np.isfinite(trunk.outputs(seen))).all():
            seen, scores = Hidden(*(each[finite] for each in seen)), scores[finite]
        if self._own.down.size and tenant.has_adapter_due:
            self._own.up[at], self._own.down[at] = 0.0, 0.0
            self._own.row[at] = row_of(trunk, self._own.of(at), seen, scores, span)
            self._own.up[at], self._own.down[at] = adapter_of(trunk, self._own.of(at), seen, scores, span)
        self._own.row[at] = row_of(trunk, self._own.of(at), seen, scores, span)

    def _keep_up(self, weights: Weights) -> None:
        """Make all heads again if the shared weights have become others, or are in other units."""
        if weights is self._made_for:
            weights.ema.refresh()
            return
        self._follow(weights)
        with np.errstate(over="ignore", invalid="ignore"):
            for tenant in self.tenants.values():
                if tenant.heads:
                    self._make(tenant)

    def _follow(self, weights: Weights) -> None:
        """Take the trunk of these weights, as it is at any time, and no heads on it."""
        self._made_for, self._trunk = weights, Trunk.of(weights.ema.steps(shared=True))
        self._own = self._trunk.nothing(self.settings.tenant_rank, MOST_TENANTS + 1)

    @staticmethod
    def _without_outliers(trainer: Trainer, features: Array, names: list[str]) -> list[str]:
        """The tenants of pairs with these features, "" in place of those of pairs that the trainer will leave out."""
        outliers = trainer.outliers.among(features)
        if not np.count_nonzero(outliers):
            return names
        return ["" if is_out else name for name, is_out in zip(names, outliers.tolist(), strict=True)]

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
