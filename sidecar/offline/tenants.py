"""A head for each tenant, offline: on the model that was trained on all pairs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from onnx_builder.network import Array, Network
from sidecar.checkpoints.publishing import Published
from sidecar.learning.recipe import Recipe, Rows
from sidecar.learning.tenants.comparison import CLEARLY_BETTER, Compared, Comparisons
from sidecar.learning.tenants.head import row_of
from sidecar.learning.tenants.tenants import Model
from sidecar.learning.tenants.trunk import Own, Trunk
from sidecar.learning.tenants.whose import ByTenant
from sidecar.pairs.errors import PairError, RecordedPairsError
from sidecar.pairs.pair import checked_tenant
from sidecar.pairs.recorded import RecordedPairs
from sidecar.settings import MOST_TENANTS

LOOKS, LOOK_EPOCHS = 10, 100
"""In so few epochs, a new model learns what most pairs have in common, and little by heart; so often, each time without more of
what is particular to tenants. On the example pairs, as if of four tenants whose scores differ by offsets, a gamma and another
range, heads have an RMSE of 0.3 to 0.7 on unseen encodes then, and 2.5 to 4.6 with no look."""
_HEAD_PAIRS = 16_384
"""A head has some tens of weights, and is made from at most twice as many pairs as these."""


class TenantFigures(NamedTuple):
    """A tenant's head. pairs: of the tenant; held_out: those of them that judged it; rmse_of_shared, rmse: of the shared model
    and of the head on these, 0 if there are none; gate: its verdict; checkpoint: the name of its model, both None if it could
    not be published."""

    tenant: str
    pairs: int
    held_out: int
    rmse_of_shared: float
    rmse: float
    gate: str | None
    checkpoint: str | None

    @classmethod
    def of(cls, model: Model, published: Published | None) -> TenantFigures:
        """Those of a head that was published, or could not be."""
        gate, name = (published.gate.verdict, published.checkpoint.name) if published else (None, None)
        compared = model.compared
        return cls(model.name, model.pairs, compared.pairs, compared.rmse_of_shared, compared.rmse, gate, name)

    def as_json(self) -> dict[str, Any]:
        return self._asdict()


def tenants_of(pairs: RecordedPairs) -> list[str]:
    """The tenants of pairs, whose groups they are. Raises RecordedPairsError if one cannot have this name."""
    try:
        names = [checked_tenant(name) for name in pairs.group_names]
    except PairError as error:
        raise RecordedPairsError(str(error)) from error
    if len(names) > MOST_TENANTS:
        raise RecordedPairsError(f"tenant: there are {len(names)} of them; expected {MOST_TENANTS} at most")
    return names


def scores_without_own(network: Network, pairs: RecordedPairs, train: Rows, recipe: Recipe) -> Array:
    """The scores (n,) of pairs, those that train without what is particular to their tenants, so that scores which contradict
    each other do not spoil the weights that these share.

    network: knows what most pairs have in common. A tenant's scores stay as they are unless a head that is made from half of
    its encodes is clearly better on the other half.
    """
    trunk, scores = Trunk.of(network.steps), pairs.true_score.copy()
    particular = dict[str, tuple[Rows, Array]]()
    for name, its in _by_tenant(pairs, train).items():
        is_one = pairs.position[its] <= np.median(pairs.position[its]) if len(its) else np.zeros(0, dtype=bool)
        one, other = its[is_one], its[~is_one]
        if not len(other):
            continue
        shared, own = (
            trunk.errors(trunk.scores(trunk.outputs(trunk.see(pairs.features[other]), each)), pairs.true_score[other])
            for each in (None, _own(trunk, pairs, one, recipe))
        )
        if own.dot(own) <= CLEARLY_BETTER**2 * shared.dot(shared):
            particular[name] = its, _own(trunk, pairs, its, recipe).row
    is_common = len(particular) == len(_by_tenant(pairs, train))
    heads = np.array([row for _, row in particular.values()])
    for its, row in particular.values():
        hidden = trunk.see(pairs.features[its])
        outputs, added = trunk.outputs(hidden), hidden.values @ heads.T
        left = trunk.errors(trunk.scores(outputs + hidden.values @ row), pairs.true_score[its])
        common = np.clip(0.0, added.min(axis=1), added.max(axis=1)) if is_common else 0.0
        scores[its] = np.clip(trunk.scores(outputs + common) + left, recipe.score_min, recipe.score_max)
    return scores


def heads(network: Network, pairs: RecordedPairs, train: Rows, held_out: Rows, recipe: Recipe) -> list[Model]:
    """A head for each of the `tenants_of` pairs on a network, from those that train, compared on those held out."""
    trunk, judging, found = Trunk.of(network.steps), _by_tenant(pairs, held_out), list[Model]()
    for name, its in _by_tenant(pairs, train).items():
        judged = judging[name]
        make = partial(_with_own, network, trunk, _own(trunk, pairs, its, recipe))
        rows = np.column_stack([pairs.features[judged], pairs.true_score[judged]]).astype(np.float32)
        found.append(Model(name, len(its) + len(judged), rows, _compared(network, make(), rows), make))
    return found


def _by_tenant(pairs: RecordedPairs, rows: Rows) -> dict[str, Rows]:
    """Those of these rows that are each tenant's."""
    assert pairs.group is not None
    of_rows = pairs.group[rows]
    return {name: rows[of_rows == pairs.group_names.index(name)] for name in tenants_of(pairs)}


def _own(trunk: Trunk, pairs: RecordedPairs, rows: Rows, recipe: Recipe) -> Own:
    """What a head adds that is made from these rows of pairs."""
    nothing, some = trunk.nothing(0, 1).of(0), rows[:: len(rows) // _HEAD_PAIRS or 1]
    if not len(some):
        return nothing
    span = recipe.score_max - recipe.score_min
    return nothing._replace(row=row_of(trunk, nothing, trunk.see(pairs.features[some]), pairs.true_score[some], span))


def _with_own(network: Network, trunk: Trunk, own: Own) -> Network:
    return replace(network, steps=trunk.with_own(own))


def _compared(shared: Network, own: Network, rows: Array) -> Compared:
    comparisons = Comparisons(1)
    if len(rows):
        errors = np.array([each.forward(rows[:, :-1]) - rows[:, -1] for each in (shared, own)])
        comparisons.add(ByTenant.of(np.zeros(len(rows), dtype=np.intp)), errors)
    return comparisons.of(0)
