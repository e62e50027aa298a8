"""Checkpoints of a sidecar that gives them out over HTTP."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Hashable
from http import HTTPStatus
from typing import NamedTuple

from onnx_builder.constants import MAX_BYTES
from sidecar.checkpoints.directory import TENANTS
from sidecar.consumer.source import CHECKPOINT, MOST_DIGEST_BYTES, Fetched, SourceError
from sidecar.models.description import MOST_WRITTEN
from sidecar.network.address import parse_url
from sidecar.network.http_client import Answer, NotHttpError, get

FETCH_SECONDS = 30.0
"""For all that belongs to one version, however slowly it comes."""
_VERSION = "x-vmafx-model-version"
_DIGEST = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/=]*):")


class _File(NamedTuple):
    """A file that was sent. vouched: whether what came was the file, as its `Repr-Digest` says."""

    target: str
    most: int
    etag: str
    vouched: bool


class _Seal(NamedTuple):
    """version: as the server named it. files: the model first, then what lies beside it."""

    version: str
    files: tuple[_File, ...]


class HttpSource:
    """Follows a model at `http://HOST:PORT`, with whatever path a proxy has put before `/models`.

    The model says in a header which version it is, and what lies beside it is then asked for by that version. A file that is
    known is asked for by its ETag, and not sent again; but if it was not found good, only where it is sure that it came as it
    is. A tenant's may be the shared one: then Content-Location says where that is. Raises ValueError for another URL.
    """

    def __init__(self, url: str, name: str, tenant: str | None = None) -> None:
        self._host, self._port, path, self._tls = parse_url(url)
        if path.endswith(".onnx"):
            raise ValueError(f"{url}: expected the path before /models, if there is one")
        self._url = url.rstrip("/")
        self._shared = f"{path}/models"
        self._folder = f"{self._shared}/{TENANTS}/{tenant}" if tenant else self._shared
        self._model = f"{self._folder}/{name}.onnx"

    def fetch(self, seen: Hashable, in_use: bool) -> Fetched | None:
        until = time.monotonic() + FETCH_SECONDS
        before = seen if isinstance(seen, _Seal) else None
        etags = [file.etag if in_use or file.vouched else "" for file in before.files] if before else [""]
        model = self._get(self._model, MAX_BYTES, until, etags[0])
        if before and model.status == HTTPStatus.NOT_MODIFIED:
            # A model of the same weights under another version is another one.
            same = model.headers.get(_VERSION, before.version) == before.version
            beside = [] if in_use else [*zip(before.files, etags, strict=True)][1:]
            known = (self._get(file.target, file.most, until, etag).status == HTTPStatus.NOT_MODIFIED for file, etag in beside)
            if same and all(known):
                return None
            model = self._get(self._model, MAX_BYTES, until)
        stated = model.headers.get(_VERSION, "")
        version = CHECKPOINT.fullmatch(stated)
        if version is None:
            raise SourceError(f"{self._at(self._model)}: X-Vmafx-Model-Version is {stated[:64]!r}; expected model_vNNNNNN")
        is_shared = model.headers.get("content-location") == f"../../{stated}.onnx"
        folder = self._shared if is_shared else self._folder
        digest_at, description_at = (f"{folder}/{stated}{ending}" for ending in (".onnx.sha256", ".json"))
        digest = self._get(digest_at, MOST_DIGEST_BYTES, until)
        description = self._get(description_at, MOST_WRITTEN, until)
        files = (
            _file(self._model, MAX_BYTES, model),
            _file(digest_at, MOST_DIGEST_BYTES, digest),
            _file(description_at, MOST_WRITTEN, description),
        )
        seal = _Seal(stated, files)
        return Fetched(self._at(self._model), int(version[1]), model.body, digest.body, description.body, seal)

    def _get(self, target: str, most: int, until: float, etag: str = "") -> Answer:
        """A file; with an ETag, perhaps the answer that it still has that. Raises SourceError."""
        headers = {"If-None-Match": etag} if etag else {}
        try:
            answer = get(self._host, self._port, target, headers=headers, most=most, until=until, tls=self._tls)
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that no host can have
            reason = getattr(error, "strerror", None) or error or type(error).__name__
            raise SourceError(f"{self._at(target)}: no answer: {reason}") from error
        except NotHttpError as error:
            raise SourceError(f"{self._at(target)}: {error}") from error
        if answer.status == HTTPStatus.OK:
            coding = answer.headers.get("content-encoding", "identity")
            if coding != "identity":
                raise SourceError(f"{self._at(target)}: came as {coding[:64]}, though only the file as it is was asked for")
            if not _digest_agrees(answer):
                raise SourceError(f"{self._at(target)}: what came is not what its Repr-Digest says")
        elif answer.status != HTTPStatus.NOT_MODIFIED or not etag:
            raise SourceError(f"{self._at(target)}: answered {answer.status}{_hint(answer.status)}")
        return answer

    def _at(self, target: str) -> str:
        return self._url + target.removeprefix(self._shared.removesuffix("/models"))


def _file(target: str, most: int, answer: Answer) -> _File:
    return _File(target, most, answer.headers.get("etag", ""), _stated_digest(answer) is not None)


def _hint(status: int) -> str:
    if status == HTTPStatus.NOT_FOUND:
        return "; there is no such model, or the sidecar runs without --http-models 1"
    return "; redirects are not followed" if status // 100 == 3 and status != HTTPStatus.NOT_MODIFIED else ""


def _stated_digest(answer: Answer) -> str | None:
    """The SHA-256 that `Repr-Digest` (RFC 9530) states, in base64; None where it states none."""
    stated = _DIGEST.search(answer.headers.get("repr-digest", ""))
    return stated and stated[1]


def _digest_agrees(answer: Answer) -> bool:
    stated = _stated_digest(answer)
    return stated is None or base64.b64encode(hashlib.sha256(answer.body).digest()).decode() == stated
