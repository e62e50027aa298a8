"""The device that an NVIDIA GPU is, through CuPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnx_builder.network import Array
from sidecar.learning.device import DeviceError
from sidecar.learning.device.cublas import Cublas
from sidecar.learning.device.fusion import EXPRESSIONS, Group, Kernel, grouped, kernel, needless
from sidecar.learning.device.recorder import Recorder
from sidecar.learning.device.stacked import Call, Stacked

_DOT = """
extern "C" __global__ void dot(const float* a, const float* b, long long n, long long a_step, long long b_step, float* out,
                               long long out_step) {
    // One row of blocks for each model; with one block to a row this gives the result, else the parts of it.
    __shared__ float sums[32];
    const float* x = a + blockIdx.y * a_step;
    const float* y = b ? b + blockIdx.y * b_step : nullptr;
    float sum = 0;
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x)
        sum += y ? x[i] * y[i] : x[i];
    for (int lane = 16; lane; lane /= 2) sum += __shfl_down_sync(~0u, sum, lane);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = threadIdx.x < blockDim.x / 32 ? sums[threadIdx.x] : 0;
        for (int lane = 16; lane; lane /= 2) sum += __shfl_down_sync(~0u, sum, lane);
        if (threadIdx.x == 0) out[blockIdx.y * out_step + blockIdx.x] = sum;
    }
}
"""
_THREADS, _MOST_BLOCKS, _NUMBERS_A_THREAD = 256, 128, 8
_MOST_FUSED_BLOCKS = 4096
_TAKE = """
extern "C" __global__ void take(const float* source, long long rows, const int* places, long long places_step,
                                int count, int width, float* out) {
    // A warp for each row or, if there is one row, many blocks; a row of blocks for each model.
    long long row = blockIdx.x * (long long)blockDim.y + threadIdx.y, model = blockIdx.y;
    if (row >= count) return;
    const float* from = source + (model * rows + places[model * places_step + row]) * width;
    float* to = out + (model * count + row) * width;
    for (int i = blockIdx.z * blockDim.x + threadIdx.x; i < width; i += blockDim.x * gridDim.z) to[i] = from[i];
}
"""


def open_cuda(models: int = 1) -> CudaDevice:
    """The GPU that CUDA shows first. Raises DeviceError, which says what is missing."""
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(f"training on a GPU needs CuPy: pip install 'vmafx-sidecar[cuda]' ({error})") from error
    try:
        return CudaDevice(cupy, models)
    except (cupy.cuda.runtime.CUDARuntimeError, OSError, ImportError, RuntimeError) as error:
        raise DeviceError(f"training on a GPU needs an NVIDIA GPU and its driver: {error}") from error


class CudaDevice:
    """Stacked arrays on a GPU. All its work is on one stream, in order."""

    def __init__(self, cupy: Any, models: int = 1) -> None:
        self._cupy, self.models = cupy, models
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        version = cupy.cuda.runtime.runtimeGetVersion()
        self.name = f"CUDA {version // 1000}.{version % 1000 // 10}, {properties['name'].decode()}, CuPy {cupy.__version__}"
        self._stream = cupy.cuda.Stream(non_blocking=True)
        with self._stream:
            self._cublas = Cublas(cupy, self._stream.ptr)
            self._dot = cupy.RawKernel(_DOT, "dot")
            self._take = cupy.RawKernel(_TAKE, "take")
            self._parts = cupy.empty((models, _MOST_BLOCKS), dtype=np.float32)
        self._recorder = Recorder()
        self.only_where = self._recorder.only_where

    def array(self, host: Array) -> Stacked:
        return self.stack([host] * self.models)

    def stack(self, hosts: Sequence[Array]) -> Stacked:
        with self._stream:
            return Stacked(self, self._cupy.asarray(np.stack(hosts)))

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Stacked:
        with self._stream:
            return Stacked(self, self._cupy.empty((self.models, *shape), dtype=dtype))

    def host(self, data: Any) -> Array:
        with self._stream:
            return np.asarray(data.get())

    def write(self, data: Any, values: Any) -> None:
        with self._stream:
            if isinstance(values, np.ndarray) and values.ndim:
                values = np.ascontiguousarray(np.broadcast_to(values, data.shape), dtype=data.dtype)
                if data.flags.c_contiguous:
                    data.set(values)
                    return
                values = self._cupy.asarray(values)
            data[...] = values

    def call(self, call: Call) -> None:
        if not self._recorder.takes(call):
            with self._stream:
                for run in self._prepared([call], None):
                    run()

    def program(self, operations: Sequence[Callable[[], Any]], results: Sequence[Stacked] | None = None) -> Callable[[], Any]:
        with self._stream:
            return _Program(self._cupy, self._stream, self._prepared(self._recorder.record(operations), results))

    def _prepared(self, calls: Sequence[Call], results: Sequence[Stacked] | None) -> list[Callable[[], Any]]:
        """The launches of recorded calls. results: as for `program`."""
        groups = grouped(calls)
        left_out = [set[Any]()] * len(groups) if results is None else needless(groups, results)
        return [self._launch(group, needless) for group, needless in zip(groups, left_out, strict=True)]

    def _launch(self, group: Group, needless: set[Any]) -> Callable[[], Any]:
        call = group.calls[0]
        if call.name in EXPRESSIONS:
            group = self._on_device(group)
            return self._fused(kernel(group, needless), call.out)
        inputs, out = [each.data for each in call.inputs], call.out.data
        match call.name:
            case "matmul":
                return lambda: self._cublas.matmul(inputs[0], inputs[1], out)
            case "dot":
                return lambda: self._sum(inputs[0], inputs[1], out)
            case "sum" if call.axis is None:
                values = inputs[0].reshape(self.models, -1)
                return lambda: self._sum(values, None, out)
            case "take":
                source, places = inputs
                count, step = places.shape[1], np.int64(places.strides[0] // places.itemsize)
                shape = np.int64(source.shape[1]), places, step, np.int32(count), np.int32(source.shape[2]), out
                assert all(each.flags.c_contiguous for each in (source, out))
                assert places.strides[1] == places.itemsize
                threads, chunks = ((32, 8), 1) if count > 1 else ((256, 1), min(64, -(-source.shape[2] // 256)))
                grid = -(-count // threads[1]), self.models, chunks
                return lambda: self._take(grid, threads, (source, *shape))
        reduce = getattr(self._cupy, call.name)
        return lambda: reduce(inputs[0], axis=call.axis, keepdims=True, out=out)

    def _fused(self, made: Kernel, out: Stacked) -> Callable[[], Any]:
        if made.source is None:
            types = ", ".join(made.parameters[: made.inputs]), ", ".join(made.parameters[made.inputs :])
            run = self._cupy.ElementwiseKernel(*types, made.code, "fused")
            arrays = [each.aligned(out.ndim) for each in made.arrays]
            return lambda: run(*arrays)
        count = out.size // made.width
        blocks = max(1, min(-(-count // _THREADS), _MOST_FUSED_BLOCKS))
        arguments: list[Any] = [np.int64(count)]
        for array, step in zip(made.arrays, made.steps, strict=True):
            arguments += [array.data, np.int64(step)]
        fused = self._cupy.RawKernel(made.source, "fused")
        return lambda: fused((blocks, self.models), (_THREADS,), tuple(arguments))

    def _on_device(self, group: Group) -> Group:
        """The group with its host arrays copied to the device; numbers stay what they are."""
        copied = Group()
        for call in group.calls:
            inputs = tuple(
                Stacked(self, self._cupy.asarray(each)[None]) if isinstance(each, np.ndarray) and each.ndim else each
                for each in call.inputs
            )
            copied.add(Call(call.name, inputs, call.out, call.where, call.axis))
        return copied

    def _sum(self, a: Any, b: Any, out: Any) -> None:
        """The sum of the products of two vectors (models, n), or of the numbers of one, in an order that does not change."""
        count = a.shape[1]
        blocks = max(1, min(_MOST_BLOCKS, count // (_THREADS * _NUMBERS_A_THREAD)))
        if blocks == 1:
            self._launch_dot(1, a, b, count, out)
        else:
            self._launch_dot(blocks, a, b, count, self._parts)
            self._launch_dot(1, self._parts, None, blocks, out)

    def _launch_dot(self, blocks: int, a: Any, b: Any, count: int, out: Any) -> None:
        step_a, step_b, step_out = (np.int64(0 if each is None else each.strides[0] // each.itemsize) for each in (a, b, out))
        second = np.uint64(0) if b is None else b
        self._dot((blocks, self.models), (_THREADS,), (a, second, np.int64(count), step_a, step_b, out, step_out))


class _Program:
    """Launches that run as they are the first time, so that all they need is compiled and allocated, and then as one graph.

    What they allocate on the way is from a pool of their own: while the graph exists, it belongs to nobody else.
    """

    def __init__(self, cupy: Any, stream: Any, launches: Sequence[Callable[[], Any]]) -> None:
        self._stream, self._launches = stream, launches
        self._allocating, self._pool = cupy.cuda.using_allocator, cupy.cuda.MemoryPool()
        self._graph: Any = None
        self._has_run = False

    def __call__(self) -> None:
        if self._graph is not None:
            self._graph.launch(self._stream)
            return
        with self._stream, self._allocating(self._pool.malloc):
            if not self._has_run:
                self._has_run = True
                self._run()
                return
            self._stream.begin_capture()
            try:
                self._run()
            finally:
                graph = self._stream.end_capture()
        self._graph = graph
        graph.launch(self._stream)

    def _run(self) -> None:
        for launch in self._launches:
            launch()
