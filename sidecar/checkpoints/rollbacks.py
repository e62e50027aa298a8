"""Which stable checkpoints are on trial, and which were taken back: `rollbacks.json` in the checkpoint directory.

    {"on_trial": {"model_v000003": "model_v000002"},
     "rolled_back": {"model_v000001": {"predecessor": …, "reason": …, …}}}

A checkpoint that becomes stable by the gate is on trial until pairs that come after it have decided. Its predecessor is the
last stable one that was not on trial itself, so that a bad one that was replaced before its trial ended is no measure, and
nothing to go back to. One that was made stable by hand, or has none before it, is not on trial.

The record is written before the links move, under the lock of the directory. What it says counts for the checkpoint that
`stable.onnx` names, and for no other: where a crash came in between, it says what is still true.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sidecar.files import read_regular, sync_directory, write_whole

_log = logging.getLogger(__name__)
ROLLBACKS = "rollbacks.json"
_MOST_BYTES = 1 << 20
_MOST_ROLLED_BACK = 100
_NO_RECORD = (errno.EINVAL, errno.ELOOP, errno.EFBIG)  # not a regular file, or too large: nothing that passes
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Rollbacks:
    """on_trial: the predecessor of each checkpoint on trial, by name. rolled_back: why, with the figures, the oldest first."""

    on_trial: dict[str, str] = field(default_factory=dict)
    rolled_back: dict[str, dict[str, Any]] = field(default_factory=dict)

    def published(self, name: str, stable: str | None, on_trial: bool) -> Rollbacks:
        """After a checkpoint has passed the gate. stable: the one that was stable so far, None if there was none."""
        predecessors = {} if stable is None else {stable: self.on_trial.get(stable, stable)}
        still = {each: before for each, before in predecessors.items() if each != before}  # if the links are not moved
        return Rollbacks(still | ({name: predecessors[stable]} if stable and on_trial else {}), self.rolled_back)

    def by_hand(self, name: str) -> Rollbacks:
        """Before a checkpoint is made stable by hand: whoever does that has decided."""
        return Rollbacks(_without(self.on_trial, name), _without(self.rolled_back, name))

    def ended(self) -> Rollbacks:
        """After the trial of the stable one."""
        return Rollbacks({}, self.rolled_back)

    def taken_back(self, name: str, why: dict[str, Any]) -> Rollbacks:
        """Before a checkpoint is taken back. It is on trial until the links move: after a crash the trial is held again."""
        rolled_back = _without(self.rolled_back, name) | {name: {"predecessor": self.on_trial[name], **why}}
        return Rollbacks(self.on_trial, dict([*rolled_back.items()][-_MOST_ROLLED_BACK:]))


def read_rollbacks(directory: Path) -> Rollbacks:
    """The record of a checkpoint directory; empty if there is none, or with a warning if it is none of this program's.

    Raises OSError if it cannot be read now.
    """
    try:
        return msgspec.json.decode(read_regular(directory / ROLLBACKS, _MOST_BYTES), type=Rollbacks)
    except FileNotFoundError:
        pass
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_RECORD:
            raise
        _log.warning("%s is passed over: %s", directory / ROLLBACKS, error)
    return Rollbacks()


def write_rollbacks(directory: Path, rollbacks: Rollbacks) -> None:
    """Write the record, if it has changed. Raises OSError."""
    if rollbacks != read_rollbacks(directory):
        write_whole(directory / ROLLBACKS, msgspec.json.format(msgspec.json.encode(rollbacks)) + b"\n")
        sync_directory(directory)


def _without(names: dict[str, _Value], name: str) -> dict[str, _Value]:
    return {each: value for each, value in names.items() if each != name}
