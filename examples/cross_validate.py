"""How well does a model predict the VMAF of clips that it has not seen? From recorded pairs to a figure, a plot and a model.

    pip install 'vmafx-sidecar[sklearn]' matplotlib
    python examples/cross_validate.py examples/recorded-80.jsonl.gz --clip source
    python examples/cross_validate.py logs/*.json --window 6

Each clip is left out once, and a model that was trained on the others predicts it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

from sidecar import VmafRegressor, read_pairs

SIX = ["adm2", "vif_scale0", "vif_scale1", "vif_scale2", "vif_scale3", "motion2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", help="recorded pairs, or logs of libvmaf")
    parser.add_argument("--clip", help="the column that names the clip (default: each file is one)")
    parser.add_argument("--window", type=int, help="frames of a log that become one pair")
    parser.add_argument("--epochs", type=int, help="passes over the pairs (default: by their number)")
    parser.add_argument("--plot", type=Path, default=Path("cross_validation.png"))
    parser.add_argument("--output", type=Path, default=Path("checkpoints"))
    arguments = parser.parse_args()

    logs = arguments.clip is None
    pairs = read_pairs(arguments.pairs, group_by=arguments.clip, window=arguments.window, features=SIX if logs else ())
    clips = pairs.group
    if clips is None:
        clips = np.repeat(np.arange(len(pairs.file_pairs)), pairs.file_pairs)
    regressor = VmafRegressor(score_min=0, score_max=100, epochs=arguments.epochs)

    predicted = cross_val_predict(regressor, pairs.features, pairs.true_score, groups=clips, cv=LeaveOneGroupOut())
    error = predicted - pairs.true_score
    for clip in np.unique(clips):
        name = pairs.group_names[clip] if pairs.group_names else arguments.pairs[clip]
        print(f"{name}: RMSE {np.sqrt(np.mean(error[clips == clip] ** 2)):.2f} on {np.sum(clips == clip)} pairs")
    print(f"all: RMSE {np.sqrt(np.mean(error**2)):.2f}, PLCC {np.corrcoef(predicted, pairs.true_score)[0, 1]:.4f}")

    plot(pairs.true_score, predicted, arguments.plot)
    regressor.set_params(holdout=0.1).fit(pairs.features, pairs.true_score, groups=clips)
    print(f"trained on all: {regressor.save(arguments.output)}")


def plot(true: np.ndarray, predicted: np.ndarray, path: Path) -> None:
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    figure, axes = pyplot.subplots(figsize=(5, 5), layout="constrained")
    axes.plot([0, 100], [0, 100], color="0.7", linewidth=1)
    axes.scatter(true, predicted, s=4)
    axes.set(xlabel="VMAF", ylabel="predicted, from other clips", xlim=(0, 100), ylim=(0, 100), aspect="equal")
    figure.savefig(path, dpi=150)
    print(f"plot: {path}")


if __name__ == "__main__":
    main()
