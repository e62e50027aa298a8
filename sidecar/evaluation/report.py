"""The report of a run: one HTML file that needs nothing else.

The data, a document of `sidecar/evaluation/document.py`, goes into the page as JSON; `web/report.js` shows it, every text as
text. The page's own policy lets it run only these scripts, which it knows by their digests, and fetch nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sidecar.checkpoints.directory import belongs_to_one
from sidecar.files import try_to_write, write_whole

_WEB = Path(__file__).parents[1] / "web"
_SCRIPTS = ("plot.js", "charts.js", "report.js")
_JOINERS = "\u200c\u200d"
"""Not printable by themselves, but parts of words in some scripts, and of emoji."""


class ReportError(ValueError):
    """A report that cannot be written; the message names the file and says why."""


def check_report_path(path: Path, inputs: Sequence[str | Path], output: Path | None = None) -> None:
    """Raises ReportError if a report could not be written to this path, or would overwrite an input. Leaves nothing behind.

    output: a directory that will exist by then.
    """
    target, made = _target(path), None if output is None else _target(output)
    try:
        if target.is_dir() or target == made:
            raise ReportError(f"{path}: is a directory; the report needs a file")
        if belongs_to_one(path.name) or belongs_to_one(target.name):
            raise ReportError(f"{path}: belongs to a checkpoint; the report needs a file of its own")
        if target.parent == made and not made.exists():
            return
        if not target.parent.is_dir():
            raise ReportError(f"{path}: {path.parent} is not a directory")
        if target.exists() and not target.is_file():
            raise ReportError(f"{path}: cannot be written: not a regular file")
        if target.exists() and any(os.path.exists(each) and target.samefile(each) for each in inputs):
            raise ReportError(f"{path}: is an input of this command; the report needs a file of its own")
        try_to_write(target)
    except OSError as error:
        raise ReportError(f"{path}: cannot be written: {error.strerror or error}") from error


def _target(path: Path) -> Path:
    """The file behind a link, which is written instead of the link."""
    return Path(os.path.realpath(path))


def write_report(path: Path, document: dict[str, Any]) -> None:
    """Write the page, whole or not at all. Raises ReportError."""
    try:
        write_whole(_target(path), render(document))
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror or error}") from error


def render(document: dict[str, Any]) -> bytes:
    """The page that shows a document of numbers, texts, lists and dictionaries."""
    # "<" is escaped, so that no text can end the element that contains it.
    text = json.dumps(_presentable(document), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    data = text.replace("<", "\\u003c")
    scripts = [(_WEB / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    digests = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in scripts)
    parts = {
        "POLICY": f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
        "STYLE": (_WEB / "style.css").read_text(encoding="utf-8"),
        "DOCUMENT": data,
        "SCRIPTS": "".join(f"<script>{each}</script>\n" for each in scripts),
    }
    page = (_WEB / "report.html").read_text(encoding="utf-8")
    first, *rest = page.split("@@")
    return "".join([first, *(parts.get(each, each) for each in rest)]).encode()


def _presentable(value: Any) -> Any:
    """A copy with None for numbers that are not finite, and in texts an escape for each character that cannot be seen."""
    match value:
        case dict():
            return {name: _presentable(each) for name, each in value.items()}
        case list() | tuple():
            return [_presentable(each) for each in value]
        case float():
            return value if math.isfinite(value) else None
        case str():
            return seen(value)
    return value


def seen(text: str) -> str:
    """A text with a Python escape for each character that would be invisible or change the direction of the text."""
    return "".join(each if each.isprintable() or each in _JOINERS else repr(each)[1:-1] for each in text)
