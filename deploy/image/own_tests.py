"""Runs the packages' own tests against what the image keeps of them: `own_tests.py WHEELS`, inside the image.

WHEELS: complete installations of the image's versions of numpy and onnx, with pytest and hypothesis. It runs numpy's tests of
the modules that we use, and onnx's test cases for the operators of checkpoints with onnxruntime.
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from onnx_builder.write import OPERATORS

TYPES = {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}  # of the tensors in a checkpoint
NUMPY = ("linalg/tests/test_linalg.py", "lib/tests", "random/tests/test_generator_mt19937.py")


def main(wheels: Path) -> None:
    for module in (np, onnx, onnxruntime):
        if Path(str(module.__file__)).is_relative_to(wheels):
            sys.exit(f"{module.__file__}: expected the image's own")
    sys.path.append(str(wheels))  # behind the image's packages
    for package in (onnx, np.lib, np.linalg, np.random):  # for their tests, which are not in the image
        package.__path__.append(str(wheels / package.__name__.replace(".", "/")))
    print(f"onnx: {run_onnx_cases()} cases passed with onnxruntime")
    import pytest

    output = io.StringIO()
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:warnings", "--noconftest", "-m", "not slow"]
    with contextlib.redirect_stdout(output):
        failed = pytest.main([*options, *(str(wheels / "numpy" / each) for each in NUMPY)])
    if failed:
        sys.exit(output.getvalue())
    print("numpy:", output.getvalue().splitlines()[-1])


def run_onnx_cases() -> int:
    from onnx.backend.test.case.node import collect_testcases

    passed = 0
    for case in collect_testcases(None):
        graph = case.model.graph
        if not {node.op_type for node in graph.node} <= OPERATORS:
            continue
        if not {each.type.tensor_type.elem_type for each in graph.input} <= TYPES:
            continue
        onnx.checker.check_model(case.model, full_check=True)
        session = onnxruntime.InferenceSession(case.model.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        for inputs, outputs in case.data_sets:
            results = session.run(None, dict(zip(names, map(np.asarray, inputs), strict=True)))
            for result, output in zip(results, outputs, strict=True):
                np.testing.assert_allclose(result, output, rtol=case.rtol, atol=case.atol, err_msg=case.name)
        passed += 1
    return passed


if __name__ == "__main__":
    main(Path(sys.argv[1]))
