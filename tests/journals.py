"""Journals as the sidecar writes them, for tests of what reads them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from sidecar.journal.blocks import encode_block, encode_blocks
from sidecar.journal.segments import write_gzipped


def write_journal(state: Path, segments: Mapping[str, Sequence[bytes]], torn: bytes = b"") -> Path:
    """A state directory with segments by name, of lines; torn: the line whose write a crash has cut off in the last one."""
    directory = state / "journal"
    directory.mkdir(parents=True, exist_ok=True)
    for name, lines in segments.items():
        position = int(name.partition(".")[0])
        data = io.BytesIO()
        if name.endswith(".gz"):
            write_gzipped(data, [encode_blocks(position, lines)])
        else:
            data.write(encode_blocks(position, lines))
        (directory / name).write_bytes(data.getvalue())
    if torn:
        with (directory / max(segments)).open("ab") as stream:
            stream.write(encode_block(position + len(lines), [torn])[:-3])
    return state
