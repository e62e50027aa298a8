"""Training steps on a GPU beside numpy and torch: where it begins to pay, and how much of the card it uses.

    python benchmarks/cuda.py

A step is forward, backward, clipping, momentum SGD and the moving average, of heads 80-HIDDEN-1 with relu: one head, and 40 of
the same size at once, each on batches of its own. Ours on the GPU is what `train-offline --device cuda` runs. numpy on one core
is our step on the processor, for 40 heads one after the other; on all cores the BLAS of one head has all of them, and 40 heads
are as many processes as there are cores. torch (float32, the step written with `torch.func.grad` and `torch._foreach_…`) runs
eagerly; and compiled as a whole, and captured as one CUDA graph with what takes a batch, on the same GPU. Every step is timed
over at least 0.3 s after a warm-up, and at the end the GPU is waited for. FLOP are those of the matrix products; the peak is a
product of two 8192 × 8192 matrices in float32 on this card in this run. A step of `serve` is a quarter of the time that its
trainer takes for a group of new pairs, all that it does with them included, but for later fits.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from sidecar.learning.device.stacked import Device

FEATURES, MODELS = 80, 40
RATE, MOMENTUM, DECAY, MAX_NORM, EMA = 1e-3, 0.9, 1e-5, 1.0, 0.999
SECONDS, PATIENCE_S = 0.3, 60
_MOST_IN_PROCESSES = 1 << 27
"""Numbers in a hidden layer above which as many processes as cores would need more memory than most machines have."""


def timed(step: Callable[[int], object], wait: Callable[[], object] = lambda: None, warm: int = 2) -> float:
    """Seconds of a step. step: runs so many of them; wait: until they are done."""
    step(warm)
    wait()
    count = 1
    while True:
        started = time.perf_counter()
        step(count)
        wait()
        elapsed = time.perf_counter() - started
        if elapsed >= SECONDS:
            return elapsed / count
        count = max(2 * count, int(count * 1.2 * SECONDS / max(elapsed, 1e-6)))


def some_pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    features = np.random.default_rng(0).normal(size=(count, FEATURES)).astype(np.float32)
    return features, 50 + 20 * np.tanh(features[:, 0] + features[:, 1])


def some_heads(features: np.ndarray, scores: np.ndarray, hidden: int, models: int) -> list:
    from sidecar.learning.head import Head
    from sidecar.learning.recipe import Recipe, fresh_network
    from sidecar.learning.scaler import measure_scaling

    scaling = measure_scaling(features, scores, np.arange(len(features)))
    return [Head(fresh_network(scaling, Recipe(hidden=hidden), np.random.default_rng(seed))) for seed in range(models)]


def ours(hidden: int, batch: int, device: Device) -> float:
    """Seconds of a step of all heads that a device holds."""
    from sidecar.learning.device.fitting import Stack
    from sidecar.learning.recipe import Recipe

    features, scores = some_pairs(max(2 * batch, 4096))
    heads = some_heads(features, scores, hidden, device.models)
    recipe = Recipe(hidden=hidden, momentum=MOMENTUM, weight_decay=DECAY, ema_decay=EMA)
    stack = Stack(heads, features, scores, recipe, batch, device)
    places, weights, numbers = stack.tables()
    places[:] = np.random.default_rng(1).integers(0, len(features), places.shape)
    weights[:], numbers[:] = 2 / batch, [np.inf, RATE, 1, 1 - EMA, 0, -np.inf, np.inf]
    steps = 0

    def run(count: int) -> None:
        nonlocal steps
        for start in range(0, count, stack.block):
            stop = min(start + stack.block, count)
            _, taken = stack.run(start + 1, stop + 1)
            steps += stop - start
            assert (taken == steps).all(), f"{steps} steps, of which were taken {taken}"

    return timed(run, warm=8)


def in_numpy(hidden: int, batch: int) -> float:
    """Seconds of a step of one head in this process."""
    from sidecar.learning.optim.clipping import clip_gradient
    from sidecar.learning.optim.polyak import PolyakAverage
    from sidecar.learning.optim.sgd import Sgd

    features, scores = some_pairs(max(2 * batch, 512))
    (head,) = some_heads(features, scores, hidden, 1)
    optimizer, average = Sgd(head.parameters, head.gradient, MOMENTUM, DECAY), PolyakAverage(head.parameters, EMA)
    batches = np.split(head.rows(features, scores), len(features) // batch)

    def steps(count: int) -> None:
        for number in range(count):
            head.loss_and_gradient(batches[number % len(batches)])
            clip_gradient(head.gradient, MAX_NORM)
            optimizer.step(RATE)
            average.update()

    return timed(steps, warm=1)


def served(hidden: int, batch: int, device: Device | None = None) -> float:
    """Seconds of a step of the online trainer, on a device, or in numpy in this process."""
    from sidecar.learning.online import trainer as online
    from sidecar.learning.training_settings import TrainingSettings

    online.next_fit = lambda trained: 1 << 40  # fits run on another thread, and in numpy
    settings = TrainingSettings(batch_size=batch)
    features, scores = some_pairs(16 * settings.new_pairs)
    (head,) = some_heads(features, scores, hidden, 1)
    trainer = online.Trainer(FEATURES, settings, head.network(), device)

    def groups(count: int) -> None:
        for number in range(count):
            rows = slice(number % 16 * settings.new_pairs, (number % 16 + 1) * settings.new_pairs)
            trainer.add(features[rows], scores[rows])

    measured = online.OUTLIERS_MEASURED_AT[-1] // settings.new_pairs  # the last time that the first pairs cost more
    return timed(groups, warm=measured + 3) / settings.steps_per_batch


def on_gpu(measure: Callable[[int, int, Device], float], hidden: int, batch: int, models: int = 1) -> float:
    """What is measured on a device, on the GPU."""
    from sidecar.learning.device.cuda import open_cuda

    return measure(hidden, batch, open_cuda(models))


@cache
def in_processes(measure: str, hidden: int, batch: int, processes: int = 1, threads: int = 1) -> float:
    """Seconds of a step where as many processes at once measure it, each with so many BLAS threads."""
    command = [sys.executable, __file__, "--worker", measure, str(hidden), str(batch)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": str(threads)}

    def one(_: int) -> float:
        return float(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, timeout=PATIENCE_S).stdout)

    with ThreadPoolExecutor(processes) as pool:
        return 1 / sum(1 / seconds for seconds in pool.map(one, range(processes)))


def in_torch(hidden: int, batch: int, models: int, compiled: bool) -> float:
    import torch
    from torch._inductor import config

    torch._dynamo.reset()
    torch.manual_seed(0)
    features, scores = some_pairs(max(2 * batch, 4096))
    x, y = torch.from_numpy(features).cuda(), torch.from_numpy((scores - 50) / 30).cuda()
    shapes = [(models, FEATURES, hidden), (models, 1, hidden), (models, hidden, 1), (models, 1, 1)]
    parameters = tuple(0.05 * torch.randn(shape[models == 1 :], device="cuda") for shape in shapes)
    velocity, average = (tuple(each.clone() for each in parameters) for _ in range(2))
    multiply = torch.addmm if models == 1 else torch.baddbmm

    def loss(weights: tuple[torch.Tensor, ...], rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        w1, b1, w2, b2 = weights
        error = multiply(b2, torch.relu(multiply(b1, rows, w1)), w2)[..., 0] - targets
        return (error * error).mean(dim=-1).sum()  # of all heads: each has its own gradient

    def step(rows: torch.Tensor, targets: torch.Tensor) -> None:
        gradient = torch.func.grad(loss)(parameters, rows, targets)
        with torch.no_grad():
            norm = sum(each.square().sum(dim=(-2, -1), keepdim=True) for each in gradient).sqrt()
            factor = (MAX_NORM / (norm + 1e-6)).clamp(max=1)
            gradient = [each * factor for each in gradient]
            torch._foreach_add_(gradient, parameters, alpha=DECAY)
            torch._foreach_mul_(velocity, MOMENTUM)
            torch._foreach_add_(velocity, gradient)
            torch._foreach_add_(parameters, velocity, alpha=-RATE)
            torch._foreach_lerp_(average, parameters, 1 - EMA)

    # With this option, which is on by default, its compiler of torch 2.11 ends with an assertion.
    config.loop_ordering_after_fusion = False
    compiled_step = torch.compile(step, dynamic=False) if compiled else step
    shape = (batch,) if models == 1 else (models, batch)
    places = torch.randint(0, len(features), (16, *shape), device="cuda")
    number = torch.zeros(1, dtype=torch.int64, device="cuda")

    def run() -> None:
        chosen = places.index_select(0, number)[0]
        number.add_(1).remainder_(len(places))
        compiled_step(x[chosen], y[chosen])

    graph = captured(run) if compiled else None

    def steps(count: int) -> None:
        for _ in range(count):
            if graph is None:
                run()
            else:
                graph.replay()

    return timed(steps, torch.cuda.synchronize, warm=5)


def captured(run: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """A step as one CUDA graph, compiled and warmed up first."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def peak() -> float:
    """FLOP/s of a large float32 product on this card."""
    import torch

    a, b = torch.randn(8192, 8192, device="cuda"), torch.randn(8192, 8192, device="cuda")

    def products(count: int) -> None:
        for _ in range(count):
            torch.mm(a, b)

    return 2 * 8192**3 / timed(products, torch.cuda.synchronize)


