"""What callers give for features, as rows in a model's order: arrays, data frames, or rows by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnx_builder.network import Array, Float32
from sidecar.features.names import name_of, repeated
from sidecar.models.inputs import ModelInputs
from sidecar.pairs.errors import PairError
from sidecar.pairs.named_features import NamedFeatures
from sidecar.pairs.request import Request

_OF_ENCODE = ("encoder", "preset", "crf")
_NUMBERS = "fiu"
_MOST = 1e300


class RowReader:
    """Makes rows for a model with the given inputs and number of features."""

    def __init__(self, inputs: ModelInputs, n_features: int) -> None:
        self._names, self._n_features = inputs.names, n_features
        self._named = NamedFeatures(inputs.names, block=inputs.block) if inputs.names else None
        self._of_encode = _OF_ENCODE if inputs.block else ()

    def rows(self, features: Any) -> Float32:
        """Rows (n, n_features) in float32.

        features: an array (n, n_features) in the model's order, or one row (n_features,); a row by name, or a sequence of
        such; a data frame. Raises ValueError that names the row, the feature, the value and what is allowed.
        """
        if isinstance(features, np.ma.MaskedArray):
            features = np.ma.filled(features.astype(np.float64), np.nan)
        values = features if isinstance(features, np.ndarray) else self._array(features)
        if values.ndim == 1:
            values = values[np.newaxis]
        if values.ndim != 2 or values.shape[1] != self._n_features:
            raise ValueError(f"features: expected rows of {self._n_features} numbers, got shape {np.shape(features)}")
        if values.dtype != np.float32:
            if values.dtype.kind not in _NUMBERS:
                for at, value in enumerate(values.flat):
                    if not _is_number(value):
                        raise self._no_number(*divmod(at, self._n_features), value)
            with np.errstate(over="ignore"):  # told below
                values = values.astype(np.float32)
        if not np.isfinite(values).all():
            row, place = np.argwhere(~np.isfinite(values))[0]
            raise self._no_number(int(row), int(place), values[row, place])
        return values

    def _no_number(self, row: int, place: int, value: object) -> ValueError:
        what = f"{name_of(self._names, place)} in row {row}"
        return ValueError(f"features: {what}: expected a finite number in float32, got {str(value)[:64]}")

    def _array(self, features: Any) -> Array:
        columns = getattr(features, "columns", None)
        if self._names and columns is not None and all(isinstance(each, str) for each in columns):
            if twice := repeated(columns):
                raise ValueError(f"features: columns more than once: {twice}")
            by_column = (list(features[each]) for each in columns)
            features = [dict(zip(columns, row, strict=True)) for row in zip(*by_column, strict=True)]
        if isinstance(features, Mapping):
            features = [features]
        if isinstance(features, Sequence) and features and isinstance(features[0], Mapping):
            features = [self._in_order(row, place) for place, row in enumerate(features)]
        if isinstance(features, Sequence) and not features:
            return np.zeros((0, self._n_features), dtype=np.float32)
        try:
            values = np.asarray(features)
            return values if values.dtype.kind in _NUMBERS else np.asarray(features, dtype=object)  # not texts of numbers
        except ValueError as error:
            raise ValueError(f"features: expected rows of {self._n_features} numbers: {error}") from None

    def _in_order(self, row: Any, place: int) -> Sequence[float]:
        if self._named is None:
            raise ValueError("features: given by name, but the model's features have no names; give arrays in its order")
        if not isinstance(row, Mapping):
            raise ValueError(f"features: row {place}: expected a mapping as in row 0, got {type(row).__name__}")
        given = {name: row[name] for name in self._of_encode if row.get(name) is not None}
        encode = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
        measured = {str(name): value for name, value in row.items() if name not in self._of_encode}
        try:
            values = self._named.values(Request(features=measured, true_score=0.0, **encode))
        except PairError as error:
            raise ValueError(f"row {place}: {error}") from None
        for at, value in enumerate(values):
            if isinstance(value, bool | str | None):
                raise self._no_number(place, at, value)
        return values


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return number and bool(abs(value) < _MOST)
