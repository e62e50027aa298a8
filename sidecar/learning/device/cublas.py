"""Matrix products by cuBLAS, in float32. CuPy's own calls of it refuse to be captured in a CUDA graph; cuBLAS does not."""

from __future__ import annotations

import ctypes
from typing import Any

from sidecar.learning.device import DeviceError

_WORKSPACE_BYTES = 32 << 20
"""What NVIDIA recommends for Hopper. Without a workspace of its own, cuBLAS would allocate one for each captured call."""
_ONE, _ZERO = ctypes.c_float(1), ctypes.c_float(0)


class Cublas:
    """Products on one stream. cupy: the module; stream: its number."""

    def __init__(self, cupy: Any, stream: int) -> None:
        from cuda.pathfinder import load_nvidia_dynamic_lib  # CuPy needs it too

        self._library = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
        self._handle = ctypes.c_void_p()
        self._workspace = cupy.cuda.alloc(_WORKSPACE_BYTES)
        self._check(self._library.cublasCreate_v2(ctypes.byref(self._handle)))
        self._check(self._library.cublasSetStream_v2(self._handle, ctypes.c_void_p(stream)))
        workspace = ctypes.c_void_p(self._workspace.ptr)
        self._check(self._library.cublasSetWorkspace_v2(self._handle, workspace, ctypes.c_size_t(_WORKSPACE_BYTES)))

    def matmul(self, a: Any, b: Any, out: Any) -> None:
        """out (models, m, n) = a (models, m, k) @ b (models, k, n), in float32.

        The rows of `out` are contiguous, and the rows or the columns of a and of b.
        """
        models, m, n = out.shape
        # cuBLAS has columns where these arrays have rows, so it is given outᵀ = bᵀ aᵀ.
        (b_operation, b_lead), (a_operation, a_lead) = _layout(b), _layout(a)
        assert out.strides[2] == out.itemsize
        self._check(
            self._library.cublasSgemmStridedBatched(
                self._handle, b_operation, a_operation, n, m, a.shape[2], ctypes.byref(_ONE),
                _pointer(b), b_lead, _step(b), _pointer(a), a_lead, _step(a), ctypes.byref(_ZERO),
                _pointer(out), max(out.strides[1] // out.itemsize, n), _step(out), models,
            )
        )  # fmt: skip

    def _check(self, status: int) -> None:
        if status:
            raise DeviceError(f"cuBLAS failed with status {status}")


def _layout(matrix: Any) -> tuple[int, int]:
    """Whether cuBLAS transposes an array (models, rows, columns), and its leading dimension."""
    rows, columns = (stride // matrix.itemsize for stride in matrix.strides[1:])
    if columns == 1 or (matrix.shape[2] == 1 and rows != 1):
        return 0, max(rows, matrix.shape[2])
    assert rows == 1 or matrix.shape[1] == 1, (matrix.shape, matrix.strides)
    return 1, max(columns, matrix.shape[1])


def _step(matrix: Any) -> ctypes.c_longlong:
    return ctypes.c_longlong(matrix.strides[0] // matrix.itemsize)


def _pointer(matrix: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(matrix.data.ptr)
