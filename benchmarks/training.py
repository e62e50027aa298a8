"""A whole training run beside MLPRegressor's fit: equal pairs, epochs, batch and momentum SGD.

python benchmarks/training.py examples/recorded-80.jsonl.gz
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import statistics
import time
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler

from sidecar.learning.recipe import Recipe, fit, schedule
from sidecar.pairs.recorded import read_pairs

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="+")
    options = parser.parse_args()
    pairs = read_pairs(options.pairs)
    recipe = Recipe()
    rows = np.arange(len(pairs))
    epochs = schedule(recipe, len(pairs)).epochs
    warnings.simplefilter("ignore", ConvergenceWarning)

    rates: dict[str, list[float]] = {"vmafx-sidecar": [], "MLPRegressor": []}
    for _ in range(ROUNDS):
        started = time.perf_counter()
        fit(pairs.features, pairs.true_score, rows, recipe)
        rates["vmafx-sidecar"].append(epochs * len(pairs) / (time.perf_counter() - started))

        model = MLPRegressor(
            hidden_layer_sizes=(recipe.hidden,), solver="sgd", batch_size=recipe.batch_size,
            learning_rate_init=1e-3,  # ours diverges there
            momentum=recipe.momentum, nesterovs_momentum=False, alpha=recipe.weight_decay, max_iter=epochs,
            tol=0, n_iter_no_change=epochs, random_state=0,
        )  # fmt: skip
        started = time.perf_counter()
        scaled = StandardScaler().fit_transform(pairs.features)
        model.fit(scaled, (pairs.true_score - pairs.true_score.mean()) / pairs.true_score.std())
        rates["MLPRegressor"].append(model.n_iter_ * len(pairs) / (time.perf_counter() - started))

    print(f"{len(pairs)} pairs, {epochs} epochs, batch {recipe.batch_size}; median of {ROUNDS}, scaling included:")
    for name, values in rates.items():
        print(f"  {name:14} {statistics.median(values):12,.0f} pairs per second")
    ratio = statistics.median(a / b for a, b in zip(*rates.values(), strict=True))
    print(f"{ratio:.1f} times as fast, median of the ratios within a round")


if __name__ == "__main__":
    main()
