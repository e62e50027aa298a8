"""A model that reloads itself: how soon a publication is in use, what a reload costs calls, and whether memory stays flat.

    python benchmarks/reload.py [--publications 40] [--reloads 1000]

A process of its own publishes networks of 80 features and 64 hidden units, as a sidecar does; over HTTP a sidecar that shares
the directory gives them out. Soon: at the default poll, from
the moment that the link has moved to the first prediction by the new model, and how much of it was work; publications come at
random moments. Cost: threads that call `predict` with one row as fast as they can, in turns with a new model every 200 ms and
with none, round after round, because the machine's speed drifts; and the longest call that was under way during each look that
brought a model, beside the longest in as much time shortly before.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import prometheus_client

from onnx_builder import Activation, Clip, Dense, Elementwise, Network
from onnx_builder.write import to_bytes
from sidecar import LiveModel
from sidecar.checkpoints.directory import publish
from sidecar.monitoring.fetch import probe

FEATURES, HIDDEN = 80, 64
ABOUT = {"n_features": FEATURES, "onnx_has_scaler": True, "settings": {"score_min": 0, "score_max": 100}}
ROUND_S, EVERY_S, GAP_S = 2.0, 0.2, 0.05


def network(seed: int) -> Network:
    rng = np.random.default_rng(seed)

    def dense(n_out: int, n_in: int) -> Dense:
        return Dense((rng.normal(size=(n_out, n_in)) / n_in**0.5).astype(np.float32), np.zeros(n_out, dtype=np.float32))

    begin = Elementwise("Sub", rng.normal(size=FEATURES).astype(np.float32))
    return Network(FEATURES, (begin, dense(HIDDEN, FEATURES), Activation("relu"), dense(1, HIDDEN), Clip(0, 100)))


def publisher(directory: Path, orders: Connection) -> None:
    """Publishes a network for each order, a seed, and answers with the time at which the link had moved."""
    while (seed := orders.recv()) is not None:
        publish(directory, to_bytes(network(seed)), ABOUT, stable=True, keep=5)
        orders.send((directory / "stable.onnx").lstat().st_ctime)


class Timed(LiveModel):
    """Notes when the looks began and ended that brought a new model, and how much of that was this thread's work."""

    looks: list[tuple[float, float, float]]

    def _look(self) -> None:
        before, wall, cpu = self._model, time.perf_counter(), time.thread_time()
        super()._look()
        if self._model is not before and before is not None:
            self.looks.append((wall, time.perf_counter(), time.thread_time() - cpu))


@contextlib.contextmanager
def publishing(directory: Path) -> Iterator[Connection]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=publisher, args=(directory, theirs))
    process.start()
    try:
        ours.send(0)
        ours.recv()
        yield ours
    finally:
        ours.send(None)
        process.join()


