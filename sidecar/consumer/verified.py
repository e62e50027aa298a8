"""A fetched checkpoint that is whole, of one version, and computes what it should; or the reason why it is none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_builder.network import Elementwise, Network, NetworkError
from onnx_builder.read import from_bytes
from onnx_builder.runtime import Scorer
from sidecar.checkpoints.judging.compatibility import Interface, interface_of
from sidecar.checkpoints.verify import checks_of
from sidecar.consumer.source import Fetched
from sidecar.learning.intervals import Intervals, intervals_of
from sidecar.models.description import DescriptionError
from sidecar.models.inputs import ModelInputs, inputs_of
from sidecar.models.json_scaling import outside_scaling

_PARITY_ROWS = 64
"""Who verifies while others predict keeps it short."""


class RefusedError(Exception):
    """A model that was read and is not to be used; the message names it and says why."""


@dataclass(frozen=True, eq=False)
class VerifiedModel:
    """A model that may be used, and what it says of itself.

    name: `model_v000042`. data: the ONNX file, sha256: of it. about: its JSON. network: as our own reader understands it.
    scaling: what comes before the graph. inputs, interface: how it is fed. intervals: None if it has none.
    """

    name: str
    version: int
    data: bytes
    sha256: str
    about: Mapping[str, Any]
    network: Network
    scaling: tuple[Elementwise, ...]
    inputs: ModelInputs
    interface: Interface
    intervals: Intervals | None = None


def verified(fetched: Fetched) -> VerifiedModel:
    """A checkpoint that passed all checks of `vmafx-sidecar verify`, and whose JSON is that of this version and these bytes.

    Raises RefusedError.
    """
    about = _description(fetched)
    digest = fetched.digest.decode("ascii", errors="replace").strip()
    stated = {"sha256": digest, "version": fetched.version}
    for key, value in stated.items():
        if about.get(key) != value:
            raise RefusedError(f"{fetched.place}: its JSON says {key} {str(about.get(key))[:64]}; expected {str(value)[:64]}")
    try:
        for check, wrong in checks_of(Path(f"{fetched.name}.onnx"), fetched.model, digest, about, _PARITY_ROWS):
            if wrong:
                raise RefusedError(f"{fetched.place}: {check}: {wrong}")
        network, scorer = from_bytes(fetched.model), Scorer(fetched.model)
        scaling = outside_scaling(Path(f"{fetched.name}.json"), about, scorer.inputs[0].width, network)
        inputs = inputs_of(about, [(each.name, each.width) for each in scorer.inputs])
        interface = interface_of(scorer, about)
    except (NetworkError, DescriptionError) as error:
        raise RefusedError(f"{fetched.place}: {error}") from error
    return VerifiedModel(
        fetched.name, fetched.version, fetched.model, digest, about, network, scaling, inputs, interface, intervals_of(about)
    )


def _description(fetched: Fetched) -> dict[str, Any]:
    try:
        about = json.loads(fetched.description)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"{fetched.place}: its JSON is none: {str(error)[:200]}") from error
    if not isinstance(about, dict):
        raise RefusedError(f"{fetched.place}: its JSON is not an object, but {type(about).__name__}")
    return about
