"""Whether a model fits the consumers of the stable one: they feed it, and read its scores, as they do that one's."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sidecar.checkpoints.description import inputs_of_model
from sidecar.features.names import NamesError, in_order
from sidecar.models.description import DescriptionError

if TYPE_CHECKING:
    from onnx_builder.runtime import Input, Scorer

_log = logging.getLogger(__name__)


class Interface(NamedTuple):
    """What consumers of a model rely on.

    fixed_batch: rows at a time, 0 for any number; score_range: None where unknown; names: of all features, in order, empty
    where unknown.
    """

    inputs: tuple[Input, ...]
    output: str
    fixed_batch: int
    score_range: tuple[float, float] | None
    names: tuple[str, ...] = ()

    @property
    def n_features(self) -> int:
        return sum(each.width for each in self.inputs)


def interface_of(scorer: Scorer, about: Mapping[str, Any]) -> Interface:
    """The interface of a model, given what the JSON beside it says."""
    try:
        names = inputs_of_model(scorer, about).names
    except DescriptionError as error:
        _log.warning("names of features are not compared: %s", error)
        names = ()
    return Interface(scorer.inputs, scorer.output, scorer.fixed_batch, score_range(about), names)


def score_range(about: Mapping[str, Any]) -> tuple[float, float] | None:
    """The lowest and highest score of a model, as its JSON says; None where it does not."""
    settings = about.get("settings")
    found = [settings.get(name) for name in ("score_min", "score_max")] if isinstance(settings, dict) else []
    known = [float(each) for each in found if isinstance(each, int | float) and not isinstance(each, bool)]
    return (known[0], known[1]) if len(known) == 2 and all(map(math.isfinite, known)) else None


def differences(new: Interface, stable: Interface, name: str) -> str:
    """In words, why a new model does not fit the consumers of the stable one, which has this name; empty if it does."""
    found = []
    wider = new.n_features != stable.n_features
    if wider:
        found.append(f"it takes {new.n_features} features, {name} takes {stable.n_features}")
    elif new.names and stable.names and (other := _of_names(new.names, stable.names, name)):
        found.append(other)
    if new.inputs != stable.inputs and not (
        wider and [each[:2] for each in new.inputs] == [each[:2] for each in stable.inputs]
    ):
        found.append(f"its inputs are {_words(new.inputs)}, those of {name} {_words(stable.inputs)}")
    if new.output != stable.output:
        found.append(f"its output is {new.output}, that of {name} {stable.output}")
    if new.fixed_batch not in (0, stable.fixed_batch):
        allowed = f"only {stable.fixed_batch}" if stable.fixed_batch else "any number"
        found.append(f"it takes only {new.fixed_batch} rows at a time, {name} {allowed}")
    if new.score_range and stable.score_range and new.score_range != stable.score_range:
        low, high = stable.score_range
        found.append(
            f"its scores are from {new.score_range[0]:g} to {new.score_range[1]:g}, those of {name} {low:g} to {high:g}"
        )
    return "; ".join(found)


def _of_names(new: tuple[str, ...], stable: tuple[str, ...], name: str) -> str:
    """In words, how the names of the features differ, or their order; empty if they do not."""
    try:
        places = in_order(new, stable)
    except NamesError as error:
        return f"its features are not those of {name}: {error}"
    moved = [place for place, of_new in enumerate(places) if place != of_new]
    if not moved:
        return ""
    return f"its features are in another order: {new[moved[0]]} is in the place of {stable[moved[0]]} in {name}"


def _words(inputs: tuple[Input, ...]) -> str:
    return " and ".join(f"{each.name} ({each.dtype.__name__}, {'×'.join(map(str, each.shape))})" for each in inputs)
