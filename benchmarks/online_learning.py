"""Learning online: every pair predicted before it trains, beside river, Vowpal Wabbit and torch; and what a burst makes forget.

    python benchmarks/online_learning.py DIRECTORY [--models DIRECTORY]

DIRECTORY holds recorded-24 and recorded-80.jsonl.gz, the other one `onnx/fr_regressor_v3.onnx` and its JSON. Pairs come in the
order of the jobs. All learners train on the same pairs (all but those that `serve` holds out), each pair by itself as it comes,
and all are scored on the same pairs: those that ours predicts, which are not the ones that a fresh head is fitted to. Ours is
predicted by the EMA weights. Predictions are clipped to 0-100.

river and Vowpal Wabbit get several settings each, of which the one with the lowest RMSE over all scored pairs is shown, so by
the very figure that is compared; `best of all` is the lowest RMSE of any peer at any setting in these very pairs. With a base
model from half of the sources, the peers train on its pairs first, in order, and then on the stream from the other half.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import itertools
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from fine_tuning import RECOMMENDED
from learners import Make, Ours, Row, bayesian, leaf, linear, prequential, river
from river import forest, linear_model, neighbors, preprocessing, rules, tree
from vowpalwabbit import Workspace

from onnx_builder.network import Network
from sidecar.learning.metrics import plcc, rmse
from sidecar.learning.online.trainer import Trainer
from sidecar.learning.recipe import Recipe, fit
from sidecar.learning.training_settings import TrainingSettings
from sidecar.models.base_model import load
from sidecar.pairs.recorded import RecordedPairs, read_pairs

BURST_PAIRS = 14_400
"""An hour of video at 24 frames a second, six frames a pair."""
MEASURED_EVERY, MEASURED_OVER = 192, 3600
TEST = 0.2


class VowpalWabbit:
    """scaler: river's, as Vowpal Wabbit has none that takes the mean away."""

    def __init__(self, arguments: str, scaler: preprocessing.StandardScaler | None) -> None:
        self.model, self.scaler = Workspace(f"{arguments} --quiet"), scaler

    def line(self, features: Row) -> str:
        values = dict(enumerate(features.tolist()))
        values = self.scaler.transform_one(values) if self.scaler else values
        return "|x " + " ".join(f"f{name}:{value:.9g}" for name, value in values.items())

    def predict(self, features: Row) -> float:
        return self.model.predict(self.line(features))

    def learn(self, features: Row, score: float) -> None:
        if self.scaler:
            self.scaler.learn_one(dict(enumerate(features.tolist())))
        self.model.learn(f"{score} {self.line(features)}")


