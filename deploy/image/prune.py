"""Removes what no command runs: `prune.py DIRECTORY [EXTRA…]`, where DIRECTORY was made by `pip install --target`.

A pattern that matches nothing stops the build, so that the tables below stay up to date. `deploy/image/check` tests what is
kept: the packages' own tests run in the finished image.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

NEVER_RUN = {
    "bin": "commands of the dependencies",
    "*.dist-info/RECORD": "lists files that no longer exist",
    "**/*.pyi": "for type checkers",
    "numpy/**/tests": "tests, like the next one",
    "numpy/conftest.py": "",
    "numpy/_core/_simd.*.so": "only for numpy's tests of its SIMD code",
    "numpy/_core/include": "for building extension modules, like the next ones",
    "numpy/_core/lib": "",
    "numpy/random/lib": "",
    "numpy/**/*.pxd": "",
    "numpy/distutils": "",
    "numpy/f2py": "",
    "onnx/backend": "tests and their data",
    "onnx/reference": "an evaluator in Python; we use onnxruntime and numpy",
    "onnx/**/*.cc": "sources of the extension module, like the next ones",
    "onnx/**/*.h": "",
    "onnx/**/*.proto": "",
    "onnxruntime/capi/libonnxruntime.so.*": "for C programs; the Python module has it linked in",
    "onnxruntime/quantization": "converts models, like the next ones",
    "onnxruntime/tools": "",
    "onnxruntime/transformers": "",
    "sidecar/regressor.py": "for programs in Python: it needs scikit-learn, which no command does",
}
OF_EXTRAS = {
    "cuda": {
        "cupy/cuda/cufft.*.so": "CuPy's interfaces to parts of CUDA that are not in the lock, like the next ones",
        "cupy/cuda/jitify.*.so": "",
        "cupy_backends/cuda/libs/cusolver.*.so": "",
        "cupy_backends/cuda/libs/cusparse.*.so": "",
        "cupy_backends/cuda/libs/cutensor.*.so": "",
        "cupy_backends/cuda/libs/nccl.*.so": "",
        "cupyx/_cusolver.*.so": "",
        "cupyx/_cutensor.*.so": "",
        "nvidia/cu13/include/cublas*.h": "for C programs, like the next ones; CuPy compiles kernels with the other headers",
        "nvidia/cu13/lib/lib*.a": "",
        "nvidia/cu13/lib/libcudart.so.*": "CuPy has it linked in",
        "nvidia/cu13/lib/libnvblas.so.*": "",
        "nvidia/cu13/lib/libnvrtc*.alt.so.*": "another build of the compiler",
    }
}


def prune(tree: Path, extras: Sequence[str] = ()) -> None:
    patterns = {**NEVER_RUN}
    for extra in extras:
        patterns |= OF_EXTRAS[extra]
    for pattern in patterns:
        found = list(tree.glob(pattern))
        if not found:
            sys.exit(f"{tree}: nothing matches {pattern!r}; the package has changed: correct the table in {__file__}")
        for path in found:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


if __name__ == "__main__":
    prune(Path(sys.argv[1]), sys.argv[2:])
