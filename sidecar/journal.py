"""The journal of accepted pairs: which files of a state directory hold it, and how they are read.

`STATE/journal/` holds segments named by the position of their first pair, `000000000000.jsonl` and so on; closed ones
are gzipped. A line is a pair as it came; lines that begin with `#` are records of the sidecar's own.
"""

from __future__ import annotations

import re
from pathlib import Path

_SEGMENT = re.compile(r"(\d{12,})\.jsonl(\.gz)?")


def journal_segments(state_directory: Path) -> list[Path]:
    """Segments in the order of their positions, empty where the directory has no journal.

    Of a segment that stands there both plain and gzipped (a crash between the two), the plain one, which is whole.
    """
    directory = state_directory / "journal"
    found: dict[int, Path] = {}
    if directory.is_dir():
        for path in directory.iterdir():
            match = _SEGMENT.fullmatch(path.name)
            if match and (int(match[1]) not in found or not match[2]):
                found[int(match[1])] = path
    return [found[position] for position in sorted(found)]
