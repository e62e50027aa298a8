"""How fast tables of recorded pairs are read, and with how much memory, each in a process of its own.

python benchmarks/tables.py
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from sidecar.pairs.recorded import read_pairs

BLOCK = 100_000
POOLED = ("mean", "std", "min", "max", "median", "p05", "p10", "p90", "p95", "harmonic_mean")
NAMES = [f"{name}_scale{scale}_{pooled}" for name in ("adm", "vif") for scale in range(4) for pooled in POOLED]


def blocks(count: int, names: list[str]) -> Iterator[dict[str, object]]:
    rng = np.random.default_rng(0)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        keys = [f"clip-{row // 300}" for row in range(start, start + size)]
        yield {"key": keys, **{name: rng.random(size) for name in names}, "vmaf": 100 * rng.random(size)}


def write_parquet(path: Path, count: int, names: list[str]) -> None:
    writer = None
    for block in blocks(count, names):
        table = pyarrow.table(block)
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def write_lines(path: Path, count: int, names: list[str]) -> None:
    with path.open("w") as stream:
        for block in blocks(count, names):
            columns = [each.round(6).tolist() if isinstance(each, np.ndarray) else each for each in block.values()]
            for row in zip(*columns, strict=True):
                stream.write(json.dumps(dict(zip(block, row, strict=True))) + "\n")


def write_csv(path: Path, count: int, names: list[str]) -> None:
    with path.open("w") as stream:
        stream.write(",".join(["key", *names, "vmaf"]) + "\n")
        for block in blocks(count, names):
            columns = [each.round(6).tolist() if isinstance(each, np.ndarray) else each for each in block.values()]
            stream.writelines(",".join(map(str, row)) + "\n" for row in zip(*columns, strict=True))


def measure(path: Path, answer: Connection) -> None:
    started, used = time.perf_counter(), time.process_time()
    pairs = read_pairs([path])
    seconds, used = time.perf_counter() - started, time.process_time() - used
    answer.send((len(pairs) / seconds, len(pairs) / used, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    forms = (("p.parquet", write_parquet, 1), ("p.jsonl", write_lines, 10), ("p.csv", write_csv, 10))
    with tempfile.TemporaryDirectory() as directory:
        for name, write, less in forms:
            for width in (6, 80):
                path = Path(directory, name)
                writer = context.Process(target=write, args=(path, options.rows // less, NAMES[:width]))  # ours would grow
                writer.start()
                writer.join()
                here, there = context.Pipe()
                process = context.Process(target=measure, args=(path, there))
                process.start()
                wall, used, megabytes = here.recv()
                process.join()
                print(
                    f"{name:10} {options.rows // less:9,} rows of {width:2}: {wall:11,.0f} rows a second, {used:11,.0f} "
                    f"a second of CPU time, {megabytes:5.0f} MB resident"
                )
                os.unlink(path)


if __name__ == "__main__":
    main()
