"""Training offline on recorded pairs: leave-one-group-out validation, the recipe, and a published checkpoint."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from onnx_builder.network import Array, Float32, Network, NetworkError
from onnx_builder.parity import parity
from onnx_builder.runtime import Scorer
from onnx_builder.write import OPSET, to_bytes
from sidecar.base_model import BaseModel, ExportIo, published_scaling, require_features, scaled, scaling_as_json
from sidecar.checkpoints import STABLE, Checkpoint, check_writable, linked, publish
from sidecar.gate import Gate, judge
from sidecar.learning.head import Head
from sidecar.learning.recipe import Progress, Recipe, Rows, TrainingError, fit, no_progress, schedule
from sidecar.recorded import RecordedPairs, read_pairs
from sidecar.scores import Metrics, metrics

_log = logging.getLogger(__name__)
_PARITY_PAIRS = 4096
_PREDICTION_BLOCK = 8192
PARITY_TOLERANCE = 1e-4
"""Largest difference between the graph and the trainer's forward pass, as a share of the score range."""


@dataclass(frozen=True)
class Fold:
    """One group of leave-one-group-out validation, predicted by EMA weights that were trained on all others."""

    group: str
    metrics: Metrics


@dataclass(frozen=True)
class Validation:
    """Leave-one-group-out: each group once."""

    folds: list[Fold]
    pooled: Metrics

    @property
    def mean_plcc(self) -> float:
        return float(np.mean([fold.metrics.plcc for fold in self.folds]))

    @property
    def min_plcc(self) -> float:
        return float(np.min([fold.metrics.plcc for fold in self.folds]))

    def as_json(self) -> dict[str, Any]:
        """The figures by name, without those that are undefined."""
        pooled = {f"pooled_{name}": value for name, value in self.pooled.as_json().items()}
        means = {"mean_plcc": self.mean_plcc, "min_plcc": self.min_plcc}
        return {
            **{name: value for name, value in means.items() if np.isfinite(value)},
            **pooled,
            "groups": [{"group": fold.group, **fold.metrics.as_json()} for fold in self.folds],
        }


@dataclass(frozen=True)
class Result:
    """What `train_offline` did. metrics: by ("train" or "held_out", "live" or "ema")."""

    checkpoint: Checkpoint
    sha256: str
    recipe: Recipe
    pairs: RecordedPairs
    n_train: int
    n_held_out: int
    metrics: dict[tuple[str, str], Metrics]
    validation: Validation | None
    gate: Gate
    parity_max_abs_diff: float
    seconds: float
    pairs_per_second: float


def predict(head: Head, pairs: RecordedPairs, rows: Rows) -> Float32:
    """Scores (len(rows),) of the chosen pairs, without a copy of all their features."""
    blocks = [rows[start : start + _PREDICTION_BLOCK] for start in range(0, len(rows), _PREDICTION_BLOCK)]
    return np.concatenate([np.empty(0, np.float32), *(head.predict(pairs.features[block]) for block in blocks)])


def leave_one_group_out(
    pairs: RecordedPairs, recipe: Recipe, progress: Progress = no_progress, base: Network | None = None
) -> Validation:
    """Each group of `pairs.group` predicted by a head that was trained on all others, from `base` where there is one.

    Raises TrainingError where there are fewer than two groups.
    """
    if pairs.group is None or len(pairs.group_names) < 2:
        raise TrainingError(f"leaving one group out needs two groups or more, got {pairs.group_names}")
    predicted = np.empty(len(pairs), dtype=np.float32)
    folds = []
    for index, name in enumerate(pairs.group_names):
        held_out = np.flatnonzero(pairs.group == index)
        fitted = fit(pairs.features, pairs.true_score, np.flatnonzero(pairs.group != index), recipe, progress, base)
        predicted[held_out] = predict(fitted.ema, pairs, held_out)
        folds.append(Fold(name, metrics(predicted[held_out], pairs.true_score[held_out])))
    return Validation(folds, metrics(predicted, pairs.true_score))


