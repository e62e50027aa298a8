"""The JSON beside a model."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidecar.files import read_regular

_log = logging.getLogger(__name__)
MOST_BYTES = 16 << 20
MOST_WRITTEN = 1 << 20
"""libvmaf of the VMAF fork reads no larger JSON."""
_NEEDED = {
    "name", "id", "kind", "onnx", "opset", "onnx_opset", "input_name", "input_names", "output_name", "output_names",
    "feature_order", "features", "feature_mean", "feature_std", "normalization", "onnx_has_scaler", "n_features",
    "encoder_vocab", "encoder_vocab_version", "codec_aware", "codec_block_layout", "codec_preset_norm", "codec_preset_value",
    "codec_crf_norm", "codec_crf_min", "codec_crf_max", "target", "version", "sha256", "parent", "created_at", "base_model",
    "step", "pairs_seen", "settings", "metrics", "gate", "parity_max_abs_diff", "journal", "intervals",
}  # fmt: skip


class DescriptionError(ValueError):
    """The JSON beside a model cannot be used; the message names the file and says why."""


def read_description(model: Path) -> dict[str, Any] | None:
    """The JSON beside a model, None if there is none. Raises DescriptionError if it is not a JSON object."""
    path = model.with_suffix(".json")
    try:
        about = json.loads(read_regular(path, MOST_BYTES))
    except OSError:
        return None
    except (ValueError, RecursionError) as error:
        raise DescriptionError(f"{path}: not JSON: {error}") from error
    if not isinstance(about, dict):
        raise DescriptionError(f"{path}: expected a JSON object, got {type(about).__name__}")
    return about


def as_bytes(about: Mapping[str, Any]) -> bytes:
    """A checkpoint's JSON, of at most 1 MiB: the largest fields that nobody needs are left out, with a warning.

    Raises ValueError if it is larger all the same.
    """
    about = dict(about)
    while len(data := (json.dumps(about, indent=2, allow_nan=False) + "\n").encode()) > MOST_WRITTEN:
        sizes = {key: len(json.dumps(value)) for key, value in about.items() if key not in _NEEDED}
        if not sizes:
            raise ValueError(f"the JSON of the checkpoint would have {len(data):,} bytes; {MOST_WRITTEN:,} are allowed")
        largest = max(sizes, key=sizes.__getitem__)
        _log.warning("%s is left out of the checkpoint's JSON, which may have %s bytes at most", largest, f"{MOST_WRITTEN:,}")
        del about[largest]
    return data
