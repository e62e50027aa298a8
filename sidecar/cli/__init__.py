"""The `vmafx-sidecar` command. Importing it prepares this process, before numpy and onnxruntime are loaded.

A program that imports the library instead keeps its own settings.
"""

import os

from sidecar.cli.streams import open_standard_streams

open_standard_streams()
# One BLAS thread is faster at the size of these matrices, and adds up in one order.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# onnxruntime's wheels send usage figures to their makers unless told not to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
