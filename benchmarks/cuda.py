"""Training steps on a GPU beside numpy and torch: where it begins to pay, and how much of the card it uses.

    python benchmarks/cuda.py [--quick]

A step is forward, backward, clipping, momentum SGD and the moving average, of heads 80-HIDDEN-1 with relu: one head, and 40 of
the same size at once, each on batches of its own. Ours on the GPU is what `train-offline --device cuda` runs. numpy on one core
is our step on the processor, for 40 heads one after the other; on all cores the BLAS of one head has all of them, and 40 heads
are as many processes as there are cores. torch (float32, the step written with `torch.func.grad` and `torch._foreach_…`) runs
eagerly, and compiled as a whole (`mode="reduce-overhead"`, which captures CUDA graphs), on the same GPU. Every step is timed
over at least 0.3 s after a warm-up, and at the end the GPU is waited for. FLOP are those of the matrix products; the peak is a
product of two 8192 × 8192 matrices in float32 on this card in this run.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

sys.path.pop(0)  # this folder, where CuPy would take this file for the package `cuda`

FEATURES, MODELS = 80, 40
RATE, MOMENTUM, DECAY, MAX_NORM, EMA = 1e-3, 0.9, 1e-5, 1.0, 0.999
SECONDS = 0.3
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
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, FEATURES)).astype(np.float32), rng.uniform(0, 100, count).astype(np.float32)


def some_heads(features: np.ndarray, scores: np.ndarray, hidden: int, models: int) -> list:
    from sidecar.learning.head import Head
    from sidecar.learning.recipe import Recipe, fresh_network
    from sidecar.learning.scaler import measure_scaling

    scaling = measure_scaling(features, scores, np.arange(len(features)))
    return [Head(fresh_network(scaling, Recipe(hidden=hidden), np.random.default_rng(seed))) for seed in range(models)]


def ours(hidden: int, batch: int, models: int) -> float:
    from sidecar.learning.device.cuda import open_cuda
    from sidecar.learning.device.fitting import Stack
    from sidecar.learning.recipe import Recipe

    features, scores = some_pairs(max(2 * batch, 4096))
    heads = some_heads(features, scores, hidden, models)
    device = open_cuda(models)
    recipe = Recipe(hidden=hidden, momentum=MOMENTUM, weight_decay=DECAY, ema_decay=EMA)
    stack = Stack(heads, features, scores, recipe, batch, device)
    places, weights, numbers = stack.tables()
    places[:] = np.random.default_rng(1).integers(0, len(features), places.shape)
    weights[:], numbers[:] = 2 / batch, [np.inf, RATE, 1, 1 - EMA, 0]

    def steps(count: int) -> None:
        for start in range(0, count, stack.block):
            stack.run(start + 1, min(start + stack.block, count) + 1)

    return timed(steps, device.synchronize, warm=8)


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


def served(hidden: int, batch: int) -> float:
    """Seconds of a step of `serve` on the GPU, which waits for the loss of each."""
    from sidecar.learning.device.cuda import open_cuda
    from sidecar.learning.device.head import DeviceHead
    from sidecar.learning.device.update import Update
    from sidecar.learning.optim.polyak import PolyakAverage
    from sidecar.learning.optim.sgd import Sgd

    features, scores = some_pairs(max(2 * batch, 512))
    (on_host,) = some_heads(features, scores, hidden, 1)
    device = open_cuda()
    head = DeviceHead(on_host.network(), device)
    optimizer, average = Sgd(head.parameters, head.gradient, MOMENTUM, DECAY), PolyakAverage(head.parameters, EMA)
    update = Update(head.parameters, head.gradient, MAX_NORM, optimizer, average)
    run = device.program(update.operations())
    batches = np.split(head.rows(features, scores), len(features) // batch)

    def steps(count: int) -> None:
        for number in range(count):
            head.loss_and_gradient(batches[number % len(batches)])
            optimizer.prepare(RATE)
            average.prepare()
            run()
            float(update.taken)

    return timed(steps, warm=4)


@cache
def in_processes(hidden: int, batch: int, processes: int, threads: int) -> list[float]:
    """What `in_numpy` gives in as many processes at once, each with so many BLAS threads."""
    command = [sys.executable, __file__, "--worker", str(hidden), str(batch)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": str(threads)}

    def one(_: int) -> float:
        return float(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)

    with ThreadPoolExecutor(processes) as pool:
        return [*pool.map(one, range(processes))]


def in_torch(hidden: int, batch: int, models: int, compiled: bool) -> float:
    import torch

    torch._dynamo.reset()
    torch.manual_seed(0)
    features, scores = some_pairs(max(2 * batch, 4096))
    x, y = torch.from_numpy(features).cuda(), torch.from_numpy((scores - 50) / 30).cuda()
    shapes = [(models, FEATURES, hidden), (models, 1, hidden), (models, hidden, 1), (models, 1, 1)]
    parameters = tuple(0.05 * torch.randn(shape[models == 1 :], device="cuda") for shape in shapes)
    velocity, average = (tuple(each.clone() for each in parameters) for _ in range(2))
    for each in (*parameters, *velocity, *average):
        torch._dynamo.mark_static_address(each)
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

    run = torch.compile(step, mode="reduce-overhead") if compiled else step
    shape = (batch,) if models == 1 else (models, batch)
    places = torch.randint(0, len(features), (16, *shape), device="cuda")

    def steps(count: int) -> None:
        for number in range(count):
            chosen = places[number % len(places)]
            run(x[chosen], y[chosen])

    return timed(steps, torch.cuda.synchronize, warm=5)


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


def free() -> None:
    """Give the memory of the card back, for whoever is measured next."""
    import cupy
    import torch

    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    torch.cuda.empty_cache()


def tried(measure: Callable[..., float], *arguments: object) -> float:
    """A time, or not a number where the card has too little memory."""
    try:
        return measure(*arguments)
    except Exception as error:
        print(f"  {measure.__name__}{arguments}: {type(error).__name__} {str(error)[:200]}", file=sys.stderr)
        return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="without torch.compile")
    parser.add_argument("--batches", nargs="*", type=int, default=[32, 1024, 65536])
    parser.add_argument("--hidden", nargs="*", type=int, default=[64, 512, 4096])
    options = parser.parse_args()
    if options.worker:
        print(in_numpy(*options.worker))
        return
    import torch

    cores, best = os.cpu_count() or 1, peak()
    print(f"{torch.cuda.get_device_name()}, {cores} cores, numpy {np.__version__}, torch {torch.__version__}; ", end="")
    print(f"a float32 product of 8192 × 8192 reaches {best / 1e12:.1f} TFLOP/s")
    print("milliseconds a step of serve: batch hidden, on the GPU, numpy on one core")
    for hidden, batch in ((64, 32), (1024, 512), (4096, 4096)):
        print(
            f"{batch:6} {hidden:6} {served(hidden, batch) * 1e3:9.3f} {in_processes(hidden, batch, 1, 1)[0] * 1e3:9.3f}",
            flush=True,
        )
    print("milliseconds a step of all heads")
    print("heads  batch hidden |     ours   numpy,1 numpy,all     torch  compiled | M pairs/s  of peak  all/ours compiled/ours")
    for models in (1, MODELS):
        for hidden in options.hidden:
            for batch in options.batches:
                gpu = tried(ours, hidden, batch, models)
                free()
                one = in_processes(hidden, batch, 1, 1)[0] * models
                if models == 1:
                    every = in_processes(hidden, batch, 1, cores)[0]
                elif batch * hidden <= _MOST_IN_PROCESSES:
                    every = models / sum(1 / seconds for seconds in in_processes(hidden, batch, cores, 1))
                else:
                    every = float("nan")
                eager = tried(in_torch, hidden, batch, models, False)
                fused = float("nan") if options.quick else tried(in_torch, hidden, batch, models, True)
                free()
                rates = f"{models * batch / gpu / 1e6:9.2f} {flop(hidden, batch, models) / gpu / best:8.1%}"
                times = " ".join(f"{seconds * 1e3:9.3f}" for seconds in (gpu, one, every, eager, fused))
                print(f"{models:5} {batch:6} {hidden:6} |{times} |{rates} {every / gpu:9.1f} {fused / gpu:13.1f}", flush=True)


if __name__ == "__main__":
    main()
