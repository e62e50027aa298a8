"""Leave one source out at a time: the default recipe beside scikit-learn's Ridge, SVR and MLPRegressor, several seeds each.

    python benchmarks/quality.py examples/recorded-80.jsonl.gz [--few 64]

Each peer gets standardised features and scores, predictions clipped to the score range, and the best of a few settings,
chosen by the very figure that is compared (which favours the peers). With `--few`, models are trained on this many consecutive
pairs of the other sources, from a place that the seed draws: in the order of the jobs these are of few encodes.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from sidecar.learning.metrics import plcc, rmse
from sidecar.learning.recipe import Recipe, fit
from sidecar.pairs.recorded import RecordedPairs, read_pairs

VARIATIONS: list[tuple[str, Any]] = [
    ("optimizer", "adam"),
    ("loss", "squared"),
    *(("huber_delta", value) for value in (0.02, 0.2)),
    *(("group_lasso", value) for value in (0.0, 1e-4, 1e-3)),
    ("score_max", 1e9),  # no bound: a prediction beyond 100 is an error like any other
    *(("feature_clip", value) for value in (3.0, 1e9)),
    ("bias_deviation", 0.0),
    *(("weight_gain", value) for value in (0.03, 0.3, 1.0)),
    ("weight_decay", 1e-4),
    *(("epochs", value) for value in (60, 154, 1230)),
    *(("learning_rate", value) for value in (0.01, 0.04)),
    *(("momentum", value) for value in (0.9, 0.98)),
    ("batch_size", 64),
    *(("hidden", value) for value in (32, 128)),
    *(("activation", value) for value in ("tanh", "gelu", "leaky_relu")),
    ("ema_decay", 0.0),
]
Predict = Callable[[np.ndarray], np.ndarray]
Train = Callable[[RecordedPairs, np.ndarray, int], Predict]


def ours(recipe: Recipe) -> Train:
    def train(pairs: RecordedPairs, rows: np.ndarray, seed: int) -> Predict:
        return fit(pairs.features, pairs.true_score, rows, dataclasses.replace(recipe, seed=seed)).ema.predict

    return train


def peer(make: Callable[[int], object]) -> Train:
    def train(pairs: RecordedPairs, rows: np.ndarray, seed: int) -> Predict:
        model = TransformedTargetRegressor(make_pipeline(StandardScaler(), make(seed)), transformer=StandardScaler())
        return model.fit(pairs.features[rows], pairs.true_score[rows]).predict

    return train


def leave_one_out(pairs: RecordedPairs, train: Train, seed: int, few: int | None = None) -> tuple[float, float, float]:
    """Mean PLCC, lowest PLCC, RMSE over the predictions of all groups. few: how many pairs to train on, all by default."""
    generator = np.random.default_rng(seed)
    predicted, correlations = np.empty(len(pairs)), []
    for group in range(len(pairs.group_names)):
        inside = pairs.group == group
        rows = np.flatnonzero(~inside)
        if few is not None:
            rows = rows[generator.integers(len(rows) - few + 1) :][:few]
        predict = train(pairs, rows, seed)
        predicted[inside] = np.clip(predict(pairs.features[inside]), 0, 100)
        correlations.append(plcc(predicted[inside], pairs.true_score[inside]))
    return float(np.mean(correlations)), float(np.min(correlations)), rmse(predicted, pairs.true_score)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="+")
    parser.add_argument("--group-by", default="source")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--few", type=int, help="train on this many pairs")
    parser.add_argument("--vary", action="store_true", help="instead of peers: the recipe with one part changed at a time")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    pairs = read_pairs(options.pairs, group_by=options.group_by)

    candidates: dict[str, list[tuple[str, Train, int]]] = {"default recipe": [("", ours(Recipe()), options.seeds)]}
    if options.vary:
        for name, value in VARIATIONS:
            setting = f"{name} {value:g}" if isinstance(value, float | int) else f"{name} {value}"
            candidates[setting] = [("", ours(dataclasses.replace(Recipe(), **{name: value})), options.seeds)]
    else:
        candidates["Ridge"] = [(f"alpha {a:g}", peer(lambda seed, a=a: Ridge(a)), 1) for a in (0.1, 1, 10, 100)]
        candidates["SVR, RBF"] = [
            (f"C {c:g}, gamma {gamma:g}", peer(lambda seed, c=c, g=gamma: SVR(C=c, gamma=g, epsilon=1e-3)), 1)
            for c, gamma in ((30, 3e-4), (300, 1e-4))
        ]
        candidates["MLPRegressor"] = [
            (
                f"{solver}, alpha {a:g}",
                peer(
                    lambda seed, a=a, s=solver: MLPRegressor(
                        hidden_layer_sizes=(64,), alpha=a, solver=s, max_iter=500, random_state=seed
                    )
                ),
                options.seeds,
            )
            for solver in ("adam", "lbfgs")
            for a in (1e-4, 1e-1, 10)
        ]
    print(f"{len(pairs)} pairs of {pairs.features.shape[1]} features, {len(pairs.group_names)} groups by {options.group_by}\n")
    print(f"| {'model':20} | {'setting':18} | mean PLCC | worst PLCC | pooled RMSE | RMSE of each seed            |")
    print(f"|{'-' * 22}|{'-' * 20}|----------:|-----------:|------------:|{'-' * 30}|")
    for name, settings in candidates.items():
        rows = []
        for setting, train, seeds in settings:
            figures = np.array(
                [leave_one_out(pairs, train, seed, options.few) for seed in range(options.seeds if options.few else seeds)]
            )
            rows.append((setting, figures.mean(axis=0), " ".join(f"{value:.2f}" for value in figures[:, 2])))
        setting, (mean, worst, error), each = min(rows, key=lambda row: row[1][2])
        print(
            f"| {name:20} | {setting:18} | {mean:9.5f} | {worst:10.5f} | {error:11.3f} | {each:28} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
