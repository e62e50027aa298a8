"""The checkpoint directory: versioned models that appear whole or not at all.

    model_v000042.onnx          the model
    model_v000042.onnx.sha256   its SHA-256
    model_v000042.json          what it is
    latest.onnx, latest.json    symbolic links to the newest
    stable.onnx, stable.json    symbolic links to the newest that passed the gate and was not taken back
    rollbacks.json              which were, and which may still be: see `rollbacks.py`
    tenants/NAME/               the same of a tenant; its stable links may point to the shared ones instead

Every change is made under one lock on the directory, so that several writers can share it. The next version number is
written down durably before anything else and is never used again. Then the JSON, the digest and the model are each
written to a temporary file, fsynced and renamed, in this order: whoever sees a model finds the other two complete beside it.
The directory is fsynced in between, so that the same is true of what a power cut leaves.
Only then are the links moved, one after the other, each to a file of a complete checkpoint: whoever resolves one of them once
and takes the files beside its target has one checkpoint. A link to a JSON follows the link to the model; where a crash came
between the two, the next writer moves it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.checkpoints.rollbacks import ROLLBACKS, Rollbacks, read_rollbacks, write_rollbacks
from sidecar.files import TEMPORARY, make_directories, read_regular, sync_directory, write_whole
from sidecar.models.description import DescriptionError, as_bytes, read_description

_log = logging.getLogger(__name__)
LATEST, STABLE = "latest.onnx", "stable.onnx"
_LINKS = {LATEST: "latest.json", STABLE: "stable.json"}
"""The link to the JSON that belongs to each link to a model."""
TENANTS = "tenants"
_SHARED = Path("..", "..")
"""The shared directory, from a tenant's."""
_LOCK, _NEXT_VERSION = ".lock", ".next_version"
MOST_DIGEST_BYTES = 4096
_MODEL = re.compile(r"model_v(\d{6,})\.onnx")
_PART = re.compile(r"model_v(\d{6,})\.(onnx\.sha256|json)")


class CheckpointError(ValueError):
    """A checkpoint or checkpoint directory that cannot be used; the message names it and says why."""


class LockedError(CheckpointError):
    """Another process holds the lock of a checkpoint directory; the message names it, where the system knows it."""


@dataclass(frozen=True)
class Checkpoint:
    """A published model in its directory."""

    directory: Path
    version: int

    @property
    def name(self) -> str:
        return f"model_v{self.version:06d}"

    @property
    def model(self) -> Path:
        return self.directory / f"{self.name}.onnx"

    @property
    def digest(self) -> Path:
        return self.directory / f"{self.name}.onnx.sha256"

    @property
    def description(self) -> Path:
        return self.directory / f"{self.name}.json"


def belongs_to_one(name: str) -> bool:
    """Whether a file of this name in a checkpoint directory belongs to a checkpoint, or is a link to one."""
    return name in {*_LINKS, *_LINKS.values(), ROLLBACKS} or bool(_MODEL.fullmatch(name) or _PART.fullmatch(name))


