"""Whether the checkpoint directory is still there, and still the same one."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from sidecar.checkpoints.directory import LATEST, STABLE, linked
from sidecar.files import make_directories
from sidecar.log import Complaints, event

_log = logging.getLogger(__name__)


class DirectoryWatch:
    """Tells if a checkpoint directory was removed or replaced, and makes it again.

    holds_state: the state directory is in it. Then it is not made again: the state has gone with it, and who puts back the one
    puts back the other. lost: how many times it was found removed or replaced.
    """

    def __init__(self, directory: Path, holds_state: bool) -> None:
        self._directory, self._holds_state = directory, holds_state
        self._complaints = Complaints(_log)
        self._known = _identity(directory)
        self._links: dict[str, int | None] = {LATEST: None, STABLE: None}
        self.lost = 0

    def look(self) -> dict[str, int | None]:
        """See to the directory; gives the versions that its links name, None where they name none.

        What cannot be read now is as it was at the last look.
        """
        for see in (self._see_to_it, self._read_links):
            try:
                see()
            except OSError as error:
                self._complaints.warn("directory", "%s: %s; looking again", self._directory, error.strerror or error)
        return self._links

    def _read_links(self) -> None:
        links = {link: linked(self._directory, link) for link in self._links}
        self._links = {link: checkpoint.version if checkpoint else None for link, checkpoint in links.items()}

    def _see_to_it(self) -> None:
        known, self._known = self._known, _identity(self._directory)
        if known == self._known is not None:
            return
        if known is not None:
            self.lost += 1
            self._tell("replaced" if self._known else "removed", logging.WARNING)
        elif self._known is not None:
            self._tell("put back")
        if self._known is None and not self._holds_state:
            make_directories(self._directory)
            self._known = _identity(self._directory)
            self._tell("made again")

    def _tell(self, what: str, level: int = logging.INFO) -> None:
        event(_log, f"the checkpoint directory was {what}", level, directory=str(self._directory))


def _identity(directory: Path) -> tuple[int, int] | None:
    """What tells a directory from another one of its name; None where there is none. Raises OSError if nobody can say."""
    try:
        about = os.stat(directory)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (about.st_dev, about.st_ino) if stat.S_ISDIR(about.st_mode) else None
