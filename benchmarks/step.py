"""One training step (80-64-1, batch 32: forward, backward, clip, momentum SGD, EMA) beside torch and the bare products.

    OMP_NUM_THREADS=1 python benchmarks/step.py

Ours and torch's go through the same 16 batches of noise in turn, which cannot be learned by heart: on one batch the
gradient would shrink to denormal numbers, which are slow. The three are timed in turn, round after round, and the median
of the ratios within a round is what counts: the machine's speed drifts, a ratio within a round does not. torch: optim.SGD
and clip_grad_norm_ at their defaults, the EMA by the faster of a loop of lerp_ and torch._foreach_lerp_, one thread.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import itertools
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from sidecar.learning.head import Head
from sidecar.learning.optim.clipping import clip_gradient
from sidecar.learning.optim.polyak import PolyakAverage
from sidecar.learning.optim.sgd import Sgd
from sidecar.learning.recipe import Recipe, fresh_network
from sidecar.learning.scaler import measure_scaling

FEATURES, HIDDEN, BATCH, BATCHES = 80, 64, 32, 16
RATE, MOMENTUM, DECAY, MAX_NORM, EMA = 1e-3, 0.9, 1e-5, 1.0, 0.999
Step = Callable[[], object]


def our_step(features: np.ndarray, scores: np.ndarray) -> Step:
    scaling = measure_scaling(features, scores, np.arange(len(features)))
    head = Head(fresh_network(scaling, Recipe(hidden=HIDDEN), np.random.default_rng(0)))
    optimizer, average = Sgd(head.parameters, head.gradient, MOMENTUM, DECAY), PolyakAverage(head.parameters, EMA)
    batches = itertools.cycle(np.split(head.rows(features, scores), BATCHES))

    def step() -> None:
        head.loss_and_gradient(next(batches))
        clip_gradient(head.gradient, MAX_NORM)
        optimizer.step(RATE)
        average.update()

    return step


def bare_products() -> tuple[Step, Step]:
    """The five matrix products of the step: as one would write them, and by the fastest call found (no biases, row-major)."""
    rng = np.random.default_rng(0)

    def matrix(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    x, w1, w2 = matrix(BATCH, FEATURES), matrix(FEATURES, HIDDEN), matrix(HIDDEN, 1)
    hidden, out, error = matrix(BATCH, HIDDEN), matrix(BATCH, 1), matrix(BATCH, 1)
    w1_gradient, w2_gradient, hidden_error = matrix(FEATURES, HIDDEN), matrix(HIDDEN, 1), matrix(BATCH, HIDDEN)
    hidden_t, x_t, w2_t = hidden.T, x.T, w2.T

    def by_matmul() -> None:
        np.matmul(x, w1, out=hidden)
        np.matmul(hidden, w2, out=out)
        np.matmul(hidden_t, error, out=w2_gradient)
        np.matmul(error, w2_t, out=hidden_error)
        np.matmul(x_t, hidden_error, out=w1_gradient)

    def by_dot() -> None:
        x.dot(w1, hidden)
        hidden.dot(w2, out)
        hidden_t.dot(error, w2_gradient)
        error.dot(w2_t, hidden_error)
        x_t.dot(hidden_error, w1_gradient)

    return by_matmul, by_dot


def torch_step(features: np.ndarray, scores: np.ndarray, foreach: bool) -> Step:
    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(FEATURES, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    parameters = list(model.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    scores = (scores - scores.mean()) / scores.std()
    batches = itertools.cycle(
        zip(torch.from_numpy(features).split(BATCH), torch.from_numpy(scores)[:, None].split(BATCH), strict=True)
    )

    def step() -> None:
        x, y = next(batches)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        with torch.no_grad():
            if foreach:
                torch._foreach_lerp_(average, parameters, 1 - EMA)
            else:
                for mean, parameter in zip(average, parameters, strict=True):
                    mean.lerp_(parameter, 1 - EMA)

    return step


def microseconds(step: Step, seconds: float) -> float:
    """Mean time of a step over about so many seconds."""
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        for _ in range(50):
            step()
        count += 50
    return elapsed / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    features = rng.normal(size=(BATCHES * BATCH, FEATURES)).astype(np.float32)
    scores = rng.uniform(0, 100, BATCHES * BATCH).astype(np.float32)
    by_matmul, by_dot = bare_products()
    steps = {
        "vmafx-sidecar": our_step(features, scores),
        "bare products, np.matmul": by_matmul,
        "bare products, ndarray.dot": by_dot,
        "torch, lerp_ loop": torch_step(features, scores, foreach=False),
        "torch, _foreach_lerp_": torch_step(features, scores, foreach=True),
    }
    for step in steps.values():
        microseconds(step, 0.2)
    rounds = [{name: microseconds(step, 0.05) for name, step in steps.items()} for _ in range(options.rounds)]
    print(f"numpy {np.__version__}, torch {torch.__version__}, {options.rounds} rounds, median microseconds a step:")
    for name in steps:
        print(f"  {name:27} {statistics.median(r[name] for r in rounds):8.1f}")
    faster = statistics.median(min(r["torch, lerp_ loop"], r["torch, _foreach_lerp_"]) / r["vmafx-sidecar"] for r in rounds)
    print(f"torch takes {faster:.1f} times as long")
    for name in ("bare products, np.matmul", "bare products, ndarray.dot"):
        print(f"{statistics.median(r['vmafx-sidecar'] / r[name] for r in rounds):.2f} times the {name}")


if __name__ == "__main__":
    main()
