"""Fine-tuning base models online: how good before and after one pass over recorded pairs in stream order.

    python benchmarks/fine_tuning.py DIRECTORY [--models DIRECTORY]

DIRECTORY holds recorded-6, recorded-24 and recorded-80.jsonl.gz, the other one the base models, in `onnx` and `torch` (the
scaling of fr_regressor_v1 and v3 is that of their JSON). The first nine tenths of the pairs are the stream, less what is held
out as in `serve`; the last tenth, other jobs, is what is measured. Besides, a head that the offline recipe made from half of
the sources, and a fresh head. Models that none of the recorded pairs fits get pairs made from themselves: random features, and
their own score bent. RMSE and PLCC are means of the seeds, predictions clipped to the range of scores.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from onnx_builder.network import Network
from sidecar.checkpoints.verify import probe_features
from sidecar.learning.metrics import plcc, rmse
from sidecar.learning.online.trainer import Trainer
from sidecar.learning.recipe import Recipe, fit
from sidecar.learning.training_settings import TrainingSettings
from sidecar.models.base_model import load
from sidecar.pairs.recorded import RecordedPairs, read_pairs

HOLDOUT, STREAM = 0.05, 0.9
RECOMMENDED = TrainingSettings(learning_rate=2e-4, steps_per_batch=16, warmup_steps=400)
MODELS = [
    ("vmaf_tiny_v1", 6, "none"),
    ("vmaf_tiny_v2", 6, "none"),
    ("vmaf_tiny_v3", 6, "none"),
    ("fr_regressor_v1", 6, "json"),
    ("fr_regressor_v3", 24, "json"),
]

BENT = [
    ("onnx/fr_regressor_v2.onnx", 0, 100),
    ("onnx/predictor_libx264.onnx", 0, 100),
    ("onnx/konvid_mos_head_v1.onnx", 1, 5),
    ("torch/head_80_64_1.pt", -1, 1),
]


def bent_pairs(network: Network, low: float, high: float, count: int = 5000) -> RecordedPairs:
    """Pairs whose score is the model's own, mapped to the middle of the range, bent by a power of 1.5, and clipped."""
    features = probe_features(network, count)
    scores = network.forward(features)
    share = np.clip(0.5 + (scores - scores.mean()) / (6 * scores.std()), 0, 1)
    position = np.random.default_rng(0).uniform(size=count)
    return RecordedPairs(features, (low + (high - low) * share**1.5).astype(np.float32), position)


def half_of_the_sources(pairs: RecordedPairs) -> Network:
    """A head that has seen every second source."""
    rows = np.flatnonzero(pairs.group % 2 == 0)
    return fit(pairs.features, pairs.true_score, rows, Recipe()).ema.network()


def measured(network: Network, pairs: RecordedPairs, settings: TrainingSettings) -> tuple[float, float]:
    last = slice(int(len(pairs) * STREAM), None)
    scores = network.forward(pairs.features[last])
    clipped = np.clip(scores, settings.score_min, settings.score_max)
    return rmse(clipped, pairs.true_score[last]), plcc(scores, pairs.true_score[last])


def one_pass(pairs: RecordedPairs, base: Network | None, settings: TrainingSettings) -> np.ndarray:
    """(live, EMA) × (RMSE, PLCC) on the last tenth, after the pairs before it."""
    trainer = Trainer(pairs.features.shape[1], settings, base)
    rows = np.flatnonzero(pairs.position[: int(len(pairs) * STREAM)] >= HOLDOUT)
    trainer.add(pairs.features[rows], pairs.true_score[rows])
    return np.array([measured(trainer.network(head), pairs, settings) for head in (trainer.live, trainer.ema)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--models", type=Path, help="directory of the base models")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    defaults = TrainingSettings()
    variations = {f"{k} steps a batch": replace(defaults, steps_per_batch=k) for k in (1, 4, 16)}
    variations |= {"rate 5e-5": replace(defaults, learning_rate=5e-5), "rate 2e-4": replace(defaults, learning_rate=2e-4)}
    variations |= {"recommended": RECOMMENDED}
    streams = {n: read_pairs([options.pairs / f"recorded-{n}.jsonl.gz"], group_by="source") for n in (6, 24, 80)}
    rows: list[tuple[str, RecordedPairs, Network | None, dict[str, TrainingSettings]]] = []
    if options.models:
        for name, n_features, scaler in MODELS:
            base = load(options.models / "onnx" / f"{name}.onnx", scaler=scaler).network
            rows.append((name, streams[n_features], base, variations))
    rows += [("half of the sources", streams[80], half_of_the_sources(streams[80]), variations)]
    rows += [("fresh head", streams[80], None, variations)]
    if options.models:
        for path, low, high in BENT:
            base = load(options.models / path).network
            settings = {"4 steps a batch": replace(defaults, score_min=low, score_max=high)}
            rows.append((f"{Path(path).stem}, bent", bent_pairs(base, low, high), base, settings))

    print("| base model               | before: RMSE, PLCC | settings           | live: RMSE, PLCC | EMA: RMSE, PLCC |")
    print("|--------------------------|-------------------:|--------------------|-----------------:|----------------:|")
    for name, pairs, base, settings in rows:
        for setting, each in settings.items():
            before = "{:.3f}, {:.4f}".format(*measured(base, pairs, each)) if base else "–"
            runs = [one_pass(pairs, base, replace(each, seed=seed)) for seed in range(options.seeds)]
            live, ema = ("{:.3f}, {:.4f}".format(*row) for row in np.mean(runs, axis=0))
            print(f"| {name:24} | {before:>18} | {setting:18} | {live:>16} | {ema:>15} |", flush=True)


if __name__ == "__main__":
    main()
