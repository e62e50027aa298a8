"""What the gate compares a checkpoint with: the stable model and the base model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnx_builder.network import Array, Elementwise, NetworkError
from sidecar.checkpoints.directory import STABLE, linked
from sidecar.checkpoints.gate import Evidence
from sidecar.models.description import DescriptionError, read_description
from sidecar.models.json_scaling import json_scaling, scaled

if TYPE_CHECKING:
    from onnx_builder.runtime import Scorer


_log = logging.getLogger(__name__)


def references(directory: Path, base: tuple[str, Scorer] | None, sets: Sequence[Evidence]) -> list[tuple[str, list[Array]]]:
    """What the base model, if there is one, and the stable model of a checkpoint directory predict for each set, by name.

    A stable model that cannot be used counts as absent, with a warning.
    """
    from onnx_builder.runtime import Scorer  # onnxruntime takes longer to load than a sidecar to start

    found: list[tuple[str, list[Array]]] = []
    if base is not None:
        name, scorer = base
        found.append((name, [scorer.predict(evidence.features) for evidence in sets]))
    stable = linked(directory, STABLE)
    if stable is not None:
        try:
            scorer, scaling = Scorer(stable.model), published_scaling(stable.model)
            scores = [scorer.predict(scaled(evidence.features, scaling)) for evidence in sets]
            if not all(np.isfinite(each).all() for each in scores):
                raise NetworkError(f"{stable.model}: gives scores that are not finite")
        except (NetworkError, DescriptionError) as error:
            _log.warning("%s is not compared with: %s", STABLE, error)
        else:
            found.append((stable.name, scores))
    return found


def published_scaling(checkpoint: Path) -> tuple[Elementwise, ...]:
    """The scaling that a checkpoint's graph leaves outside, from its JSON; none where it leaves none."""
    about = read_description(checkpoint) or {}
    return json_scaling(checkpoint, int(about.get("n_features", 0))) if "feature_mean" in about else ()