@contextlib.contextmanager
def serving(place: Path, directory: Path) -> Iterator[str]:
    """A sidecar that gives out what is in the directory, and publishes nothing itself."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = ["--socket", place / "s.sock", "--checkpoint-dir", directory, "--state-dir", place / "state", "--http", address]
    command = [
        sys.executable,
        "-m",
        "sidecar",
        "serve",
        *map(str, options),
        "--base-model",
        str(place / "none.onnx"),
        "--http-models",
        "1",
    ]
    with (place / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            while not probe(address)[0]:
                if process.poll() is not None:
                    raise SystemExit((place / "log").read_text())
                time.sleep(0.05)
            yield f"http://{address}"
        finally:
            process.terminate()


def live(source: Any, **options: Any) -> Timed:
    Timed.looks = []
    return Timed(source, registry=prometheus_client.CollectorRegistry(), **options)


def soon(source: Any, orders: Connection, publications: int) -> str:
    row, draw, took = np.zeros(FEATURES, dtype=np.float32), random.Random(0), []
    with live(source) as model:
        for seed in range(1, publications + 1):
            time.sleep(draw.random())
            before = model.version
            orders.send(seed)
            while model.predict_with_version(row).version == before:
                time.sleep(0.001)
            seen = time.time()
            took.append(seen - orders.recv())
        walls, cpus = zip(*((end - begin, cpu) for begin, end, cpu in model.looks), strict=True)
    return (
        f"first prediction by it: median {np.median(took) * 1e3:.0f} ms, longest {max(took) * 1e3:.0f} ms;"
        f" the look that brought it: median {np.median(walls) * 1e3:.1f} ms, longest {max(walls) * 1e3:.1f} ms"
        f" ({np.median(cpus) * 1e3:.1f} and {max(cpus) * 1e3:.1f} ms of CPU time)"
    )


def cost(source: Any, orders: Connection, threads: int, rounds: int) -> Iterator[str]:
    row, seeds = np.zeros(FEATURES, dtype=np.float32), iter(range(1000, 100_000))
    ends: dict[bool, list[np.ndarray]] = {False: [], True: []}
    found: dict[bool, list[np.ndarray]] = {False: [], True: []}
    with live(source, poll_s=0.05) as model:

        def call(until: float, into: list[float]) -> None:
            while (now := time.perf_counter()) < until:
                into.append(now)
                model.predict(row)
            into.append(now)

        for reloading in (False, True) * rounds:
            until, times = time.perf_counter() + ROUND_S, [list[float]() for _ in range(threads)]
            callers = [threading.Thread(target=call, args=(until, each)) for each in times]
            for caller in callers:
                caller.start()
            while reloading and time.perf_counter() < until:
                orders.send(next(seeds))
                orders.recv()
                time.sleep(EVERY_S)
            for caller in callers:
                caller.join()
            ends[reloading] += [np.array(each[1:]) for each in times]
            found[reloading] += [np.diff(each) for each in times]
        looks = model.looks
    for reloading, each in found.items():
        took = np.concatenate(each)
        p50, p99, longest = np.quantile(took, 0.5), np.quantile(took, 0.99), took.max()
        yield (
            f"{threads} threads, {'with' if reloading else 'without'} reloads: {len(took) / rounds / ROUND_S:,.0f} calls/s,"
            f" p50 {p50 * 1e6:.0f} µs, p99 {p99 * 1e6:.0f} µs, longest {longest * 1e3:.1f} ms"
        )
    end, took = np.concatenate(ends[True]), np.concatenate(found[True])

    def longest_in(begin: float, until: float) -> float:
        return 1e3 * float(took[(end > begin) & (end - took < until)].max(initial=0.0))

    pairs = [
        (longest_in(begin, until), longest_in(begin - GAP_S - (until - begin), begin - GAP_S)) for begin, until, _ in looks
    ]
    during, before = np.quantile([pair for pair in pairs if all(pair)], (0.1, 0.5), axis=0).T
    yield (
        f"{threads} threads, longest call during each of {len(looks)} looks: 10th percentile {during[0]:.1f} ms,"
        f" median {during[1]:.1f} ms; in as long a time before it: {before[0]:.1f} and {before[1]:.1f} ms"
    )


def memory(source: Any, orders: Connection, reloads: int) -> str:
    row, marks = np.zeros(FEATURES, dtype=np.float32), {}
    with live(source, poll_s=0.001) as model:
        for seed in range(reloads):
            before = model.version
            orders.send(seed)
            orders.recv()
            while model.predict_with_version(row).version == before:
                time.sleep(0.001)
            if seed + 1 in (reloads // 10, reloads):
                marks[seed + 1] = resident()
    return ", ".join(f"{size / 1e6:.1f} MB after {count:,}" for count, size in marks.items())


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--publications", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reloads", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name, "online")
        with publishing(directory) as orders, serving(Path(name), directory) as url:
            for kind, source in (("directory", directory), ("HTTP", url)):
                print(f"{kind}: {soon(source, orders, options.publications)}", flush=True)
                for threads in (1, 8):
                    for line in cost(source, orders, threads, options.rounds):
                        print(f"{kind}: {line}", flush=True)
                print(f"{kind}: resident memory, reloads: {memory(source, orders, options.reloads)}", flush=True)


if __name__ == "__main__":
    main()
