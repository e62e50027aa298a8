"""Arrays that other processes of this machine see without a copy."""

from __future__ import annotations

import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray


class SharedArray:
    """An array of zeros that takes memory only where it is written to.

    It is in a file that has no name (memfd_create), so that nothing is left of it, however this process ends. Pickled, it is
    the address of that file: whoever loads it, on this machine and while this process has it, sees the same bytes.
    """

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self._descriptor = os.memfd_create("pairs", os.MFD_CLOEXEC)
        os.ftruncate(self._descriptor, max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize))
        self.array: NDArray[Any] = _mapped(self._descriptor, shape, dtype)

    def __del__(self) -> None:
        os.close(self._descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        place = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        return _Seen, (place, self.array.shape, self.array.dtype.type)


class _Seen:
    """A `SharedArray` of another process."""

    def __init__(self, place: str, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        descriptor = os.open(place, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.array: NDArray[Any] = _mapped(descriptor, shape, dtype)
        finally:
            os.close(descriptor)


Shared = SharedArray | _Seen | NDArray[Any]
"""A shared array as a worker gets it: another machine has a copy."""


def array_of(shared: Shared) -> NDArray[Any]:
    return shared if isinstance(shared, np.ndarray) else shared.array


def _mapped(descriptor: int, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    memory = mmap.mmap(descriptor, 0)
    return np.frombuffer(memory, dtype, int(np.prod(shape))).reshape(shape)
