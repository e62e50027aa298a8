"""What every form of recorded pairs becomes: a table with named columns, read in blocks of rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.pairs.errors import PairError
from sidecar.pairs.lines import Lines, Piece

BLOCK_ROWS = 8192
_MISSING_WORDS = {"", "nan", "null", "none", "na", "n/a"}


class Labels(NamedTuple):
    """Texts of n rows. codes: (n,), for each row an index into `names`, which are distinct; "" where there is no text."""

    codes: NDArray[np.intp]
    names: list[str]

    @classmethod
    def of(cls, texts: Sequence[object]) -> Labels:
        """Of hashable values; None is no text."""
        names = [*dict.fromkeys(texts)]
        if len(names) == len(texts):
            codes = np.arange(len(texts))
        else:
            index = dict(zip(names, itertools.count(), strict=False))
            codes = np.fromiter(map(index.__getitem__, texts), np.intp, len(texts))
        return cls(codes, ["" if text is None else str(text) for text in names])

    @classmethod
    def same(cls, text: str, count: int) -> Labels:
        return cls(np.zeros(count, dtype=np.intp), [text])

    @classmethod
    def joined(cls, parts: Sequence[Labels]) -> Labels:
        """Each row's texts with a slash between them; "" where all are."""
        if len(parts) == 1:
            return parts[0]
        rows, codes = np.unique(np.stack([part.codes for part in parts], axis=1), axis=0, return_inverse=True)
        names = ["/".join(part.names[code] for part, code in zip(parts, row, strict=True)) for row in rows.tolist()]
        return cls(codes.reshape(-1), [name if name.strip("/") else "" for name in names])

    def only(self, rows: NDArray[Any]) -> Labels:
        return Labels(self.codes[rows], self.names)

    def texts(self) -> list[str]:
        return [self.names[code] for code in self.codes.tolist()]


class Block(NamedTuple):
    """Consecutive rows of a table.

    name: of the file, for messages; numbers: (n,), of each row, as people count them; values: (n, k + 1) float64, the features
    and the score, NaN where one is missing; texts: of each column that was asked for; wrong: why a row, by its index, cannot be
    used; its values have no meaning.
    """

    name: str
    numbers: NDArray[np.int64]
    values: NDArray[np.float64]
    texts: list[Labels]
    wrong: dict[int, str]


class Wanted(NamedTuple):
    """Columns to read.

    features: empty for the table's array of features; target: the score; texts: others, as text; optional: those of them that
    no row is wrong for, whatever it has there.
    """

    features: tuple[str, ...]
    target: str
    texts: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()


class Table(NamedTuple):
    """A table before its rows are read.

    unit: what its rows are called. columns: their names, without the array's. width: how many features its array has, None if
    it has none. array_names: what they are called, empty if that is not known. features: the columns that are features by the
    form, empty if their names decide. read: the rows, once. group: of all rows, where they are frames of one encode, else "".
    target: which model's scores the file says it holds, "" if it does not. requests: the rows are like request lines; lines:
    these as they stand, in place of `read`. cut: the pieces in which a large one can be read, none if it cannot be cut.
    """

    name: str
    unit: str
    columns: tuple[str, ...]
    read: Callable[[Wanted], Iterator[Block]]
    width: int | None = None
    array_names: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    group: str = ""
    target: str = ""
    requests: bool = False
    lines: Lines | None = None
    cut: Callable[[], list[Piece]] = list

    def where(self, number: int, name: str = "") -> str:
        return f"{name or self.name}: {self.unit} {number}"


def number(column: str, value: object) -> float:
    """A number out of JSON, NaN for a missing one. Raises PairError for anything else."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        kind = {"bool": "bool", "str": f"the text {value!r:.40}"}.get(type(value).__name__, type(value).__name__)
        raise PairError(f"{column}: expected a number, got {kind}")
    try:
        return float(value)
    except OverflowError:
        raise PairError(f"{column}: too large a number") from None


def number_of_text(column: str, text: str) -> float:
    """A number out of text, NaN for a missing one. Raises PairError for anything else."""
    try:
        if "_" not in text:
            return float(text)
    except ValueError:
        pass
    if text.strip().lower() in _MISSING_WORDS:
        return math.nan
    hint = "; write decimals with a point" if text.replace(",", "", 1).strip().lstrip("+-").isdigit() else ""
    raise PairError(f"{column}: expected a number, got {text[:40]!r}{hint}")


def listed(names: Sequence[str], most: int = 24) -> str:
    """Names for a message, which is not longer than a screen."""
    words = ", ".join(name[:64] or "(no name)" for name in names[:most])
    return words + (f" and {len(names) - most} more" if len(names) > most else "")
