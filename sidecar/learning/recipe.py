"""The offline recipe: a new model, or a base model, trained on recorded pairs by mini-batch descent over many epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import Activation, ActivationName, Array, Clip, Dense, Elementwise, Network
from sidecar.learning.conditioning import Conditioning, condition
from sidecar.learning.head import Head
from sidecar.learning.optim import Optimizer
from sidecar.learning.optim.adam import Adam
from sidecar.learning.optim.clipping import clip_gradient
from sidecar.learning.optim.group_lasso import GroupLasso
from sidecar.learning.optim.learning_rate import cosine_decay, warmed_up
from sidecar.learning.optim.polyak import PolyakAverage
from sidecar.learning.optim.sgd import Sgd
from sidecar.learning.scaler import Scaling, measure_scaling, score_scaling

_BATCHES_A_BLOCK = 64
_MEASURED_PAIRS = 4096
"""A base model is conditioned on all pairs, or on one to two times this many if there are more."""
LASSO_EVERY = 4
"""Steps between two proximal steps of the group lasso; each proximal step does the work of all these steps."""
BOUND_FALLS_STEPS, BOUND_EVERY = 2000, 16
"""The bound of Huber's loss falls over so many steps, or all if there are fewer, with so many between two changes. Otherwise a
new model, whose first errors are large, learns little in its first hundred steps; over all steps, wrong scores would count too
much."""

Rows = NDArray[np.intp]
Progress = Callable[[int, float], None]
"""Called with the number of pairs trained since the last call and the loss, in score points squared."""

Observe = Callable[[int, Head, Head], None]
"""Called with the number of steps done, and the head with its live weights and with their average at that time."""
OBSERVATIONS = 60


def no_progress(pairs: int, loss: float) -> None:
    """Report nothing."""


class TrainingError(ValueError):
    """Training is not possible with these pairs or settings; the message says why."""


@dataclass(frozen=True)
class Recipe:
    """How a head is trained offline. `benchmarks/quality.py --vary` measures what each part is worth.

    There are many epochs, from small weights and at a decaying rate: the head starts near a constant, first fits what is
    linear, and bends only where that pays. A group lasso switches off features that do not help, so that they cannot mislead on
    unseen content; it fades to nothing by the end, which leaves the others unbiased. Biases that are spread over one deviation
    put the units' kinks where the features are, not all at their means. Features are clipped at `feature_clip` deviations, so
    that an encode unlike all others is not extrapolated to, and no finite feature overflows. With Huber's loss an error beyond
    a bound pulls no harder than one of that size, so that wrong scores decide little; the bound soon falls from one standard
    deviation of the scores to `huber_delta` of them (graduated non-convexity; Blake, Zisserman: Visual reconstruction, 1987).
    `schedule` fills in what is None.
    """

    epochs: int | None = None
    batch_size: int = 32
    learning_rate: float | None = None
    loss: Literal["huber", "squared"] = "huber"
    huber_delta: float = 0.05
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.95
    weight_decay: float = 0.0
    group_lasso: float | None = None
    max_grad_norm: float = 1.0
    warmup_steps: int = 100
    ema_decay: float = 0.999
    hidden: int = 64
    activation: ActivationName = "relu"
    feature_clip: float = 10.0
    weight_gain: float = 0.1
    bias_deviation: float = 1.0
    score_min: float = 0.0
    score_max: float = 100.0
    seed: int = 0


TRAINED_PAIRS, FEWEST_EPOCHS, MOST_EPOCHS = 3_072_000, 10, 3000
LEARNING_RATE = {"sgd": 0.02, "adam": 0.001}
GROUP_LASSO = {"sgd": 3e-4, "adam": 0.03}
"""Adam divides gradients by their size, which is about a hundredth near the end, but does not divide the penalty."""


def error_bound(recipe: Recipe, step: int, total: int) -> float:
    """The bound of Huber's loss at step 0, 1, …, total − 1, in standard deviations of the scores."""
    return float(recipe.huber_delta ** min(1.0, step // BOUND_EVERY * BOUND_EVERY / min(total, BOUND_FALLS_STEPS)))


class Schedule(NamedTuple):
    """The values that a recipe leaves open, for a number of pairs and its optimizer."""

    epochs: int
    learning_rate: float
    group_lasso: float

    def rate(self, recipe: Recipe, step: int, total: int) -> float:
        """The learning rate of step 0, 1, …, total − 1."""
        return warmed_up(self.learning_rate, step, recipe.warmup_steps) * cosine_decay(step, total)


def schedule(recipe: Recipe, n_pairs: int, fresh: bool = True) -> Schedule:
    """The recipe's own values, else the defaults; a base model has no group lasso.

    epochs: enough to train on 3,072,000 pairs in all (96,000 steps of 32), but at least 10 and at most 3000.
    """
    default_lasso = GROUP_LASSO[recipe.optimizer] if fresh else 0.0
    return Schedule(
        max(FEWEST_EPOCHS, min(MOST_EPOCHS, math.ceil(TRAINED_PAIRS / n_pairs))) if recipe.epochs is None else recipe.epochs,
        LEARNING_RATE[recipe.optimizer] if recipe.learning_rate is None else recipe.learning_rate,
        default_lasso if recipe.group_lasso is None else recipe.group_lasso,
    )


@dataclass(frozen=True)
class Fitted:
    """A trained head: with its last weights, and with their Polyak average."""

    live: Head
    ema: Head
    steps: int


def fresh_network(scaling: Scaling, recipe: Recipe, generator: np.random.Generator) -> Network:
    """A new model: scaling, a hidden layer with random weights, an output layer, and scaling to score points, with a clip.

    scaling: that of the pairs it will train on. Weights have `recipe.weight_gain` times the normal deviation of He et
    al. (2015, arXiv:1502.01852); those of features that did not vary are zero, so that these have no influence before they
    have been seen to matter. Scores are clipped to their range, if that is finite.
    """
    n_features = len(scaling.offset)
    first_deviation, last_deviation = (recipe.weight_gain * math.sqrt(2 / n) for n in (n_features, recipe.hidden))
    first = generator.normal(scale=first_deviation, size=(recipe.hidden, n_features)) * scaling.varying
    biases = generator.normal(scale=recipe.bias_deviation, size=recipe.hidden)
    last = generator.normal(scale=last_deviation, size=(1, recipe.hidden))
    return Network(
        n_features,
        (
            Elementwise("Sub", scaling.offset),
            Elementwise("Mul", scaling.factor),
            Clip(-recipe.feature_clip, recipe.feature_clip),
            Dense(first.astype(np.float32), biases.astype(np.float32)),
            Activation(recipe.activation),
            Dense(last.astype(np.float32), np.zeros(1, dtype=np.float32)),
            Elementwise("Mul", np.asarray(scaling.score_scale, dtype=np.float32)),
            Elementwise("Add", np.asarray(scaling.score_offset, dtype=np.float32)),
            *([Clip(recipe.score_min, recipe.score_max)] if math.isfinite(recipe.score_max - recipe.score_min) else []),
        ),
    )


def fit(
    features: Array,
    scores: Array,
    rows: Rows,
    recipe: Recipe,
    progress: Progress = no_progress,
    base: Network | None = None,
    observe: Observe | None = None,
) -> Fitted:
    """A head trained on the chosen pairs: the same pairs, rows, recipe and base give the same bytes.

    features: (n, n_features) float32, raw; scores: (n,), in score points; rows: indices of the pairs to train on, at
    least one; base: what to start from instead of a new model. With a base and no epochs, the base is returned unchanged.
    observe: called before the first step, up to 60 times on the way (more often while more changes), and after the last step;
    it does not influence the result.

    Raises TrainingError at the first step whose gradient is not finite: training has diverged.
    """
    shuffle, head, conditioning, planned = begin(features, scores, rows, recipe, base)
    if not planned.epochs:
        return Fitted(head, head, 0)
    optimizer = optimizer_of(recipe, head.parameters, head.gradient)
    lasso, reach = GroupLasso(head.feature_weights), lasso_reach(recipe, planned)
    average = PolyakAverage(head.parameters, recipe.ema_decay)
    batch_size = min(recipe.batch_size, len(rows))
    total = planned.epochs * math.ceil(len(rows) / batch_size)
    step = observed = 0
    deviation = None if head.limits is None else float(head.limits[1])
    with np.errstate(over="ignore", invalid="ignore"):  # reported below
        for block in _epochs(features, scores, rows, planned.epochs, batch_size * _BATCHES_A_BLOCK, head, shuffle):
            if observe and step >= total * (observed / OBSERVATIONS) ** 2:
                observe(step, head, head.at(average.parameters))
                observed += 1
            loss = 0.0
            for start in range(0, len(block), batch_size):
                if deviation and step % BOUND_EVERY == 0:
                    head.bound_errors(deviation * error_bound(recipe, step, total))
                loss = head.loss_and_gradient(block[start : start + batch_size])
                if not clip_gradient(head.gradient, recipe.max_grad_norm) < math.inf:
                    where = f"step {step + 1} of {total} with learning rate {planned.learning_rate:g}"
                    raise TrainingError(f"training diverged at {where}; try a smaller one")
                rate = planned.rate(recipe, step, total)
                optimizer.step(rate)
                if reach and step % LASSO_EVERY == 0:
                    lasso.shrink(reach * rate * (1 - step / total))
                average.update()
                step += 1
            progress(len(block), loss * head.score_scale**2)
    ema = head.at(average.parameters)
    if observe:
        observe(step, head, ema)
    return fitted(head, ema, step, conditioning)


def begin(
    features: Array, scores: Array, rows: Rows, recipe: Recipe, base: Network | None
) -> tuple[np.random.Generator, Head, Conditioning | None, Schedule]:
    """What `fit` begins with: the generator that shuffles, the head, the units of its weights with a base, the schedule."""
    shuffle, initial = (np.random.default_rng(s) for s in np.random.SeedSequence(recipe.seed).spawn(2))
    planned = schedule(recipe, len(rows), fresh=base is None)
    conditioning = None
    if base is None:
        head = Head(fresh_network(measure_scaling(features, scores, rows), recipe, initial))
    elif not planned.epochs:
        return shuffle, Head(base), None, planned
    else:
        measured = features[rows[:: max(1, len(rows) // _MEASURED_PAIRS)]]
        conditioning = condition(base, measured, recipe.score_min, recipe.score_max)
        head = Head(conditioning.apply(base))
    if recipe.loss == "huber":
        _, deviation = score_scaling(scores[rows])
        head.bound_errors(deviation / head.score_scale)
    return shuffle, head, conditioning, planned


def fitted(live: Head, ema: Head, steps: int, conditioning: Conditioning | None) -> Fitted:
    """What `fit` gives, in the units of the base model."""
    if conditioning is None:
        return Fitted(live, ema, steps)
    return Fitted(Head(conditioning.remove(live.network())), Head(conditioning.remove(ema.network())), steps)


def optimizer_of(recipe: Recipe, parameters: Array, gradient: Array) -> Optimizer:
    """The optimizer of a recipe, bound to a parameter vector and its gradient."""
    if recipe.optimizer == "sgd":
        return Sgd(parameters, gradient, recipe.momentum, recipe.weight_decay)
    return Adam(parameters, gradient, recipe.weight_decay)


def lasso_reach(recipe: Recipe, planned: Schedule) -> float:
    """The threshold of a proximal step of the group lasso at learning rate 1, before it fades."""
    return LASSO_EVERY * planned.group_lasso / (1 - recipe.momentum if recipe.optimizer == "sgd" else 1)


def _epochs(
    features: Array, scores: Array, rows: Rows, epochs: int, block_rows: int, head: Head, generator: np.random.Generator
) -> Iterator[Array]:
    """Shuffled training rows, a block of batches at a time in one reused array, so that scaling costs little."""
    block = np.empty((min(block_rows, len(rows)), features.shape[1] + 2), dtype=np.float32)
    for _ in range(epochs):
        order = generator.permutation(rows)
        for start in range(0, len(order), len(block)):
            chosen = order[start : start + len(block)]
            yield head.rows(features[chosen], scores[chosen], out=block[: len(chosen)])
