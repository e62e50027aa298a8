"""What prediction intervals cover of sources that were in no way used, and how wide they are, by what they are made of.

    python benchmarks/intervals.py examples/recorded-80.jsonl.gz [--seeds 2]

Each source is left out once: neither a model nor a table sees it. Of the others, the tables are made

- as `train-offline --group-by source` makes them: each of the others is left out once more;
- of the same residuals, but without calibration of the level; with one width for all scores and all pairs alike, as split
  conformal prediction does where pairs are exchangeable; and at the level that guarantees the coverage, which with so few
  sources is the largest residual of all (hierarchical conformal prediction; Lee, Barber, Willett 2023);
- as `train-offline --holdout 0.1` and a sidecar (`--holdout 0.05`) make them, of encodes that were held out;
- of what a sidecar predicted before it trained on it: its last thousand pairs.

all: the share of all pairs whose true score is in the interval; sources: the mean of the sources' shares, and the lowest.
width: the mean over sources, in score points. score: the interval score (Gneiting, Raftery 2007), the width plus what is
missed, weighted: what an interval costs that is too wide or too narrow; lower is better.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from onnx_builder.network import Array
from sidecar.learning.intervals import LEVELS, Intervals, calibrate
from sidecar.learning.online.trainer import Trainer
from sidecar.learning.recipe import Recipe, fit
from sidecar.learning.training_settings import TrainingSettings
from sidecar.pairs.recorded import RecordedPairs, read_pairs

RANGE = (0.0, 100.0)
Tables = Iterator[tuple[str, Intervals, Array]]


def one_width(predicted: Array, true: Array, count: int) -> Intervals:
    """One half-width for all scores: the residual that a share of the pairs, and one more, does not exceed."""
    residuals = np.sort(np.abs(true - predicted))
    widths = {level: residuals[[min(int(level * (len(residuals) + 1)), len(residuals) - 1)]] for level in LEVELS}
    return Intervals("left-out", "source", count, len(true), np.zeros(1), widths)


def at_level(table: Intervals, predicted: Array, true: Array, source: Array, guaranteed: bool) -> Intervals:
    """The same table, at the level that is asked for, or that guarantees it; all sources weigh the same."""
    weights = 1 / np.bincount(source)[source]
    widths = {}
    for level, half in table.half_widths.items():
        ratios = np.abs(true - predicted) / np.interp(predicted, table.predicted, half)
        order = np.argsort(ratios)
        share = np.cumsum(weights[order]) / (table.groups + guaranteed)
        place = min(np.searchsorted(share, level * (1 if guaranteed else share[-1])), len(ratios) - 1)
        widths[level] = half * ratios[order][place]
    return replace(table, half_widths=widths)


def trained(pairs: RecordedPairs, rows: Array, recipe: Recipe) -> Array:
    """Scores of all pairs, by a model of some of them."""
    return fit(pairs.features, pairs.true_score, np.flatnonzero(rows), recipe).ema.predict(pairs.features)


def offline(pairs: RecordedPairs, source: int, recipe: Recipe, without: dict[tuple[int, int], Array]) -> Tables:
    """without: scores of all pairs by models of all but two sources, which are made once."""
    assert pairs.group is not None
    others, true, held_out = pairs.group != source, pairs.true_score, pairs.position < 0.1
    scores = trained(pairs, others, recipe)
    predicted = np.empty_like(scores)
    for other in np.unique(pairs.group[others]).tolist():
        both = min(source, other), max(source, other)
        if both not in without:
            without[both] = trained(pairs, others & (pairs.group != other), recipe)
        predicted[pairs.group == other] = without[both][pairs.group == other]
    known = predicted[others], true[others], np.unique(pairs.group[others], return_inverse=True)[1]
    table = calibrate(*known, "left-out", "source")
    assert table is not None
    yield "left-out sources", table, scores
    yield "the same, uncalibrated", at_level(table, *known, guaranteed=False), scores
    yield "the same, one width, pairs alike", one_width(*known[:2], table.groups), scores
    yield "the same, guaranteed", at_level(table, *known, guaranteed=True), scores
    few = np.isin(known[2], np.arange(source, source + 3) % table.groups)
    of_few = known[0][few], known[1][few], np.unique(known[2][few], return_inverse=True)[1]
    table = calibrate(*of_few, "left-out", "source")
    assert table is not None
    yield "left-out sources, only three", table, scores
    yield "only three, uncalibrated", at_level(table, *of_few, guaranteed=False), scores
    scores, rows = trained(pairs, others & ~held_out, recipe), others & held_out
    table = calibrate(scores[rows], true[rows], pairs.position[rows], "held-out", "encode")
    assert table is not None
    yield "held-out encodes, train-offline", table, scores


def online(pairs: RecordedPairs, source: int, seed: int) -> Tables:
    others, held_out = pairs.group != source, pairs.position < 0.05
    trainer, rows = Trainer(pairs.features.shape[1], TrainingSettings(seed=seed)), np.flatnonzero(others & ~held_out)
    trainer.add(pairs.features[rows], pairs.true_score[rows])
    assert trainer.ema is not None
    scores, rows = trainer.network(trainer.ema).forward(pairs.features), np.flatnonzero(others & held_out)
    table = calibrate(scores[rows], pairs.true_score[rows], pairs.position[rows], "held-out", "encode")
    assert table is not None
    yield "held-out encodes, online", table, scores
    predicted, true = trainer.prequential.rows().T
    table = calibrate(predicted, true, np.arange(len(true)), "held-out", "pair")
    assert table is not None
    yield "last 1000 pairs, online", table, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="+")
    parser.add_argument("--group-by", default="source")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="of each training; by default the recipe's own")
    options = parser.parse_args()
    pairs = read_pairs(options.pairs, group_by=options.group_by)
    assert pairs.group is not None
    figures: dict[str, dict[float, list[tuple[float, ...]]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(options.seeds):
        without: dict[tuple[int, int], Array] = {}
        for source in range(len(pairs.group_names)):
            new = pairs.group == source
            true = pairs.true_score[new]
            recipe = Recipe(epochs=options.epochs, seed=seed)
            for tables in (offline(pairs, source, recipe, without), online(pairs, source, seed)):
                for kind, table, scores in tables:
                    for level in LEVELS:
                        low, high = table.bounds(level, scores[new], RANGE)
                        missed = np.maximum(low - true, 0) + np.maximum(true - high, 0)
                        cost = (high - low + 2 / (1 - level) * missed).mean()
                        found = table.coverage(level, scores[new], true, pairs.group[new], RANGE)
                        figures[kind][level].append((found.covered, found.width, float(cost), found.pairs))
    print(f"{len(pairs)} pairs of {len(pairs.group_names)} groups by {options.group_by}, {options.seeds} seeds\n")
    heads = "".join(f" {f'{level:.0%} all':>8} {'sources':>8} {'lowest':>7} {'width':>7} {'score':>7}" for level in LEVELS)
    print(f"{'intervals from':36}{heads}")
    for kind, by_level in figures.items():
        print(f"{kind:36}", end="")
        for level in LEVELS:
            covered, width, cost, count = np.array(by_level[level]).T
            shares = f" {np.average(covered, weights=count):8.3f} {covered.mean():8.3f} {covered.min():7.3f}"
            print(f"{shares} {width.mean():7.3f} {cost.mean():7.3f}", end="")
        print()


if __name__ == "__main__":
    main()
