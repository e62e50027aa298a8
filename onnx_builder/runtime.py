"""Scores of any ONNX regressor in onnxruntime, which judges independently what a graph computes."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_builder.network import NetworkError, Port, first_line

_TELEMETRY = "ORT_DISABLE_TELEMETRY"
_unsaid = _TELEMETRY not in os.environ
os.environ.setdefault(_TELEMETRY, "1")
try:  # its wheels start threads at the import that report usage data, and a child of a fork hangs at its end because of them
    import onnxruntime
finally:
    if _unsaid:
        del os.environ[_TELEMETRY]

_CHUNK = 4096
_ERRORS_ONLY = 3
_TYPES: dict[str, type[np.floating[Any]]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}


class Input(NamedTuple):
    """An input of a graph. shape: of one row."""

    name: str
    dtype: type[np.floating[Any]]
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        return math.prod(self.shape)


class Scorer:
    """An onnxruntime session on one CPU thread that takes features as one matrix.

    A model with several inputs gets the columns in the order of its inputs; a model with a fixed batch size gets that many
    rows at a time.

    model: the path of an ONNX file, or its bytes. ports: its inputs, where it does not declare all of their widths. inputs,
    output: as the graph declares them; fixed_batch: 0 if it takes any number of rows; metadata: the file's
    `metadata_props`. Raises NetworkError if onnxruntime cannot load it, or if its inputs are not floats of shape (batch,
    width).
    """

    def __init__(self, model: Path | bytes, ports: Sequence[Port] = ()) -> None:
        onnxruntime.disable_telemetry_events()  # in case somebody else imported it
        name = "model" if isinstance(model, bytes) else str(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # a graph this small needs no arena, and an arena never gives memory back
        options.log_severity_level = _ERRORS_ONLY
        try:
            self._session = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises bare subclasses of Exception
            raise NetworkError(f"{name}: onnxruntime cannot load it: {first_line(error)}") from error
        inputs = []
        batches = set()
        known = {port.name: port.shape[1:] for port in ports}
        for node in self._session.get_inputs():
            shape = known.get(node.name, node.shape[1:])
            if node.type not in _TYPES or not shape or not all(isinstance(size, int) and size > 0 for size in shape):
                raise NetworkError(f"{name}: input {node.name!r} is {node.type} {node.shape}; expected floats [batch, width]")
            inputs.append(Input(node.name, _TYPES[node.type], tuple(shape)))
            batches.add(node.shape[0] if isinstance(node.shape[0], int) else 0)
        outputs = self._session.get_outputs()
        if not inputs or len(outputs) != 1 or len(batches) != 1:
            raise NetworkError(f"{name}: {len(inputs)} inputs and {len(outputs)} outputs; expected one score per row")
        if not outputs[0].type.startswith("tensor(") or "string" in outputs[0].type:
            raise NetworkError(f"{name}: output {outputs[0].name!r} is {outputs[0].type}; expected a tensor of numbers")
        self.inputs = tuple(inputs)
        self.output = outputs[0].name
        self.fixed_batch = batches.pop()
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self._name = name

    @property
    def n_features(self) -> int:
        """Sum of the widths of all inputs."""
        return sum(each.width for each in self.inputs)

    def predict(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Scores (n,) of features (n, n_features). Raises NetworkError if the width differs or the run fails."""
        features = np.ascontiguousarray(features, dtype=np.float32)
        if features.ndim != 2 or features.shape[1] != self.n_features:
            widths = " + ".join(str(each.width) for each in self.inputs)
            raise NetworkError(f"{self._name}: expected {widths} features, got shape {features.shape}")
        scores = np.empty(len(features), dtype=np.float32)
        size = self.fixed_batch or _CHUNK
        for start in range(0, len(features), size):
            rows = features[start : start + size]
            scores[start : start + size] = self._run(rows)[: len(rows)]
        return scores

    def _run(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        missing = max(0, self.fixed_batch - len(rows))
        if missing:
            rows = np.vstack([rows, np.repeat(rows[-1:], missing, axis=0)])
        feed, column = {}, 0
        for each in self.inputs:
            values = rows[:, column : column + each.width].reshape(len(rows), *each.shape)
            feed[each.name] = np.ascontiguousarray(values, dtype=each.dtype)
            column += each.width
        try:
            (output,) = self._session.run([self.output], feed)
        except Exception as error:  # as above
            raise NetworkError(f"{self._name}: onnxruntime cannot run it: {first_line(error)}") from error
        if output.size != len(rows):
            raise NetworkError(f"{self._name}: output of shape {output.shape} for {len(rows)} rows; expected one score per row")
        return np.asarray(output, dtype=np.float32).reshape(-1)
