"""Base models as a state directory keeps them, so that a state can be made again when the file is gone."""

from __future__ import annotations

import hashlib
from pathlib import Path

from onnx_builder.network import Network, NetworkError
from onnx_builder.read import from_bytes
from onnx_builder.write import to_bytes
from sidecar.files import write_whole
from sidecar.journal.run import Run
from sidecar.state.directory import StateError


def digest_of(base: Network) -> str:
    """The digest of a base model as it is used: scaling baked in, whatever file it came from."""
    return hashlib.sha256(to_bytes(base)).hexdigest()


def kept_base(state_directory: Path, run: Run) -> Network | None:
    """The base model of a recorded run, as it was kept beside the journal. Raises StateError where it cannot be read."""
    if run.base is None:
        return None
    path = base_path(state_directory, run.base)
    try:
        return from_bytes(path.read_bytes())
    except (OSError, NetworkError) as error:
        raise StateError(f"{path}: the base model of a recorded run cannot be read: {error}") from error


def keep_base(state_directory: Path, base: Network) -> None:
    """The base model beside the journal: the state can be made again when the file that it came from is gone."""
    path = base_path(state_directory, digest_of(base))
    if not path.exists():
        try:
            write_whole(path, to_bytes(base))
        except OSError as error:
            raise StateError(f"{path}: {error.strerror or error}") from error


def base_path(state_directory: Path, digest: str) -> Path:
    """Where a state keeps the base model of this digest."""
    return state_directory / f"base_{digest[:16]}.onnx"
