"""Files that are no models: what is said of them."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
import zlib

import pytest

from onnx_builder import NetworkError
from onnx_builder.write import to_bytes
from sidecar.evaluation.evaluate import evaluate
from sidecar.evaluation.inspect import inspect
from sidecar.models.base_model import load
from tests.torch_files import STATE, Call, legacy_file, safetensors_file, zip_file

SVM = {"param_dict": {"C": 1.0}, "model_dict": {"model_type": "LIBSVMNUSVR", "model": "svm_type nu_svr"}}


def archive(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for name in names:
            zipped.writestr(name, b"{}")
    return file.getvalue()


def pickled(name):
    module, last = (b"\x8c" + bytes([len(part)]) + part.encode() for part in name.rsplit(".", 1))
    return b"\x80\x04" + module + last + b"\x93)\x81."


KINDS = {
    "a Git LFS pointer, not the file itself: git lfs pull": b"version https://git-lfs.github.com/spec/v1\nsize 9\n",
    "a web page": b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
    "compressed with gzip: unpack it": gzip.compress(b"model"),
    "compressed with zlib, as joblib does": zlib.compress(b"model" * 9),
    "an HDF5 file, as Keras writes": b"\x89HDF\r\n\x1a\n" + bytes(40),
    "a Keras model .*tf2onnx": archive("metadata.json", "config.json", "model.weights.h5"),
    "a model in onnxruntime's own format .*: use the .onnx": b"\x1c\0\0\0ORTM" + bytes(40),
    "a TensorFlow Lite model": b"\x1c\0\0\0TFL3" + bytes(40),
    "an exported program of torch.export": archive("net/archive_format", "net/models/model.json", "net/data/weights/weight_0"),
    "a TorchScript archive": archive("net/constants.pkl", "net/code/__torch__.py", "net/data.pkl"),
    "a file of numpy arrays": archive("a.npy", "b.npy"),
    "a zip archive with an ONNX model in it": archive("model.onnx"),
    "a pickled scikit-learn model: .* skl2onnx": pickled("sklearn.neural_network._multilayer_perceptron.MLPRegressor"),
    "a file of joblib": pickled("joblib.numpy_pickle.NumpyArrayWrapper"),
    "a pickled XGBoost model, trees": pickled("xgboost.sklearn.XGBRegressor"),
    "a support vector machine of libvmaf": json.dumps(SVM).encode(),
    "JSON, not a model": b'{"feature_mean": [1.0]}',
    "XML": b"<?xml version='1.0'?><PMML/>",
    "a tar archive": bytes(257).replace(b"\0", b"a") + b"ustar\x0000" + bytes(200),
    "empty": b"",
}


@pytest.mark.parametrize("words", KINDS)
def test_a_file_of_another_kind_is_told_with_what_to_do(tmp_path, words):
    path = tmp_path / "model.onnx"
    path.write_bytes(KINDS[words])
    with pytest.raises(NetworkError, match=f"^{path}: {words}"):
        load(path)
    with pytest.raises(NetworkError, match=f"^{path}: {words}"):
        inspect(path)
    if not KINDS[words].startswith(b"PK"):
        with pytest.raises(NetworkError, match=f"^{path}: {words}"):
            evaluate([path], [])


def test_a_models_own_bytes_are_no_other_kind(tmp_path, make_network):
    """Whatever the length before a safetensors header looks like, and whatever is in the company of a state-dict."""
    path = tmp_path / "model"
    scaler = Call("sklearn.preprocessing._data.StandardScaler", ())
    tensors = {key: ("F32", tensor.values) for key, tensor in STATE.items()}
    files = [
        to_bytes(make_network((3, 4, 1))),
        *(write({"state_dict": STATE, "rng": scaler}) for write in (zip_file, legacy_file)),
    ]
    plain = safetensors_file(tensors)
    for first in b"\x1f\x8b{[x<B":
        padding = (first - struct.unpack_from("<Q", plain)[0]) % 256
        length = struct.unpack_from("<Q", plain)[0]
        files.append(struct.pack("<Q", length + padding) + plain[8 : 8 + length] + b" " * padding + plain[8 + length :])
    for data in files:
        path.write_bytes(data)
        assert load(path).network.n_features > 0
