"""Taking back: how many healthy stable checkpoints would be taken back, and how many bad ones, and how soon.

    python benchmarks/rollback.py FILE… [--streams N] [--bad N] [--seed FIRST]

FILE: recorded pairs with `group` and `source`, such as `examples/recorded-80.jsonl.gz`. Each stream is the encodes of a file in
a random order, or one source after another, and begins with a fresh head or with a base model that was made from half of the
sources; the pairs of an encode stay together. A checkpoint is published every 408 pairs and judged by the gate as in `serve`,
on the held-out pairs and the anchor. Those that pass and have a predecessor are tried on the pairs that follow. The plain
rule, beside it, takes back whatever has an RMSE more than 5 % above the predecessor's on the next 200 pairs.

Bad checkpoints have learned from two fifths of a file and then from a fifth whose scores are wrong, and are tried on right
ones against what was there before these; the gate is not asked. `score points`: how much higher the RMSE is than the
predecessor's, the mean of all. `pairs`: how many it took to decide, the median.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from onnx_builder.network import Array, Network
from sidecar.checkpoints.judging.gate import Evidence, judge_on_each
from sidecar.checkpoints.judging.rollback import MINIMUM_GROUPS, MINIMUM_PAIRS, Comparison, compare
from sidecar.journal.run import Run
from sidecar.learning.metrics import rmse
from sidecar.learning.recipe import Recipe, fit
from sidecar.learning.training_settings import TrainingSettings
from sidecar.online.learner import Learner
from sidecar.pairs.pair import PairBlock
from sidecar.pairs.recorded import RecordedPairs, read_pairs

EVERY, THRESHOLD, HOLDOUT = 408, 0.05, 0.05
Scores = Callable[[Array, np.random.Generator], Array]
WRONG: dict[str, Scores] = {
    "3 points too high": lambda true, rng: true + 3,
    "10 points too high": lambda true, rng: true + 10,
    "20 points too low": lambda true, rng: true - 20,
    "a tenth too low": lambda true, rng: true * 0.9,
    "of another pair": lambda true, rng: rng.permutation(true),
    "noise of 10 points": lambda true, rng: true + rng.normal(0, 10, len(true)),
}


class Tried(NamedTuple):
    found: Comparison
    plain: bool


class Stream:
    """A learner that takes rows of recorded pairs."""

    def __init__(self, pairs: RecordedPairs, seed: int, base: Network | None = None) -> None:
        self.pairs = pairs
        settings = TrainingSettings(seed=seed)
        run = Run(pairs.features.shape[1], settings, HOLDOUT, "base" if base else None)
        self.learner = Learner(run, base)

    def take(self, rows: Array, scores: Array | None = None) -> None:
        true = self.pairs.true_score[rows] if scores is None else np.clip(scores, 0, 100).astype(np.float32)
        self.learner.take(PairBlock(self.pairs.features[rows], true, self.pairs.position[rows].tolist()))

    def network(self) -> Network | None:
        trainer = self.learner.trainer
        return trainer.network(trainer.ema) if trainer.ema else None

    def tried(self, network: Network, before: Network, later: Array) -> Tried | None:
        """A network on trial on the first pairs of those that come later; None if they are too few."""
        position = self.pairs.position[later]
        news = np.zeros(len(later), dtype=int)
        news[np.unique(position, return_index=True)[1]] = 1
        enough = np.flatnonzero((np.cumsum(news) >= MINIMUM_GROUPS) & (np.arange(len(later)) >= MINIMUM_PAIRS - 1))
        if not len(enough):
            return None
        window = later[: enough[0] + 1]
        features, true = self.pairs.features[window], self.pairs.true_score[window]
        own, other = (np.clip(each.forward(features), 0, 100) for each in (network, before))
        found = compare(self.pairs.position[window], true, own, other, THRESHOLD, 100.0)
        first = slice(MINIMUM_PAIRS)
        return Tried(found, rmse(own[first], true[first]) > (1 + THRESHOLD) * rmse(other[first], true[first]))


def order(pairs: RecordedPairs, source: Array, rng: np.random.Generator, by_source: bool) -> Array:
    """The rows of a file, its encodes in random order, or that of their sources."""
    assert pairs.group is not None
    rank = rng.permutation(pairs.group.max() + 1)[pairs.group]
    turn = rng.permutation(source.max() + 1)[source] if by_source else np.zeros_like(source)
    return np.lexsort((np.arange(len(pairs)), rank, turn))


def healthy(pairs: RecordedPairs, source: Array, seed: int, by_source: bool, with_base: bool) -> Iterator[Tried]:
    """The stable checkpoints of one stream, each tried against its predecessor."""
    rng = np.random.default_rng(seed)
    rows, base = order(pairs, source, rng, by_source), None
    if with_base:
        known = np.isin(source[rows], rng.permutation(source.max() + 1)[: (source.max() + 1) // 2])
        base = fit(pairs.features, pairs.true_score, np.sort(rows[known]), Recipe()).ema.network()
        rows = rows[~known]
    stream = Stream(pairs, seed, base)
    stable: Network | None = None
    anchor: Array | None = None
    for start in range(0, len(rows), EVERY):
        stream.take(rows[start : start + EVERY])
        network, held_out = stream.network(), stream.learner.held_out.rows()
        if network is None:
            continue
        sets = [Evidence("", each[:, :-2], each[:, -2]) for each in (held_out, anchor) if each is not None]
        scored = {"base": base, "stable": stable, "": network}
        scores = {
            name: [each.forward(evidence.features.astype(np.float32)) for evidence in sets]
            for name, each in scored.items()
            if each
        }
        own = scores.pop("")
        if judge_on_each(own, sets, [*scores.items()]).verdict != "stable":
            continue
        tried = stream.tried(network, stable, rows[start + EVERY :]) if stable else None
        if tried is not None:
            yield tried
        stable, anchor = network, held_out


def bad(pairs: RecordedPairs, source: Array, seed: int, wrong: Scores, of_one_source: bool) -> Tried | None:
    """A checkpoint that has learned from wrong scores, tried on right ones."""
    rng = np.random.default_rng(seed)
    rows = order(pairs, source, rng, by_source=False)
    right, poisoned = (int(len(rows) * share) // 12 * 12 for share in (0.4, 0.2))
    stream = Stream(pairs, seed)
    stream.take(rows[:right])
    before = stream.network()
    poison = rows[right : right + poisoned]
    true = pairs.true_score[poison]
    hit = source[poison] == source[poison[0]] if of_one_source else np.ones(len(poison), dtype=bool)
    stream.take(poison, np.where(hit, wrong(true, rng), true))
    network = stream.network()
    return stream.tried(network, before, rows[right + poisoned :]) if network and before else None


def report(name: str, tried: Sequence[Tried]) -> None:
    if not tried:
        return
    back, plain = sum(each.found.worse for each in tried), sum(each.plain for each in tried)
    off = np.mean([each.found.rmse - each.found.predecessor_rmse for each in tried])
    pairs = np.median([each.found.pairs for each in tried])
    print(f"{name:44} {len(tried):6} {back:11} {plain:11} {off:12.2f} {pairs:7.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--streams", type=int, default=12, help="of each kind, for each file")
    parser.add_argument("--bad", type=int, default=4, help="bad checkpoints of each kind, for each file")
    parser.add_argument("--seed", type=int, default=0, help="of the first stream, and of the first bad checkpoint")
    options = parser.parse_args()
    files = [(read_pairs([file], group_by="group"), read_pairs([file], group_by="source").group) for file in options.files]
    print(f"{'':44} {'tried':>6} {'taken back':>11} {'plain rule':>11} {'score points':>12} {'pairs':>7}")
    everything = list[Tried]()
    for by_source, with_base in itertools.product((False, True), repeat=2):
        found = [
            tried
            for pairs, source in files
            for seed in range(options.seed, options.seed + options.streams)
            for tried in healthy(pairs, source, seed, by_source, with_base)
        ]
        name = f"healthy, {'by source' if by_source else 'shuffled'}, {'base model' if with_base else 'fresh head'}"
        report(name, found)
        everything += found
    report("healthy, all", everything)
    for (name, wrong), of_one_source in itertools.product(WRONG.items(), (False, True)):
        tries = (
            bad(pairs, source, seed, wrong, of_one_source)
            for pairs, source in files
            for seed in range(options.seed, options.seed + options.bad)
        )
        report(f"{name}{', of one source' if of_one_source else ''}", [tried for tried in tries if tried is not None])


if __name__ == "__main__":
    main()