def flop(hidden: int, batch: int, models: int) -> float:
    """Of the matrix products of a step: two with the features, three with the hidden layer."""
    return models * batch * 2.0 * (2 * (FEATURES + 1) * hidden + 3 * hidden)


def tried(measure: Callable[..., float], *arguments: object) -> float:
    """A time, or not a number where the card has too little memory, or where it takes too long; all memory is given back."""
    import cupy
    import torch

    try:
        return measure(*arguments)
    except Exception as error:
        print(f"  {measure.__name__}{arguments}: {type(error).__name__} {str(error)[:200]}", file=sys.stderr, flush=True)
        return float("nan")
    finally:
        gc.collect()
        cupy.get_default_memory_pool().free_all_blocks()
        torch.cuda.empty_cache()


def main() -> None:
    sys.path.pop(0)  # this folder, where CuPy would take this file for the package `cuda`
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--batches", nargs="*", type=int, default=[32, 1024, 65536])
    parser.add_argument("--hidden", nargs="*", type=int, default=[64, 512, 4096])
    options = parser.parse_args()
    if options.worker:
        measure, *sizes = options.worker
        print({"served": served, "in_numpy": in_numpy}[measure](*map(int, sizes)))
        return
    import torch

    cores, best = os.cpu_count() or 1, peak()
    print(f"{torch.cuda.get_device_name()}, {cores} cores, numpy {np.__version__}, torch {torch.__version__}; ", end="")
    print(f"a float32 product of 8192 × 8192 reaches {best / 1e12:.1f} TFLOP/s")
    print("milliseconds a step of serve: batch hidden, on the GPU, numpy on one core")
    for hidden, batch in ((64, 32), (1024, 512), (4096, 4096)):
        times = tried(on_gpu, served, hidden, batch), tried(in_processes, "served", hidden, batch)
        print(f"{batch:6} {hidden:6}", *(f"{seconds * 1e3:9.3f}" for seconds in times), flush=True)
    print("milliseconds a step of all heads, the smallest first")
    print("heads  batch hidden |     ours   numpy,1 numpy,all     torch  compiled | M pairs/s  of peak  all/ours compiled/ours")
    sizes = itertools.product((1, MODELS), options.hidden, options.batches)
    for models, hidden, batch in sorted(sizes, key=math.prod):
        gpu = tried(on_gpu, ours, hidden, batch, models)
        one = tried(in_processes, "in_numpy", hidden, batch) * models
        if models == 1:
            every = tried(in_processes, "in_numpy", hidden, batch, 1, cores)
        elif batch * hidden <= _MOST_IN_PROCESSES:
            every = tried(in_processes, "in_numpy", hidden, batch, cores) * models
        else:
            every = float("nan")
        eager, fused = (tried(in_torch, hidden, batch, models, compiled) for compiled in (False, True))
        rates = f"{models * batch / gpu / 1e6:9.2f} {flop(hidden, batch, models) / gpu / best:8.1%}"
        times = " ".join(f"{seconds * 1e3:9.3f}" for seconds in (gpu, one, every, eager, fused))
        print(f"{models:5} {batch:6} {hidden:6} |{times} |{rates} {every / gpu:9.1f} {fused / gpu:13.1f}", flush=True)


if __name__ == "__main__":
    main()
