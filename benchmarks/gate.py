"""How often the gate sees that a checkpoint is worse when some of the scores it is judged on are wrong, and what that costs.

    python benchmarks/gate.py FILE…

The first table needs no files: a model of RMSE 1.0 is judged beside one of 0.5. Pairs come in encodes of 12 windows, and nine
tenths of each model's squared error is common to an encode, as with real models. Wrong scores are uniform from 0 to 100. The
figures are the share of cases that pass: by RMSE alone with the gate's ratio, by other figures alone with the ratio that the
gate has for winsorized RMSE, and by `judge`, which looks at RMSE, winsorized RMSE and PLCC.

The second table: FILES are recorded pairs with fields `group` and `source`, such as `examples/recorded-80.jsonl.gz`. Each
stream is the encodes of a file in a random order, or one source after another, and begins with a fresh head or with a base
model that was made from half of the sources. Others of the encodes are held out in each. A checkpoint is made every 408 pairs
and judged as in `serve`. Wrong scores are among those that are trained on, too.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from rollback import Made, checkpoints, wrong_scores

from onnx_builder.network import Array
from sidecar.checkpoints.judging.gate import WINSORIZED_SLACK, judge
from sidecar.learning.metrics import rmse, winsorized_rmse
from sidecar.pairs.recorded import RecordedPairs, read_pairs

RMSE_RATIO, WINDOWS, OF_THE_ENCODE = 1.1, 12, 0.9
Figure = Callable[[Array, Array], float]


def rmse_of_smallest(share: float) -> Figure:
    def figure(predicted: Array, true: Array) -> float:
        error = np.sort(np.abs(predicted - true))[: round(share * len(true))]
        return rmse(error, np.zeros_like(error))

    return figure


FIGURES: dict[str, Figure] = {
    "RMSE": rmse,
    "median error": lambda predicted, true: float(np.median(np.abs(predicted - true))),
    "95 % smallest": rmse_of_smallest(0.95),
    "80 % smallest": rmse_of_smallest(0.8),
    "winsorized": winsorized_rmse,
}


def model(true: Array, error: float, rng: np.random.Generator) -> Array:
    """What a model of this RMSE predicts."""
    of_the_encode = rng.normal(size=-(-len(true) // WINDOWS)).repeat(WINDOWS)[: len(true)]
    return true + error * (np.sqrt(OF_THE_ENCODE) * of_the_encode + np.sqrt(1 - OF_THE_ENCODE) * rng.normal(size=len(true)))


def passes(pairs: int, wrong: float, cases: int) -> list[float]:
    """The share of cases in which a model of RMSE 1.0 passes beside one of 0.5: by each figure, and by the gate."""
    rng = np.random.default_rng(0)
    passed = np.zeros(len(FIGURES) + 1)
    for _ in range(cases):
        true = rng.uniform(0, 100, pairs)
        own, reference = model(true, 1.0, rng), model(true, 0.5, rng)
        told = wrong_scores(true, wrong, rng)
        for place, figure in enumerate(FIGURES.values()):
            ratio = RMSE_RATIO * (1 if figure is rmse else WINSORIZED_SLACK)
            passed[place] += figure(own, told) <= ratio * figure(reference, told)
        passed[-1] += judge(own, told, [("", reference)]).verdict == "stable"
    return [*passed / cases]


def judged(pairs: RecordedPairs, source: Array, seed: int, by_source: bool, with_base: bool, wrong: float) -> Iterator[Made]:
    """The checkpoints of a stream that the gate judges beside a reference."""
    rng = np.random.default_rng(seed)
    assert pairs.group is not None
    told = wrong_scores(pairs.true_score, wrong, rng).astype(np.float32)
    pairs = replace(pairs, position=rng.random(pairs.group.max() + 1)[pairs.group], true_score=told)
    for made in checkpoints(pairs, source, seed, by_source, with_base):
        if made.has_reference and made.gate.verdict != "unverified":
            yield made


def by_winsorized_rmse_alone(made: Made) -> bool:
    """Whether a checkpoint that is not stable would be if winsorized RMSE did not count."""
    reasons = [gate.reason.partition(" held-out pairs, ")[2] for gate in made.on_each if gate.verdict == "unstable"]
    return all(each.startswith("winsorized") for of_a_set in reasons for each in of_a_set.split("; "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--cases", type=int, default=1000, help="for each number of pairs and share of wrong scores")
    parser.add_argument("--streams", type=int, default=6, help="of each kind, for each file")
    options = parser.parse_args()
    print(f"{'wrong':>6} {'pairs':>6} " + " ".join(f"{name:>14}" for name in (*FIGURES, "gate")))
    for wrong, pairs in itertools.product((0, 0.01, 0.05), (30, 50, 200, 1000)):
        print(f"{wrong:6.0%} {pairs:6} " + " ".join(f"{share:14.1%}" for share in passes(pairs, wrong, options.cases)))
    if options.files:
        print(f"\n{'wrong':>6} {'judged':>7} {'unstable':>9} {'for winsorized RMSE alone':>26}")
    files = [(read_pairs([file], group_by="group"), read_pairs([file], group_by="source").group) for file in options.files]
    for wrong in (0, 0.01, 0.05) if files else ():
        found = [
            made
            for (pairs, source), seed in itertools.product(files, range(options.streams))
            for by_source, with_base in itertools.product((False, True), repeat=2)
            for made in judged(pairs, source, seed, by_source, with_base, wrong)
        ]
        rejected = [made for made in found if made.gate.verdict == "unstable"]
        unstable, alone = len(rejected), sum(map(by_winsorized_rmse_alone, rejected))
        print(f"{wrong:6.0%} {len(found):7} {unstable / len(found):9.1%} {alone / len(found):26.1%}", flush=True)


if __name__ == "__main__":
    main()
