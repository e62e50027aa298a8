"""Base models as a state directory keeps them, so that a state can be made again when the file is gone.

`base_<first digits of its SHA-256>.onnx`; the whole digest is in the run record, so that the file needs no other checksum.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from onnx_builder.network import Network, NetworkError
from onnx_builder.read import from_bytes
from onnx_builder.write import to_bytes
from sidecar.files import read_regular, sync_directory, write_whole
from sidecar.journal.run import Run
from sidecar.state.directory import StateError

_MOST_BYTES = 256 << 20
_NAME = re.compile(r"base_[0-9a-f]{16}\.onnx")


class BaseLostError(StateError):
    """The base model of a recorded run is missing or damaged."""


def digest_of(base: Network) -> str:
    """The digest of a base model as it is used: scaling baked in, whatever file it came from."""
    return hashlib.sha256(to_bytes(base)).hexdigest()


def kept_base(state_directory: Path, run: Run) -> Network | None:
    """The base model of a recorded run, as it was kept beside the journal; None for a run without one.

    Raises BaseLostError if it is missing or damaged, OSError if it cannot be read now.
    """
    if run.base is None:
        return None
    path = base_path(state_directory, run.base)
    try:
        data = read_regular(path, _MOST_BYTES)
        if hashlib.sha256(data).hexdigest() != run.base:
            raise BaseLostError(f"{path}: the base model of a recorded run is damaged")
        return from_bytes(data)
    except FileNotFoundError as error:
        raise BaseLostError(f"{path}: the base model of a recorded run is missing") from error
    except NetworkError as error:
        raise BaseLostError(f"{path}: the base model of a recorded run cannot be read: {error}") from error


def keep_base(state_directory: Path, base: Network) -> None:
    """Keep a base model beside the journal, if it is not there yet. Raises StateError if it cannot be written."""
    data = to_bytes(base)
    path = base_path(state_directory, hashlib.sha256(data).hexdigest())
    try:
        if not path.is_file() or path.is_symlink():
            write_whole(path, data)
            sync_directory(state_directory)
    except OSError as error:
        raise StateError(f"{path}: {error.strerror or error}") from error


def kept_bases(state_directory: Path) -> list[Path]:
    """The base models that are kept there. Raises OSError."""
    return sorted(path for path in state_directory.iterdir() if _NAME.fullmatch(path.name))


def damage_of_base(path: Path, digest: str = "") -> str:
    """What is wrong with a kept base model, empty if nothing is. digest: of its run, where that is known.

    Raises OSError if it cannot be read now.
    """
    actual = hashlib.sha256(read_regular(path, _MOST_BYTES)).hexdigest()
    whole = actual == digest if digest else actual.startswith(path.stem.removeprefix("base_"))
    return "" if whole else "its bytes do not have the SHA-256 of its run"


def base_path(state_directory: Path, digest: str) -> Path:
    """Where a state keeps the base model of this digest."""
    return state_directory / f"base_{digest[:16]}.onnx"