class Torch:
    """The same head on features and scores as they come, with a replay buffer: one step for every 16 new pairs."""

    def __init__(self, n_features: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(n_features, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-5)
        self.generator = np.random.default_rng(seed)
        self.pairs: list[tuple[Row, float]] = []

    def predict(self, features: Row) -> float:
        with torch.no_grad():
            return float(self.model(torch.from_numpy(features)))

    def learn(self, features: Row, score: float) -> None:
        self.pairs.append((features, score))
        if len(self.pairs) % 16:
            return
        older = len(self.pairs) - 16
        replayed = self.generator.choice(older, min(16, older), replace=False)
        batch = self.pairs[-16:] + [self.pairs[row] for row in replayed]
        x, y = (torch.from_numpy(np.array(column, dtype=np.float32)) for column in zip(*batch, strict=True))
        self.optimizer.zero_grad()
        torch.nn.functional.mse_loss(self.model(x)[:, 0], y).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def vowpal_wabbit(arguments: str, scaled: bool) -> Make:
    return lambda n_features, seed: VowpalWabbit(arguments, preprocessing.StandardScaler() if scaled else None)


RATES = list(itertools.product((3e-4, 1e-3, 3e-3), (0.03, 0.1, 0.3)))
PEERS: dict[str, dict[str, Make]] = {
    "river, linear": {"rate 0.01, its default": river(linear_model.LinearRegression)},
    "river, linear, tuned": {f"rate {rate:g}, intercept {i:g}": river(lambda r=rate, i=i: linear(r, i)) for rate, i in RATES},
    "river, Bayesian linear": {
        f"scaled scores, smoothing {smoothing}": river(bayesian(smoothing), scaled_scores=True)
        for smoothing in (None, 0.9, 0.95, 0.98, 0.99, 0.995)
    },
    "river, Hoeffding tree": {
        "": river(tree.HoeffdingTreeRegressor),
        "leaves: tuned linear": river(lambda: tree.HoeffdingTreeRegressor(leaf_model=leaf())),
        "leaves: tuned linear, grace 50": river(lambda: tree.HoeffdingTreeRegressor(grace_period=50, leaf_model=leaf())),
    },
    "Vowpal Wabbit": {"its defaults": vowpal_wabbit("", scaled=False)},
    "Vowpal Wabbit, tuned": {
        f"{'scaled features, ' if scaled else ''}{arguments}": vowpal_wabbit(arguments, scaled)
        for scaled in (False, True)
        for arguments in (
            *(f"-l {rate}{power}" for rate in (1, 10, 30) for power in ("", " --power_t 0")),
            "-q xx -l 2 --power_t 0",
        )
    },
    "torch, unscaled": {"rate 1e-4, 16 new of 32": Torch},
}
SLOW_PEERS: dict[str, dict[str, Make]] = {
    "river, Hoeffding adaptive tree": {
        "": river(lambda: tree.HoeffdingAdaptiveTreeRegressor(seed=0)),
        "leaves: tuned linear": river(lambda: tree.HoeffdingAdaptiveTreeRegressor(seed=0, leaf_model=leaf())),
    },
    "river, SGT": {"scaled scores": river(tree.SGTRegressor, scaled_scores=True)},
    "river, adaptive random forest": {"": river(lambda: forest.ARFRegressor(seed=0))},
    "river, AMF": {"": river(lambda: forest.AMFRegressor(seed=0))},
    "river, OXT": {"": river(lambda: forest.OXTRegressor(seed=0))},
    "river, nearest neighbours": {
        "5 of 1000": river(lambda: neighbors.KNNRegressor(engine=neighbors.LazySearch(window_size=1000)))
    },
    "river, AMRules": {"rules: tuned linear": river(lambda: rules.AMRules(pred_model=leaf()))},
    "river, passive-aggressive": {
        f"mode {mode}, C {c:g}": river(lambda c=c, mode=mode: linear_model.PARegressor(C=c, mode=mode))
        for mode, c in ((1, 1), (1, 0.1), (2, 0.001))
    },
}
OTHER = "best other of river"
SHOWN = ["river, linear", "river, linear, tuned", OTHER, "Vowpal Wabbit", "Vowpal Wabbit, tuned", "torch, unscaled"]


@dataclass
class Stream:
    """pairs: in order; base: where ours starts; before: what the peers train on first."""

    name: str
    pairs: RecordedPairs
    base: Network | None = None
    before: RecordedPairs | None = None
    slow_peers: bool = False


def chosen(pairs: RecordedPairs, rows: np.ndarray) -> RecordedPairs:
    return RecordedPairs(pairs.features[rows], pairs.true_score[rows], pairs.position[rows])


def streams(directory: Path, models: Path | None) -> list[Stream]:
    pairs = read_pairs([directory / "recorded-80.jsonl.gz"], group_by="source")
    inside = pairs.group % 2 == 0
    base = fit(pairs.features, pairs.true_score, np.flatnonzero(inside), Recipe()).ema.network()
    found = [
        Stream("fresh head", pairs, slow_peers=True),
        Stream("base model from half of the sources", chosen(pairs, ~inside), base, before=chosen(pairs, inside)),
    ]
    if models:
        base = load(models / "onnx" / "fr_regressor_v3.onnx", scaler="json").network
        found.append(Stream("fr_regressor_v3", read_pairs([directory / "recorded-24.jsonl.gz"]), base))
    return found


def figures(pairs: RecordedPairs, predicted: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """RMSE and PLCC (parts, 2)."""
    return np.array([(rmse(predicted[p], pairs.true_score[p]), plcc(predicted[p], pairs.true_score[p])) for p in parts])


def our_figures(stream: Stream, settings: TrainingSettings, seeds: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Figures (seeds, parts, 2), and the parts: each thousand, the last tenth and all, of the pairs that are predicted."""
    pairs, results = stream.pairs, []
    for seed in range(seeds):
        predicted = prequential(pairs, Ours(pairs.features.shape[1], replace(settings, seed=seed), stream.base))
        scored = np.flatnonzero(~np.isnan(predicted))
        parts = [scored[scored // 1000 == thousand] for thousand in range(-(-len(pairs) // 1000))]
        parts += [scored[scored >= int(0.9 * len(pairs))], scored]
        results.append(figures(pairs, predicted, parts))
    return np.array(results), parts


def peer_figures(stream: Stream, make: Make, parts: list[np.ndarray], seeds: int) -> np.ndarray:
    """Figures (parts, 2), means of the seeds."""
    results = []
    for seed in range(seeds):
        learner = make(stream.pairs.features.shape[1], seed)
        if stream.before:
            for features, score in zip(stream.before.features, stream.before.true_score.tolist(), strict=True):
                learner.learn(features, score)
        results.append(figures(stream.pairs, prequential(stream.pairs, learner), parts))
    return np.mean(results, axis=0)


def table(head: list[str], rows: list[list[str]]) -> None:
    """A Markdown table, its first column to the left."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    ruler = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
    lines = [
        [f" {row[0]:{widths[0]}} ", *(f" {cell:>{width}} " for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in (head, *rows)
    ]
    for line in lines[0], ruler, *lines[1:]:
        print(f"|{'|'.join(line)}|")
    print(flush=True)


def learning(stream: Stream, seeds: int) -> None:
    ours, parts = our_figures(stream, TrainingSettings(), seeds)
    recommended, _ = our_figures(stream, RECOMMENDED, seeds)
    best: dict[str, tuple[str, np.ndarray]] = {}
    lowest: list[tuple[float, str]] = [(np.inf, "")] * len(parts)
    for name, settings in (PEERS | SLOW_PEERS if stream.slow_peers else PEERS).items():
        each = {
            setting: peer_figures(stream, make, parts, seeds if name.startswith("torch") else 1)
            for setting, make in settings.items()
        }
        best[name] = min(each.items(), key=lambda item: item[1][-1, 0])
        for values in each.values():
            lowest = [min(low, (value, name)) for low, value in zip(lowest, values[:, 0], strict=True)]
    rivers = [name for name in best if name.startswith("river") and not name.startswith("river, linear")]
    best_river = min(rivers, key=lambda name: best[name][1][-1, 0])
    columns = {"default": ours.mean(axis=0), "recommended": recommended.mean(axis=0)}
    columns |= {name: best[best_river if name == OTHER else name][1] for name in SHOWN}
    names = [f"{1 + p[0]}-{1 + p[-1]}" for p in parts[:-2]] + ["last tenth", "all"]
    print(f"{stream.name}: {len(parts[-1])} pairs scored; RMSE, PLCC; best other of river: {best_river}\n")
    rows = [["{:.2f}, {:.4f}".format(*values[part]) for values in columns.values()] for part in range(len(parts))]
    rows = [[name, *row, "{:.2f} ({})".format(*low)] for name, row, low in zip(names, rows, lowest, strict=True)]
    table(["pairs", *columns, "best of all"], rows)
    if stream.base:
        untouched = figures(stream.pairs, np.clip(stream.base.forward(stream.pairs.features), 0, 100), parts)
        print(f"the base model, untouched: RMSE {', '.join(f'{value:.2f}' for value in untouched[:, 0])}\n")
    table(
        ["peer", "setting", *(f"RMSE {name}" for name in names)],
        [[name, setting, *(f"{value:.2f}" for value in values[:, 0])] for name, (setting, values) in best.items()],
    )
    for setting, values in ("default", ours), ("recommended", recommended):
        behind = [name for part, name in enumerate(names) if values[:, part, 0].max() >= lowest[part][0]]
        print(f"{setting}, worst of {seeds} seeds: {'behind in ' + ', '.join(behind) if behind else 'ahead in every row'}\n")


def other_rmse(trainer: Trainer, pairs: RecordedPairs, rows: np.ndarray) -> list[float]:
    """Of live and EMA weights."""
    heads = trainer.live, trainer.ema
    return [rmse(np.clip(head.predict(pairs.features[rows]), 0, 100), pairs.true_score[rows]) for head in heads]


def train(trainer: Trainer, pairs: RecordedPairs, rows: np.ndarray, count: int, measured: np.ndarray) -> np.ndarray:
    """Train on `count` pairs, the rows over and over; gives `other_rmse` (2, 2) at the middle and at the end.

    Each is the mean over the MEASURED_OVER pairs before: the live weights of one moment say little, they go up and down.
    """
    results = []
    for start in range(0, count, MEASURED_EVERY):
        block = rows[np.arange(start, min(start + MEASURED_EVERY, count)) % len(rows)]
        trainer.add(pairs.features[block], pairs.true_score[block])
        if trainer.live is not None:
            results.append(other_rmse(trainer, pairs, measured))
    over, middle = MEASURED_OVER // MEASURED_EVERY, len(results) // 2
    return np.array([np.mean(results[middle - over : middle], axis=0), np.mean(results[-over:], axis=0)])


def forgetting(directory: Path, seeds: int) -> None:
    pairs = read_pairs([directory / "recorded-80.jsonl.gz"], group_by="content_category")
    test = pairs.position < TEST
    mixed = np.flatnonzero(~test)
    results = []
    for category in range(len(pairs.group_names)):
        others, burst = np.flatnonzero(test & (pairs.group != category)), np.flatnonzero(~test & (pairs.group == category))
        for seed in range(seeds):
            settings = TrainingSettings(steps_per_batch=1, seed=seed)
            trainer = Trainer(pairs.features.shape[1], settings)
            columns = [train(trainer, pairs, mixed, 2 * len(mixed), others)[-1]]
            for mix in 0.5, 0.0:
                columns += [*train(trainer.configured(replace(settings, replay_mix=mix)), pairs, burst, BURST_PAIRS, others)]
            results.append(columns)
    means = np.reshape(results, (len(pairs.group_names), seeds, 5, 2)).mean(axis=1)
    moments = ["before", *(f"mix {mix}, {when}" for mix in ("0.5", "0") for when in ("half an hour", "an hour"))]
    rows = [
        [name, weights, *(f"{value:.2f}" for value in values[:, column])]
        for name, values in zip([*pairs.group_names, "mean"], [*means, means.mean(axis=0)], strict=True)
        for column, weights in enumerate(("live", "EMA"))
    ]
    print("RMSE on the other categories before and after a burst of one, one step a batch:\n")
    table(["burst of", "weights", *moments], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--models", type=Path, help="directory of the base models")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    for stream in streams(options.pairs, options.models):
        learning(stream, options.seeds)
    forgetting(options.pairs, options.seeds)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
