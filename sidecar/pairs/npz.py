"""numpy archives of pairs."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sidecar.pairs.errors import RecordedPairsError


class ArrayKindError(RecordedPairsError):
    """An array in an archive has another type or number of dimensions than was asked for."""


@contextlib.contextmanager
def opened(name: str) -> Iterator[Archive]:
    try:
        with zipfile.ZipFile(name) as file, contextlib.ExitStack() as stack:
            yield Archive(name, file, stack)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        if isinstance(error, RecordedPairsError):
            raise
        raise RecordedPairsError(f"{name}: not a numpy .npz archive: {error}") from error


class Archive:
    """A numpy archive with `features` (n, f) and `true_score` (n,). names: those of all its arrays.

    Raises RecordedPairsError if one of the two is missing, or they differ in length.
    """

    def __init__(self, name: str, file: zipfile.ZipFile, stack: contextlib.ExitStack) -> None:
        self._name, self._file, self._stack = name, file, stack
        self.names = [each.removesuffix(".npy") for each in file.namelist() if each.endswith(".npy")]
        self.features = self.member("features", 2)
        self.true_score = self.member("true_score", 1)

    def member(self, key: str, dimensions: int, kinds: str = "fiu") -> ArrayMember:
        """One array with this number of dimensions, one of these numpy kinds of type, and as many rows as `features`.

        Raises ArrayKindError if the kind or the dimensions differ, RecordedPairsError if the rows do or there is no such array.
        """
        if key not in self.names:
            raise RecordedPairsError(f"{self._name}: no array {key!r}; expected features (n, f) and true_score (n)")
        member = ArrayMember(self._name, key, self._stack.enter_context(self._file.open(f"{key}.npy")), dimensions, kinds)
        if key != "features" and member.shape[0] != self.features.shape[0]:
            raise RecordedPairsError(
                f"{self._name}: {key} has {member.shape[0]} rows, but features has {self.features.shape[0]}"
            )
        return member


class ArrayMember:
    """One array of an archive, read a few rows at a time.

    kinds: the numpy kinds of type that it may have. shape: as stored. Raises ArrayKindError for another kind or number of
    dimensions, ValueError if it is not a .npy file.
    """

    def __init__(self, name: str, key: str, stream: IO[bytes], dimensions: int, kinds: str) -> None:
        self.key, self._stream = key, stream
        version = np.lib.format.read_magic(self._stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, fortran, self._dtype = read_header(self._stream)
        if self._dtype.kind not in kinds or len(self.shape) != dimensions:
            raise ArrayKindError(
                f"{name}: {key} is {self._dtype} of shape {self.shape}; expected {dimensions} dimension(s) of "
                f"{'text' if kinds == 'U' else 'numbers'}"
            )
        self._whole: NDArray[Any] | None = None
        if fortran and dimensions > 1:
            columns = self._read(self.shape[0] * self.shape[1])
            self._whole = columns.reshape(self.shape[::-1]).T

    def rows(self, start: int, count: int) -> NDArray[Any]:
        """The next rows (count, *shape[1:]), in the stored type; start must follow on. Raises ValueError if they end early."""
        if self._whole is not None:
            return self._whole[start : start + count]
        return self._read(count * int(np.prod(self.shape[1:]))).reshape(count, *self.shape[1:])

    def _read(self, count: int) -> NDArray[Any]:
        data = self._stream.read(count * self._dtype.itemsize)
        if len(data) < count * self._dtype.itemsize:
            raise ValueError(f"{self.key} ends early")
        return np.frombuffer(data, dtype=self._dtype)
