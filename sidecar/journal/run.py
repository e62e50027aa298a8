"""The run record: what pairs are trained with, as the journal and snapshots hold it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sidecar.features.encoder_block import EncoderBlock
from sidecar.learning.training_settings import TrainingSettings

STATE_FORMAT = 1
"""Of the journal's run records and of snapshots. It grows when a program that knows only the one before would go wrong."""


ALGORITHM = 6
"""Of training. It grows whenever the same journal would train otherwise, be it in the last bit."""


class FormatError(ValueError):
    """A state that a newer program wrote."""


@dataclass(frozen=True)
class Run:
    """What pairs are trained with: one run lasts until another base model or other settings.

    base: the digest of the base model as it is used, None for a fresh head; kernel: what the arithmetic ran on, for the record;
    algorithm: the number of the one that trains. features: the names of the features in the order in which arrays come; order:
    the same in the order in which the model takes them; both empty if they have no names. encoder: how some of them are made
    from a pair's encoder, preset and crf, None if they are not. target: what the scores are, empty if that is not known.
    """

    n_features: int
    settings: TrainingSettings
    holdout_fraction: float
    base: str | None = None
    kernel: str = ""
    algorithm: int = ALGORITHM
    features: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    encoder: EncoderBlock | None = None
    target: str = ""

    @property
    def on_gpu(self) -> bool:
        """Whether the steps ran on a GPU: a processor repeats them up to rounding."""
        return self.kernel.startswith("CUDA")

    def as_json(self) -> dict[str, Any]:
        return {"format": STATE_FORMAT, **asdict(self), "encoder": self.encoder.as_json() if self.encoder else None}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Run:
        """The run that gave this document. Raises FormatError for a newer one's, KeyError or TypeError for another."""
        if document["format"] > STATE_FORMAT:
            raise FormatError(f"state of format {document['format']}; this program knows up to {STATE_FORMAT}: use a newer one")
        known = {each.name for each in fields(TrainingSettings)}
        settings = {name: value for name, value in document["settings"].items() if name in known}
        settings["tenants"] = tuple(settings.get("tenants") or ()) or None
        return cls(
            document["n_features"],
            TrainingSettings(**settings),
            document["holdout_fraction"],
            document["base"],
            document["kernel"],
            document.get("algorithm", 1),
            tuple(document.get("features", ())),
            tuple(document.get("order", ())),
            EncoderBlock.of_description(document.get("encoder") or {}),
            document.get("target", ""),
        )


def kernel() -> str:
    """What arithmetic on the processor runs on: other wheels or another processor may round otherwise."""
    model = ""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as stream:
        model = next((line.partition(":")[2].strip() for line in stream if line.startswith("model name")), "")
    return " ".join(part for part in (f"numpy {np.__version__}", model, os.environ.get("OPENBLAS_CORETYPE")) if part)
