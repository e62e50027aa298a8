"""Resident memory of `train-offline` on a million pairs of 80 features, each form of recorded pairs in a process of its own.

    python benchmarks/memory.py

The float32 array of that many pairs is 320 MB by itself.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FEATURES, BLOCK = 80, 10_000


def write_lines(path: Path, count: int) -> None:
    """JSON lines of random pairs in groups of twelve."""
    rng = np.random.default_rng(0)
    with gzip.open(path, "wb", compresslevel=1) if path.suffix == ".gz" else path.open("wb") as stream:
        for start in range(0, count, BLOCK):
            features = rng.normal(size=(BLOCK, FEATURES)).round(6)
            scores = np.clip(75 + 2 * features.sum(axis=1), 0, 100).round(4)
            for i, (x, y) in enumerate(zip(features.tolist(), scores.tolist(), strict=True), start):
                stream.write(
                    json.dumps({"job_id": f"job-{i}", "group": f"encode-{i // 12}", "features": x, "true_score": y}).encode()
                )
                stream.write(b"\n")


def write_npz(path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(count, FEATURES))  # float64, as numpy users have it
    np.savez(path, features=features, true_score=np.clip(75 + 2 * features.sum(axis=1), 0, 100))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        for name, write in (("pairs.jsonl", write_lines), ("pairs.jsonl.gz", write_lines), ("pairs.npz", write_npz)):
            path = Path(directory, name)
            writer = multiprocessing.Process(target=write, args=(path, options.pairs))  # whose memory ours would inherit
            writer.start()
            writer.join()
            command = [sys.executable, "-m", "sidecar", "train-offline", str(path), "--output", f"{directory}/{name}.out"]
            started = time.perf_counter()
            process = subprocess.Popen([*command, "--epochs", str(options.epochs)], stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"train-offline on {name} failed")
            print(
                f"{name:16} {path.stat().st_size / 1e6:6.0f} MB on disk: {usage.ru_maxrss * 1024 / 1e6:5.0f} MB resident, "
                f"{time.perf_counter() - started:5.1f} s with {options.epochs} epochs",
                flush=True,
            )
            path.unlink()


if __name__ == "__main__":
    main()
