"""The run record: what pairs are trained with, as the journal and snapshots hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sidecar.learning.training_settings import TrainingSettings

STATE_FORMAT = 1
"""Of the journal's run records and of snapshots. It grows when a program that knows only the one before would go wrong."""


ALGORITHM = 1
"""Of training. It grows whenever the same journal would train otherwise, be it in the last bit."""


class FormatError(ValueError):
    """A state that a newer program wrote."""


@dataclass(frozen=True)
class Run:
    """What pairs are trained with: one run lasts until another base model or other settings.

    base: the digest of the base model as it is used, None for a fresh head; kernel: what the arithmetic ran on, for the record;
    algorithm: the number of the one that trains.
    """

    n_features: int
    settings: TrainingSettings
    holdout_fraction: float
    base: str | None = None
    kernel: str = ""
    algorithm: int = ALGORITHM

    def as_json(self) -> dict[str, Any]:
        return {"format": STATE_FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Run:
        """The run that gave this document. Raises FormatError for a newer one's, KeyError or TypeError for another."""
        if document["format"] > STATE_FORMAT:
            raise FormatError(f"state of format {document['format']}; this program knows up to {STATE_FORMAT}: use a newer one")
        known = {each.name for each in fields(TrainingSettings)}
        settings = TrainingSettings(**{name: value for name, value in document["settings"].items() if name in known})
        return cls(
            document["n_features"],
            settings,
            document["holdout_fraction"],
            document["base"],
            document["kernel"],
            document.get("algorithm", 1),
        )
