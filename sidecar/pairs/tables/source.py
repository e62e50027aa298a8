"""Files as they are found: directories and globs, compression, and what a file is by its first bytes."""

from __future__ import annotations

import glob
import gzip
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from sidecar.journal.segments import journal_segments
from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.lines import STDIN

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".feather", ".arrow", ".npz", ".xml")
"""What the files of a directory are known by; elsewhere, the content counts."""
_COMPRESSED = ("", ".gz", ".zst")
_ASIDE = re.compile(r"\.(old-format|\d+-features)-\d{8}T\d{6}/?$")
_HEAD_BYTES = 1 << 16
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_OTHERS = (
    (b"\xd0\xcf\x11\xe0", "an Excel file (.xls): save the sheet as CSV"),
    (b"%PDF", "a PDF: export the table as CSV"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run git lfs pull"),
    (b"BZh", "compressed with bzip2: decompress it first"),
    (b"\xfd7zXZ", "compressed with xz: decompress it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive: unpack it first"),
    (b"SQLite format 3", "a SQLite database: export the table as CSV"),
    (b"\x89HDF", "an HDF5 file: save the table as parquet or CSV"),
    (b"ORC", "an ORC file: save the table as parquet"),
    (b"\x93NUMPY", "a single numpy array: save features and true_score together with numpy.savez"),
    (b"\x80\x04\x95", "a Python pickle, which is never loaded: save the table as parquet or CSV"),
    (b"\x80\x05\x95", "a Python pickle, which is never loaded: save the table as parquet or CSV"),
    (b"\xff\xfe", "text in UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16: save it as UTF-8"),
)


class Source(NamedTuple):
    """An open file. stream: its bytes, uncompressed; head: the first of them, which the stream still gives."""

    name: str
    stream: IO[bytes]
    head: bytes
    compressed: bool


def expand(path: str) -> list[str]:
    """The files that a path stands for: itself, or what a directory or a glob holds, by name.

    A state directory stands for itself, and a glob for those that it names, too. Raises RecordedPairsError if that is nothing.
    """
    if path == STDIN or os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        if journal_segments(Path(path)):
            return [path]
        names = sorted(name for name in os.listdir(path) if _is_hinted(name) and os.path.isfile(os.path.join(path, name)))
        if not names:
            raise RecordedPairsError(
                f"{path}: a directory without a journal, and without files of pairs ({', '.join(SUFFIXES)})"
            )
        return [os.path.join(path, name) for name in names]
    if glob.has_magic(path) and not os.path.lexists(path):
        found = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name) or _is_state(name))
        if not found:
            raise RecordedPairsError(f"{path}: no file and no state directory has such a name")
        return found
    return [path]


def _is_state(name: str) -> bool:
    """Whether it is a state directory, and not one that a start has moved aside."""
    return not _ASIDE.search(name) and bool(journal_segments(Path(name)))


def _is_hinted(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(tuple(suffix + end for suffix in SUFFIXES for end in _COMPRESSED))


@contextmanager
def opened(name: str) -> Iterator[Source]:
    """A file, or standard input for "-", decompressed if its content is gzip or zstd.

    Raises RecordedPairsError for a file that is none of ours, with what it is and what to do, and OSError.
    """
    if name == STDIN:
        yield _source("standard input", sys.stdin.buffer)
        return
    with open(name, "rb", buffering=_HEAD_BYTES) as stream:
        yield _source(name, stream)


def _source(name: str, stream: IO[bytes]) -> Source:
    buffered, head = _peeked(stream)
    if not head.startswith((_GZIP, _ZSTD)):
        _refuse_others(name, head)
        return Source(name, buffered, head, False)
    plain, head = _peeked(cast(IO[bytes], gzip.GzipFile(fileobj=buffered)) if head.startswith(_GZIP) else _zstd(name, buffered))
    if head[257:262] == b"ustar":
        raise RecordedPairsError(f"{name}: a compressed tar archive: unpack it first")
    if head.startswith((_GZIP, _ZSTD)):
        raise RecordedPairsError(f"{name}: compressed twice: decompress it once")
    _refuse_others(name, head)
    return Source(name, plain, head, True)


def _peeked(stream: IO[bytes]) -> tuple[IO[bytes], bytes]:
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast(Any, stream), _HEAD_BYTES)
    head = buffered.peek(_HEAD_BYTES)
    return cast(IO[bytes], buffered), head[:_HEAD_BYTES]


def _zstd(name: str, stream: IO[bytes]) -> IO[bytes]:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]  # Python 3.14

        return cast(IO[bytes], zstd.open(stream))
    except ImportError:
        pyarrow = arrow(name, "zstd")
        return cast(IO[bytes], pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, "r"), "zstd"))


def arrow(name: str, form: str) -> Any:
    """The module pyarrow. Raises RecordedPairsError if it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise RecordedPairsError(f"{name}: {form} needs pyarrow: run pip install 'vmafx-sidecar[parquet]'") from None
    return pyarrow


def _refuse_others(name: str, head: bytes) -> None:
    for magic, what in _OTHERS:
        if head.startswith(magic):
            raise RecordedPairsError(f"{name}: {what}")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise RecordedPairsError(f"{name}: an HTML page, perhaps in place of the file that was asked for: download it again")
    if head[257:262] == b"ustar":
        raise RecordedPairsError(f"{name}: a tar archive: unpack it first")
    if len(head) > 3 and (head[1:8:2].strip(b"\0") == b"" or head[0:8:2].strip(b"\0") == b"") and head[:4].strip(b"\0"):
        raise RecordedPairsError(f"{name}: text in UTF-16: save it as UTF-8")
