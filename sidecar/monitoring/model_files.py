"""Checkpoints over HTTP: `/models/stable.onnx`, `latest.onnx`, `model_v000042.onnx`, each also `.json` and `.onnx.sha256`.

The same of a tenant under `/models/tenants/NAME/`; a tenant without a stable one of its own has the shared one there.

A file is read whole before the first byte of it is sent, so that it does not matter if it is pruned meanwhile. What was read is
looked at: a model that is not what its digest says, or a JSON of another version, is not given out.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from weakref import WeakValueDictionary

from onnx_builder.constants import MAX_BYTES
from sidecar.checkpoints.directory import MOST_DIGEST_BYTES, TENANTS, Checkpoint, linked, read_digest, tenant_directory
from sidecar.files import open_regular
from sidecar.log import Complaints
from sidecar.models.description import MOST_WRITTEN
from sidecar.network.http import TEXT, Page, unavailable, unchanged
from sidecar.settings import TENANT_PATTERN

_log = logging.getLogger(__name__)
FOLDER = "/models/"
MOST_SENT_BYTES = 2 * MAX_BYTES
"""Of all files that are being sent. One that is sent to several clients counts once."""
_MOST_KNOWN = 256
_LOOKS = 3
_NAME = re.compile(rf"(?:{TENANTS}/({TENANT_PATTERN})/)?(stable|latest|model_v([0-9]{{6,18}}))\.(onnx\.sha256|onnx|json)")
_KINDS = {  # ending: the type, and the most bytes
    "onnx": ("application/octet-stream", MAX_BYTES),
    "json": ("application/json", MOST_WRITTEN),
    "onnx.sha256": (TEXT, MOST_DIGEST_BYTES),
}
_SHA256 = re.compile(rb"[0-9a-f]{64}\n")
_NOT_HERE = Page(
    b"no such model; there may be stable.onnx, latest.onnx and model_vNNNNNN.onnx, each also .json and .onnx.sha256\n",
    TEXT,
    HTTPStatus.NOT_FOUND,
)
_State = tuple[str | int, ...]
"""A file's name, and what tells it from another one and from itself after a change."""


class ModelFiles:
    """The files of a checkpoint directory. For one thread, which may wait for the disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._complaints = Complaints(_log)
        self._pages: WeakValueDictionary[_State, Page] = WeakValueDictionary()  # those that are being sent
        self._etags: dict[_State, str] = {}

    def look_up(self, name: str, headers: Mapping[str, str]) -> Page:
        """The answer to a request for `/models/<name>`."""
        asked = _NAME.fullmatch(name)
        if asked is None:
            return _NOT_HERE
        tenant, stem, version, ending = asked.groups()
        directory = tenant_directory(self._directory, tenant) if tenant else self._directory
        for _ in range(_LOOKS):
            checkpoint = Checkpoint(directory, int(version)) if version else linked(directory, f"{stem}.onnx")
            if checkpoint is None and not version:  # a tenant that has none of its own
                checkpoint = linked(self._directory, f"{stem}.onnx")
            if checkpoint is None or (version and checkpoint.name != stem) or not checkpoint.model.is_file():
                continue
            try:
                return self._page(checkpoint, ending, headers, is_elsewhere=checkpoint.directory != directory)
            except FileNotFoundError:  # pruned just now; a link names another one
                continue
            except OSError as error:
                return self._refused(checkpoint, error.strerror or str(error))
        return _NOT_HERE

    def _page(self, checkpoint: Checkpoint, ending: str, headers: Mapping[str, str], is_elsewhere: bool) -> Page:
        """A file, or that the client has it. Raises OSError.

        is_elsewhere: a shared one was found in the place of a tenant's; with it comes where it, and what lies beside it, is.
        """
        path = checkpoint.directory / f"{checkpoint.name}.{ending}"
        with open_regular(path) as stream:
            about = os.fstat(stream.fileno())
            state = (str(path), is_elsewhere, about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
            etag = self._etags.get(state, "")
            if etag and unchanged(headers, etag):
                return _not_modified(checkpoint, etag)
            page = self._pages.get(state)
            if page is not None:
                return page
            content_type, most = _KINDS[ending]
            if about.st_size > most:
                raise OSError(errno.EFBIG, f"{path.name} is larger than {most:,} bytes")
            if sum(len(each.body) for each in self._pages.values()) + about.st_size > MOST_SENT_BYTES:
                return unavailable("other models are being sent")
            body = stream.read(about.st_size)
        digest = hashlib.sha256(body)
        if not _is_whole(checkpoint, ending, body, digest.hexdigest()):
            os.stat(checkpoint.model)  # where it has been pruned, so has its digest
            return self._refused(checkpoint, f"{path.name} is not whole, or not of this version")
        if len(self._etags) == _MOST_KNOWN:
            del self._etags[next(iter(self._etags))]
        self._etags[state] = etag = f'"{digest.hexdigest()}"'
        if unchanged(headers, etag):
            return _not_modified(checkpoint, etag)
        represents = ("Repr-Digest", f"sha-256=:{base64.b64encode(digest.digest()).decode()}:")
        place = (("Content-Location", f"../../{path.name}"),) if is_elsewhere else ()
        told = (*_headers(checkpoint, etag), *place, represents, ("Accept-Ranges", "none"))
        self._pages[state] = page = Page(body, content_type, headers=told, shared=True)
        return page

    def _refused(self, checkpoint: Checkpoint, why: str) -> Page:
        self._complaints.warn("refused", "%s is not given out: %s", checkpoint.name, why)
        return unavailable(f"{checkpoint.name}: {why}")


def _is_whole(checkpoint: Checkpoint, ending: str, body: bytes, digest: str) -> bool:
    """Whether a file is what its name says."""
    if ending == "onnx":
        return read_digest(checkpoint.model) == digest
    if ending == "onnx.sha256":
        return _SHA256.fullmatch(body) is not None
    try:
        about = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(about, dict) and about.get("version") == checkpoint.version


def _not_modified(checkpoint: Checkpoint, etag: str) -> Page:
    return Page(b"", status=HTTPStatus.NOT_MODIFIED, headers=_headers(checkpoint, etag))


def _headers(checkpoint: Checkpoint, etag: str) -> tuple[tuple[str, str], ...]:
    """no-cache: who has it asks whether it is still the one, also for a version: a directory may be begun anew."""
    return ("ETag", etag), ("Cache-Control", "no-cache"), ("X-Vmafx-Model-Version", checkpoint.name)