def check_writable(directory: Path) -> None:
    """Raises CheckpointError if a directory cannot be written to, or could not be created. Creates nothing."""
    existing = directory.absolute()
    while not existing.exists() and not existing.is_symlink():
        existing = existing.parent
    if not existing.is_dir():
        raise CheckpointError(f"{directory}: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise CheckpointError(f"{directory}: {existing} is not writable")


def checkpoints(directory: Path) -> list[Checkpoint]:
    """All published checkpoints, oldest first; none if there is no such directory."""
    if not directory.is_dir():
        return []
    with os.scandir(directory) as entries:
        found = [match for each in entries if (match := _MODEL.fullmatch(each.name)) and each.is_file(follow_symlinks=False)]
    return [Checkpoint(directory, version) for version in sorted(int(match[1]) for match in found)]


def linked(directory: Path, link: str) -> Checkpoint | None:
    """The checkpoint that `latest.onnx` or `stable.onnx` points to; None if the link is missing or points to none here."""
    try:
        target = os.readlink(directory / link)
    except OSError:
        return None
    return named(directory, target.removesuffix(".onnx")) if target.endswith(".onnx") else None


def named(directory: Path, name: str) -> Checkpoint | None:
    """The checkpoint of a name; None if there is none."""
    match = _MODEL.fullmatch(f"{name}.onnx")
    found = Checkpoint(directory, int(match[1])) if match else None
    return found if found is not None and found.model.is_file() else None


def trained_after(checkpoint_directory: Path, state_directory: Path, position: int) -> list[str]:
    """Names of the checkpoints that a state published after it had trained on the pair at a position."""
    names = []
    own = sorted(each for each in (checkpoint_directory / TENANTS).glob("*") if each.is_dir())
    for checkpoint in itertools.chain.from_iterable(map(checkpoints, [checkpoint_directory, *own])):
        try:
            journal = (read_description(checkpoint.model) or {}).get("journal")
        except DescriptionError:
            continue
        if not isinstance(journal, dict) or journal.get("directory") != str(state_directory.resolve()):
            continue
        last = journal.get("last")
        if isinstance(last, int) and last >= position:
            names.append(str(checkpoint.directory.relative_to(checkpoint_directory) / checkpoint.name))
    return names


def publish(
    directory: Path,
    model: bytes,
    description: dict[str, Any],
    *,
    latest: bool = True,
    stable: bool = False,
    on_trial: bool = False,
    keep: int = 0,
    lock_s: float = 60.0,
) -> Checkpoint:
    """Add a model as the next version and point `latest.onnx` and `latest.json` at it.

    model: a serialized, checked ONNX graph. description: what the JSON says about it; name, id, onnx, version, sha256 and
    parent (the version published before it) are filled in here. latest: False leaves those links where they are. stable: point
    `stable.onnx` and `stable.json` at it too. on_trial: it may be taken back later, see `Rollbacks`. keep: how many checkpoints
    to keep; the oldest are deleted, but never one that a link points to, or that may come back; 0 keeps all. lock_s: how long
    to wait, in seconds, for another process that holds the lock of the directory; then LockedError.

    Creates the directory if needed. Raises CheckpointError if it cannot write. What it wrote of this version is then removed,
    and earlier checkpoints and links are unchanged.
    """
    try:
        make_directories(directory)
        with _locked(directory, lock_s):
            _remove_leftovers(directory)
            version, parent = _take_version(directory)
            checkpoint = Checkpoint(directory, version)
            digest = hashlib.sha256(model).hexdigest()
            named = {"name": checkpoint.name, "id": checkpoint.name, "onnx": checkpoint.model.name}
            try:
                about = as_bytes({**named, **description, "version": version, "sha256": digest, **parent})
            except ValueError as error:
                raise CheckpointError(f"{directory}: cannot publish a checkpoint: {error}") from error
            links = [link for link, moves in ((LATEST, latest), (STABLE, stable)) if moves]
            try:
                write_whole(checkpoint.description, about)
                write_whole(checkpoint.digest, f"{digest}\n".encode())
                for link in links:  # made before the model, so that a full disk is noticed before anything is published
                    _prepare_links(directory, _targets(checkpoint, link))
                if stable:
                    before = linked(directory, STABLE)
                    record = read_rollbacks(directory).published(checkpoint.name, before.name if before else None, on_trial)
                    write_rollbacks(directory, record)
                sync_directory(directory)
                write_whole(checkpoint.model, model)
                sync_directory(directory)
            except BaseException:
                checkpoint.model.unlink(missing_ok=True)
                _remove_leftovers(directory)
                raise
            for link in links:
                _move_links(directory, link)
            try:
                _mend_links(directory)
                sync_directory(directory)
                _prune(directory, keep)
                sync_directory(directory)
            except OSError as error:  # the checkpoint is published; what could not be deleted is tried again with the next
                _log.warning("%s: %s", error.filename or directory, error.strerror or error)
            return checkpoint
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot publish a checkpoint: {error.strerror or error}") from error


def promote(directory: Path, version: int) -> Checkpoint:
    """Point `stable.onnx` and `stable.json` at a published version, forward or back.

    Raises CheckpointError if there is no such version.
    """
    checkpoint = Checkpoint(directory, version)
    try:
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: no such directory")
        with _locked(directory):
            if not checkpoint.model.is_file():
                known = ", ".join(str(each.version) for each in checkpoints(directory)[-10:]) or "none"
                raise CheckpointError(f"{directory}: no checkpoint {version}; available: {known}")
            _make_stable(checkpoint, read_rollbacks(directory).by_hand(checkpoint.name))
    except OSError as error:
        raise CheckpointError(f"{directory}: {error.strerror or error}") from error
    return checkpoint


def tenant_directory(directory: Path, tenant: str) -> Path:
    """Where a tenant's checkpoints are."""
    return directory / TENANTS / tenant


def share_stable(directory: Path, lock_s: float = 60.0) -> None:
    """Let a tenant's `stable.onnx` and `stable.json` be the shared ones, whatever these point to. Raises CheckpointError."""
    targets = {name: str(_SHARED / name) for name in (STABLE, _LINKS[STABLE])}
    try:
        make_directories(directory)
        with _locked(directory, lock_s):
            if not all(_target(directory / name) == target for name, target in targets.items()):
                _prepare_links(directory, targets)
                _move_links(directory, STABLE)
                sync_directory(directory)
    except OSError as error:
        raise CheckpointError(f"{directory}: {error.strerror or error}") from error


def _target(link: Path) -> str | None:
    return os.readlink(link) if link.is_symlink() else None


def end_trial(checkpoint: Checkpoint, why: dict[str, Any] | None, lock_s: float = 60.0) -> bool:
    """End the trial of the stable checkpoint.

    why: None if it stays; else it is taken back for this reason, and `stable.onnx` and `stable.json` point to its predecessor.
    lock_s: as in `publish`. Gives False, and changes nothing, if it is no longer the stable one, no longer on trial, or has
    lost its predecessor. Raises CheckpointError.
    """
    directory = checkpoint.directory
    try:
        with _locked(directory, lock_s):
            record = read_rollbacks(directory)
            predecessor = named(directory, record.on_trial.get(checkpoint.name, ""))
            if predecessor is None or linked(directory, STABLE) != checkpoint:
                return False
            if why is not None:
                record = record.taken_back(checkpoint.name, why)
                _make_stable(predecessor, record)
            write_rollbacks(directory, record.ended())
    except OSError as error:
        raise CheckpointError(f"{directory}: {error.strerror or error}") from error
    return True


def _make_stable(checkpoint: Checkpoint, record: Rollbacks) -> None:
    """Write the record, then point `stable.onnx` and `stable.json` at a checkpoint. Raises OSError."""
    directory = checkpoint.directory
    try:
        _prepare_links(directory, _targets(checkpoint, STABLE))
        write_rollbacks(directory, record)
    except BaseException:
        _remove_leftovers(directory)
        raise
    _move_links(directory, STABLE)
    _mend_links(directory)
    sync_directory(directory)


def read_digest(model: Path) -> str | None:
    """The digest in the file beside a model, None if there is no such file."""
    try:
        return read_regular(Path(f"{model}.sha256"), MOST_DIGEST_BYTES).decode("ascii", errors="replace").strip()
    except OSError:
        return None


@contextlib.contextmanager
def _locked(directory: Path, lock_s: float = 60.0) -> Iterator[None]:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(directory / _LOCK, flags, 0o644)
    try:
        until = time.monotonic() + lock_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise LockedError(f"{directory}: {_holder(descriptor)} holds the lock {_LOCK}") from None
                time.sleep(0.003)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Who holds the lock of an open file. On Linux the kernel knows, but for other machines and other containers."""
    about = os.fstat(descriptor)
    file = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5:6] == [file] and int(fields[4]) > 0:
                name = Path(f"/proc/{fields[4]}/comm").read_text().strip()
                return f"process {fields[4]} ({name})"
    return "another process"


def _take_version(directory: Path) -> tuple[int, dict[str, int]]:
    """A version number that was never used before, recorded as used; and the newest published version as {"parent": …}."""
    try:
        recorded = int(read_regular(directory / _NEXT_VERSION, MOST_DIGEST_BYTES))
    except (OSError, ValueError):
        recorded = 1
    published = checkpoints(directory)
    newest = published[-1].version if published else 0
    version = max(recorded, newest + 1)
    write_whole(directory / _NEXT_VERSION, f"{version + 1}\n".encode())
    sync_directory(directory)
    return version, {"parent": newest} if newest else {}


def _targets(checkpoint: Checkpoint, link: str) -> dict[str, str]:
    """What a link to a model, and the one to its JSON, point to."""
    return {link: checkpoint.model.name, _LINKS[link]: checkpoint.description.name}


def _prepare_links(directory: Path, targets: dict[str, str]) -> None:
    """Make links under temporary names. Raises OSError."""
    for name, target in targets.items():
        place, temporary = directory / name, directory / f"{TEMPORARY}{name}"
        if (
            place.is_dir() and not place.is_symlink()
        ):  # nothing can be renamed over it: better to know before the first link moves
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)


def _move_links(directory: Path, link: str) -> None:
    """Put the two prepared links in their place, that to the model first. Raises OSError."""
    for name in (link, _LINKS[link]):
        os.replace(directory / f"{TEMPORARY}{name}", directory / name)


def _mend_links(directory: Path) -> None:
    """Let each link to a JSON follow the link to its model, where a crash or an older program left them apart."""
    for link, other in _LINKS.items():
        checkpoint, place = linked(directory, link), directory / other
        try:
            target = _target(place)
            if checkpoint is None:
                if target is not None and _PART.fullmatch(target):
                    place.unlink()
            elif target != checkpoint.description.name:
                _prepare_links(directory, _targets(checkpoint, link))
                _move_links(directory, link)
        except OSError as error:
            _log.warning("%s: %s", place, error.strerror or error)


def _prune(directory: Path, keep: int) -> None:
    in_use = [linked(directory, link) for link in _LINKS]
    may_come_back = read_rollbacks(directory).on_trial.values()
    in_use += [named(directory, name) for name in may_come_back]
    old = [each for each in checkpoints(directory)[: -keep or None] if each not in in_use] if keep else []
    failed: OSError | None = None
    gone = list[Checkpoint]()
    for checkpoint in old:
        try:
            checkpoint.model.unlink(missing_ok=True)
            gone.append(checkpoint)
        except OSError as error:
            failed = error
    if gone:
        sync_directory(directory)
    for checkpoint in gone:
        for path in (checkpoint.digest, checkpoint.description):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                failed = error
    if failed is not None:
        raise failed


def _remove_leftovers(directory: Path) -> None:
    """Remove what a crash left: temporary files, and digests and JSON files whose model was never written or was pruned."""
    names = set(os.listdir(directory))
    for name in names:
        match = _PART.fullmatch(name)
        orphan = match is not None and Checkpoint(directory, int(match[1])).model.name not in names
        if orphan or name.startswith(TEMPORARY):
            with contextlib.suppress(OSError):  # a directory of such a name, say: somebody else's
                (directory / name).unlink(missing_ok=True)
