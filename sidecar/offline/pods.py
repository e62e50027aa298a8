"""The figures of each pod: how well one model of all of them does on what each holds out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sidecar.fleet.reading import Pod, Read
from sidecar.learning.head import Head
from sidecar.learning.metrics import Metrics, metrics
from sidecar.learning.recipe import Rows
from sidecar.offline.validation import predict


class PodFigures(NamedTuple):
    """A pod, and a model's figures on its held-out pairs of the sample, None if there are none.

    mean_residual: of predicted minus true, in score points, NaN if there are none.
    """

    pod: Pod
    metrics: Metrics | None
    mean_residual: float

    def as_json(self) -> dict[str, Any]:
        measured = {} if self.metrics is None else {**self.metrics.as_json(), "mean_residual": self.mean_residual}
        return {**self.pod.as_json(), "held_out": measured}


def by_pod(read: Read, head: Head, held_out: Rows) -> list[PodFigures]:
    """The figures of each pod of which pairs were read. held_out: rows of the sample."""
    predicted, true = predict(head, read.pairs, held_out), read.pairs.true_score[held_out]
    found = []
    for number, pod in enumerate(read.pods):
        if not pod.read:
            continue
        rows = read.pod[held_out] == number
        if rows.any():
            mean = float(np.mean(predicted[rows].astype(np.float64) - true[rows]))
            found.append(PodFigures(pod, metrics(predicted[rows], true[rows]), mean))
        else:
            found.append(PodFigures(pod, None, float("nan")))
    return found
