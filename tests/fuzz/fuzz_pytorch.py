"""Mutated PyTorch and safetensors files against their reader: read or refused with NetworkError, quickly, in little memory.

Run by hand:

    python -m tests.fuzz.fuzz_pytorch --inputs 100000 [--seed 1] FILE ...
"""

from __future__ import annotations

import argparse
import random
import resource
import time
import traceback
from pathlib import Path

from onnx_builder import NetworkError
from sidecar.models.pytorch.state_dict import from_bytes
from tests.fuzz.fuzz_read import MEGABYTES, SECONDS, bound_memory, changed_bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("files", type=Path, nargs="+")
    arguments = parser.parse_args()
    seeds = [path.read_bytes() for path in arguments.files]
    chance, networks, failures, slowest = random.Random(arguments.seed), 0, 0, 0.0
    bound_memory(MEGABYTES)
    for number in range(arguments.inputs):
        data = changed_bytes(chance.choice(seeds), seeds, chance)
        start = time.process_time()
        try:
            from_bytes(data)
            networks += 1
        except NetworkError:
            pass
        except Exception as error:
            failures += 1
            print(f"input {number}: {''.join(traceback.format_exception(error)[-3:])}")
        slowest = max(slowest, time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(
        f"{arguments.inputs} inputs, {networks} networks, {failures} failures; slowest {slowest * 1000:.0f} ms; {peak:.0f} MB"
    )
    return int(failures > 0 or slowest > SECONDS)


if __name__ == "__main__":
    raise SystemExit(main())
