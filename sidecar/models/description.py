"""The JSON beside a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sidecar.files import read_regular

MOST_BYTES = 16 << 20


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
