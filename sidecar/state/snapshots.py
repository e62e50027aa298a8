"""Snapshots of the training state: the newest good one and the journal after it are the state after a restart.

A snapshot is a numpy archive, `snapshot_000000001234.npz`, named by the position up to which it holds the pairs; its parts
carry checksums. Two are kept, so that a damaged one costs no more than the pairs between them.
"""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from onnx_builder.network import Array
from sidecar.files import sync_directory, whole_file

_log = logging.getLogger(__name__)
_SNAPSHOT = re.compile(r"snapshot_(\d{12,})\.npz")
KEPT = 2


def snapshots(state_directory: Path) -> list[tuple[int, Path]]:
    """Positions and files of the snapshots there, newest first."""
    names = os.listdir(state_directory) if state_directory.is_dir() else []
    found = [(int(match[1]), state_directory / name) for name in names if (match := _SNAPSHOT.fullmatch(name))]
    return sorted(found, reverse=True)


def write_snapshot(state_directory: Path, position: int, state: Mapping[str, Array]) -> Path:
    """Write a snapshot, whole or not at all, and delete all but the newest two. Raises OSError."""
    path = state_directory / f"snapshot_{position:012d}.npz"
    with whole_file(path) as stream:
        np.savez(stream, allow_pickle=False, **state)
    sync_directory(state_directory)
    for _, old in snapshots(state_directory)[KEPT:]:
        old.unlink()
    return path


def read_snapshots(state_directory: Path, only: str | None = None) -> Iterator[tuple[int, dict[str, Array]]]:
    """Positions and states, or one array of each, the newest first; one that is damaged is passed over with a warning."""
    for position, path in snapshots(state_directory):
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                state = {name: archive[name] for name in archive.files if only in (None, name)}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
            _log.warning("%s is damaged and passed over: %s", path, error)
            continue
        yield position, state
