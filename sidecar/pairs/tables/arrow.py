"""Parquet and feather, by pyarrow: columns become numpy arrays without a loop over rows."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.lines import PIECE_BYTES, Piece
from sidecar.pairs.tables.source import Source, arrow
from sidecar.pairs.tables.table import Block, Labels, Table, Wanted, listed

PARQUET, FEATHER, FEATHER_1 = b"PAR1", b"ARROW1", b"FEA1"
_BATCH_VALUES = 1 << 18
"""A batch has about so many numbers, 2 MB, however many columns there are."""
_FEW = 8
"""At least so many columns of parquet are read at a time."""
_TOGETHER_VALUES = 1 << 22
"""Row groups that have fewer features than this, 16 MB, are read together."""


def arrow_table(source: Source, stack: ExitStack, piece: Piece | None = None) -> Table:
    """The table of a parquet or feather file, or of a piece of parquet, open as long as the stack.

    Raises RecordedPairsError if it is damaged.
    """
    name = source.name
    form = "parquet" if source.head.startswith(PARQUET) else "feather"
    pyarrow = arrow(name, form)
    if source.compressed or not source.stream.seekable():
        raise RecordedPairsError(f"{name}: {form}, which is read from its end: decompress it, or save it as a file, first")
    # Names and texts may not be UTF-8, and numbers of rows may be larger than any memory.
    damage = (pyarrow.ArrowException, OSError, OverflowError, UnicodeDecodeError)
    try:
        schema, parts, cut = _parquet(pyarrow, source, stack, piece) if form == "parquet" else _feather(pyarrow, source)
        names = tuple(schema.names)
    except damage as error:
        raise RecordedPairsError(f"{name}: damaged or truncated {form}: {_first_line(error)}") from None
    if twice := sorted({each for each in names if names.count(each) > 1}):
        raise RecordedPairsError(f"{name}: two columns of one name: {listed(twice)}")

    def read(wanted: Wanted) -> Iterator[Block]:
        for column in (*wanted.features, wanted.target):
            kind = schema.field(column).type
            if not _is_number(pyarrow, kind):
                raise RecordedPairsError(f"{name}: row 1: {column}: expected numbers, the column has {kind}")
        for column in wanted.texts:
            kind = schema.field(column).type
            if pyarrow.types.is_nested(kind):
                raise RecordedPairsError(f"{name}: row 1: {column}: expected text or numbers, the column has {kind}")
        start = piece.first if piece else 1
        try:
            for values, texts in parts(wanted):
                yield Block(name, np.arange(start, start + len(values)), values, texts, {})
                start += len(values)
        except damage as error:
            raise RecordedPairsError(f"{name}: from row {start}: damaged {form}: {_first_line(error)}") from None

    return Table(name, "row", names, read, cut=cut)


Part = tuple[NDArray[np.float64], list[Labels]]
"""The values and the texts of a block."""
Parts = Callable[[Wanted], Iterator[Part]]
Cut = Callable[[], list[Piece]]


def _parquet(pyarrow: Any, source: Source, stack: ExitStack, piece: Piece | None) -> tuple[Any, Parts, Cut]:
    """For each column that is being read pyarrow holds 2 MB. So features are read a few at a time, and kept as float32."""
    import pyarrow.parquet as parquet

    file = stack.enter_context(parquet.ParquetFile(source.stream, buffer_size=1 << 16, pre_buffer=False))

    def batches(groups: list[int], count: int, rows: int, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        start = 0
        for batch in file.iter_batches(rows, groups, [*dict.fromkeys(columns)], use_threads=False):
            if start + batch.num_rows <= count:
                yield start, batch
            start += batch.num_rows
        if start != count:
            raise pyarrow.ArrowInvalid(f"{start} rows, where {count} are announced")

    def parts(wanted: Wanted) -> Iterator[Part]:
        width = len(wanted.features)
        rows = _rows(width + 1)
        for groups, count in _together(file.metadata, width, piece):
            features, few = _Transposed(count, width), max(_FEW, _BATCH_VALUES // max(1, count))
            for place in range(0, width, few):
                columns = wanted.features[place : place + few]
                for start, batch in batches(groups, count, rows, columns):
                    features.put(start, place, _values(pyarrow, batch, columns))
            for start, batch in batches(groups, count, rows, (wanted.target, *wanted.texts)):
                values = np.empty((batch.num_rows, width + 1))
                features.take(start, values[:, :-1])
                values[:, -1:] = _values(pyarrow, batch, (wanted.target,))
                yield values, [_labels(pyarrow, batch.column(column)) for column in wanted.texts]

    return file.schema_arrow, parts, lambda: _cut(file.metadata)


def _cut(metadata: Any) -> list[Piece]:
    """Pieces of whole row groups, each of at least 64 MiB before compression."""
    pieces: list[Piece] = []
    start, first, rows, size = 0, 1, 0, 0
    for group in range(metadata.num_row_groups):
        about = metadata.row_group(group)
        rows, size = rows + about.num_rows, size + about.total_byte_size
        if size >= PIECE_BYTES or group == metadata.num_row_groups - 1:
            pieces.append(Piece(start, group + 1, first))
            start, first, rows, size = group + 1, first + rows, 0, 0
    return pieces


def _together(metadata: Any, width: int, piece: Piece | None) -> Iterator[tuple[list[int], int]]:
    """Row groups that are read together, and the number of their rows: a large one, or small ones."""
    groups: list[int] = []
    count = 0
    for group in range(piece.start, piece.stop) if piece else range(metadata.num_row_groups):
        rows = max(0, metadata.row_group(group).num_rows)
        if groups and (count + rows) * width > _TOGETHER_VALUES:
            yield groups, count
            groups, count = [], 0
        groups.append(group)
        count += rows
    if groups:
        yield groups, count


class _Transposed:
    """Numbers, (count, width) float32, that are written by columns and then taken by rows, which from then on use no memory."""

    def __init__(self, count: int, width: int) -> None:
        self._memory = mmap.mmap(-1, max(1, 4 * count * width), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._array = np.frombuffer(self._memory, np.float32, count * width).reshape(count, width)
        self._freed = 0
        # Of each column the first number that float32 cannot hold, and its row: an error names it.
        self._large: dict[int, tuple[int, float]] = {}

    def put(self, start: int, place: int, values: NDArray[np.float64]) -> None:
        """Write some rows, from `start` on, of some columns, from `place` on."""
        into = self._array[start : start + len(values), place : place + values.shape[1]]
        with np.errstate(over="ignore"):
            into[:] = values
        for row, column in np.argwhere(np.isinf(into)).tolist():
            self._large.setdefault(place + column, (start + row, values[row, column]))

    def take(self, start: int, values: NDArray[np.float64]) -> None:
        """Move the rows from `start` on into `values`."""
        stop = start + len(values)
        values[:] = self._array[start:stop]
        for column, (row, large) in self._large.items():
            if start <= row < stop:
                values[row - start, column] = large
        freed = stop * self._array.strides[0] // mmap.PAGESIZE * mmap.PAGESIZE
        if freed > self._freed:
            self._memory.madvise(mmap.MADV_DONTNEED, self._freed, freed - self._freed)
            self._freed = freed


def _feather(pyarrow: Any, source: Source) -> tuple[Any, Parts, Cut]:
    from pyarrow import feather, ipc

    if source.head.startswith(FEATHER_1):
        table = feather.read_table(source.stream)
        schema, batches = table.schema, table.to_batches
    else:
        file = ipc.open_file(source.stream)
        schema, batches = file.schema, lambda: map(file.get_batch, range(file.num_record_batches))

    def parts(wanted: Wanted) -> Iterator[Part]:
        columns = (*wanted.features, wanted.target)
        rows = _rows(len(columns))
        for whole in batches():
            for start in range(0, whole.num_rows, rows):
                batch = whole.slice(start, rows)
                yield _values(pyarrow, batch, columns), [_labels(pyarrow, batch.column(column)) for column in wanted.texts]

    return schema, parts, list


def _rows(width: int) -> int:
    return max(1024, _BATCH_VALUES // width)


def _values(pyarrow: Any, batch: Any, columns: Sequence[str]) -> NDArray[np.float64]:
    values = np.empty((batch.num_rows, len(columns)))
    for place, column in enumerate(columns):
        values[:, place] = _numbers(pyarrow, batch.column(column))
    return values


def _is_number(pyarrow: Any, kind: Any) -> bool:
    types = pyarrow.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind))


def _numbers(pyarrow: Any, column: Any) -> NDArray[np.float64]:
    if pyarrow.types.is_null(column.type):
        return np.full(len(column), np.nan)
    return _array(column.cast(pyarrow.float64(), safe=False), np.float64, np.nan)


def _array(column: Any, dtype: type[np.generic], missing: float) -> NDArray[Any]:
    """A column of this type, with a number for null. What pyarrow has for this imports pandas, if that is there: 40 MB."""
    rows = slice(column.offset, column.offset + len(column))
    valid, numbers = column.buffers()
    found = np.frombuffer(numbers, dtype)[rows]
    if column.null_count:
        found = np.where(np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[rows], found, missing)
    return found


def _labels(pyarrow: Any, column: Any) -> Labels:
    if not pyarrow.types.is_dictionary(column.type):
        column = column.cast(pyarrow.large_string()).dictionary_encode()
    codes = _array(column.indices.cast(pyarrow.int64()), np.int64, len(column.dictionary))
    names = [*column.dictionary.cast(pyarrow.large_string()).to_pylist(), ""]
    return Labels(codes, ["" if text is None else text for text in names])


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
