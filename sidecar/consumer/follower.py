"""Following a model: each version once, verified, as soon as somebody looks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable
from os import PathLike, fspath
from pathlib import Path

from sidecar.checkpoints.directory import tenant_directory
from sidecar.consumer.directory_source import DirectorySource
from sidecar.consumer.http_source import HttpSource
from sidecar.consumer.source import Fetched, Source, choose
from sidecar.consumer.verified import RefusedError, VerifiedModel, verified
from sidecar.settings import TENANT_ALLOWED, TENANT_PATTERN


class Follower:
    """Looks at a source and gives each new model once.

    source: a checkpoint directory, the path of a link or a model in one, or the URL of a sidecar that gives models out. policy:
    `latest-stable`, `latest`, or `pinned`, with a version; the path of a link is followed as it is. accept: called with each
    verified model, raises RefusedError for one that does not fit. tenant: whose model it is, None for the shared one, which a
    tenant without one of its own has, too. Raises ValueError for arguments that cannot be used.
    """

    def __init__(
        self,
        source: str | PathLike[str],
        policy: str = "latest-stable",
        version: int | None = None,
        accept: Callable[[VerifiedModel], None] = lambda model: None,
        tenant: str | None = None,
    ) -> None:
        self._source = source_of(source, policy, version, tenant)
        self._pinned = version
        self._accept = accept
        self._seen: Hashable = None
        self._content: tuple[str, bytes, bytes, bytes] | None = None
        self._in_use = False

    def news(self) -> VerifiedModel | None:
        """A model that was not there before, None if there is none.

        Raises SourceError if nothing can be read, whenever it is called until something can; and RefusedError, once for each
        model that is not to be used. It is read again when its files have changed, and given once more only if what is in them
        has. If anything else is raised, or a fork comes in between, the model is news at the next call.
        """
        fetched = self._source.fetch(self._seen, self._in_use)
        if fetched is None:
            return None
        content = fetched.name, hashlib.sha256(fetched.model).digest(), fetched.digest, fetched.description
        if content == self._content:
            self._seen = fetched.seal
            return None
        try:
            model = self._checked(fetched)
        except RefusedError:
            self._seen, self._content, self._in_use = fetched.seal, content, False
            raise
        self._seen, self._content, self._in_use = fetched.seal, content, True
        return model

    def _checked(self, fetched: Fetched) -> VerifiedModel:
        if self._pinned not in (None, fetched.version):
            raise RefusedError(f"{fetched.place}: is {fetched.name}; expected version {self._pinned}")
        model = verified(fetched)
        self._accept(model)
        return model


def source_of(source: str | PathLike[str], policy: str, version: int | None, tenant: str | None = None) -> Source:
    """The source that a path or a URL names. Raises ValueError that names the value and what is allowed."""
    name, where = choose(policy, version), fspath(source)
    if not where:
        raise ValueError("source='': expected a checkpoint directory, the path of a link to a model, or http://HOST:PORT")
    if tenant is not None and not re.fullmatch(TENANT_PATTERN, tenant):
        raise ValueError(f"tenant={tenant!r}: expected {TENANT_ALLOWED}")
    if "://" in where:
        return HttpSource(where, name, tenant)
    path = Path(where)
    if path.suffix != ".onnx" or path.is_dir():
        if tenant:
            return DirectorySource(
                tenant_directory(path, tenant) / f"{name}.onnx", path / f"{name}.onnx" if version is None else None
            )
        return DirectorySource(path / f"{name}.onnx")
    given = f"policy={policy!r}" if policy != "latest-stable" else f"tenant={tenant!r}" if tenant else ""
    if given:
        raise ValueError(f"{given}: expected a checkpoint directory with it, got {where}")
    return DirectorySource(path)
