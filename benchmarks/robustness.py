"""What wrong data and wrong settings do: wrong scores and features, bad starts, rates that are too high, bursts, drift.

    python benchmarks/robustness.py DIRECTORY [--models DIRECTORY] [--rows NAME,…] [--seeds 5]

DIRECTORY holds recorded-6, recorded-24 and recorded-80.jsonl.gz; the other one `onnx/vmaf_tiny_v1.onnx` and
`onnx/fr_regressor_v3.onnx` with its JSON, for the rows with base models. Ours learns online at the defaults of `serve` and at
the settings that `fine_tuning.py` recommends, and is predicted by the EMA weights. "river" is its two best regressors in
`online_learning.py`; RLS is recursive least squares (see `learners.py`), scaled by the first 256 pairs or, beforehand, by
all. Of several settings of a peer, the one is shown whose first figure in a row is lowest, which favours the peers.
Predictions are clipped to 0-100. Figures are RMSE in score points if not stated otherwise, means of the seeds; the highest is
in brackets.

Pairs come in the order of the jobs; longer streams go on with them encode by encode, in a new order each time.

- "Unseen clips": two of the eight sources at a time are kept out of training, the k-th with the (k + 4)-th; the RMSE is over
  the pairs of all eight.
- "From the 269th", "last tenth": of one pass, each pair predicted before it is trained on; those with wrong features do not
  count.
- The other figures are measured on a fifth of the encodes, which is kept out of training.
- "Wrong scores": a share of the pairs, drawn at random, has scores that are uniform from 0 to 100.
- "Good pairs until": until a measurement, one after each 250 pairs, is below 0.5.
- "A burst": after two passes, 40,000 encodes of one clip with scores over 95, made from its pairs with a little noise on
  features and scores. Measured on scores under 60, after each 1,000 pairs.
- "Drift": after two passes, the scores of one codec are 3 points lower. Of all codecs the mean number of pairs, of any codec,
  until the mean prediction for this codec has gone down by 1.5; measured after each 100.
- "200,000 pairs": of six sources, measured on the two others, which change with the seed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from fine_tuning import HOLDOUT, RECOMMENDED, half_of_the_sources
from learners import Learner, Make, Ours, RecursiveLeastSquares, bayesian, linear, prequential, river
from quality import Train, ours, peer
from sklearn.linear_model import Ridge
from sklearn.svm import SVR

from onnx_builder.network import Network
from sidecar.learning.metrics import rmse
from sidecar.learning.online.fits import FIRST_PAIRS
from sidecar.learning.recipe import Recipe
from sidecar.learning.training_settings import TrainingSettings
from sidecar.models.base_model import load
from sidecar.pairs.recorded import RecordedPairs, read_pairs

FOLDS = 4
TEST = 0.2
FIRST_PREDICTED = 268
"""Of the first 268 pairs `serve` holds out 12."""
MEASURED_EVERY = 250
GOOD_PAIRS = 20_000
LEVEL = 0.5
TWO_PASSES, BURST_PAIRS, LONG = 8000, 40_000, 200_000
Rows = np.ndarray


@dataclass
class Data:
    """encode, codec: the numbers of each pair's encode and codec. far_off: base models by name, with pairs that fit."""

    pairs: RecordedPairs
    encode: Rows
    codec: Rows
    far_off: dict[str, tuple[RecordedPairs, Network]]

    def folds(self) -> Iterator[tuple[Rows, Rows]]:
        """The pairs to train on and those of unseen clips."""
        for fold in range(FOLDS):
            unseen = self.pairs.group % FOLDS == fold
            yield np.flatnonzero(~unseen), np.flatnonzero(unseen)

    @cached_property
    def base(self) -> Network:
        return half_of_the_sources(self.pairs)

    def stream(self, count: int, seed: int, rows: Rows | None = None) -> Rows:
        """Rows, by default all to train on, over and over: in their order, then encode by encode in a new order each time."""
        generator = np.random.default_rng([seed, 1])
        rows = np.flatnonzero(self.pairs.position >= TEST) if rows is None else rows
        passes = [rows]
        while len(passes) * len(rows) < count:
            order = generator.permutation(self.encode.max() + 1)
            passes.append(rows[np.argsort(order[self.encode[rows]], kind="stable")])
        return np.concatenate(passes)[:count]