def train_offline(
    paths: Sequence[str | Path],
    output: Path,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    *,
    base: BaseModel | None = None,
    export_io: ExportIo = "canonical",
    holdout: float = 0.1,
    group_by: str | None = None,
    skip_bad: bool = False,
    progress: Callable[[int], Progress] = lambda total: no_progress,
) -> Result:
    """Train a fresh head, or fine-tune `base`, on recorded pairs and publish its EMA weights as a checkpoint in `output`.

    export_io: "base" publishes with the base's inputs and output. holdout: share of pairs, whole encodes, that do not train
    and judge the result. group_by: validate by leaving out each value of this field once, before. progress: given the
    number of pairs that will be trained in all, gives the function that is told how far it is.

    Raises RecordedPairsError, TrainingError, NetworkError (parity) or CheckpointError; nothing is published then.
    """
    check_writable(output)
    pairs = read_pairs(paths, score_min=recipe.score_min, score_max=recipe.score_max, group_by=group_by, skip_bad=skip_bad)
    is_held_out = pairs.position < holdout
    train, held_out = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    if not len(train):
        raise TrainingError(f"a holdout of {holdout:g} leaves none of {len(pairs)} pairs to train on; use 0 to train on all")
    start = base.network if base else None
    if base:
        require_features(base, pairs.features.shape[1], ", ".join(map(str, paths)))
    recipe = dataclasses.replace(recipe, **schedule(recipe, len(train), fresh=base is None)._asdict())
    epochs = recipe.epochs or 0
    validated = (len(pairs.group_names) - 1) * len(pairs) if group_by is not None else 0
    report = progress((validated + len(train)) * epochs)

    validation = leave_one_group_out(pairs, recipe, report, start) if group_by is not None else None
    started = time.perf_counter()
    fitted = fit(pairs.features, pairs.true_score, train, recipe, report, start)
    seconds = time.perf_counter() - started

    sets, weights = {"train": train, "held_out": held_out}, {"live": fitted.live, "ema": fitted.ema}
    if start:
        weights = {"base": Head(start), **weights}
    measured = {
        (place, kind): metrics(predict(head, pairs, rows), pairs.true_score[rows])
        for place, rows in sets.items()
        for kind, head in weights.items()
        if len(rows)
    }
    published = fitted.ema.network()
    features = pairs.features[:_PARITY_PAIRS]
    expected = fitted.ema.predict(features)
    if base:
        published, features = base.exported(published, export_io), base.exported_features(features, export_io)
    model = to_bytes(published)
    difference = _checked_parity(model, features, expected, recipe.score_max - recipe.score_min)
    gate = _gate(fitted.ema, pairs, held_out, output, base)
    description = {
        "kind": "fr",
        "onnx_opset": OPSET,
        "input_name": published.inputs[0].name,
        "input_names": [port.name for port in published.inputs],
        "output_name": published.output.name,
        "n_features": pairs.features.shape[1],
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "base_model": base.as_json() if base else None,
        "step": fitted.steps,
        "pairs_seen": len(train),
        "settings": {**dataclasses.asdict(recipe), "holdout": holdout, "export_io": export_io},
        "metrics": measured[("held_out", "ema")].as_json() if len(held_out) else {"pairs": 0},
        "gate": gate._asdict(),
        "parity_max_abs_diff": difference,
        "journal": None,
        "data": [str(path) for path in paths],
    }
    if base and export_io == "base" and base.scaling:
        description |= scaling_as_json(base.scaling)
    if validation is not None:
        description["loso"] = validation.as_json()
    checkpoint = publish(output, model, description, stable=gate.verdict == "stable")
    return Result(
        checkpoint,
        hashlib.sha256(model).hexdigest(),
        recipe,
        pairs,
        len(train),
        len(held_out),
        measured,
        validation,
        gate,
        difference,
        seconds,
        len(train) * epochs / seconds,
    )


def _checked_parity(model: bytes, features: Array, expected: Array, score_range: float) -> float:
    difference = parity(model, features, expected)
    allowed = PARITY_TOLERANCE * score_range
    if difference > allowed:
        raise NetworkError(f"parity: the graph differs from the trainer by {difference:g} score points; allowed {allowed:g}")
    return difference


def _gate(head: Head, pairs: RecordedPairs, held_out: Rows, directory: Path, base: BaseModel | None) -> Gate:
    """Judged on the held-out pairs against the model that `stable.onnx` names, where that can be used, and the base."""
    features = pairs.features[held_out]
    references = [(f"base model {base.path.name}", Head(base.network).predict(features))] if base and len(held_out) else []
    stable = linked(directory, STABLE)
    if stable is not None and len(held_out):
        try:
            scaling = published_scaling(stable.model)
            references.append((stable.name, Scorer(stable.model).predict(scaled(features, scaling))))
        except NetworkError as error:
            _log.warning("%s is not compared with: %s", STABLE, error)
    return judge(head.predict(features), pairs.true_score[held_out], references)
