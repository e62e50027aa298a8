"""What the gate compares a checkpoint with: the stable model and the base model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onnx_builder.network import Array, Elementwise, NetworkError
from sidecar.checkpoints.directory import STABLE, linked
from sidecar.checkpoints.judging.compatibility import Interface, interface_of
from sidecar.checkpoints.judging.gate import Evidence
from sidecar.models.description import DescriptionError, read_description
from sidecar.models.json_scaling import outside_scaling, scaled

if TYPE_CHECKING:
    from onnx_builder.runtime import Scorer


_log = logging.getLogger(__name__)


class Stable(NamedTuple):
    """The stable model of a checkpoint directory. scaling: what its graph leaves outside."""

    name: str
    scorer: Scorer
    scaling: tuple[Elementwise, ...]
    interface: Interface


def stable_model(directory: Path) -> Stable | None:
    """The model that `stable.onnx` names, None if there is none. One that cannot be used counts as absent, with a warning."""
    from onnx_builder.runtime import Scorer  # onnxruntime takes longer to load than a sidecar to start

    stable = linked(directory, STABLE)
    if stable is None:
        return None
    try:
        scorer, about = Scorer(stable.model), read_description(stable.model) or {}
        scorer.predict(np.zeros((1, scorer.n_features)))  # one that loads, but gives no score for a row, is of no use either
        scaling = published_scaling(stable.model, scorer.inputs[0].width)
        return Stable(stable.name, scorer, scaling, interface_of(scorer, about))
    except (NetworkError, DescriptionError) as error:
        _not_compared(error)
        return None


def references(
    base: tuple[str, Scorer] | None, stable: Stable | None, sets: Sequence[Evidence]
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
            scores = [stable.scorer.predict(scaled(evidence.features, stable.scaling)) for evidence in sets]
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
