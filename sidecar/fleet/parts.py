"""Into which parts recorded pairs are divided: a file each, or a piece of it, and of a state directory a segment each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sidecar.fleet.workers import Workers
from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.lines import PIECE_BYTES, STDIN, Piece, Span, journal_spans
from sidecar.pairs.tables.forms import open_table
from sidecar.pairs.tables.source import expand


class Part(NamedTuple):
    """What one call reads.

    path, pod: the numbers of the path that it came from, and of its pod; span: None for a file; piece: None for all of it.
    """

    name: str
    path: int
    pod: int
    span: Span | None = None
    piece: Piece | None = None


class Parts(NamedTuple):
    """All that is to be read. pods: the state directories, by name, after "", which stands for all files."""

    parts: list[Part]
    pods: list[str]


def divide(paths: Sequence[str | Path], workers: Workers) -> Parts:
    """The parts of what paths stand for, by name, each once. Journals are taken up to where they end now.

    Raises RecordedPairsError if a path stands for nothing or is standard input, and JournalError.
    """
    found: dict[str, int] = {}
    for number, path in enumerate(paths):
        if str(path) == STDIN:
            raise RecordedPairsError(f"{STDIN}: standard input cannot be read by several workers; save it as a file first")
        for name in expand(str(path)):
            found.setdefault(name.rstrip("/"), number)
    states = sorted(name for name in found if Path(name).is_dir())
    spans: dict[str, list[Span]] = {states[at]: each for at, each in workers.run(_spans, [(name,) for name in states])}
    large = [name for name in sorted(found) if name not in spans and _size(name) > PIECE_BYTES]
    pieces: dict[str, list[Piece]] = {large[at]: each for at, each in workers.run(_pieces, [(name,) for name in large])}
    pods = ["", *states]
    numbers = {name: number for number, name in enumerate(pods)}
    parts: list[Part] = []
    for name in sorted(found):
        if name in spans:
            parts += [Part(name, found[name], numbers[name], span) for span in spans[name]]
        else:
            whole = Part(name, found[name], 0)
            parts += [whole._replace(piece=piece) for piece in pieces.get(name, ())] or [whole]
    return Parts(parts, pods)


def _size(name: str) -> int:
    """0 if it is not there: whoever reads it says so."""
    return os.path.getsize(name) if os.path.exists(name) else 0


def _pieces(name: str) -> list[Piece]:
    with suppress(RecordedPairsError), open_table(name) as table:  # whoever reads it meets the damage, too
        return table.cut()
    return []


def _spans(state_directory: str) -> list[Span]:
    return journal_spans(Path(state_directory))
