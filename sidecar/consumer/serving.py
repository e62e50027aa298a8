"""One model in use, by any number of threads at once."""

from __future__ import annotations

import numpy as np

from onnx_builder.network import Array, Float32, NetworkError
from onnx_builder.parity import parity
from onnx_builder.runtime import Scorer
from sidecar.checkpoints.publishing import PARITY_TOLERANCE
from sidecar.consumer.rows import RowReader
from sidecar.consumer.verified import RefusedError, VerifiedModel
from sidecar.models.json_scaling import scaled


class Serving:
    """A model with a session of its own, which ends when nobody has a reference to it any more.

    rows: reads what callers give. Raises NetworkError if onnxruntime cannot run the model.
    """

    def __init__(self, model: VerifiedModel) -> None:
        self.model = model
        self.rows = RowReader(model.inputs, model.interface.n_features)
        self._scorer = Scorer(model.data)
        self._calls: list[None] = []
        self._scorer.predict(np.zeros((1, model.interface.n_features)))  # the first run of a session takes longer

    def predict(self, rows: Float32) -> Float32:
        """Scores (n,) of rows (n, n_features) as `rows` reads them."""
        # A list as a counter: `append` and `pop` need no lock, and a thread that is interrupted here holds up no other.
        self._calls.append(None)
        try:
            return self._scorer.predict(scaled(rows, self.model.scaling) if self.model.scaling else rows)
        finally:
            self._calls.pop()

    @property
    def calls(self) -> int:
        """How many calls of `predict` are in it now."""
        return len(self._calls)

    def check_parity(self, rows: Float32) -> None:
        """Raises RefusedError if onnxruntime and numpy differ on rows."""
        try:
            expected = by_numpy(self.model, rows)
            difference = parity(self.predict(rows), expected)
        except NetworkError as error:
            raise RefusedError(f"{self.model.name}: {error}") from error
        low, high = self.model.interface.score_range or (float(expected.min()), float(expected.max()))
        allowed = PARITY_TOLERANCE * max(1.0, high - low)
        if difference > allowed:
            said = f"differ by {difference:g} on the last {len(rows)} rows; at most {allowed:g} is allowed"
            raise RefusedError(f"{self.model.name}: onnxruntime and numpy {said}")


def by_numpy(model: VerifiedModel, rows: Array) -> Float32:
    """Scores (n,) of raw rows (n, n_features) by our own forward pass."""
    return model.network.forward(scaled(rows, model.scaling) if model.scaling else rows)
