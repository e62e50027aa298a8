"""All tenants: from pairs in their order to a head for each, and to what the shared weights are trained on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Array, Network
from sidecar.learning.online.fits import Evidence, no_evidence
from sidecar.learning.online.trainer import Group, Trainer
from sidecar.learning.online.weights import Weights
from sidecar.learning.tenants.comparison import LEAST_PAIRS, Compared, Comparisons
from sidecar.learning.tenants.head import adapter_of, row_of
from sidecar.learning.tenants.rings import FIRST_PAIRS, MADE_EVERY, RING_PAIRS, Rings
from sidecar.learning.tenants.share import Share
from sidecar.learning.tenants.trunk import Hidden, Own, Trunk
from sidecar.learning.tenants.whose import NOBODY, ByTenant, Whose
from sidecar.learning.training_settings import TrainingSettings
from sidecar.settings import MOST_TENANTS

ROUND_PAIRS = 128
"""In a round there are as many groups as make so many pairs, and at least one."""
HELD_PAIRS, HELD_ERROR = 64, 0.01
"""While a tenant has sent fewer pairs, and the RMSE of the shared weights on them is more than this share of the range of
scores, its pairs wait to train these: they may contradict those of others, which its head is to show. Measured in
`benchmarks/tenants.py`: tenants of a good base model whose scores contradict each other would spoil it in 50 pairs each, and
where tenants differ in their content only, waiting costs."""
FAR_OFF = 0.1
"""If neither the shared weights nor the head predict a tenant's pairs with an RMSE of at most this share, they wait until the
ring is full, and train no shared weights from then on, as long as another tenant's are predicted. Measured there, too: one
tenant with random scores would spoil all."""
ANY = "*"
"""In the settings, in place of names: the first tenants that come."""


class Model(NamedTuple):
    """A tenant's head, on its own. pairs: how many the tenant has sent; rows: the newest of them, features and score (n,
    n_features + 1), oldest first; compared: with the shared model; network: makes its network, in the base model's units, on
    any thread."""

    name: str
    pairs: int
    rows: Array
    compared: Compared
    network: Callable[[], Network]


class Figures(NamedTuple):
    """What is known of a tenant. pairs: of the tenant so far; held: those of them that wait to train the shared weights."""

    pairs: int
    held: int
    compared: Compared


class _Errors(NamedTuple):
    """The errors in n pairs of the shared weights, and of the tenants' heads, which are the same for a pair of nobody (2, n).

    without_own: (n,), the scores without what is particular to a tenant: what the shared weights predict, what all heads add to
    it, and the error that the tenant's own head leaves.
    """

    both: Array
    without_own: Array


class Tenants:
    """Makes heads for tenants, and feeds the trainer of the weights that they share.

    A pair trains its tenant's head, and the shared weights: while the head is used, without what is particular to the tenant,
    so that tenants whose scores contradict each other do not spoil the trunk.

    Pairs are taken in rounds of about 128: most calls of numpy take hardly longer for these than for 16. Rounds are smaller
    while a tenant in them is new, and before a fit, which begins with the last group of a round.

    numbers: of the tenants, by name, in the order in which they came. refused: pairs of others, which train the shared weights
    alone.
    """

    def __init__(self, n_features: int, settings: TrainingSettings) -> None:
        self.n_features, self.settings = n_features, settings
        self.numbers: dict[str, int] = {}
        self._known = {"": NOBODY}
        self.refused = 0
        self._share, self._rings, self._comparisons = Share(settings), Rings(n_features + 1), Comparisons(MOST_TENANTS)
        self._held = np.zeros(MOST_TENANTS + 1, dtype=np.intp)
        """How many of the newest pairs of each tenant wait to train the shared weights."""
        size = settings.new_pairs * max(1, ROUND_PAIRS // settings.new_pairs)
        self._features, self._scores = np.empty((size, n_features), dtype=np.float32), np.empty(size, dtype=np.float32)
        self._whose: Whose = np.empty(size, dtype=np.intp)
        self._waiting = 0
        """How many pairs wait to complete the round; they come first in these arrays."""
        self._end = size
        """How many pairs the round has."""
        self._made_for: Weights | None = None
        self._trunk: Trunk
        self._own: Own
        """What heads add to these weights, by number; the last one adds nothing, for pairs of nobody."""

    @property
    def passed(self) -> int:
        """Pairs that did not train the shared weights, because their tenant has had its share, or its scores are far off."""
        return self._share.passed

    @property
    def own(self) -> int:
        """Pairs that have trained heads, and the shared weights not, or not yet."""
        return self.passed + int(self._held.sum())

    def missing(self, trainer: Trainer) -> int:
        """How many more pairs complete a round at least, or the first pairs that a new model is fitted to."""
        group = self.settings.new_pairs
        return trainer.missing if _has_no_model(trainer) else group - self._waiting % group

    def until_fit(self, trainer: Trainer) -> int:
        """How many more pairs it takes, at least, until the trainer begins a fit: it does so only when a round is complete."""
        if _has_no_model(trainer):
            return trainer.until_fit
        return max(self.missing(trainer), trainer.until_fit - self._waiting - int(self._held.sum()))

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
        evidence: as in `Trainer.add`. It does not matter how many pairs come at once.
        """
        groups: list[Group] = []
        numbers = [*map(self._known.get, names)]
        whose = np.array(numbers if None not in numbers else [*map(self._admitted, names)], dtype=np.intp)
        start, count = 0, len(scores)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is left out
            while start < count:
                if _has_no_model(trainer):
                    stop = min(count, start + trainer.missing)
                    self._collect(trainer, features[start:stop], scores[start:stop], whose[start:stop], evidence)
                else:
                    if not self._waiting:
                        self._begin_round(trainer)
                    stop = self._put(features, scores, whose, start)
                    if self._waiting == self._end:
                        groups += [group._replace(place=stop - 1) for group in self._take(trainer, evidence)[-1:]]
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

        comparisons, waiting = deepcopy(self._comparisons), self._waiting_rows
        features, scores = self._features[: self._waiting], self._scores[: self._waiting]
        whose = self._without_outliers(trainer, features, self._whose[: self._waiting])
        with np.errstate(over="ignore", invalid="ignore"):
            errors, order = self._errors(features, scores, whose), _by_tenant(whose)
        comparisons.add(ByTenant.of(whose[order]), errors.both[:, order])
        models = list[Model]()
        for name, number in self.numbers.items():
            if self._has_head[number]:
                its = waiting[whose == number]
                pairs, rows = int(self._rings.added[number]) + len(its), np.concatenate([self.rows(name), its])[-RING_PAIRS:]
                models.append(Model(name, pairs, rows, comparisons.of(number), partial(network, number)))
        return models

    @property
    def _waiting_rows(self) -> Array:
        return _joined(self._features[: self._waiting], self._scores[: self._waiting])

    def rows(self, name: str) -> Array:
        """A tenant's newest pairs, features and score (n, n_features + 1), oldest first, but for those that wait."""
        return self._rings.rows(self.numbers[name])

    def figures(self) -> dict[str, Figures]:
        """What is known of the tenants, by name, but for the pairs that wait."""
        pairs, held = self._rings.added.tolist(), self._held.tolist()
        return {name: Figures(pairs[at], held[at], self._comparisons.of(at)) for name, at in self.numbers.items()}

    def reorder(self, places: Sequence[int]) -> None:
        """Take the features of all pairs so far from these places, as `Trainer.reorder` does."""
        self._features[:] = self._features[:, places]
        self._rings.reorder(len(self.numbers), places)

    def continued(self, settings: TrainingSettings) -> tuple[Tenants, Array, list[str]]:
        """The tenants that other settings allow, and the pairs that the shared weights have not been given and no such tenant
        holds: rows (n, n_features + 1), in order, and whose they are."""
        others, rows, names = Tenants(self.n_features, settings), list[Array](), list[str]()
        compared, becomes = self._comparisons.state(), np.full(MOST_TENANTS + 1, NOBODY)
        for name, number in self.numbers.items():
            held = int(self._held[number])
            becomes[number] = stays = others._admitted(name)
            if stays == NOBODY:
                rows.append(self._rings.rows(number, held))
                names += [""] * held
            else:
                others._rings.restore(stays, self._rings.rows(number), int(self._rings.added[number]))
                others._held[stays] = held
                compared[stays] = compared[number]
        others._comparisons.load(compared[: len(others.numbers)])
        last, count = self._share.run
        run = last if last is None else int(becomes[last]), count
        others._share.restore(becomes[self._share.recent], self._share.passed, run)
        others.refused = self.refused
        of = [*self.numbers, ""]
        names += [of[number] for number in self._whose[: self._waiting]]
        return others, np.concatenate([*rows, self._waiting_rows]), names

    def state(self, trainer: Trainer) -> dict[str, Array]:
        """Everything that later training depends on, as copies by name; `load` continues from it bit for bit."""
        trainer.finish()
        if trainer.weights is not None:
            self._keep_up(trainer.weights)
        count, share = len(self.numbers), self._share
        texts = {"names": [*self.numbers], "passed": share.passed, "run": share.run, "refused": self.refused, "end": self._end}
        state: dict[str, Array] = {
            "tenants": np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8),
            "tenants_recent": share.recent.astype(np.int16),
            "tenants_waiting": self._waiting_rows,
            "tenants_of_waiting": self._whose[: self._waiting].astype(np.int16),
            "tenants_counts": np.column_stack([self._rings.added, self._held])[:count],
            "tenants_pairs": np.concatenate([self._rings.data[:0], *map(self.rows, self.numbers)]),
            "tenants_compared": self._comparisons.state()[:count],
        }
        if self._made_for is not None:
            state |= {f"tenants_{name}": values[:count].copy() for name, values in self._own._asdict().items()}
        return state

    def load(self, state: Mapping[str, Array], trainer: Trainer) -> None:
        """Continue from a `state`, with the trainer that its trainer continues as."""
        texts = json.loads(state["tenants"].tobytes())
        self.refused, self._end = texts["refused"], texts["end"]
        self._share.restore(state["tenants_recent"].astype(np.intp), texts["passed"], tuple(texts["run"]))
        start = 0
        for name, (added, held) in zip(texts["names"], state["tenants_counts"].tolist(), strict=True):
            tenant, stop = self._make_tenant(name), start + min(added, RING_PAIRS)
            self._rings.restore(tenant, state["tenants_pairs"][start:stop], added)
            self._held[tenant], start = held, stop
        self._comparisons.load(state["tenants_compared"])
        rows = state["tenants_waiting"]
        self._put(rows[:, :-1], rows[:, -1], state["tenants_of_waiting"], 0)
        if trainer.weights is not None:
            self._follow(trainer.weights)
            for mine, kept in zip(self._own, (state[f"tenants_{name}"] for name in Own._fields), strict=True):
                mine[: len(kept)] = kept

    def _collect(self, trainer: Trainer, features: Array, scores: Array, whose: Whose, evidence: Evidence) -> None:
        """Take some of the first pairs, which a new model is fitted to."""
        for place in range(len(whose)):
            one, its = (features[place : place + 1], scores[place : place + 1]), whose[place : place + 1]
            self._share.note(its)
            if its != NOBODY:
                self._rings.add(ByTenant.of(its), *one)
            self._train(trainer, *one, its, evidence)

    def _begin_round(self, trainer: Trainer) -> None:
        """Have the round end with the group with which a fit begins, if that comes first."""
        group, until_fit = self.settings.new_pairs, self.until_fit(trainer)
        self._end = min(len(self._whose), -(-until_fit // group) * group)

    def _put(self, features: Array, scores: Array, whose: Whose, start: int) -> int:
        """Put pairs, from this place on, to those that wait, up to a complete round. Returns the place after them."""
        waiting, self._waiting = self._waiting, min(self._waiting + len(scores) - start, self._end)
        self._whose[waiting : self._waiting] = whose[start : start + self._waiting - waiting]
        self._find_end(waiting)
        self._waiting = min(self._waiting, self._end)
        stop, new = start + self._waiting - waiting, slice(waiting, self._waiting)
        self._features[new], self._scores[new] = features[start:stop], scores[start:stop]
        return stop

    def _find_end(self, first: int) -> None:
        """Have the round end with the group in which a new tenant is, by the pairs that wait, from one on."""
        group, whose = self.settings.new_pairs, self._whose[first : self._waiting]
        (new,) = ((self._rings.added[whose] < RING_PAIRS) | (self._held[whose] > 0)).nonzero()
        if len(new):
            self._end = min(self._end, ((first + int(new[0])) // group + 1) * group)

    def _take(self, trainer: Trainer, evidence: Evidence) -> list[Group]:
        """Learn from the pairs of a complete round."""
        trainer.finish()
        assert trainer.weights is not None
        self._keep_up(trainer.weights)
        features, scores = self._features[: self._end], self._scores[: self._end]
        of_all = self._whose[: self._end]
        whose = self._without_outliers(trainer, features, of_all)
        self._waiting = 0
        self._share.note(whose)
        given, corrected, of_given = self._learn(features, scores, whose, trainer.until_fit)
        usual = whose is of_all and given is features  # then these are what was looked at
        return self._train(trainer, given, corrected, of_given, evidence, usual)

    def _learn(self, features: Array, scores: Array, whose: Whose, until_fit: int) -> tuple[Array, Array, Whose]:
        """Learn the heads from the pairs of a round.

        Returns the features and scores that the shared weights are trained on, and whose they are. Of pairs that have waited,
        there are no more than up to the next fit, which takes so many pairs; the others wait on.
        """
        errors, order = self._errors(features, scores, whose), _by_tenant(whose)
        by_tenant = ByTenant.of(whose[order])
        tenants = by_tenant.tenants
        held = self._held[tenants]
        earlier = {tenant: self._rings.rows(tenant, self._held[tenant]) for tenant in tenants[held > 0].tolist()}
        self._comparisons.add(by_tenant, errors.both[:, order])
        for tenant in self._rings.add(by_tenant, features[order], scores[order]):
            self._make(tenant)
        corrected, without_own = scores.copy(), order[self._comparisons.used[by_tenant.whose]]
        corrected[without_own] = errors.without_own[without_own]
        wait, far_off = self._wait_and_far_off(tenants)
        others = wait | far_off | (held > 0)
        if not np.count_nonzero(others):
            return features, corrected, whose
        left = max(0, until_fit - len(whose) + int(by_tenant.counts[others].sum()))
        now, rows = np.ones(len(whose), dtype=bool), _joined(features, scores)
        released, of_released = list[Array](), list[Whose]()
        for tenant, waits, is_far_off in zip(tenants[others].tolist(), wait[others], far_off[others], strict=True):
            its = whose == tenant
            now[its] = False
            self._held[tenant] += np.count_nonzero(its)
            if waits:
                continue
            if is_far_off:
                self._share.passed += int(self._held[tenant])
                self._held[tenant] = 0
                continue
            pairs = np.concatenate([earlier[tenant], rows[its]])[:left]
            released.append(self._released(tenant, pairs))
            of_released.append(np.full(len(pairs), tenant))
            self._held[tenant] -= len(pairs)
            left -= len(pairs)
        given = np.concatenate([_joined(features, corrected)[now], *released])
        return given[:, :-1], given[:, -1], np.concatenate([whose[now], *of_released])

    def _errors(self, features: Array, scores: Array, whose: Whose) -> _Errors:
        """The errors of the shared weights, and of the heads of their tenants, in pairs."""
        trunk = self._trunk
        hidden = trunk.see(features)
        outputs = np.empty((3, len(scores)), dtype=np.float32)
        outputs[0] = outputs[2] = shared = trunk.outputs(hidden)
        outputs[1] = shared + trunk.added(hidden, self._own.of(whose))
        if (common := self._common(hidden)) is not None:
            outputs[2] += common
        predicted = trunk.scores(outputs)
        errors = trunk.errors(predicted[:2], scores)
        return _Errors(errors, self._corrected(scores, predicted[2] + errors[1]))

    def _common(self, hidden: Hidden) -> Array | None:
        """What all heads add to the shared weights' outputs (n,), none less: no tenant's own; None if there is no such thing.

        Without it, shared weights that are wrong for all would stay so, being right with each tenant's head.
        """
        compared = np.flatnonzero(self._comparisons.pairs >= LEAST_PAIRS)
        if not len(compared) or not self._comparisons.used[compared].all():
            return None
        added = hidden.values @ self._own.row[compared].T
        return np.asarray(np.minimum(np.maximum(0.0, added.min(axis=1)), added.max(axis=1)))

    @property
    def _has_head(self) -> NDArray[np.bool_]:
        """Of which tenants there are enough pairs for a head (MOST_TENANTS,)."""
        return self._rings.added[:-1] >= FIRST_PAIRS

    def _wait_and_far_off(self, tenants: Whose) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which of some tenants' pairs wait to train the shared weights (n,); and of which of the others neither the shared
        weights nor the head explain the scores, while one of them does so for another."""
        pairs, span = self._rings.added[tenants], self.settings.score_max - self.settings.score_min
        if not np.count_nonzero(pairs < RING_PAIRS) and self._comparisons.surely_explain(tenants, FAR_OFF * span):
            return (none := np.zeros(len(tenants), dtype=bool)), none
        rmse = self._comparisons.rmse(tenants)
        explained = rmse.min(axis=0) <= FAR_OFF * span
        waits = (rmse[0] > HELD_ERROR * span) & (pairs < np.where(explained, HELD_PAIRS, RING_PAIRS))
        far_off = ~(explained | waits)
        if np.count_nonzero(far_off):
            others = self._comparisons.rmse(np.flatnonzero(self._has_head))
            far_off &= (others <= FAR_OFF * span).any()
        return waits, far_off

    def _released(self, tenant: int, rows: Array) -> Array:
        """The pairs of a tenant that have waited, as the shared weights are trained on them."""
        if self._comparisons.used[tenant]:
            rows[:, -1] = self._errors(rows[:, :-1], rows[:, -1], np.full(len(rows), tenant)).without_own
        return rows

    def _train(
        self, trainer: Trainer, features: Array, scores: Array, whose: Whose, evidence: Evidence, usual: bool = False
    ) -> list[Group]:
        """Train the shared weights on the pairs whose tenants have not had their share."""
        admitted = self._share.admit(whose)
        if not admitted.all():
            features, scores = features[admitted], scores[admitted]
        return trainer.add(features, scores, False, evidence, usual)

    def _corrected(self, scores: Array, corrected: Array) -> Array:
        """Scores without what is particular to a tenant, as they are where that is not known."""
        within = np.minimum(np.maximum(corrected, self.settings.score_min), self.settings.score_max)
        return np.where(np.isfinite(within), within, scores)

    def _make(self, at: int) -> None:
        """Make a tenant's head from its newest pairs."""
        trunk, rows = self._trunk, self._rings.in_any_order(at)
        span = self.settings.score_max - self.settings.score_min
        seen, scores = trunk.see(rows[:, :-1]), rows[:, -1]
        if not (finite := np.isfinite(trunk.outputs(seen))).all():
            seen, scores = Hidden(*(each[finite] for each in seen)), scores[finite]
        if self._own.down.size and self._rings.has_adapter_due(at):
            self._own.up[at], self._own.down[at] = 0.0, 0.0
            self._own.row[at] = row_of(trunk, self._own.of(at), seen, scores, span)
            self._own.up[at], self._own.down[at] = adapter_of(trunk, self._own.of(at), seen, scores, span)
        is_good = self._rings.added[at] >= MADE_EVERY and self._own.row[at].any()  # made from as many pairs, on this trunk
        self._own.row[at] = row_of(trunk, self._own.of(at), seen, scores, span, iterations=1 if is_good else 2)

    def _keep_up(self, weights: Weights) -> None:
        """Make all heads again if the shared weights have become others, or are in other units."""
        if weights is self._made_for:
            weights.ema.refresh()
            return
        self._follow(weights)
        with np.errstate(over="ignore", invalid="ignore"):
            for tenant in np.flatnonzero(self._has_head).tolist():
                self._make(tenant)

    def _follow(self, weights: Weights) -> None:
        """Take the trunk of these weights, as it is at any time, and no heads on it."""
        self._made_for, self._trunk = weights, Trunk.of(weights.ema.steps(shared=True))
        self._own = self._trunk.nothing(self.settings.tenant_rank, MOST_TENANTS + 1)

    @staticmethod
    def _without_outliers(trainer: Trainer, features: Array, whose: Whose) -> Whose:
        """The tenants of pairs with these features; those that the trainer will leave out are nobody's."""
        outliers = trainer.outliers.among(features)
        return np.where(outliers, NOBODY, whose) if np.count_nonzero(outliers) else whose

    def _admitted(self, name: str) -> int:
        """The number of a tenant, which is made if it may be; NOBODY if it may not."""
        if name in self._known:
            return self._known[name]
        if len(self.numbers) == MOST_TENANTS or not {name, ANY} & {*(self.settings.tenants or ())}:
            self.refused += 1
            return NOBODY
        return self._make_tenant(name)

    def _make_tenant(self, name: str) -> int:
        number = self.numbers[name] = self._known[name] = len(self.numbers)
        return number


def _has_no_model(trainer: Trainer) -> bool:
    """Whether the trainer collects the first pairs of a new model."""
    return trainer.weights is None and trainer.fit is None


def _joined(features: Array, scores: Array) -> Array:
    return np.column_stack([features, scores])


def _by_tenant(whose: Whose) -> Whose:
    """The places of the tenants' pairs, sorted by tenants, each's in order."""
    return np.argsort(whose, kind="stable")[np.count_nonzero(whose == NOBODY) :]
