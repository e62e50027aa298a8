"""What the gate compares a checkpoint with: the stable model and the base model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onnx_builder.network import Array, Elementwise, NetworkError
from sidecar.checkpoints.directory import STABLE, Checkpoint, linked
from sidecar.checkpoints.judging.compatibility import Interface, interface_of
from sidecar.checkpoints.judging.gate import Evidence
from sidecar.models.description import DescriptionError, read_description
from sidecar.models.json_scaling import outside_scaling, scaled

if TYPE_CHECKING:
    from onnx_builder.runtime import Scorer


_log = logging.getLogger(__name__)


class PublishedModel(NamedTuple):
    """A checkpoint as its consumers use it. scaling: what its graph leaves outside."""

    name: str
    scorer: Scorer
    scaling: tuple[Elementwise, ...]
    interface: Interface

    def predict(self, features: Array) -> Array:
        """Scores (n,) of raw features (n, n_features). Raises NetworkError."""
        return self.scorer.predict(scaled(features, self.scaling))


def published_model(checkpoint: Checkpoint) -> PublishedModel:
    """A checkpoint in onnxruntime. Raises NetworkError or DescriptionError if it cannot be used."""
    from onnx_builder.runtime import Scorer  # onnxruntime takes longer to load than a sidecar to start

    scorer, about = Scorer(checkpoint.model), read_description(checkpoint.model) or {}
    scorer.predict(np.zeros((1, scorer.n_features)))  # one that loads, but gives no score for a row, is of no use either
    scaling = published_scaling(checkpoint.model, scorer.inputs[0].width)
    return PublishedModel(checkpoint.name, scorer, scaling, interface_of(scorer, about))


def stable_model(directory: Path) -> PublishedModel | None:
    """The model that `stable.onnx` names, None if there is none. One that cannot be used counts as absent, with a warning."""
    stable = linked(directory, STABLE)
    try:
        return published_model(stable) if stable else None
    except (NetworkError, DescriptionError) as error:
        _not_compared(error)
        return None


def references(
    base: tuple[str, Scorer] | None, stable: PublishedModel | None, sets: Sequence[Evidence]
) -> list[tuple[str, list[Array]]]:
    """What the base model and the stable model, which takes as many features, predict for each set, by name.

    A stable model that gives no finite scores counts as absent, with a warning.
    """
    found: list[tuple[str, list[Array]]] = []
    if base is not None:
        name, scorer = base
        found.append((name, [scorer.predict(evidence.features) for evidence in sets]))
    if stable is not None:
        try:
            scores = [stable.predict(evidence.features) for evidence in sets]
            if not all(np.isfinite(each).all() for each in scores):
                raise NetworkError(f"{stable.name}: gives scores that are not finite")
        except NetworkError as error:
            _not_compared(error)
        else:
            found.append((stable.name, scores))
    return found


def _not_compared(error: Exception) -> None:
    _log.warning("%s is not compared with: %s", STABLE, error)


def published_scaling(checkpoint: Path, width: int) -> tuple[Elementwise, ...]:
    """The scaling that a checkpoint's graph leaves outside, from its JSON, for the first of `width` features.

    None where it leaves none.
    """
    about = read_description(checkpoint) or {}
    return outside_scaling(checkpoint.with_suffix(".json"), about, width, None)