def with_wrong_scores(pairs: RecordedPairs, share: float, seed: int) -> RecordedPairs:
    generator = np.random.default_rng([seed, 2])
    wrong = generator.choice(len(pairs), round(share * len(pairs)), replace=False)
    scores = pairs.true_score.copy()
    scores[wrong] = generator.uniform(0, 100, len(wrong))
    return replace(pairs, true_score=scores)


def with_large_features(pairs: RecordedPairs, share: float, seed: int) -> tuple[RecordedPairs, Rows]:
    """Features of a share of the pairs × 10; and which pairs are as they were (n,)."""
    wrong = np.random.default_rng([seed, 3]).choice(len(pairs), round(share * len(pairs)), replace=False)
    features, right = pairs.features.copy(), np.ones(len(pairs), dtype=bool)
    features[wrong] *= 10
    right[wrong] = False
    return replace(pairs, features=features), right


def error(learner: Learner, pairs: RecordedPairs, rows: Rows) -> float:
    return rmse(predictions(learner, pairs, rows), pairs.true_score[rows])


def predictions(learner: Learner, pairs: RecordedPairs, rows: Rows) -> Rows:
    predicted = [learner.predict(features) for features in pairs.features[rows]]
    return np.clip(np.nan_to_num(np.array(predicted, dtype=np.float64)), 0, 100)


def learn(learner: Learner, pairs: RecordedPairs, rows: Rows) -> None:
    """Train on pairs, but for every twentieth encode's."""
    held_out = (pairs.position[rows] >= TEST) & (pairs.position[rows] < TEST + HOLDOUT)
    for row, is_held_out in zip(rows, held_out, strict=True):
        give = learner.hold_out if is_held_out else learner.learn
        give(pairs.features[row], float(pairs.true_score[row]))


def unseen(data: Data, pairs: RecordedPairs, make: Make, seed: int) -> float:
    """RMSE on unseen clips after one pass; pairs: what is trained on."""
    predicted = np.empty(len(pairs))
    for rows, others in data.folds():
        learner = make(pairs.features.shape[1], seed)
        learn(learner, pairs, rows)
        predicted[others] = predictions(learner, data.pairs, others)
    return rmse(predicted, data.pairs.true_score)


def unseen_from_base(pairs: RecordedPairs, base: Network, settings: TrainingSettings, seed: int) -> float:
    data = Data(pairs, pairs.group, pairs.group, {})
    return unseen(data, pairs, lambda n_features, seed: Ours(n_features, replace(settings, seed=seed), base), seed)


def unseen_offline(data: Data, pairs: RecordedPairs, train: Train, seed: int) -> float:
    predicted = np.empty(len(pairs))
    for rows, others in data.folds():
        predicted[others] = np.clip(train(pairs, rows, seed)(data.pairs.features[others]), 0, 100)
    return rmse(predicted, data.pairs.true_score)


def curve(learner: Learner, data: Data, pairs: RecordedPairs, rows: Rows, every: int = MEASURED_EVERY) -> list[float]:
    """RMSE on the encodes kept out, before these pairs are learned and after each `every` of them."""
    test = np.flatnonzero(data.pairs.position < TEST)
    errors = [error(learner, data.pairs, test)]
    for start in range(0, len(rows), every):
        learn(learner, pairs, rows[start : start + every])
        errors.append(error(learner, data.pairs, test))
    return errors


RECOVERY = ["then", "2,000 good pairs later", "20,000 good pairs later", "good pairs until < 0.5"]


