"""Fine-tuning base models online: how good before and after one pass over recorded pairs in stream order.

    python benchmarks/fine_tuning.py DIRECTORY [--models DIRECTORY]

DIRECTORY holds recorded-6, recorded-24 and recorded-80.jsonl.gz, the other one vmaf_tiny_v1 to v3, fr_regressor_v1 and v3
(the regressors' scaling from their JSON). The first nine tenths of the pairs are the stream, less what is held out as in
`serve`; the last tenth, other jobs, is what is measured. Besides, a head that the offline recipe made from half of the sources,
and a fresh head. RMSE and PLCC are means of the seeds, predictions clipped to 0–100.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from onnx_builder.network import Network
from sidecar.base_model import load
from sidecar.learning.recipe import Recipe, fit
from sidecar.recorded import RecordedPairs, read_pairs
from sidecar.scores import plcc, rmse
from sidecar.trainer import Trainer, TrainingSettings

HOLDOUT, STREAM = 0.05, 0.9
RECOMMENDED = TrainingSettings(learning_rate=2e-4, steps_per_batch=16)
MODELS = [
    ("vmaf_tiny_v1", 6, "none"),
    ("vmaf_tiny_v2", 6, "none"),
    ("vmaf_tiny_v3", 6, "none"),
    ("fr_regressor_v1", 6, "json"),
    ("fr_regressor_v3", 24, "json"),
]


def half_of_the_sources(pairs: RecordedPairs) -> Network:
    """A head that has seen every second source."""
    rows = np.flatnonzero(pairs.group % 2 == 0)
    return fit(pairs.features, pairs.true_score, rows, Recipe()).ema.network()


def measured(network: Network, pairs: RecordedPairs) -> tuple[float, float]:
    last = slice(int(len(pairs) * STREAM), None)
    scores = network.forward(pairs.features[last])
    return rmse(np.clip(scores, 0, 100), pairs.true_score[last]), plcc(scores, pairs.true_score[last])


def one_pass(pairs: RecordedPairs, base: Network | None, settings: TrainingSettings) -> np.ndarray:
    """(live, EMA) × (RMSE, PLCC) on the last tenth, after the pairs before it."""
    trainer = Trainer(pairs.features.shape[1], settings, base)
    for row in np.flatnonzero(pairs.position[: int(len(pairs) * STREAM)] >= HOLDOUT):
        trainer.add(pairs.features[row], pairs.true_score[row])
    return np.array([measured(trainer.network(head), pairs) for head in (trainer.live, trainer.ema)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--models", type=Path, help="directory of the base models")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    streams = {n: read_pairs([options.pairs / f"recorded-{n}.jsonl.gz"], group_by="source") for n in (6, 24, 80)}
    bases: list[tuple[str, int, Network | None]] = []
    if options.models:
        for name, n_features, scaler in MODELS:
            bases.append((name, n_features, load(options.models / f"{name}.onnx", scaler=scaler).network))
    bases += [("half of the sources", 80, half_of_the_sources(streams[80])), ("fresh head", 80, None)]

    defaults = TrainingSettings()
    variations = {f"{k} steps a batch": replace(defaults, steps_per_batch=k) for k in (1, 4, 16)}
    variations |= {"rate 5e-5": replace(defaults, learning_rate=5e-5), "rate 2e-4": replace(defaults, learning_rate=2e-4)}
    variations |= {"recommended": RECOMMENDED}
    print("| base model          | before: RMSE, PLCC | settings           | live: RMSE, PLCC | EMA: RMSE, PLCC |")
    print("|---------------------|-------------------:|--------------------|-----------------:|----------------:|")
    for name, n_features, base in bases:
        pairs = streams[n_features]
        before = "{:.3f}, {:.4f}".format(*measured(base, pairs)) if base else "–"
        for setting, settings in variations.items():
            runs = [one_pass(pairs, base, replace(settings, seed=seed)) for seed in range(options.seeds)]
            live, ema = ("{:.3f}, {:.4f}".format(*row) for row in np.mean(runs, axis=0))
            print(f"| {name:19} | {before:>18} | {setting:18} | {live:>16} | {ema:>15} |", flush=True)


if __name__ == "__main__":
    main()
