"""Counters that belong to a state and are no function of its pairs."""

from __future__ import annotations

from pathlib import Path

PUBLISHED = "published"
"""The file in the state directory that says how many pairs had trained when this state's last checkpoint was published."""


def read_trained(state_directory: Path) -> int:
    try:
        return int((state_directory / PUBLISHED).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
