"""Files that are given as models and are none that can be read: what they are, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

from onnx_builder.network import NetworkError

_TORCH_STREAM = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
"""The number with which the streams of torch.save begin, as it is pickled."""
_HEAD_BYTES = 4096
_BY_CONTENT = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself: git lfs pull fetches it"),
    (rb"\s*(<!doctype html|<html|<head)", "a web page (HTML), not a model: fetch the file itself, not the page that shows it"),
    (rb"\x1f\x8b", "compressed with gzip: unpack it first"),
    (rb"BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf", "compressed: unpack it first"),
    (rb"x[\x01\x9c\xda]", "compressed with zlib, as joblib does: if it is a scikit-learn model, convert it with skl2onnx"),
    (rb"\x89HDF\r\n", "an HDF5 file, as Keras writes (.h5): convert it to ONNX with tf2onnx"),
    (rb".{4}ORTM", "a model in onnxruntime's own format (.ort): use the .onnx that it was made from"),
    (rb".{4}TFL3", "a TensorFlow Lite model: convert the original to ONNX with tf2onnx"),
    (rb"\x93NUMPY", "a numpy array (.npy), not a model"),
    (rb"GGUF", "a GGUF file, not a regressor"),
    (rb".{257}ustar", "a tar archive: unpack it first"),
    (rb"\s*<\?xml", "XML (PMML or OpenVINO), not ONNX: convert the original to ONNX"),
    (rb"\s*[\[{]", "JSON, not a model: give the model that it lies beside"),
    (rb"tree\n|booster", "a LightGBM model, trees and no network"),
    (rb"\Z", "empty, not an ONNX model"),
)
_TREES = "trees and no network: only a network can be trained further"
_SVM = "a support vector machine of libvmaf (JSON), not a network: only a network can be trained further"
_PICKLED = (
    (b"sklearn.", "a pickled scikit-learn model: convert it to ONNX with skl2onnx"),
    (b"joblib.", "a file of joblib: if it is a scikit-learn model, convert it to ONNX with skl2onnx"),
    (b"xgboost.", f"a pickled XGBoost model, {_TREES}"),
    (b"lightgbm.", f"a pickled LightGBM model, {_TREES}"),
    (b"catboost", f"a pickled CatBoost model, {_TREES}"),
)


def require_a_model(path: Path, data: bytes) -> None:
    """Raises NetworkError, which says what it is and what to do, if the content of a file is known to be no model."""
    if data.startswith(b"\x80") and _TORCH_STREAM not in data[:32] and data[8:9] != b"{":
        words = next((words for name, words in _PICKLED if name in data), "")
    elif data[:1] == b"{" and re.search(rb'"model_type"\s*:\s*"(LIBSVM|RESIDUE|BOOTSTRAP)', data[:_HEAD_BYTES]):
        words = _SVM
    elif data[8:9] == b"{":  # safetensors, whose length may be any bytes
        words = ""
    else:
        words = next((words for pattern, words in _BY_CONTENT if re.match(pattern, data[:_HEAD_BYTES], re.I | re.S)), "")
    if words:
        raise NetworkError(f"{path}: {words}")
