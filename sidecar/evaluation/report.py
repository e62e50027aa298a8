"""The report of a run: one HTML file that needs nothing else.

The data goes into the page as JSON; `web/report.js` shows it, every text as text. The page's own policy lets it run only these
scripts, which it knows by their digests, and fetch nothing. Characters that would be invisible or change the direction of the
text are written as Python escapes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sidecar import __version__
from sidecar.checkpoints.directory import belongs_to_one
from sidecar.evaluation.residuals import Judged, Model, by_group, by_score, group_of, importance, worst, worst_of
from sidecar.files import try_to_write, write_whole
from sidecar.journal.segments import journal_segments
from sidecar.learning.metrics import metrics
from sidecar.models.description import DescriptionError, read_description
from sidecar.offline.validation import predict
from sidecar.pairs.lines import STDIN
from sidecar.pairs.recorded import RecordedPairs

if TYPE_CHECKING:  # these load onnxruntime, which --help should not
    from sidecar.evaluation.evaluate import Evaluation
    from sidecar.offline.training import Result

_WEB = Path(__file__).parents[1] / "web"
_SCRIPTS = ("plot.js", "charts.js", "report.js")
_POINTS = 4000
"""A chart shows at most about this many pairs."""
_GROUPS, _FEATURES, _FILES = 200, 500, 100
_NAME_CHARACTERS, _FEATURE_CHARACTERS = 256, 80
"""These limits keep the page under 1.5 MB, whatever the pairs are."""
_JOINERS = "\u200c\u200d"
"""Not printable by themselves, but parts of words in some scripts, and of emoji."""


class ReportError(ValueError):
    """A report that cannot be written; the message names the file and says why."""


def check_report_path(path: Path, inputs: Sequence[str | Path], output: Path | None = None) -> None:
    """Raises ReportError if a report could not be written to this path, or would overwrite an input. Leaves nothing behind.

    output: a directory that will exist by then.
    """
    target, made = _target(path), None if output is None else _target(output)
    try:
        if target.is_dir() or target == made:
            raise ReportError(f"{path}: is a directory; the report needs a file")
        if belongs_to_one(path.name) or belongs_to_one(target.name):
            raise ReportError(f"{path}: belongs to a checkpoint; the report needs a file of its own")
        if target.parent == made and not made.exists():
            return
        if not target.parent.is_dir():
            raise ReportError(f"{path}: {path.parent} is not a directory")
        if target.exists() and not target.is_file():
            raise ReportError(f"{path}: cannot be written: not a regular file")
        if target.exists() and any(os.path.exists(each) and target.samefile(each) for each in inputs):
            raise ReportError(f"{path}: is an input of this command; the report needs a file of its own")
        try_to_write(target)
    except OSError as error:
        raise ReportError(f"{path}: cannot be written: {error.strerror or error}") from error


def _target(path: Path) -> Path:
    """The file behind a link, which is written instead of the link."""
    return Path(os.path.realpath(path))


def write_report(path: Path, document: dict[str, Any]) -> None:
    """Write the page, whole or not at all. Raises ReportError."""
    try:
        write_whole(_target(path), render(document))
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror or error}") from error


def render(document: dict[str, Any]) -> bytes:
    """The page that shows a document of numbers, texts, lists and dictionaries."""
    # "<" is escaped, so that no text can end the element that contains it.
    text = json.dumps(_presentable(document), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    data = text.replace("<", "\\u003c")
    scripts = [(_WEB / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    digests = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in scripts)
    parts = {
        "POLICY": f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
        "STYLE": (_WEB / "style.css").read_text(encoding="utf-8"),
        "DOCUMENT": data,
        "SCRIPTS": "".join(f"<script>{each}</script>\n" for each in scripts),
    }
    page = (_WEB / "report.html").read_text(encoding="utf-8")
    first, *rest = page.split("@@")
    return "".join([first, *(parts.get(each, each) for each in rest)]).encode()


def _presentable(value: Any) -> Any:
    """A copy with None for numbers that are not finite, and in texts an escape for each character that cannot be seen."""
    match value:
        case dict():
            return {name: _presentable(each) for name, each in value.items()}
        case list() | tuple():
            return [_presentable(each) for each in value]
        case float():
            return value if math.isfinite(value) else None
        case str():
            return _seen(value)
    return value


def _seen(text: str) -> str:
    return "".join(each if each.isprintable() or each in _JOINERS else repr(each)[1:-1] for each in text)


def training_document(result: Result, said: dict[str, Any], paths: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """The data for the report of a training run.

    result: from `train_offline` with `for_report`; said: its --json output; options: those that are not part of the recipe.
    """
    pairs, ema, validation = result.pairs, result.heads["ema"], result.validation
    base = result.heads.get("base")
    if validation is not None:
        what = "all pairs, each predicted by a model that was trained on the other groups"
        rows = np.flatnonzero(~np.isnan(validation.predicted))
        predicted = validation.predicted[rows]
        models = [Model(fold.head.predict, fold.rows) for fold in validation.folds]
    else:
        held_out = bool(len(result.held_out))
        what = "held-out pairs, which were not trained on" if held_out else "the training pairs, which flatters the model"
        rows = result.held_out if held_out else result.train
        predicted, models = predict(ema, pairs, rows), [Model(ema.predict, rows)]
    judged = Judged(pairs, rows, predicted, models, None if base is None else predict(base, pairs, rows))
    return {
        "command": "train-offline",
        **_common(judged, what, paths, (result.recipe.score_min, result.recipe.score_max), digests=result.read is None),
        "said": _without_groups(said),
        "curve": [{"step": step, **_nested(rmse)} for step, rmse in result.curve],
        "curve_pairs": result.curve_pairs,
        "settings": {**said["settings"], **options},
        "model": _model(result.checkpoint.model, result.sha256),
    }


def evaluation_document(
    model: Path, found: Evaluation, said: dict[str, Any], paths: Sequence[str], options: dict[str, Any]
) -> dict[str, Any]:
    """The data for the report of an evaluation. found: from `evaluate` with `for_report`; others: as in `training_document`."""
    rows = np.arange(len(found.pairs))
    judged = Judged(found.pairs, rows, found.predicted, [Model(found.predict, rows)])
    what = "the pairs that were kept out of the model's training" if options["held_out"] else "all pairs"
    if found.trained_on:
        count = "some" if found.trained_on is True else f"{found.trained_on:,}"
        what += f" ({count} of them were trained on, which flatters the model)"
    return {
        "command": "evaluate",
        **_common(judged, what, paths, (options["score_min"], options["score_max"])),
        "said": _without_groups(said),
        "settings": options,
        "model": _model(model, _file(str(model)).get("sha256", "")),
    }


def _model(path: Path, sha256: str) -> dict[str, str]:
    """Names and texts to show. Some are from the JSON beside the model, which anybody may have written."""
    try:
        about = read_description(path.resolve()) or {}
    except DescriptionError as error:
        return {"file": str(path), "SHA-256": sha256, "JSON beside it": _cut(str(error))}
    if about.get("sha256", sha256) != sha256:
        return {"file": str(path), "SHA-256": sha256, "JSON beside it": "describes a model with another digest"}
    base, gate = about.get("base_model"), about.get("gate")
    known = {
        "created": about.get("created_at"),
        "base model": base.get("path") if isinstance(base, dict) else None,
        "base model's SHA-256": base.get("sha256") if isinstance(base, dict) else None,
        "gate": gate.get("verdict") if isinstance(gate, dict) else None,
        "gate's reason": gate.get("reason") if isinstance(gate, dict) else None,
    }
    return {"file": str(path), "SHA-256": sha256} | {name: _cut(text) for name, text in known.items() if isinstance(text, str)}


def _without_groups(said: dict[str, Any]) -> dict[str, Any]:
    """Leave out the groups: the page has its own `groups`, which are limited in number."""
    kept = {name: value for name, value in said.items() if name != "groups"}
    return {**kept, "loso": _without_groups(said["loso"])} if "loso" in said else kept


def _common(
    judged: Judged, what: str, paths: Sequence[str], score_range: tuple[float, float], digests: bool = True
) -> dict[str, Any]:
    """digests: of the files too; what workers have read would take one process long to read again."""
    pairs = judged.pairs
    groups, n_groups = by_group(judged, _GROUPS)
    index = {each["group"]: n for n, each in enumerate(groups)}
    every = math.ceil(len(judged.rows) / _POINTS)
    points = []
    for at in np.union1d(np.arange(0, len(judged.rows), every), worst_of(judged)).tolist():
        group = index.get(group_of(pairs, judged.rows[at]), -1)
        points.append([round(float(judged.true[at]), 3), round(float(judged.predicted[at]), 3), group])
    return {
        "version": __version__,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "judged": {
            "what": what,
            **judged.metrics.as_json(),
            **({} if judged.base is None else {"base": metrics(judged.base, judged.true).as_json()}),
        },
        "points": points,
        "groups": [{**each, "group": _cut(each["group"])} for each in groups],
        "n_groups": n_groups,
        "scores": by_score(judged, *score_range),
        "worst": [{**each, "job_id": _cut(each["job_id"]), "group": _cut(each["group"])} for each in worst(judged)],
        **_features(judged),
        "data": _data(pairs, paths, digests),
    }


def _features(judged: Judged) -> dict[str, Any]:
    """features: the most important first, at most five hundred; importance_pairs: how many pairs importance was measured on."""
    pairs, (grown, n_pairs) = judged.pairs, importance(judged)
    order = np.argsort(-np.nan_to_num(grown), kind="stable")[:_FEATURES].tolist()
    low, high = pairs.features.min(axis=0), pairs.features.max(axis=0)
    mean = pairs.features.mean(axis=0, dtype=np.float64)
    named = len(pairs.feature_names) == pairs.features.shape[1]
    features = [
        {
            "name": _cut(pairs.feature_names[n], _FEATURE_CHARACTERS) if named else f"features[{n}]",
            "importance": float(grown[n]),
            "min": float(low[n]),
            "mean": float(mean[n]),
            "max": float(high[n]),
        }
        for n in order
    ]
    return {"features": features, "importance_pairs": n_pairs}


def _data(pairs: RecordedPairs, paths: Sequence[str], digests: bool) -> dict[str, Any]:
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
    name = _seen(name)
    return name if len(name) <= characters else name[: characters - 1] + "…"
