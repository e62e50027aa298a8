"""Trainings that differ in their seed: how many, where they run, and what becomes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

from onnx_builder.network import Array, Network
from sidecar.fleet.shared import Shared, SharedArray, array_of
from sidecar.fleet.workers import Workers
from sidecar.learning.device.fitting import Job, fit_stacked
from sidecar.learning.device.stacked import Device
from sidecar.learning.head import Head
from sidecar.learning.recipe import Fitted, Observe, Progress, Recipe, Rows, fit, no_progress
from sidecar.offline.ensemble import average


@dataclass(frozen=True)
class Seeds:
    """Each training is done with `count` seeds, from the recipe's on.

    ensemble: the result is the average of them all, else that of the first seed. device: makes the device for a number of
    models that train side by side there; workers: share out the trainings of the pairs with these features. Without both, one
    is trained after the other, in numpy.
    """

    count: int = 1
    ensemble: bool = False
    device: Callable[[int], Device] | None = None
    workers: tuple[Workers, SharedArray] | None = None

    def fit(
        self,
        features: Array,
        scores: Array,
        parts: Iterable[Rows],
        recipe: Recipe,
        progress: Progress = no_progress,
        base: Network | None = None,
        observe: Observe | None = None,
    ) -> list[list[Fitted]]:
        """For each part of the pairs, what training on it gives with each seed.

        parts: as many as are trained on at a time are taken, since many parts of many pairs are large. observe: told of the
        first training.
        """
        recipes = [dataclasses.replace(recipe, seed=recipe.seed + number) for number in range(self.count)]
        jobs: Iterable[Job] = (Job(rows, each) for rows in parts for each in recipes)
        first = [*islice(jobs, 2)]
        several = len(first) > 1
        jobs = chain(first, jobs)
        if self.device is not None:
            jobs = [*jobs]
            trained = fit_stacked(features, scores, jobs, self.device(len(jobs)), progress, base, observe)
        elif self.workers is not None and several and observe is None:
            trained = _fit_by_workers(*self.workers, scores, jobs, progress, base)
        else:
            trained = [
                fit(features, scores, job.rows, job.recipe, progress, base, None if number else observe)
                for number, job in enumerate(jobs)
            ]
        return [trained[start : start + self.count] for start in range(0, len(trained), self.count)]

    def result(self, trained: Sequence[Fitted]) -> Fitted:
        """What is published of one part's trainings. Raises TrainingError if they have no average."""
        first = trained[0]
        if not self.ensemble:
            return first
        kinds = [each.live for each in trained], [each.ema for each in trained]
        live, ema = (Head(average([head.network() for head in heads])) for heads in kinds)
        return Fitted(live, ema, first.steps)


class _Trained(NamedTuple):
    """What a worker gives. loss: the last one, in score points squared; pairs: trained on in all."""

    live: Network
    ema: Network
    steps: int
    loss: float
    pairs: int


def _fit_by_workers(
    workers: Workers, features: SharedArray, scores: Array, jobs: Iterable[Job], progress: Progress, base: Network | None
) -> list[Fitted]:
    shared = workers.share(features, len(scores))
    trained: dict[int, Fitted] = {}
    for number, done in workers.run(_fit, ((shared, scores, job, base) for job in jobs)):
        trained[number] = Fitted(Head(done.live), Head(done.ema), done.steps)
        progress(done.pairs, done.loss)
    return [trained[number] for number in sorted(trained)]


def _fit(features: Shared, scores: Array, job: Job, base: Network | None) -> _Trained:
    """On a worker."""
    pairs, last = 0, 0.0

    def told(count: int, loss: float) -> None:
        nonlocal pairs, last
        pairs, last = pairs + count, loss

    found = fit(array_of(features), scores, job.rows, job.recipe, told, base)
    return _Trained(found.live.network(), found.ema.network(), found.steps, last, pairs)
