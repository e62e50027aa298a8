"""Taking back: how many healthy stable checkpoints would be taken back, and how many bad ones, and how soon.

    python benchmarks/rollback.py FILE… [--streams N] [--bad N] [--seed FIRST]

FILE: recorded pairs with `group` and `source`, such as `examples/recorded-80.jsonl.gz`. Each stream is the encodes of a file in
a random order, or one source after another, and begins with a fresh head or with a base model that was made from half of the
sources; the pairs of an encode stay together. A checkpoint is published every 408 pairs and judged by the gate as in `serve`,
on the held-out pairs and the anchor. Those that pass and have a predecessor are tried on the pairs that follow. The plain
rule, beside it, takes back whatever has an RMSE more than 5 % above the predecessor's on the next 200 pairs.

Bad checkpoints have learned from two fifths of a file and then from a fifth whose scores are wrong, and are tried on right
ones against what was there before these; the gate is not asked. `score points`: how much higher the groups' median error is
than the predecessor's, the mean of all. `pairs`: how many it took to decide, the median. `by RMSE`: taken back if the RMSE of
each group counted, not its median error. With `--wrong 0 0.05`, each is tried twice: once with a twentieth of the pairs that
decide having a score that is uniform from 0 to 100.
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
from sidecar.checkpoints.judging.gate import Evidence, Gate, judge, judge_on_each
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
    """A checkpoint that was tried: by the rule, by the same with the RMSE of each group, and by the plain rule.

    wrong: the share of the pairs that decided whose scores were wrong.
    """

    wrong: float
    found: Comparison
    by_rmse: bool
    plain: bool


class Made(NamedTuple):
    """A checkpoint of a stream, and what the gate says of it, on each set. later: the rows after it. before: the stable one."""

    gate: Gate
    on_each: list[Gate]
    network: Network
    before: Network | None
    has_reference: bool
    stream: Stream
    later: Array


class Stream:
    """A learner that takes rows of recorded pairs."""

    def __init__(self, pairs: RecordedPairs, seed: int, base: Network | None = None) -> None:
        self.pairs, self.rng = pairs, np.random.default_rng(seed)
        settings = TrainingSettings(seed=seed)
        run = Run(pairs.features.shape[1], settings, HOLDOUT, "base" if base else None)
        self.learner = Learner(run, base)

    def take(self, rows: Array, scores: Array | None = None) -> None:
        true = self.pairs.true_score[rows] if scores is None else np.clip(scores, 0, 100).astype(np.float32)
        self.learner.take(PairBlock(self.pairs.features[rows], true, self.pairs.position[rows].tolist()))

    def network(self) -> Network | None:
        trainer = self.learner.trainer
        return trainer.network(trainer.ema) if trainer.ema else None

    def tried(self, network: Network, before: Network, later: Array, wrong: float) -> Tried | None:
        """A network on trial on the first pairs of those that come later; None if they are too few.

        wrong: the share of these whose scores are wrong.
        """
        position = self.pairs.position[later]
        news = np.zeros(len(later), dtype=int)
        news[np.unique(position, return_index=True)[1]] = 1
        enough = np.flatnonzero((np.cumsum(news) >= MINIMUM_GROUPS) & (np.arange(len(later)) >= MINIMUM_PAIRS - 1))
        if not len(enough):
            return None
        window = later[: enough[0] + 1]
        features, true = self.pairs.features[window], wrong_scores(self.pairs.true_score[window], wrong, self.rng)
        own, other = (np.clip(each.forward(features), 0, 100) for each in (network, before))
        found = compare(position[: len(window)], true, own, other, THRESHOLD, 100.0)
        groups = [position[: len(window)] == each for each in np.unique(position[: len(window)])]
        errors = (np.array([rmse(scores[of], true[of]) for of in groups]) for scores in (own, other))
        by_rmse = compare(np.arange(len(groups)), np.zeros(len(groups)), *errors, THRESHOLD, 100.0).worse
        first = slice(MINIMUM_PAIRS)
        plain = rmse(own[first], true[first]) > (1 + THRESHOLD) * rmse(other[first], true[first])
        return Tried(wrong, found, by_rmse, plain)

    def each_tried(self, network: Network, before: Network, later: Array, wrong: Sequence[float]) -> Iterator[Tried]:
        """The same with each of these shares of wrong scores."""
        for share in wrong:
            tried = self.tried(network, before, later, share)
            if tried is not None:
                yield tried


def wrong_scores(true: Array, share: float, rng: np.random.Generator) -> Array:
    """Scores of which a share is uniform from 0 to 100 instead."""
    return np.where(rng.random(len(true)) < share, rng.uniform(0, 100, len(true)), true)


def order(pairs: RecordedPairs, source: Array, rng: np.random.Generator, by_source: bool) -> Array:
    """The rows of a file, its encodes in random order, or that of their sources."""
    assert pairs.group is not None
    rank = rng.permutation(pairs.group.max() + 1)[pairs.group]
    turn = rng.permutation(source.max() + 1)[source] if by_source else np.zeros_like(source)
    return np.lexsort((np.arange(len(pairs)), rank, turn))


def checkpoints(pairs: RecordedPairs, source: Array, seed: int, by_source: bool, with_base: bool) -> Iterator[Made]:
    """The checkpoints of one stream, each judged by the gate."""
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
        gate, _ = judge_on_each(own, sets, [*scores.items()])
        on_each = [
            judge(predicted, evidence.true, [(name, each[place]) for name, each in scores.items()])
            for place, (predicted, evidence) in enumerate(zip(own, sets, strict=True))
        ]
        yield Made(gate, on_each, network, stable, bool(scores), stream, rows[start + EVERY :])
        if gate.verdict == "stable":
            stable, anchor = network, held_out


def healthy(
    pairs: RecordedPairs, source: Array, seed: int, by_source: bool, with_base: bool, wrong: Sequence[float]
) -> Iterator[Tried]:
    """The stable checkpoints of one stream, each tried against its predecessor."""
    for made in checkpoints(pairs, source, seed, by_source, with_base):
        if made.gate.verdict == "stable" and made.before is not None:
            yield from made.stream.each_tried(made.network, made.before, made.later, wrong)


def bad(
    pairs: RecordedPairs, source: Array, seed: int, learned: Scores, of_one_source: bool, wrong: Sequence[float]
) -> Iterator[Tried]:
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
    stream.take(poison, np.where(hit, learned(true, rng), true))
    network = stream.network()
    assert network is not None
    assert before is not None
    yield from stream.each_tried(network, before, rows[right + poisoned :], wrong)


def report(name: str, tried: Sequence[Tried], wrong: float) -> None:
    tried = [each for each in tried if each.wrong == wrong]
    if not tried:
        return
    name += f", {wrong:.0%} wrong" if wrong else ""
    back, by_rmse = sum(each.found.worse for each in tried), sum(each.by_rmse for each in tried)
    plain = sum(each.plain for each in tried)
    off = np.mean([each.found.error - each.found.predecessor_error for each in tried])
    pairs = np.median([each.found.pairs for each in tried])
    print(f"{name:52} {len(tried):6} {back:11} {by_rmse:7} {plain:11} {off:12.2f} {pairs:7.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--streams", type=int, default=12, help="of each kind, for each file")
    parser.add_argument("--bad", type=int, default=4, help="bad checkpoints of each kind, for each file")
    parser.add_argument(
        "--wrong", type=float, nargs="+", default=[0], help="shares of wrong scores among the pairs that decide"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first stream, and of the first bad checkpoint")
    options = parser.parse_args()
    files = [(read_pairs([file], group_by="group"), read_pairs([file], group_by="source").group) for file in options.files]
    print(f"{'':52} {'tried':>6} {'taken back':>11} {'by RMSE':>7} {'plain rule':>11} {'score points':>12} {'pairs':>7}")
    everything = list[Tried]()
    for by_source, with_base in itertools.product((False, True), repeat=2):
        found = [
            tried
            for pairs, source in files
            for seed in range(options.seed, options.seed + options.streams)
            for tried in healthy(pairs, source, seed, by_source, with_base, options.wrong)
        ]
        name = f"healthy, {'by source' if by_source else 'shuffled'}, {'base model' if with_base else 'fresh head'}"
        for wrong in options.wrong:
            report(name, found, wrong)
        everything += found
    for wrong in options.wrong:
        report("healthy, all", everything, wrong)
    for (name, learned), of_one_source in itertools.product(WRONG.items(), (False, True)):
        found = [
            tried
            for pairs, source in files
            for seed in range(options.seed, options.seed + options.bad)
            for tried in bad(pairs, source, seed, learned, of_one_source, options.wrong)
        ]
        for wrong in options.wrong:
            report(f"{name}{', of one source' if of_one_source else ''}", found, wrong)


if __name__ == "__main__":
    main()
