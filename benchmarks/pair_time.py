"""What a pair costs `serve`: CPU time of its main thread, by the kernel's account, in checkouts of this and of other commits.

    python benchmarks/pair_time.py PAIRS TREE… [--rounds N]

Each TREE is a checkout (`git worktree add --detach TREE COMMIT`). In each round each of them in turn serves the same pairs, 64
in flight, with the defaults, a base model and no checkpoint, after so many that its replay buffer is full. The server is bound
to one core and the client to another one. What is shown is the ratio to the first TREE.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np

IN_FLIGHT, PER_GROUP = 64, 12
WARM_UP_PAIRS, MEASURED_PAIRS = 12_500, 30_000
"""At least; all pairs are sent as often as that takes."""


class Served:
    """A sidecar of a checkout, and a client of it."""

    def __init__(self, tree: Path, base: Path, directory: Path, port: int) -> None:
        command = ["taskset", "-c", "1", sys.executable, "-m", "sidecar", "serve", "--base-model", str(base)]
        command += ["--socket", f"{directory}/s.sock", "--checkpoint-dir", f"{directory}/m", "--http", f"127.0.0.1:{port}"]
        settings = {"VMAFX_SIDECAR_CKPT_INTERVAL_S": "86400", "VMAFX_SIDECAR_MIN_SAMPLES_CKPT": "1000000"}
        variables = {**os.environ, **settings, "PYTHONPATH": str(tree), "OPENBLAS_NUM_THREADS": "1"}
        self._url = f"http://127.0.0.1:{port}/status"
        self.process = subprocess.Popen(command, cwd=tree, env=variables, stderr=subprocess.DEVNULL)
        self._socket = socket.socket(socket.AF_UNIX)
        while self._socket.connect_ex(f"{directory}/s.sock"):
            if self.process.poll() is not None:
                raise SystemExit(f"{tree}: serve ended")
            time.sleep(0.1)
        self._answers = self._socket.makefile("rb")

    def send(self, lines: Sequence[bytes]) -> None:
        """Send lines, and wait for their answers."""
        for start in range(0, len(lines), IN_FLIGHT):
            some = lines[start : start + IN_FLIGHT]
            self._socket.sendall(b"".join(some))
            for _ in some:
                answer = json.loads(self._answers.readline())
                assert answer["ok"], answer

    def settle(self) -> None:
        """Wait until nothing is trained any more."""
        before, step = -1, self._step()
        while before != step:
            time.sleep(1)
            before, step = step, self._step()

    def seconds(self) -> float:
        """CPU time of the main thread so far."""
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/schedstat").read_text().split()[0]) / 1e9

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()

    def _step(self) -> int:
        with urllib.request.urlopen(self._url) as answer:
            return int(json.load(answer)["step"])


def lines_of(pairs: Sequence[dict[str, object]], number: int) -> list[bytes]:
    """Request lines of all pairs under new names."""
    return [
        json.dumps({**pair, "job_id": f"{number}.{place}", "group": f"{number}.{place // PER_GROUP}"}).encode() + b"\n"
        for place, pair in enumerate(pairs)
    ]


def microseconds(tree: Path, base: Path, pairs: Sequence[dict[str, object]], port: int) -> float:
    """CPU time of the main thread for a pair."""
    with tempfile.TemporaryDirectory() as directory:
        served = Served(tree, base, Path(directory), port)
        first, after = (-(-count // len(pairs)) for count in (WARM_UP_PAIRS, WARM_UP_PAIRS + MEASURED_PAIRS))
        for number in range(first):
            served.send(lines_of(pairs, number))
        served.settle()
        before = served.seconds()
        for number in range(first, after):
            served.send(lines_of(pairs, number))
        served.settle()
        spent = served.seconds() - before
        served.close()
    return spent / len(pairs) / (after - first) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("trees", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--port", type=int, default=19_777)
    options = parser.parse_args()
    os.sched_setaffinity(0, {0})
    with gzip.open(options.pairs, "rt") as stream:
        pairs = [{name: pair[name] for name in ("features", "true_score")} for pair in map(json.loads, stream)]
    found = np.empty((options.rounds, len(options.trees)))
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "sidecar", "train-offline", str(options.pairs.resolve()), "--epochs", "5"]
        variables = {**os.environ, "PYTHONPATH": str(options.trees[0].resolve())}
        subprocess.run([*command, "--output", directory], cwd=options.trees[0], env=variables, check=True, capture_output=True)
        for round_ in range(options.rounds):
            for place, tree in enumerate(options.trees):
                found[round_, place] = microseconds(tree.resolve(), Path(directory) / "latest.onnx", pairs, options.port)
            print(" ".join(f"{each:.1f}" for each in found[round_]), flush=True)
    for tree, times in zip(options.trees, found.T, strict=True):
        ratios = times / found[:, 0]
        print(
            f"{tree}: {np.median(times):.1f} µs a pair ({times.min():.1f} to {times.max():.1f}), {np.median(ratios):.2f} times "
            f"the first ({ratios.min():.2f} to {ratios.max():.2f})"
        )


if __name__ == "__main__":
    main()
