"""numpy archives of pairs."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.tables.source import Source
from sidecar.pairs.tables.table import BLOCK_ROWS, Block, Labels, Table, Wanted


def npz_table(source: Source, stack: contextlib.ExitStack) -> Table:
    """The table of a numpy archive: `features` (n, f) and one-dimensional arrays of n, open as long as the stack.

    Raises RecordedPairsError for another zip file, with what it is, and for one without `features`.
    """
    name = source.name
    if source.compressed or not source.stream.seekable():
        raise RecordedPairsError(f"{name}: a numpy .npz archive, which is read from its end: save it as a file first")
    try:
        file = stack.enter_context(zipfile.ZipFile(source.stream))
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise RecordedPairsError(f"{name}: not a numpy .npz archive: {error}") from error
    members = file.namelist()
    if "[Content_Types].xml" in members:
        raise RecordedPairsError(f"{name}: an Excel or Office file: save the sheet as CSV")
    names = [each.removesuffix(".npy") for each in members if each.endswith(".npy")]
    if not names:
        raise RecordedPairsError(f"{name}: a zip archive without arrays: unpack it first")
    if "features" not in names:
        raise RecordedPairsError(f"{name}: no array 'features'; expected features (n, f) and true_score or scores (n)")

    def member(key: str, dimensions: int, kinds: str = "fiu") -> ArrayMember:
        return ArrayMember(name, key, stack.enter_context(file.open(f"{key}.npy")), stack, dimensions, kinds)

    with _damage_of(name):
        features = member("features", 2)
        listed = next((member(key, 1, "U") for key in _NAMES if key in names), None)
        array_names = tuple(map(str, listed.rows(0, listed.shape[0]))) if listed else ()
        "".join(array_names).encode()
        columns = {each for each in names if each not in ("features", *_NAMES)}
        if listed and listed.shape[0] != features.shape[1]:
            raise RecordedPairsError(f"{name}: {listed.key} has {listed.shape[0]} names for {features.shape[1]} features")
    rows, width = features.shape

    def read(wanted: Wanted) -> Iterator[Block]:
        with _damage_of(name):
            score = _of_rows(name, member(wanted.target, 1), rows)
            texts = [_of_rows(name, member(key, 1, "Ufiu"), rows) for key in wanted.texts]
            places = [array_names.index(key) for key in wanted.features]
            for start in range(0, rows, BLOCK_ROWS):
                count = min(BLOCK_ROWS, rows - start)
                values = np.empty((count, (len(places) or width) + 1))
                found = features.rows(start, count)
                values[:, :-1] = found[:, places] if places else found
                values[:, -1] = score.rows(start, count)
                labels = [Labels.of([each or None for each in text.rows(start, count).tolist()]) for text in texts]
                "".join(name for label in labels for name in label.names).encode()
                yield Block(name, np.arange(start + 1, start + count + 1), values, labels, {})

    order = tuple(sorted(columns))
    if array_names:
        return Table(name, "row", (*array_names, *order), read, features=array_names)
    return Table(name, "row", order, read, width)


_NAMES = ("feature_names", "feature_order", "names")


def _of_rows(name: str, member: ArrayMember, rows: int) -> ArrayMember:
    if member.shape[0] != rows:
        raise RecordedPairsError(f"{name}: {member.key} has {member.shape[0]} rows, but features has {rows}")
    return member


@contextlib.contextmanager
def _damage_of(name: str) -> Iterator[None]:
    try:
        yield
    except RecordedPairsError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise RecordedPairsError(f"{name}: not a numpy .npz archive: {error}") from error


_IN_MEMORY_BYTES = 64 << 20


@contextlib.contextmanager
def _copied(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """A copy in memory, or in a temporary file if it is large."""
    with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as copy:
        shutil.copyfileobj(stream, copy)
        yield copy


class ArrayMember:
    """One array of an archive, read a few rows at a time; one that is stored by columns is copied first.

    kinds: the numpy kinds of type that it may have. shape: as stored. Raises RecordedPairsError for another kind or number of
    dimensions, ValueError if it is not a .npy file.
    """

    def __init__(
        self, name: str, key: str, stream: IO[bytes], stack: contextlib.ExitStack, dimensions: int, kinds: str
    ) -> None:
        self.key, self._stream, self._stack = key, stream, stack
        version = np.lib.format.read_magic(self._stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, fortran, self._dtype = read_header(self._stream)
        if self._dtype.kind not in kinds or len(self.shape) != dimensions:
            raise RecordedPairsError(
                f"{name}: {key} is {self._dtype} of shape {self.shape}; expected {dimensions} dimension(s) of "
                f"{'text' if kinds == 'U' else 'numbers' if kinds == 'fiu' else 'text or numbers'}"
            )
        self._by_columns = fortran and dimensions > 1
        self._columns: IO[bytes] | None = None

    def rows(self, start: int, count: int) -> NDArray[Any]:
        """The next rows (count, *shape[1:]), in the stored type; start must follow on. Raises ValueError if they end early."""
        if not self._by_columns:
            return self._read(self._stream, count * int(np.prod(self.shape[1:]))).reshape(count, *self.shape[1:])
        if self._columns is None:
            self._columns = self._stack.enter_context(_copied(self._stream))
        found = np.empty((count, self.shape[1]), self._dtype)
        for column in range(self.shape[1]):
            self._columns.seek((column * self.shape[0] + start) * self._dtype.itemsize)
            found[:, column] = self._read(self._columns, count)
        return found

    def _read(self, stream: IO[bytes], count: int) -> NDArray[Any]:
        data = stream.read(count * self._dtype.itemsize)
        if len(data) < count * self._dtype.itemsize:
            raise ValueError(f"{self.key} ends early")
        return np.frombuffer(data, dtype=self._dtype)
