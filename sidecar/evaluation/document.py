"""What a report shows: a document of numbers, texts, lists and dictionaries for each command that writes one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnx_builder.network import Array
from sidecar import __version__
from sidecar.evaluation.calibration import calibration
from sidecar.evaluation.comparison import RESAMPLES, Comparison, names_of
from sidecar.evaluation.report import seen
from sidecar.evaluation.residuals import Judged, Model, by_group, by_score, group_of, importance, worst, worst_of
from sidecar.evaluation.scatter import Axis, scatter
from sidecar.features.names import name_of
from sidecar.journal.segments import journal_segments
from sidecar.learning.metrics import metrics
from sidecar.models.description import DescriptionError, read_description
from sidecar.offline.validation import predict
from sidecar.pairs.lines import STDIN
from sidecar.pairs.recorded import RecordedPairs

if TYPE_CHECKING:  # these load onnxruntime, which --help should not
    from sidecar.evaluation.evaluate import Evaluation
    from sidecar.offline.training import Result

_POINTS = 2000
"""A chart shows at most about this many pairs with a mark each."""
_GROUPS, _FEATURES, _FILES, _COMPARED = 200, 500, 100, 50
_NAME_CHARACTERS, _FEATURE_CHARACTERS = 256, 80
"""These limits keep the page under 1.5 MB, whatever the pairs are."""
_FIGURES = ("plcc", "rmse", "winsorized_rmse")


class Basis(NamedTuple):
    """What the judged pairs are to the model. label: in few words; what: within a sentence.

    validates: False if figures on them say nothing of how the model does on other pairs.
    """

    label: str
    what: str
    validates: bool = True


def training_document(result: Result, said: dict[str, Any], paths: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """The data for the report of a training run.

    result: from `train_offline` with `for_report`; said: its --json output; options: those that are not part of the recipe.
    """
    pairs, ema, validation = result.pairs, result.heads["ema"], result.validation
    base = result.heads.get("base")
    if validation is not None:
        basis = Basis("cross-validated", "all pairs, each predicted by a model that was trained on the other groups")
        rows = np.flatnonzero(~np.isnan(validation.predicted))
        predicted = validation.predicted[rows]
        models = [Model(fold.head.predict, fold.rows) for fold in validation.folds]
    else:
        if len(result.held_out):
            rows, basis = result.held_out, Basis("held-out pairs", "held-out pairs, which were not trained on")
        else:
            what = "the training pairs, which flatters the model"
            rows, basis = result.train, Basis("training pairs, no validation", what, validates=False)
        predicted, models = predict(ema, pairs, rows), [Model(ema.predict, rows)]
    judged = Judged(pairs, rows, predicted, models, None if base is None else predict(base, pairs, rows))
    return {
        "command": "train-offline",
        **_of_one(judged, basis, result.checkpoint.model, (result.recipe.score_min, result.recipe.score_max)),
        "data": _data(pairs, paths, digests=result.read is None),
        "said": _without_groups(said),
        "curve": [{"step": step, **_nested(rmse)} for step, rmse in result.curve],
        "curve_pairs": result.curve_pairs,
        "settings": {**said["settings"], **options},
        "intervals_from": result.intervals.in_words() if result.intervals else "",
    }


def evaluation_document(
    found: Evaluation, said: dict[str, Any], paths: Sequence[str], options: dict[str, Any]
) -> dict[str, Any]:
    """The data for the report of an evaluation. found: from `evaluate` with `names`; others: as in `training_document`."""
    return {
        "command": "evaluate",
        **_of_one(_judged(found), _basis(found, options["held_out"]), found.model, _score_range(options)),
        "data": _data(found.pairs, paths),
        "said": _without_groups(said),
        "settings": options,
        "intervals_from": found.intervals.in_words() if found.intervals else "",
    }


def comparison_document(
    found: Sequence[Evaluation], compared: Comparison, said: dict[str, Any], paths: Sequence[str], options: dict[str, Any]
) -> dict[str, Any]:
    """The data for the report of several models on the same pairs, the others compared with the first."""
    models = [
        {
            "name": _cut(name),
            **_view(_judged(each), _basis(each, options["held_out"]), each.model, _score_range(options), points),
        }
        for points in (_POINTS // len(found),)
        for name, each in zip(names_of([each.model for each in found]), found, strict=True)
    ]
    return {
        "command": "evaluate",
        **_written(),
        "models": models,
        "what": "pairs that were kept out of the training of every model" if options["held_out"] else "all pairs",
        "differences": [{**each._asdict(), "in_words": each.in_words} for each in compared.differences],
        "groups": [
            {"group": _cut(each.name), "pairs": each.pairs, "rmse": each.rmse}
            for each in compared.groups[:_GROUPS]
            if each.name
        ],
        "n_groups": len(compared.groups),
        "resamples": RESAMPLES,
        "data": _data(found[0].pairs, paths),
        "said": {**said, "models": [_without_groups(each) for each in said["models"]]},
        "settings": options,
    }


def _judged(found: Evaluation) -> Judged:
    rows = np.arange(len(found.pairs))
    return Judged(found.pairs, rows, found.predicted, [Model(found.predict, rows)])


def _score_range(options: Mapping[str, Any]) -> tuple[float, float]:
    return options["score_min"], options["score_max"]


def _basis(found: Evaluation, held_out: bool) -> Basis:
    what = "the pairs that were kept out of the model's training" if held_out else "all pairs"
    if not found.trained_on:
        return Basis("held-out pairs" if held_out else "no pair is known to have been trained on", what)
    count = "some" if found.trained_on is True else f"{found.trained_on:,}"
    label = f"{count} of {len(found.pairs):,} pairs were trained on"
    return Basis(label, f"{what} ({count} of them were trained on, which flatters the model)", validates=False)


def _model(path: Path) -> dict[str, Any]:
    """`model`: names and texts to show; `compared`: what the gate compared. Both are in part from the JSON beside the model,
    which anybody may have written.
    """
    sha256 = _file(str(path)).get("sha256", "")
    fields = {"file": str(path), "SHA-256": sha256}
    try:
        about = read_description(path.resolve()) or {}
    except DescriptionError as error:
        return {"model": fields | {"JSON beside it": _cut(str(error))}, "compared": []}
    if about.get("sha256", sha256) != sha256:
        return {"model": fields | {"JSON beside it": "describes a model with another digest"}, "compared": []}
    base, gate = _part(about, "base_model"), _part(about, "gate")
    known = {
        "created": about.get("created_at"),
        "base model": base.get("path"),
        "base model's SHA-256": base.get("sha256"),
        "gate": gate.get("verdict"),
        "gate's reason": gate.get("reason"),
    }
    told = {name: _cut(text) for name, text in known.items() if isinstance(text, str)}
    return {"model": fields | told, "compared": _compared(gate)}


def _compared(gate: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that the gate compared, as far as they are well formed."""
    rows = gate.get("compared")
    found = []
    for row in rows[:_COMPARED] if isinstance(rows, list) else []:
        if isinstance(row, dict) and all(isinstance(row.get(name), str) for name in ("model", "on")):
            texts = {name: _cut(row[name]) for name in ("model", "on", "verdict") if isinstance(row.get(name), str)}
            found.append(texts | _numbers(row, (*_FIGURES, "pairs")) | {"limits": _numbers(_part(row, "limits"), _FIGURES)})
    return found


