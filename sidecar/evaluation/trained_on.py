"""Which of the pairs that a model is scored on it was trained on, as far as the JSON beside it says."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_builder.constants import read_bytes
from onnx_builder.network import NetworkError
from sidecar.models.description import DescriptionError, read_description
from sidecar.pairs.lines import STDIN, journal_lines
from sidecar.pairs.recorded import RecordedPairs

_MOST_MODELS = 16


class TrainedOn(NamedTuple):
    """rows: (n,) bool, the pairs that the model, or a base model that it began from, was trained on. sure: False if some of the
    pairs were, but it is not known which; holdout: the share that was kept out of the model's own training, None if unknown.
    """

    rows: NDArray[np.bool_]
    sure: bool
    holdout: float | None

    @property
    def said(self) -> int | bool:
        """How many, or True if that is not known; 0 if none is known to be."""
        return int(self.rows.sum()) if self.sure else True


def trained_on(model: Path, paths: Sequence[str | Path], pairs: RecordedPairs) -> TrainedOn:
    """Which of the pairs, read from these paths, a model was trained on. Nothing is known of a model without a JSON."""
    rows, sure, own = np.zeros(len(pairs), dtype=np.bool_), True, None
    for number, about in enumerate(_origins(model)):
        share = _holdout(about)
        own = share if number == 0 else own
        stop = 0
        for path, count in zip(map(str, paths), pairs.file_pairs, strict=True):
            start, stop = stop, stop + count
            if not _was_trained_on(about, path):
                continue
            if share is None:
                sure = False
            else:
                end = start + min(count, _pairs_until(about, path, count))
                rows[start:end] |= pairs.position[start:end] >= share
    return TrainedOn(rows, sure, own)


def _origins(model: Path) -> Iterator[dict[str, Any]]:
    """The JSON of a model, then that of its base model, and so on, for as long as each describes the file beside it."""
    try:
        path = model.resolve()
        digest: object = hashlib.sha256(read_bytes(model)).hexdigest()
        for _ in range(_MOST_MODELS):
            about = read_description(path)
            if about is None or about.get("sha256") != digest:
                return
            yield about
            base = about.get("base_model")
            if not isinstance(base, dict) or not isinstance(base.get("path"), str):
                return
            path, digest = Path(base["path"]).resolve(), base.get("sha256")
    except (DescriptionError, NetworkError, OSError, ValueError):
        return


def _holdout(about: dict[str, Any]) -> float | None:
    settings = about.get("settings")
    share = settings.get("holdout") if isinstance(settings, dict) else None
    known = isinstance(share, int | float) and not isinstance(share, bool) and math.isfinite(share)
    return share if known else None


def _was_trained_on(about: dict[str, Any], path: str) -> bool:
    data, journal = about.get("data"), about.get("journal")
    known = [each for each in data if isinstance(each, str)] if isinstance(data, list) else []
    if isinstance(journal, dict) and isinstance(journal.get("directory"), str):
        known.append(journal["directory"])
    return path != STDIN and any(each != STDIN and _is_same(each, path) for each in known)


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def _pairs_until(about: dict[str, Any], path: str, count: int) -> int:
    """How many of a path's pairs were there when the model was trained: of a journal, those up to the last position."""
    journal = about.get("journal")
    last = journal.get("last") if isinstance(journal, dict) else None
    if not os.path.isdir(path) or not isinstance(last, int):
        return count
    return sum(1 for _ in journal_lines(Path(path), last + 1))
