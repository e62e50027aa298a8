"""Parquet and feather, by pyarrow: columns become numpy arrays without a loop over rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.tables.source import Source, arrow
from sidecar.pairs.tables.table import Block, Labels, Table, Wanted, listed

PARQUET, FEATHER, FEATHER_1 = b"PAR1", b"ARROW1", b"FEA1"
_BATCH_VALUES = 1 << 18
"""A batch has about so many numbers, 2 MB, however many columns there are."""


def arrow_table(source: Source, stack: ExitStack) -> Table:
    """The table of a parquet or feather file, open as long as the stack. Raises RecordedPairsError if it is damaged."""
    name = source.name
    form = "parquet" if source.head.startswith(PARQUET) else "feather"
    pyarrow = arrow(name, form)
    if source.compressed or not source.stream.seekable():
        raise RecordedPairsError(f"{name}: {form}, which is read from its end: decompress it, or save it as a file, first")
    try:
        schema, batches = (_parquet if form == "parquet" else _feather)(pyarrow, source, stack)
    except (pyarrow.ArrowException, OSError) as error:
        raise RecordedPairsError(f"{name}: damaged or truncated {form}: {_first_line(error)}") from None
    if twice := sorted({each for each in schema.names if schema.names.count(each) > 1}):
        raise RecordedPairsError(f"{name}: two columns of one name: {listed(twice)}")

    def read(wanted: Wanted) -> Iterator[Block]:
        columns = [*wanted.features, wanted.target]
        for column in columns:
            kind = schema.field(column).type
            if not _is_number(pyarrow, kind):
                raise RecordedPairsError(f"{name}: row 1: {column}: expected numbers, the column has {kind}")
        start = 1
        try:
            for batch in batches([*dict.fromkeys((*columns, *wanted.texts))]):
                values = np.empty((batch.num_rows, len(columns)))
                for place, column in enumerate(columns):
                    values[:, place] = _numbers(pyarrow, batch.column(column))
                texts = [_labels(pyarrow, batch.column(column)) for column in wanted.texts]
                yield Block(name, np.arange(start, start + batch.num_rows), values, texts, {})
                start += batch.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise RecordedPairsError(f"{name}: from row {start}: damaged {form}: {_first_line(error)}") from None

    return Table(name, "row", tuple(schema.names), read)


Batches = Callable[[list[str]], Iterator[Any]]


def _parquet(pyarrow: Any, source: Source, stack: ExitStack) -> tuple[Any, Batches]:
    import pyarrow.parquet as parquet

    file = stack.enter_context(parquet.ParquetFile(source.stream, buffer_size=1 << 18, pre_buffer=False))
    return file.schema_arrow, lambda columns: file.iter_batches(_rows(columns), columns=columns, use_threads=False)


def _feather(pyarrow: Any, source: Source, stack: ExitStack) -> tuple[Any, Batches]:
    from pyarrow import feather, ipc

    if source.head.startswith(FEATHER_1):
        table = feather.read_table(source.stream)
        return table.schema, lambda columns: iter(table.select(columns).to_batches(_rows(columns)))
    file = ipc.open_file(source.stream)

    def batches(columns: list[str]) -> Iterator[Any]:
        for place in range(file.num_record_batches):
            batch = file.get_batch(place).select(columns)
            for start in range(0, batch.num_rows, _rows(columns)):
                yield batch.slice(start, _rows(columns))

    return file.schema, batches


def _rows(columns: list[str]) -> int:
    return max(1024, _BATCH_VALUES // len(columns))


def _is_number(pyarrow: Any, kind: Any) -> bool:
    types = pyarrow.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind))


def _numbers(pyarrow: Any, column: Any) -> NDArray[np.float64]:
    if pyarrow.types.is_null(column.type):
        return np.full(len(column), np.nan)
    found: NDArray[Any] = column.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
    return found


def _labels(pyarrow: Any, column: Any) -> Labels:
    if not pyarrow.types.is_dictionary(column.type):
        column = column.cast(pyarrow.large_string()).dictionary_encode()
    codes = column.indices.fill_null(len(column.dictionary)).cast(pyarrow.int64()).to_numpy(zero_copy_only=False)
    names = [*column.dictionary.cast(pyarrow.large_string()).to_pylist(), ""]
    return Labels(codes, ["" if text is None else text for text in names])


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
