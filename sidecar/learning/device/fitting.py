"""Several trainings of the offline recipe at once, stacked on a device: folds, seeds, or both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Array, Elementwise, Float32, Network, Step
from sidecar.learning.device.stacked import Device, Stacked
from sidecar.learning.device.update import Update
from sidecar.learning.head import Head
from sidecar.learning.optim.adam import Adam
from sidecar.learning.optim.group_lasso import GroupLasso
from sidecar.learning.optim.polyak import PolyakAverage
from sidecar.learning.passes import Operation, Pass, parameter_views
from sidecar.learning.recipe import (
    LASSO_EVERY,
    Fitted,
    Observe,
    Progress,
    Recipe,
    Rows,
    Schedule,
    TrainingError,
    begin,
    error_bound,
    fitted,
    lasso_reach,
    no_progress,
    optimizer_of,
)

_STEPS_A_BLOCK, _NUMBERS_A_BLOCK = 1024, 1 << 24
"""Steps whose pairs and numbers go to the device together, after which the losses are looked at; fewer if that is much."""
_NUMBERS = 7


class Job(NamedTuple):
    """One training: which pairs it trains on, and how. All jobs of a stack differ in rows, seed and rates at most."""

    rows: Rows
    recipe: Recipe


def fit_stacked(
    features: Array,
    scores: Array,
    jobs: Sequence[Job],
    device: Device,
    progress: Progress = no_progress,
    base: Network | None = None,
    observe: Observe | None = None,
) -> list[Fitted]:
    """What `fit` gives for each job, up to rounding: the same batches in the same order.

    device: for as many models as there are jobs; it holds all pairs once for each. observe: called with the heads of the first
    job before each block of steps, and after the last. Raises TrainingError for a training that diverges.
    """
    begun = [begin(features, scores, job.rows, job.recipe, base) for job in jobs]
    heads = [head for _, head, _, _ in begun]
    planned = [schedule for *_, schedule in begun]
    if not planned[0].epochs:
        return [Fitted(head, head, 0) for head in heads]
    batches = [
        _Batches(job.rows, schedule.epochs, min(job.recipe.batch_size, len(job.rows)), shuffle)
        for job, (shuffle, _, _, schedule) in zip(jobs, begun, strict=True)
    ]
    stack = Stack(heads, features, scores, jobs[0].recipe, max(each.size for each in batches), device)
    units = np.array([head.score_scale**2 for head in heads])
    deviations = [0.0 if head.limits is None else float(head.limits[1]) for head in heads]
    total = max(each.total for each in batches)
    for start in range(0, total, stack.block):
        stop = min(start + stack.block, total)
        if observe:
            observe(start, *stack.heads(heads[0], 0))
        places, weights, numbers = stack.tables()
        for model, (job, schedule, each) in enumerate(zip(jobs, planned, batches, strict=True)):
            each.fill(places[model], weights[model])
            numbers[model] = _numbers(replace(job.recipe, seed=0), schedule, each.total, start, stack.block)
            numbers[model, :, -2:] *= deviations[model]
        losses, done = stack.run(start, stop)
        for schedule, each, steps in zip(planned, batches, done.tolist(), strict=True):
            if steps < min(stop, each.total):
                where = f"within steps {start + 1} to {stop} of {each.total} with learning rate {schedule.learning_rate:g}"
                raise TrainingError(f"training diverged {where}; try a smaller one")
        progress(int((weights > 0).sum()), float(np.mean(losses * units)))
    if observe:
        observe(batches[0].total, *stack.heads(heads[0], 0))
    return [
        fitted(*stack.heads(head, model), each.total, conditioning)
        for model, ((_, head, conditioning, _), each) in enumerate(zip(begun, batches, strict=True))
    ]


class _Batches:
    """The batches of one training, in the order of `fit`. size: pairs in each but the last of an epoch; total: how many."""

    def __init__(self, rows: Rows, epochs: int, size: int, shuffle: np.random.Generator) -> None:
        self.size, steps = size, math.ceil(len(rows) / size)
        self.total = epochs * steps
        self._rows, self._epochs, self._shuffle = rows, epochs, shuffle
        self._weights = np.full((steps, size), 2 / size, dtype=np.float32)
        over = steps * size - len(rows)
        if over:
            self._weights[-1] = 2 / (size - over)
            self._weights[-1, size - over :] = 0
        self._places: NDArray[np.int32] = np.zeros((0, size), dtype=np.int32)
        self._done = 0

    def fill(self, places: NDArray[np.int32], weights: Array) -> None:
        """Write the pairs of the next batches, and the weights of their errors, into tables (steps, n) of zeros."""
        waiting, count = [self._places], len(self._places)
        while count < len(places) and self._epochs:
            epoch = np.zeros(self._weights.shape, dtype=np.int32)
            epoch.flat[: len(self._rows)] = self._shuffle.permutation(self._rows)
            waiting.append(epoch)
            count, self._epochs = count + len(epoch), self._epochs - 1
        ready = np.concatenate(waiting)
        count = min(len(ready), len(places))
        places[:count, : self.size], self._places = ready[:count], ready[count:]
        weights[:count, : self.size] = self._weights[np.arange(self._done, self._done + count) % len(self._weights)]
        self._done += count


@lru_cache(maxsize=64)
def _numbers(recipe: Recipe, planned: Schedule, total: int, start: int, count: int) -> Array:
    """What each of `count` steps takes (count, 7): limit of the norm, rate, correction, weight in the average, lasso threshold,
    and the limits of errors in deviations of the scores.

    The limit of the norm is 0 after the last step, so that no more are taken.
    """
    numbers = np.zeros((count, _NUMBERS), dtype=np.float32)
    reach, adam = lasso_reach(recipe, planned), recipe.optimizer == "adam"
    for row, step in zip(numbers, range(start, min(start + count, total)), strict=False):
        rate, decay = planned.rate(recipe, step, total), min(recipe.ema_decay, (2 + step) / (11 + step))
        first, second = (1 - Adam.beta1 ** (step + 1), 1 - Adam.beta2 ** (step + 1)) if adam else (1, 1)
        bound = error_bound(recipe, step, total)
        row[:] = math.inf, rate / first, 1 / math.sqrt(second), 1 - decay, -reach * rate * (1 - step / total), -bound, bound
    return numbers


class Stack:
    """Heads side by side on a device, and the programs of their steps.

    heads: of one architecture. features (n, n_features), scores (n,): all pairs that any of them trains on. recipe: of them
    all, but for the seed and what `_numbers` gives for each step. block: steps whose pairs and numbers are sent together.
    """

    def __init__(
        self, heads: Sequence[Head], features: Array, scores: Array, recipe: Recipe, batch_size: int, device: Device
    ) -> None:
        head, body = heads[0], _stacked_body(heads, device)
        width = 2 * batch_size + _NUMBERS
        self.block = max(LASSO_EVERY, min(_STEPS_A_BLOCK, _NUMBERS_A_BLOCK // (len(heads) * width)))
        self._table = device.empty((self.block, width), np.float32)
        self._host_table: Array = np.empty((len(heads), *self._table.shape), dtype=np.float32)
        self._step = device.array(np.zeros(1, dtype=np.int32))
        self._done, self._squares = (device.array(np.zeros((), dtype=np.float32)) for _ in range(2))
        self._batch_size = batch_size
        row = device.empty((1, self._table.shape[1]), np.float32)
        places, weights, numbers = _parts(row[0], batch_size)

        with np.errstate(over="ignore"):
            pairs = device.stack([each.rows(features, scores) for each in heads])
        self.parameters = device.stack([each.parameters for each in heads])
        parameters, gradient = cast(Array, self.parameters), np.zeros_like(cast(Array, self.parameters))
        bounds = None if head.bounds is None else cast(Array, device.stack([cast(Array, each.bounds) for each in heads]))
        limits = None if head.limits is None else np.zeros_like(parameters, shape=(2,))
        views, gradients = (parameter_views(body, vector) for vector in (parameters, gradient))
        work = Pass(body, head.n_features, views, gradients, bounds, limits, batch_size, cast(Array, weights))
        weighted = np.empty_like(work.error)
        optimizer = optimizer_of(recipe, parameters, gradient)
        self.average = PolyakAverage(parameters, recipe.ema_decay)
        lasso = GroupLasso(head.at(parameters).feature_weights)
        update = Update(self.parameters, cast(Stacked, gradient), recipe.max_grad_norm, optimizer, self.average)

        step, squares, done = (cast(Array, each) for each in (self._step, self._squares, self._done))
        take: partial[Any] = partial(np.take, axis=0, mode="clip")
        scalars = [update.limit, optimizer.rate, getattr(optimizer, "correction", None), self.average.weight, lasso.threshold]
        scalars += [] if limits is None else [limits[:1].reshape(()), limits[1:].reshape(())]
        to_gradient: list[Operation] = [
            partial(take, self._table, step, out=row),
            partial(take, pairs, places, out=work.batch),
            partial(np.add, step, 1, out=step),
            *(partial(np.copyto, to, numbers[at]) for at, to in enumerate(scalars) if to is not None),  # type: ignore[arg-type]
            *work.forward_to_error,
            partial(np.multiply, work.error, cast(Array, weights), weighted),
            partial(weighted.dot, work.error, squares),
            *work.backward,
        ]
        count = partial(np.add, done, cast(Array, update.taken), out=done)
        results = [self._step, self._squares, self._done, self.parameters, cast(Stacked, self.average.parameters)]
        results += cast(tuple[Stacked, ...], optimizer.moments)
        self._plain = device.program([*to_gradient, *update.operations(), count], results)
        self._shrinking = device.program([*to_gradient, *update.operations(lasso.operations), count], results)

    def tables(self) -> tuple[Array, Array, Array]:
        """Host tables of zeros (models, steps, …) for the next `run`: places of pairs, weights of errors, numbers of steps."""
        self._host_table.fill(0)
        places, weights, numbers = _parts(self._host_table, self._batch_size)
        return places, weights, numbers

    def heads(self, head: Head, model: int) -> tuple[Head, Head]:
        """The head of a model with its present weights, and with their average."""
        live, ema = self.parameters.each()[model], cast(Stacked, self.average.parameters).each()[model]
        return head.at(live), head.at(ema)

    def run(self, start: int, stop: int) -> tuple[Array, Array]:
        """Run the steps that the tables hold. Returns, by model, the last loss in its own units, and the steps taken so far."""
        self._table[:] = self._host_table
        self._step[:] = 0
        for step in range(start, stop):
            if step % LASSO_EVERY:
                self._plain()
            else:
                self._shrinking()
        return self._squares.each() / 2, self._done.each()


def _parts(row: Any, batch_size: int) -> tuple[Any, Any, Any]:
    """The parts of rows of a table: places of pairs, which are integers, weights of errors, and the numbers of `_numbers`."""
    return row[..., :batch_size].view(np.int32), row[..., batch_size : 2 * batch_size], row[..., 2 * batch_size :]


def _stacked_body(heads: Sequence[Head], device: Device) -> list[Step]:
    """The steps of heads of one architecture, with constants that differ between them stacked."""
    body: list[Step] = []
    for steps in zip(*(head.body for head in heads), strict=True):
        if isinstance(steps[0], Elementwise):
            value = device.stack([cast(Elementwise, step).value for step in steps])
            body.append(Elementwise(steps[0].operator, cast(Float32, value)))
        else:
            body.append(steps[0])
    return body
