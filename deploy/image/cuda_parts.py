"""Tries, inside the image for a GPU, what steps on one need besides the driver: `cuda_parts.py`. It needs no GPU.

It loads cuBLAS, compiles kernels for Hopper as CuPy would, and starts `serve`, which must say that the GPU is missing.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

from cuda.pathfinder import load_nvidia_dynamic_lib
from cupy._core import core
from cupy.cuda import compiler

from sidecar.learning.device import cuda

ARCHITECTURE = "sm_90"
MISSING = "training on a GPU needs an NVIDIA GPU and its driver"


def main() -> None:
    cublas = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    version = [ctypes.c_int() for _ in range(3)]
    for place, each in enumerate(version):
        cublas.cublasGetProperty(place, ctypes.byref(each))
    print("cuBLAS", ".".join(str(each.value) for each in version))
    compiler._get_arch_for_options_for_nvrtc = lambda arch: (f"-arch={ARCHITECTURE}", "cubin")
    compiler._compile_module_with_cache = compiled
    for source in (cuda._DOT, cuda._TAKE):
        core.compile_with_cache(source)
    core.compile_with_cache('extern "C" __global__ void with_the_headers_of_its_own_kernels() {}', prepend_cupy_headers=True)
    command = ["vmafx-sidecar", "serve", "--cuda", "1", "--http", "", "--checkpoint-dir", "/tmp/checkpoints"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode != 2 or MISSING not in done.stderr:
        sys.exit(f"serve without a GPU: exit code {done.returncode}; expected 2\n{done.stderr}")
    print(done.stderr.splitlines()[-1])


def compiled(source: str, options: tuple[str, ...] = (), **others: Any) -> None:
    """In place of CuPy's function that compiles for the GPU at hand, and loads the result."""
    code, _ = compiler.compile_using_nvrtc(source, options, cache_in_memory=True)
    print(f"a kernel of {len(code)} bytes for {ARCHITECTURE}")


if __name__ == "__main__":
    main()
