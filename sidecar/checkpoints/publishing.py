"""From weights to a published checkpoint: build the graph, check it against the trainer, judge it, publish it.

`train-offline` and `serve` share this. In `serve` it runs on a worker thread and works on copies.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnx_builder.network import Array, Network, NetworkError
from onnx_builder.parity import parity
from onnx_builder.write import to_bytes
from sidecar.checkpoints.description import description_of_inputs, inputs_of_checkpoint, metadata_of
from sidecar.checkpoints.directory import Checkpoint, publish
from sidecar.checkpoints.judging.compatibility import differences, interface_of
from sidecar.checkpoints.judging.gate import Evidence, Gate, judge_on_each
from sidecar.checkpoints.judging.references import references, stable_model
from sidecar.checkpoints.libvmaf import refused_by_libvmaf
from sidecar.learning.head import Head
from sidecar.learning.intervals import Intervals, calibrate
from sidecar.learning.metrics import Metrics, metrics
from sidecar.models.base_model import BaseModel, ExportIo

if TYPE_CHECKING:
    from onnx_builder.runtime import Scorer

_MOST_SHOWN = 200
_log = logging.getLogger(__name__)
PARITY_TOLERANCE = 1e-4
"""Largest difference between the graph and the trainer's forward pass, as a share of the score range."""


@dataclass(frozen=True)
class Terms:
    """How checkpoints are published: where, in which form, and how they are judged. keep: how many to keep; 0 keeps all.

    lock_s: how long to wait, in seconds, for another process that publishes in the same directory. on_trial: whoever publishes
    may take a stable one back later.
    """

    directory: Path
    score_range: float = 100.0
    base: BaseModel | None = None
    export_io: ExportIo = "canonical"
    keep: int = 0
    plcc_delta: float = 0.005
    rmse_ratio: float = 1.1
    lock_s: float = 60.0
    on_trial: bool = False

    @cached_property
    def base_scorer(self) -> Scorer:
        """The base model in onnxruntime, in its canonical form."""
        from onnx_builder.runtime import Scorer  # as in `publish_network`

        assert self.base is not None
        return Scorer(to_bytes(self.base.network))


class Published(NamedTuple):
    """The result.

    created_at: as in the JSON; metrics: on the first set of evidence, None if that is empty; seconds: how long it took, with
    all checks; refused: why libvmaf cannot use it, empty if it can. intervals: None if there are none.
    """

    checkpoint: Checkpoint
    sha256: str
    created_at: datetime
    gate: Gate
    metrics: Metrics | None
    parity_max_abs_diff: float
    seconds: float
    refused: str
    intervals: Intervals | None


class ParityError(NetworkError):
    """The graph does not compute what the trainer does."""


def publish_network(
    network: Network,
    terms: Terms,
    sets: Sequence[Evidence],
    parity_features: Array,
    description: dict[str, Any],
    gate: Gate | None = None,
    intervals: Intervals | None = None,
) -> Published:
    """Publish a trained network. If there is a base model, the network has its architecture.

    sets: what it is judged on, the held-out pairs first; gate: the verdict, if it was judged before, on other pairs.
    parity_features: (n, n_features), n ≥ 1, raw, from real pairs. description: what the JSON says besides what is known here,
    the score range among its settings; and of its inputs what `inputs_of_checkpoint` takes. intervals: its prediction
    intervals, by default those of the held-out pairs, if their encodes are known.

    A model that does not fit the stable one's consumers is published all the same, but no link moves. Raises ParityError,
    NetworkError (the graph cannot be built) or CheckpointError (it cannot be written); then nothing is published.
    """
    started = time.monotonic()
    from onnx_builder.runtime import Scorer  # imported here: loading onnxruntime takes longer than starting a sidecar

    published = terms.base.exported(network, terms.export_io) if terms.base else network
    inputs = inputs_of_checkpoint(terms.base, description, network.n_features)
    fed = description_of_inputs(published, inputs, terms.base, terms.export_io)
    model = to_bytes(published, metadata_of(fed))
    scorer = Scorer(model)

    def predict(features: Array) -> Array:
        return scorer.predict(terms.base.exported_features(features, terms.export_io) if terms.base else features)

    head = Head(network)
    difference = parity(predict(parity_features), head.predict(parity_features))
    allowed = PARITY_TOLERANCE * terms.score_range
    if difference > allowed:
        raise ParityError(
            f"parity: the graph differs from the trainer by {difference:g} score points; at most {allowed:g} is allowed"
        )
    stable = stable_model(terms.directory)
    other = differences(interface_of(scorer, description | fed), stable.interface, stable.name) if stable else ""
    compared: list[dict[str, Any]] = []
    if other:
        gate = Gate("incompatible", other)
    elif gate is None:
        predicted = [predict(evidence.features) for evidence in sets]
        base = (f"base model {terms.base.path.name}", terms.base_scorer) if terms.base else None
        others = references(base, stable, sets)
        asked = {"plcc_delta": terms.plcc_delta, "rmse_ratio": terms.rmse_ratio}
        gate, compared = judge_on_each(predicted, sets, others, **asked)
    held_out = head.predict(sets[0].features)
    measured = metrics(held_out, sets[0].true) if len(sets[0].true) else None
    if intervals is None and sets[0].group is not None:
        intervals = calibrate(held_out, sets[0].true, sets[0].group, "held-out", "encode")
    created_at = datetime.now(UTC).replace(microsecond=0)
    about = {
        **fed,
        "created_at": created_at.isoformat(),
        "base_model": terms.base.as_json() if terms.base else None,
        "metrics": measured.as_json() if measured else {"pairs": 0},
        "gate": gate._asdict() | ({"compared": compared} if compared else {}),
        "held_out": _thinned(held_out, sets[0].true),
        **({"intervals": intervals.as_json()} if intervals else {}),
        "parity_max_abs_diff": difference,
        **{key: value for key, value in description.items() if key not in fed},
    }
    checkpoint = publish(
        terms.directory, model, about, latest=gate.verdict != "incompatible", stable=gate.verdict == "stable",
        on_trial=terms.on_trial, keep=terms.keep, lock_s=terms.lock_s,
    )  # fmt: skip
    refused = refused_by_libvmaf(terms.base, terms.export_io, inputs, network.n_features)
    seconds = time.monotonic() - started
    digest = hashlib.sha256(model).hexdigest()
    return Published(checkpoint, digest, created_at, gate, measured, difference, seconds, refused, intervals)


def _thinned(predicted: Array, true: Array) -> list[list[float]]:
    """Predicted and true scores (n,) of some pairs, evenly spread over the true scores, for people to look at."""
    order = np.argsort(true, kind="stable")
    some = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), _MOST_SHOWN)).astype(int))] if len(order) else order
    return [[round(float(predicted[place]), 2), round(float(true[place]), 2)] for place in some]
