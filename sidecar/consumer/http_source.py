"""Checkpoints of a sidecar that gives them out over HTTP."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Hashable
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit

from onnx_builder.constants import MAX_BYTES
from sidecar.consumer.source import CHECKPOINT, MOST_DIGEST_BYTES, Fetched, SourceError
from sidecar.models.description import MOST_WRITTEN
from sidecar.network.http_client import Answer, NotHttpError, get

FETCH_SECONDS = 30.0
"""For all that belongs to one version, however slowly it comes."""
_DIGEST = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/=]*):")


class _File(NamedTuple):
    """A file that was sent, as a seal has it."""

    target: str
    most: int
    etag: str


class HttpSource:
    """Follows a model at `http://HOST:PORT`, with whatever path a proxy has put before `/models`.

    The model says in a header which version it is, and what lies beside it is then asked for by that version. A file that is
    known is asked for by its ETag, and not sent again. Raises ValueError for another URL.
    """

    def __init__(self, url: str, name: str) -> None:
        parts = urlsplit(url)
        allowed = "expected http://HOST:PORT or https://HOST, without a user, a query and a fragment"
        try:
            port, host = parts.port, parts.hostname
        except ValueError as error:
            raise ValueError(f"{url}: {error}; {allowed}") from None
        if parts.scheme not in ("http", "https") or not host or parts.username is not None or parts.query or parts.fragment:
            raise ValueError(f"{url}: {allowed}")
        if not re.fullmatch(r"[!-~]*", parts.path) or parts.path.endswith(".onnx"):
            raise ValueError(f"{url}: {allowed}; the path before /models, if there is one")
        self._host, self._tls = host, parts.scheme == "https"
        self._port = port or (443 if self._tls else 80)
        self._url = url.rstrip("/")
        self._folder = f"{parts.path.rstrip('/')}/models"
        self._model = f"{self._folder}/{name}.onnx"

    def fetch(self, seen: Hashable, in_use: bool) -> Fetched | None:
        until = time.monotonic() + FETCH_SECONDS
        files: tuple[_File, ...] = seen if isinstance(seen, tuple) else ()
        model = self._get(self._model, MAX_BYTES, until, files[0].etag if files else "")
        if model is None:
            if in_use or all(self._get(*file[:2], until, file.etag) is None for file in files[1:]):
                return None
            model = self._get(self._model, MAX_BYTES, until)
        stated = model.headers.get("x-vmafx-model-version", "") if model else ""
        version = CHECKPOINT.fullmatch(stated)
        if model is None or version is None:
            raise SourceError(f"{self._at(self._model)}: X-Vmafx-Model-Version is {stated[:64]!r}; expected model_vNNNNNN")
        wanted = {".onnx.sha256": MOST_DIGEST_BYTES, ".json": MOST_WRITTEN}
        beside = {f"{self._folder}/{stated}{ending}": most for ending, most in wanted.items()}
        digest, description = (self._require(target, most, until) for target, most in beside.items())
        came = zip((self._model, *beside), (MAX_BYTES, *beside.values()), (model, digest, description), strict=True)
        seal = tuple(_File(target, most, answer.headers.get("etag", "")) for target, most, answer in came)
        return Fetched(self._at(self._model), int(version[1]), model.body, digest.body, description.body, seal)

    def _require(self, target: str, most: int, until: float) -> Answer:
        answer = self._get(target, most, until)
        if answer is None:
            raise SourceError(f"{self._at(target)}: answered 304 to a request without If-None-Match")
        return answer

    def _get(self, target: str, most: int, until: float, etag: str = "") -> Answer | None:
        """A file, None if it still has an ETag. Raises SourceError."""
        headers = {"If-None-Match": etag} if etag else {}
        try:
            answer = get(self._host, self._port, target, headers=headers, most=most, until=until, tls=self._tls)
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that no host can have
            reason = getattr(error, "strerror", None) or error or type(error).__name__
            raise SourceError(f"{self._at(target)}: no answer: {reason}") from error
        except NotHttpError as error:
            raise SourceError(f"{self._at(target)}: {error}") from error
        if answer.status == HTTPStatus.NOT_MODIFIED and etag:
            return None
        if answer.status != HTTPStatus.OK:
            raise SourceError(f"{self._at(target)}: answered {answer.status}{_hint(answer.status)}")
        _check_digest(self._at(target), answer)
        return answer

    def _at(self, target: str) -> str:
        return self._url + target.removeprefix(self._folder.removesuffix("/models"))


def _hint(status: int) -> str:
    if status == HTTPStatus.NOT_FOUND:
        return "; there is no such model, or the sidecar runs without --http-models"
    return "; redirects are not followed" if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST else ""


def _check_digest(where: str, answer: Answer) -> None:
    """Compares a body with its `Repr-Digest` (RFC 9530), where that has one of SHA-256. Raises SourceError."""
    stated = _DIGEST.search(answer.headers.get("repr-digest", ""))
    actual = hashlib.sha256(answer.body).digest()
    if stated is not None and base64.b64encode(actual).decode() != stated[1]:
        raise SourceError(f"{where}: what came is not what its Repr-Digest says")
