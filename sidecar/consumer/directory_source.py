"""Checkpoints in a directory, or behind a link into one."""

from __future__ import annotations

import os
from collections.abc import Hashable
from pathlib import Path

from onnx_builder.constants import MAX_BYTES
from sidecar.consumer.source import CHECKPOINT, MOST_DIGEST_BYTES, Fetched, SourceError
from sidecar.files import read_regular
from sidecar.models.description import MOST_WRITTEN


class DirectorySource:
    """Follows a link to a checkpoint's model, or the model's own file.

    A link is resolved once for each look, and what lies beside its target is of the same version, wherever the link points a
    moment later. otherwise: what is followed where there is no such link.
    """

    def __init__(self, link: Path, otherwise: Path | None = None) -> None:
        self._link, self._otherwise = link, otherwise

    def fetch(self, seen: Hashable, in_use: bool) -> Fetched | None:
        link = self._link if self._otherwise is None or os.path.lexists(self._link) else self._otherwise
        model = Path(os.path.realpath(link))
        files = (model, Path(f"{model}.sha256"), model.with_suffix(".json"))
        try:
            seal = (str(model), *map(_state_of, files))  # before they are read: who writes meanwhile makes another
            if seal == seen:
                return None
            name = CHECKPOINT.fullmatch(model.stem)
            if name is None or model.suffix != ".onnx":
                raise SourceError(f"{link}: points to {model.name}; expected a checkpoint, model_vNNNNNN.onnx")
            digest, description = read_regular(files[1], MOST_DIGEST_BYTES), read_regular(files[2], MOST_WRITTEN)
            return Fetched(str(model), int(name[1]), read_regular(model, MAX_BYTES), digest, description, seal)
        except OSError as error:
            what = error.filename or link
            raise SourceError(f"{what}: {(error.strerror or str(error)).lower()}") from error


def _state_of(path: Path) -> tuple[int, ...]:
    about = os.stat(path)
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
