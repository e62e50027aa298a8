"""Reading what several pods have recorded, as a program, too: `python -m tests.fleet.sampled SCHEDULER PATH…`.

It prints a line for each part that is done, and at last the digest of the sample.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sidecar.fleet.reading import Done, Sampling
from sidecar.fleet.sample import Limits
from sidecar.fleet.workers import Workers, cluster
from sidecar.pairs.tables.choice import Columns

LIMITS = Limits(3000, 20)


def digest(workers: Workers, paths: Sequence[str | Path], told: Callable[[Done], object] = lambda done: None) -> str:
    """Of the sample, in which not all pairs have a place."""
    sampling = Sampling(workers, LIMITS, told)
    pairs = sampling.read(paths, Columns(), score_min=0, score_max=100, skip_bad=False).pairs
    assert len(pairs) == LIMITS.most
    columns = (pairs.features, pairs.true_score, pairs.position)
    return hashlib.sha256(b"".join(each.tobytes() for each in columns)).hexdigest()


def main() -> None:
    address, *paths = sys.argv[1:]
    with cluster(address) as workers:
        print(digest(workers, paths, lambda done: print(done.parts, flush=True)))


if __name__ == "__main__":
    main()
