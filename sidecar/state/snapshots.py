"""Snapshots of the training state: the newest good one and the journal after it are the state after a restart.

A snapshot is a numpy archive in a checked file, `snapshot_000000001234.npz`, named by the position up to which it holds the
pairs. Two are kept, so that a damaged one costs no more than training again on the pairs between them.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, cast

import numpy as np

from onnx_builder.network import Array
from sidecar.state.checked import DamagedError, checked_file, read_checked
from sidecar.state.damage import Damages

KEPT = 2
_SNAPSHOT = re.compile(r"snapshot_(\d{12,})\.npz")
_KIND = "snapshot"


def snapshots(state_directory: Path) -> list[tuple[int, Path]]:
    """Positions and files of the snapshots there, newest first."""
    names = os.listdir(state_directory) if state_directory.is_dir() else []
    found = [(int(match[1]), state_directory / name) for name in names if (match := _SNAPSHOT.fullmatch(name))]
    return sorted(found, reverse=True)


def write_snapshot(state_directory: Path, position: int, state: Mapping[str, Array]) -> Path:
    """Write a snapshot, whole or not at all, and delete all but the newest two. Raises OSError."""
    path = state_directory / f"snapshot_{position:012d}.npz"
    with checked_file(path, _KIND) as payload, zipfile.ZipFile(cast(IO[bytes], payload), "w") as archive:
        for name, array in state.items():  # as `numpy.savez`, which wants a file that can be read too
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    for _, old in snapshots(state_directory)[KEPT:]:
        old.unlink()
    return path


def read_snapshot(path: Path) -> dict[str, Array]:
    """The state of a snapshot. Raises DamagedError, NewerFormatError, or OSError if it cannot be read now."""
    data = read_checked(path, _KIND)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # its bytes are as they were written, by a program of another make
        raise DamagedError(f"it is no numpy archive: {error}") from error


def read_snapshots(state_directory: Path, damages: Damages | None = None) -> Iterator[tuple[int, dict[str, Array]]]:
    """Positions and states, the newest first. One that is damaged is moved aside, if `damages` is given, or else skipped.

    Raises OSError for one that cannot be read now, and NewerFormatError.
    """
    for position, path in snapshots(state_directory):
        try:
            state = read_snapshot(path)
        except DamagedError as error:
            if damages is not None:
                damages.move_aside(path, _KIND, str(error))
            continue
        yield position, state
