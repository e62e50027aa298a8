"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

TEMPORARY = ".tmp-"
"""What the name of a file that is being written begins with; one that is found was left by a crash."""


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write aside, bring to disk, rename into place. Raises OSError, having removed what it wrote."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_directory(directory: Path) -> None:
    """Bring a directory's names to disk. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