def recovery(learner: Learner, data: Data, seed: int) -> list[float]:
    """The figures of RECOVERY; good pairs follow."""
    errors = curve(learner, data, data.pairs, data.stream(GOOD_PAIRS, seed))
    below = np.flatnonzero(np.array(errors) < LEVEL)
    until = float(below[0] * MEASURED_EVERY) if len(below) else math.inf
    return [errors[0], errors[2000 // MEASURED_EVERY], errors[-1], until]


def offline_noise(share: float) -> Callable[[Data, Train, int], list[float]]:
    return lambda data, train, seed: [unseen_offline(data, with_wrong_scores(data.pairs, share, seed), train, seed)]


def online_noise(share: float) -> Callable[[Data, Make, int], list[float]]:
    return lambda data, make, seed: [unseen(data, with_wrong_scores(data.pairs, share, seed), make, seed)]


def offline_features(data: Data, train: Train, seed: int) -> list[float]:
    return [unseen_offline(data, with_large_features(data.pairs, 0.01, seed)[0], train, seed)]


def online_features(data: Data, make: Make, seed: int) -> list[float]:
    pairs, right = with_large_features(data.pairs, 0.01, seed)
    predicted = prequential(pairs, make(pairs.features.shape[1], seed))
    last = np.flatnonzero(right & (np.arange(len(pairs)) >= 0.9 * len(pairs)))
    return [rmse(predicted[last], pairs.true_score[last]), unseen(data, pairs, make, seed)]


def one_pass(data: Data, make: Make, seed: int) -> list[float]:
    pairs = data.pairs
    predicted = prequential(pairs, make(pairs.features.shape[1], seed))
    parts = [slice(FIRST_PREDICTED, None), slice(int(0.9 * len(pairs)), None)]
    return [*(rmse(predicted[part], pairs.true_score[part]) for part in parts), unseen(data, pairs, make, seed)]


def nothing_wrong(data: Data, make: Make, seed: int) -> list[float]:
    learner = make(data.pairs.features.shape[1], seed)
    learn(learner, data.pairs, data.stream(FIRST_PAIRS + 64, seed))
    return recovery(learner, data, seed)


def large_first_pair(data: Data, make: Make, seed: int) -> list[float]:
    learner, rows = make(data.pairs.features.shape[1], seed), data.stream(FIRST_PAIRS + 64, seed)
    wrong = np.random.default_rng([seed, 4]).integers(FIRST_PAIRS)
    features = data.pairs.features.copy()
    features[rows[wrong]] *= 1e4
    learn(learner, replace(data.pairs, features=features), rows)
    return recovery(learner, data, seed)


def large_first_pairs_of_base(data: Data, settings: TrainingSettings, seed: int) -> list[float]:
    learner = Ours(data.pairs.features.shape[1], replace(settings, seed=seed), data.base)
    learn(learner, replace(data.pairs, features=data.pairs.features * np.float32(1e4)), data.stream(128, seed))
    return recovery(learner, data, seed)


def wrong_rate(factor: float) -> Callable[[Data, TrainingSettings, int], list[float]]:
    def run(data: Data, settings: TrainingSettings, seed: int) -> list[float]:
        settings = replace(settings, seed=seed)
        high = replace(settings, learning_rate=factor * settings.learning_rate)
        learner = Ours(data.pairs.features.shape[1], high)
        learn(learner, data.pairs, data.stream(5000, seed))
        learner.configure(settings)
        return recovery(learner, data, seed)

    return run


def shuffled_thousand(data: Data, make: Make, seed: int) -> list[float]:
    learner, rows = make(data.pairs.features.shape[1], seed), data.stream(5000, seed)
    learn(learner, data.pairs, rows[:4000])
    scores = data.pairs.true_score.copy()
    scores[rows[4000:]] = np.random.default_rng([seed, 5]).permutation(scores[rows[4000:]])
    errors = curve(learner, data, replace(data.pairs, true_score=scores), rows[4000:])
    return [errors[0], max(errors), *recovery(learner, data, seed)]


def burst(data: Data, make: Make, seed: int) -> list[float]:
    """RMSE of low scores before, and the highest and the last."""
    generator = np.random.default_rng([seed, 6])
    pairs, learner = data.pairs, make(data.pairs.features.shape[1], seed)
    learn(learner, pairs, data.stream(TWO_PASSES, seed))
    near_perfect = (pairs.position >= TEST) & (pairs.true_score > 95)
    sources = [source for source in range(pairs.group.max() + 1) if np.sum(near_perfect & (pairs.group == source)) > 100]
    clip = np.flatnonzero(near_perfect & (pairs.group == sources[seed % len(sources)]))
    low = np.flatnonzero((pairs.position < TEST) & (pairs.true_score < 60))
    errors = [error(learner, pairs, low)]
    for _ in range(0, BURST_PAIRS, 1000):
        rows = generator.choice(clip, 1000)
        features = pairs.features[rows] * generator.normal(1, 1e-3, (1000, pairs.features.shape[1]))
        scores = np.minimum(pairs.true_score[rows] + generator.normal(0, 0.1, 1000), 100)
        made = replace(
            pairs, features=features.astype(np.float32), true_score=scores.astype(np.float32), position=pairs.position[rows]
        )
        learn(learner, made, np.arange(1000))
        errors.append(error(learner, pairs, low))
    return [errors[0], max(errors[1:]), errors[-1]]


def drift(data: Data, make: Make, seed: int) -> list[float]:
    pairs, until = data.pairs, []
    for codec in range(data.codec.max() + 1):
        learner = make(pairs.features.shape[1], seed)
        rows = data.stream(TWO_PASSES + GOOD_PAIRS, seed)
        learn(learner, pairs, rows[:TWO_PASSES])
        shifted = replace(pairs, true_score=np.maximum(pairs.true_score - 3 * (data.codec == codec), 0).astype(np.float32))
        test = np.flatnonzero((pairs.position < TEST) & (data.codec == codec))
        before, after = predictions(learner, pairs, test).mean(), TWO_PASSES
        while after < len(rows) and predictions(learner, pairs, test).mean() > before - 1.5:
            learn(learner, shifted, rows[after : after + 100])
            after += 100
        until.append(after - TWO_PASSES if after < len(rows) else math.inf)
    return [float(np.mean(until))]


def far_off(name: str) -> Callable[[Data, TrainingSettings, int], list[float]]:
    return lambda data, settings, seed: [unseen_from_base(*data.far_off[name], settings, seed)]


def long_stream(data: Data, settings: TrainingSettings, seed: int) -> list[float]:
    learner = online(settings)(data.pairs.features.shape[1], seed)
    rows, others = list(data.folds())[seed % FOLDS]
    stream, errors = data.stream(LONG, seed, rows), []
    for start, stop in (0, LONG // 10), (LONG // 10, LONG):
        learn(learner, data.pairs, stream[start:stop])
        errors.append(error(learner, data.pairs, others))
    return errors


@dataclass
class Row:
    """run: gives the figures, for a learner and a seed. kind: whether it trains ours by settings, offline, or any learner."""

    name: str
    what: str
    figures: list[str]
    run: Callable[[Data, object, int], list[float]]
    kind: str = "any"


UNSEEN = ["unseen clips"]
FAR_OFF = {"vmaf_tiny_v1": (6, "none"), "fr_regressor_v3": (24, "json")}
"""How many features they have, and where their scaling is."""
ROWS = [
    *(
        Row(f"{name}-{100 * share:g}", f"{name}, {100 * share:g} % of scores wrong", UNSEEN, noise(share), kind)
        for name, noise, kind, shares in (
            ("offline", offline_noise, "offline", (0, 0.01, 0.05)),
            ("online", online_noise, "any", (0.01, 0.05)),
        )
        for share in shares
    ),
    Row("offline-features", "offline, features of 1 % × 10", UNSEEN, offline_features, "offline"),
    Row("features", "features of 1 % × 10", ["last tenth", *UNSEEN], online_features),
    Row("clean", "nothing, after 320 pairs", RECOVERY, nothing_wrong),
    Row("first-pair", "one of the first 256 of 320 pairs × 10⁴", RECOVERY, large_first_pair),
    Row("base", "base model's first 128 pairs × 10⁴", RECOVERY, large_first_pairs_of_base, "settings"),
    *(
        Row(f"rate-{factor}", f"rate × {factor} for 5,000 pairs", RECOVERY, wrong_rate(factor), "settings")
        for factor in (10, 30, 100)
    ),
    Row("shuffled", "1,000 pairs with each other's scores", ["before", "worst", *RECOVERY], shuffled_thousand),
    Row("burst", "40,000 near-perfect encodes of one clip", ["scores under 60, before", "worst", "at the end"], burst),
    Row("drift", "scores of one codec 3 lower", ["pairs until half is tracked"], drift),
    *(Row(name, f"{name}, one pass", UNSEEN, far_off(name), "settings") for name in FAR_OFF),
    Row("long", "200,000 pairs", ["after 20,000", "at the end"], long_stream, "settings"),
    Row("pass", "one pass", ["from the 269th", "last tenth", *UNSEEN], one_pass),
]


def online(settings: TrainingSettings) -> Make:
    return lambda n_features, seed: Ours(n_features, replace(settings, seed=seed))


def learners(kind: str, pairs: RecordedPairs) -> tuple[dict[str, list[object]], dict[str, list[object]]]:
    """Ours and the peers that a kind of row takes, several for each name where there are several settings."""
    if kind == "offline":
        return {"": [ours(Recipe())]}, {
            "SVR": [peer(lambda seed: SVR(C=300, gamma=1e-4, epsilon=1e-3))],
            "Ridge": [peer(lambda seed: Ridge(10))],
        }
    settings = {"defaults": TrainingSettings(), "recommended": RECOMMENDED}
    if kind == "settings":
        return {name: [each] for name, each in settings.items()}, {}
    scaled = [
        lambda n_features, seed, scaling=scaling, ridge=ridge: RecursiveLeastSquares(
            n_features, seed, ridge=ridge, scaling=scaling
        )
        for scaling in (None, pairs.features)
        for ridge in (0.01, 0.1)
    ]
    rivers = [river(bayesian(0.995), scaled_scores=True), river(lambda: linear(1e-3, 0.1))]
    return {name: [online(each)] for name, each in settings.items()}, {"RLS": scaled, "river": rivers}


def cell(values: Rows) -> str:
    if np.isinf(values).any():
        return f"never ({np.isinf(values).sum()} of {len(values)})"
    form = "{:,.0f}" if values.max() >= 100 else "{:.2f}"
    return f"{form.format(values.mean())} ({form.format(values.max())})"


def measured(row: Row, data: Data, candidates: list[object], seeds: int) -> Rows:
    """Figures (seeds, figures) of the candidate whose mean of the first one is lowest."""
    each = [np.array([row.run(data, made, seed) for seed in range(seeds)]) for made in candidates]
    return min(each, key=lambda values: values[:, 0].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--models", type=Path, help="directory of the base models")
    parser.add_argument("--rows", type=lambda names: names.split(","), help=f"default: all of {' '.join(r.name for r in ROWS)}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    path = [options.pairs / "recorded-80.jsonl.gz"]
    pairs, encodes, codecs = (read_pairs(path, group_by=column) for column in ("source", "group", "codec"))
    far_off = {}
    for name, (n_features, scaler) in FAR_OFF.items() if options.models else ():
        base = load(options.models / "onnx" / f"{name}.onnx", scaler=scaler).network
        far_off[name] = read_pairs([options.pairs / f"recorded-{n_features}.jsonl.gz"], group_by="source"), base
    data = Data(pairs, encodes.group, codecs.group, far_off)
    print("| row | what happens | figure | ours | recommended | peers |")
    print("|-----|--------------|--------|-----:|------------:|-------|", flush=True)
    for row in ROWS:
        if row.name not in (options.rows or [row.name for row in ROWS]) or (row.name in FAR_OFF and row.name not in far_off):
            continue
        own, peers = learners(row.kind, pairs)
        columns = [measured(row, data, candidates, options.seeds) for candidates in own.values()]
        others = {} if options.no_peers else peers
        others = {name: measured(row, data, candidates, options.seeds) for name, candidates in others.items()}
        for place, figure in enumerate(row.figures):
            cells = [cell(values[:, place]) for values in columns] + ["–"] * (2 - len(columns))
            beside = ", ".join(f"{name} {cell(values[:, place])}" for name, values in others.items())
            print(f"| {row.name} | {row.what} | {figure} | {' | '.join(cells)} | {beside or '–'} |", flush=True)


if __name__ == "__main__":
    main()
