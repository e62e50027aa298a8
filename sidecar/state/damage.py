"""What is damaged in a state directory: named, moved aside, counted, and told."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from pathlib import Path

from sidecar.log import event

_log = logging.getLogger(__name__)
ASIDE = "damaged"
MOST_FILES, MOST_BYTES = 32, 512 << 20
"""What is kept in `damaged/`; beyond that, the oldest go."""


class Damages:
    """The damage found in a state directory. counts: by kind of file, of this process. names: of what is in `damaged/`."""

    def __init__(self, state_directory: Path) -> None:
        self._aside = state_directory / ASIDE
        self.counts: dict[str, int] = {}
        self.names = self._kept()

    def move_aside(self, path: Path, kind: str, reason: str) -> None:
        """A damaged file goes to `damaged/`. Where that cannot be, it stays."""
        self._found(path, kind, reason)
        with contextlib.suppress(OSError):
            os.rename(path, self._place_for(path))
        self._make_room()

    def copy_aside(self, path: Path, kind: str, reason: str) -> None:
        """A copy of a damaged file, which is about to be repaired, goes to `damaged/`."""
        self._found(path, kind, reason)
        place = None
        try:
            place = self._place_for(path)
            os.link(path, place)
        except OSError:
            if place is not None:
                with contextlib.suppress(OSError):  # no room for a copy, say: what is whole of it stays all the same
                    shutil.copy2(path, place)
        self._make_room()

    def clear(self) -> None:
        """Delete all that is in `damaged/`. Raises OSError."""
        if self._aside.is_dir():
            shutil.rmtree(self._aside)
        self.names = []

    def note(self, path: Path, kind: str, reason: str) -> None:
        """Something is damaged or missing that cannot be moved."""
        self._found(path, kind, reason)

    def _found(self, path: Path, kind: str, reason: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        event(_log, "damage in the state directory", logging.ERROR, file=str(path), kind=kind, reason=reason)

    def _place_for(self, path: Path) -> Path:
        self._aside.mkdir(exist_ok=True)
        number = 1 + max((int(name.partition("-")[0]) for name in self._kept() if name.partition("-")[0].isdigit()), default=0)
        return self._aside / f"{number:06d}-{path.name}"

    def _kept(self) -> list[str]:
        return sorted(os.listdir(self._aside)) if self._aside.is_dir() else []

    def _make_room(self) -> None:
        names = self._kept()
        with contextlib.suppress(OSError):
            sizes = {name: (self._aside / name).lstat().st_size for name in names}
            while len(names) > MOST_FILES or (len(names) > 1 and sum(sizes[name] for name in names) > MOST_BYTES):
                (self._aside / names.pop(0)).unlink()
        self.names = names