def _part(about: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = about.get(name)
    return value if isinstance(value, dict) else {}


def _numbers(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    return {name: value for name in names if isinstance(value := values.get(name), int | float) and not isinstance(value, bool)}


def _without_groups(said: dict[str, Any]) -> dict[str, Any]:
    """Leave out the groups: the page has its own `groups`, which are limited in number."""
    kept = {name: value for name, value in said.items() if name != "groups"}
    return {**kept, "loso": _without_groups(said["loso"])} if "loso" in said else kept


def _written() -> dict[str, str]:
    return {"version": __version__, "written_at": datetime.now(UTC).isoformat(timespec="seconds")}


def _of_one(judged: Judged, basis: Basis, model: Path, score_range: tuple[float, float]) -> dict[str, Any]:
    """What is shown of a single model."""
    groups, n_groups = by_group(judged, _GROUPS)
    index = {each["group"]: n for n, each in enumerate(groups)}
    return {
        **_written(),
        "models": [{"name": _cut(model.name), **_view(judged, basis, model, score_range, _POINTS, index)}],
        "groups": [{**each, "group": _cut(each["group"])} for each in groups],
        "n_groups": n_groups,
        "residual": _residual(judged, index),
        "scores": by_score(judged, *score_range),
        "worst": [{**each, "job_id": _cut(each["job_id"]), "group": _cut(each["group"])} for each in worst(judged)],
        **_features(judged),
    }


def _view(
    judged: Judged,
    basis: Basis,
    model: Path,
    score_range: tuple[float, float],
    points: int,
    index: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any]:
    """What is shown of each of several models. points: about so many in the chart; index: as in `_scatter`."""
    return {
        **_model(model),
        "judged": {
            **basis._asdict(),
            **judged.metrics.as_json(),
            **({} if judged.base is None else {"base": metrics(judged.base, judged.true).as_json()}),
        },
        "predicted": _predicted(judged, index, points),
        "calibration": calibration(judged, *score_range),
    }


def _predicted(judged: Judged, index: Mapping[str, int], most: int) -> dict[str, Any]:
    """Predicted over true scores, on axes with the same cells. index, most: as in `_scatter`."""
    both = Axis.over(judged.true, judged.predicted)
    return _scatter(judged, judged.predicted, (both, both), index, most)


def _residual(judged: Judged, index: Mapping[str, int]) -> dict[str, Any]:
    """Residuals over true scores. index: as in `_scatter`."""
    axes = Axis.over(judged.true, judged.predicted), Axis.over(judged.residuals, np.zeros(1))
    return _scatter(judged, judged.residuals, axes, index, _POINTS)


def _scatter(judged: Judged, y: Array, axes: tuple[Axis, Axis], index: Mapping[str, int], most: int) -> dict[str, Any]:
    """y (len(judged.rows),) over true scores. A point is a pair's place and the number of its group in `index`, −1 for others.

    most: about so many points.
    """
    drawn = scatter(judged.true, y, axes, worst_of(judged), most)
    points = [
        [round(float(judged.true[at]), 3), round(float(y[at]), 3), index.get(group_of(judged.pairs, judged.rows[at]), -1)]
        for at in drawn.shown
    ]
    return {**drawn.as_json(), "points": points}


def _features(judged: Judged) -> dict[str, Any]:
    """features: the most important first, at most five hundred; importance_pairs: how many pairs importance was measured on."""
    pairs, (grown, n_pairs) = judged.pairs, importance(judged)
    order = np.argsort(-np.nan_to_num(grown), kind="stable")[:_FEATURES].tolist()
    low, high = pairs.features.min(axis=0), pairs.features.max(axis=0)
    mean = pairs.features.mean(axis=0, dtype=np.float64)
    features = [
        {
            "name": _cut(name_of(pairs.feature_names, n), _FEATURE_CHARACTERS),
            "importance": float(grown[n]),
            "min": float(low[n]),
            "mean": float(mean[n]),
            "max": float(high[n]),
        }
        for n in order
    ]
    return {"features": features, "importance_pairs": n_pairs}


def _data(pairs: RecordedPairs, paths: Sequence[str], digests: bool = True) -> dict[str, Any]:
    """digests: of the files too; what workers have read would take one process long to read again."""
    return {
        "files": [
            {"path": _cut(path), "pairs": count, **(_file(path) if digests else {})}
            for path, count in zip(paths[:_FILES], pairs.file_pairs[:_FILES], strict=True)
        ],
        "n_files": len(paths),
        "pairs": len(pairs),
        "skipped": pairs.skipped,
        "first_skipped": _cut(pairs.first_skipped),
        "n_features": pairs.features.shape[1],
        "true_score": {
            "min": float(pairs.true_score.min()),
            "mean": float(pairs.true_score.mean(dtype=np.float64)),
            "max": float(pairs.true_score.max()),
        },
    }


def _file(path: str) -> dict[str, Any]:
    """Size and SHA-256 of a file as it is now; for a state directory, of its journal segments one after the other.

    Empty for input that can be read only once, or no longer exists.
    """
    if path == STDIN or not (os.path.isfile(path) or os.path.isdir(path)):
        return {}
    digest, size = hashlib.sha256(), 0
    try:
        for each in journal_segments(Path(path)) if os.path.isdir(path) else [path]:
            with open(each, "rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
                    size += len(block)
    except OSError:
        return {}
    return {"bytes": size, "sha256": digest.hexdigest()}


def _nested(values: dict[tuple[str, str], float]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for (place, kind), value in values.items():
        found.setdefault(place, {})[kind] = value
    return found


def _cut(name: str, characters: int = _NAME_CHARACTERS) -> str:
    name = seen(name)
    return name if len(name) <= characters else name[: characters - 1] + "…"
