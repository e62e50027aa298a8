"""How many pairs of a state the last checkpoint had learned from: the one number of it that is no function of its pairs."""

from __future__ import annotations

from pathlib import Path

from sidecar.state.checked import DamagedError, NewerFormatError, read_checked, write_checked

PUBLISHED = "published"
_KIND = "published"


def read_published_pairs(state_directory: Path) -> int:
    """How many pairs had trained when this state's last checkpoint was published; 0 if that is unknown."""
    try:
        return int(read_checked(state_directory / PUBLISHED, _KIND))
    except (OSError, DamagedError, NewerFormatError, ValueError):
        return 0


def write_published_pairs(state_directory: Path, pairs: int) -> None:
    """Raises OSError."""
    write_checked(state_directory / PUBLISHED, _KIND, f"{pairs}\n".encode())


def forget_published_pairs(state_directory: Path) -> None:
    """The number is no longer known. Raises OSError."""
    (state_directory / PUBLISHED).unlink(missing_ok=True)
