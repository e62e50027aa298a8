"""How well a model scores recorded pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnx_builder.constants import read_bytes
from onnx_builder.network import Array, Float32, NetworkError
from onnx_builder.runtime import Scorer
from sidecar.evaluation.residuals import rows_by_group
from sidecar.learning.metrics import Metrics, metrics
from sidecar.models.json_scaling import BaseScaler, json_scaling, scaled
from sidecar.pairs.recorded import RecordedPairs, read_pairs


@dataclass(frozen=True)
class Evaluation:
    """How a model scores recorded pairs.

    groups: by name, if they were asked for; predicted: (n,); predict: from raw features (n, n_features) to scores (n,).
    """

    metrics: Metrics
    groups: dict[str, Metrics]
    pairs: RecordedPairs
    predicted: Float32
    predict: Callable[[Array], Float32]


def evaluate(
    model: Path,
    paths: Sequence[str | Path],
    *,
    base_scaler: BaseScaler = "none",
    score_min: float = 0.0,
    score_max: float = 100.0,
    skip_bad: bool = False,
    group_by: str | None = None,
    for_report: bool = False,
) -> Evaluation:
    """Score recorded pairs with an ONNX model in onnxruntime, and compare the scores with the true ones.

    base_scaler: "json" first applies `feature_mean` and `feature_std` from the JSON beside the model. group_by: a field to
    group the pairs by. for_report: keep job_ids. Raises NetworkError if the model does not run or takes another number of
    features, RecordedPairsError if the pairs cannot be read.
    """
    read_bytes(model)
    scorer = Scorer(model)
    scaling = json_scaling(model, scorer.n_features) if base_scaler == "json" else ()
    pairs = read_pairs(paths, score_min=score_min, score_max=score_max, group_by=group_by, skip_bad=skip_bad, names=for_report)
    n_features = pairs.features.shape[1]
    if scorer.n_features != n_features:
        raise NetworkError(f"{model} takes {scorer.n_features} features, but {', '.join(map(str, paths))} have {n_features}")

    def predict(features: Array) -> Float32:
        return scorer.predict(scaled(features, scaling) if scaling else features)

    scores = predict(pairs.features)
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise NetworkError(f"{model}: {bad} of {len(scores)} scores are not finite")
    groups = {
        name: metrics(scores[rows], pairs.true_score[rows])
        for name, rows in zip(pairs.group_names, rows_by_group(pairs.group), strict=True)
    }
    return Evaluation(metrics(scores, pairs.true_score), groups, pairs, scores, predict)
