"""How fast recorded pairs are read, and what the JSON libraries take of it.

    python benchmarks/reading.py examples/recorded-80.jsonl.gz

Each library decodes the same lines and makes float32 rows of them, with the checks that it needs on top to refuse
booleans, strings and numbers beyond float32, as sidecar/pairs/pair.py does.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson

from sidecar.pairs.lines import read_lines
from sidecar.pairs.pair import PairReader
from sidecar.pairs.recorded import read_pairs
from sidecar.pairs.request import decode_request

ROUNDS = 7
LINES = 30_000


def checked(loads: Callable[[bytes], dict], reader: PairReader) -> Callable[[bytes], None]:
    def decode(line: bytes) -> None:
        row = loads(line)
        features, score = row["features"], row["true_score"]
        if set(map(type, features)) - {float, int} or type(score) not in (float, int) or not 0 <= score <= 100:
            raise ValueError(line)
        reader._pack(*features)

    return decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", help="a .jsonl or .jsonl.gz file")
    options = parser.parse_args()
    with (gzip.open if options.pairs.endswith(".gz") else open)(options.pairs, "rb") as stream:
        lines = [line for _, _, line in read_lines(stream, options.pairs)]
    lines = (lines * (LINES // len(lines) + 1))[:LINES]
    reader = PairReader(len(decode_request(lines[0]).features))
    ways: dict[str, Callable[[bytes], None]] = {
        "msgspec (in use)": reader.read,
        "orjson": checked(orjson.loads, reader),
        "json": checked(json.loads, reader),
    }
    rates: dict[str, list[float]] = {name: [] for name in (*ways, "read_pairs, .jsonl", "read_pairs, .jsonl.gz")}
    with tempfile.TemporaryDirectory() as directory:
        plain, zipped = Path(directory, "pairs.jsonl"), Path(directory, "pairs.jsonl.gz")
        plain.write_bytes(b"\n".join(lines))
        zipped.write_bytes(gzip.compress(plain.read_bytes(), 6))
        for _ in range(ROUNDS):
            for name, decode in ways.items():
                started = time.perf_counter()
                for line in lines:
                    decode(line)
                rates[name].append(len(lines) / (time.perf_counter() - started))
            for path in (plain, zipped):
                started = time.perf_counter()
                read_pairs([path])
                rates[f"read_pairs, {''.join(path.suffixes)}"].append(len(lines) / (time.perf_counter() - started))
    size = np.mean([len(line) for line in lines])
    print(f"{LINES} lines of {reader.n_features} features, {size:.0f} bytes each; median of {ROUNDS}:")
    for name, values in rates.items():
        print(f"  {name:22} {statistics.median(values):10,.0f} lines a second")


if __name__ == "__main__":
    main()
