"""Which exporters' models can be read as base models: exporter × layer, with the largest difference from the original.

    pip install torch onnxscript skl2onnx jax flax jax2onnx keras onnxsim onnxslim
    python benchmarks/exporters.py examples/recorded-80.jsonl.gz

Whatever of these is not installed is left out; KERAS_BACKEND=tensorflow, with tensorflow-cpu and tf2onnx, is for another
environment. Each model is made for the features of real pairs, with their scaling inside and
scores around 75; its difference is that of what is read, from what the framework itself computes, in score points. Weights are
random: it is the arithmetic that counts.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np

from onnx_builder import NetworkError
from onnx_builder.read import read
from sidecar.pairs.recorded import read_pairs

KERAS = os.environ["KERAS_BACKEND"]
Made = tuple[Path, np.ndarray]
"""An ONNX file, and the scores that the original computes."""


class Data:
    """Features of real pairs, what scales them, and a folder for files."""

    def __init__(self, features: np.ndarray, folder: Path) -> None:
        self.features, self.folder = features, folder
        self.mean, self.scale = features.mean(axis=0), features.std(axis=0) + np.float32(1e-3)
        self.n = features.shape[1]
        self.path = folder / "model.onnx"


def torch_layers() -> dict[str, Callable[[], Any]]:
    """What may come after a Linear layer of 16 units."""
    import torch
    from torch import nn

    class Where(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.where(x > 0, x * 0.1)

    class OfSome(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.cat([x[:, 8:], x[:, :8].abs().log1p()], dim=1)

    class Norm(nn.Sequential):
        pass

    names = ["ReLU", "LeakyReLU", "PReLU", "ELU", "SELU", "CELU", "SiLU", "Mish", "GELU", "Softplus", "Softsign", "LogSigmoid"]
    names += ["Sigmoid", "Tanh", "Tanhshrink", "Hardtanh", "ReLU6", "Hardsigmoid", "Hardswish", "Hardshrink", "Softshrink"]
    layers: dict[str, Callable[[], Any]] = {name: getattr(nn, name) for name in names}
    layers["GELU, tanh"] = lambda: nn.GELU("tanh")
    layers["torch.where"] = Where
    layers["log1p of half"] = OfSome
    layers["BatchNorm1d"] = lambda: Norm(nn.BatchNorm1d(16), nn.ReLU())
    layers["LayerNorm"] = lambda: Norm(nn.LayerNorm(16), nn.ReLU())
    layers["Dropout"] = lambda: Norm(nn.Dropout(), nn.ReLU())
    return layers


def torch_model(data: Data, layer: Any) -> tuple[Any, np.ndarray]:
    import torch
    from torch import nn

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.from_numpy(data.mean))
            self.register_buffer("scale", torch.from_numpy(data.scale))
            self.body = nn.Sequential(nn.Linear(data.n, 16), layer, nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))

        def forward(self, features: Any) -> Any:
            return self.body((features - self.mean) / self.scale)[:, 0] * 20 + 75

    torch.manual_seed(0)
    model = Scaled()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.1, 0.4)
    model.eval()
    with torch.no_grad():
        return model, model(torch.from_numpy(data.features)).numpy()


def from_torch(data: Data, layer: Any, **options: Any) -> Made:
    import torch

    model, scores = torch_model(data, layer)
    some = torch.from_numpy(data.features[:2])
    if not options.pop("dynamo", False):
        options["dynamic_axes"] = {"features": {0: "batch"}}
        torch.onnx.export(model, some, str(data.path), input_names=["features"], dynamo=False, **options)
    else:
        shapes = {"features": {0: torch.export.Dim("batch")}}
        torch.onnx.export(model, (some,), str(data.path), dynamo=True, dynamic_shapes=shapes, verbose=False, **options)
    return data.path, scores


def simplified(data: Data, layer: Any) -> Made:
    import onnx
    import onnxsim

    path, scores = from_torch(data, layer, opset_version=17)
    model, _ = onnxsim.simplify(onnx.load(path))
    onnx.save(model, path)
    return path, scores


def slimmed(data: Data, layer: Any) -> Made:
    import onnx
    import onnxslim

    path, scores = from_torch(data, layer, opset_version=17)
    onnx.save(onnxslim.slim(onnx.load(path)), path)
    return path, scores


def optimized(data: Data, layer: Any) -> Made:
    import onnxruntime

    path, scores = from_torch(data, layer, opset_version=17)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(data.folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return data.folder / "optimized.onnx", scores


def keras_layers() -> dict[str, Callable[[], list[Any]]]:
    from keras import layers

    names = ["relu", "leaky_relu", "elu", "selu", "celu", "silu", "mish", "gelu", "softplus", "softsign", "log_sigmoid"]
    names += ["sigmoid", "tanh", "tanh_shrink", "relu6", "hard_sigmoid", "hard_silu", "hard_shrink", "soft_shrink"]
    made: dict[str, Callable[[], list[Any]]] = {}
    for name in names:
        made[name] = lambda name=name: [layers.Activation(name)]
    made["PReLU"] = lambda: [layers.PReLU(alpha_initializer="random_normal")]
    made["BatchNormalization"] = lambda: [layers.BatchNormalization(), layers.ReLU()]
    made["LayerNormalization"] = lambda: [layers.LayerNormalization(), layers.ReLU()]
    return made


def from_keras(data: Data, layer: list[Any]) -> Made:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    scaling = layers.BatchNormalization()  # the weights of Normalization are inputs of the graph that tf2onnx makes
    scaling.build((None, data.n))
    scaling.set_weights([np.ones(data.n), np.zeros(data.n), data.mean, data.scale**2])
    model = keras.Sequential(
        [
            keras.Input((data.n,), name="features"),
            scaling,
            layers.Dense(16),
            *layer,
            layers.Dense(8, activation="relu"),
            layers.Dense(1),
            layers.Rescaling(20.0, 75.0),
        ]
    )
    scores = keras.ops.convert_to_numpy(model(data.features, training=False))
    model.export(str(data.path), format="onnx", verbose=False)
    return data.path, scores


def jax_layers() -> dict[str, Callable[[], Any]]:
    import jax
    from flax import nnx

    names = ["relu", "leaky_relu", "elu", "selu", "celu", "silu", "mish", "gelu", "softplus", "soft_sign", "log_sigmoid"]
    names += ["sigmoid", "tanh", "relu6", "hard_sigmoid", "hard_silu", "squareplus"]
    made: dict[str, Callable[[], Any]] = {name: lambda name=name: getattr(jax.nn, name) for name in names}
    made["gelu, exact"] = lambda: lambda x: jax.nn.gelu(x, approximate=False)
    made["LayerNorm"] = lambda: nnx.LayerNorm(16, rngs=nnx.Rngs(0))
    made["BatchNorm"] = lambda: nnx.BatchNorm(16, use_running_average=True, rngs=nnx.Rngs(0))
    return made


def from_jax(data: Data, layer: Any) -> Made:
    import jax2onnx
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.first, self.layer = nnx.Linear(data.n, 16, rngs=rngs), layer
            self.second, self.third = nnx.Linear(16, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)

        def __call__(self, features: Any) -> Any:
            x = self.layer(self.first((features - data.mean) / data.scale))
            return self.third(nnx.relu(self.second(x))) * 20 + 75

    model = Model(nnx.Rngs(0))
    jax2onnx.to_onnx(model, inputs=[("batch", data.n)], return_mode="file", output_path=str(data.path))
    return data.path, np.asarray(model(data.features))


def sklearn_pipelines() -> dict[str, Callable[[], Any]]:
    from sklearn import compose, decomposition, linear_model, neural_network, pipeline, preprocessing

    def mlp(activation: str = "relu") -> Any:
        return neural_network.MLPRegressor(hidden_layer_sizes=(16, 8), activation=activation, max_iter=30, random_state=0)

    def two_parts() -> Any:
        parts = [("one", preprocessing.StandardScaler(), slice(0, 30)), ("two", preprocessing.MinMaxScaler(), slice(30, 80))]
        return compose.ColumnTransformer(parts)

    scalers = ["StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler"]
    made: dict[str, Callable[[], Any]] = {}
    for name in scalers:
        made[f"{name}, MLP"] = lambda name=name: pipeline.make_pipeline(getattr(preprocessing, name)(), mlp())
    for name in ("tanh", "logistic", "identity"):
        made[f"MLP, {name}"] = lambda name=name: pipeline.make_pipeline(preprocessing.StandardScaler(), mlp(name))
    made["ColumnTransformer, MLP"] = lambda: pipeline.make_pipeline(two_parts(), mlp())
    made["PCA, MLP"] = lambda: pipeline.make_pipeline(preprocessing.StandardScaler(), decomposition.PCA(20), mlp())
    for name in ("LinearRegression", "Ridge", "Lasso", "HuberRegressor"):
        made[name] = lambda name=name: pipeline.make_pipeline(preprocessing.StandardScaler(), getattr(linear_model, name)())
    return made


def from_sklearn(data: Data, model: Any) -> Made:
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType

    target = 75 + data.features[:, :3].sum(axis=1) - data.features[:, :3].sum(axis=1).mean()
    model.fit(data.features, target)
    graph = skl2onnx.convert_sklearn(model, initial_types=[("features", FloatTensorType([None, data.n]))], target_opset=17)
    data.path.write_bytes(graph.SerializeToString())
    return data.path, model.predict(data.features)


EXPORTERS: dict[str, tuple[tuple[str, ...], Callable[[], Any], Callable[..., Made]]] = {
    "torch, opset 9": (("torch",), torch_layers, lambda data, layer: from_torch(data, layer, opset_version=9)),
    "torch, opset 13": (("torch",), torch_layers, lambda data, layer: from_torch(data, layer, opset_version=13)),
    "torch, opset 17": (("torch",), torch_layers, lambda data, layer: from_torch(data, layer, opset_version=17)),
    "torch, opset 20": (("torch",), torch_layers, lambda data, layer: from_torch(data, layer, opset_version=20)),
    "torch, dynamo": (("torch", "onnxscript"), torch_layers, lambda data, layer: from_torch(data, layer, dynamo=True)),
    "torch, onnxsim": (("torch", "onnxsim"), torch_layers, simplified),
    "torch, onnxslim": (("torch", "onnxslim"), torch_layers, slimmed),
    "torch, onnxruntime": (("torch", "onnxruntime"), torch_layers, optimized),
    f"Keras on {KERAS}": (("keras", KERAS), keras_layers, from_keras),
    "jax2onnx, flax": (("jax2onnx", "flax"), jax_layers, from_jax),
    "skl2onnx": (("skl2onnx",), sklearn_pipelines, from_sklearn),
}


def outcome(data: Data, export: Callable[..., Made], layer: Any) -> str:
    """The largest difference in score points; "refused" with the reason; or "no export", if the exporter cannot."""
    for file in data.folder.iterdir():
        file.unlink()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            path, scores = export(data, layer)
        except Exception as error:
            return f"no export: {type(error).__name__}"
    try:
        network = read(path)
    except NetworkError as error:
        return f"refused: {str(error).removeprefix(f'{path}: ')}"
    return f"{np.abs(network.forward(data.features) - np.reshape(scores, -1)).max():.0e}"


def results(data: Data, only: str) -> Iterator[tuple[str, str, str]]:
    for name, (needs, layers, export) in EXPORTERS.items():
        if only in name and all(importlib.util.find_spec(each) for each in needs):
            for layer, make in layers().items():
                yield name, layer, outcome(data, export, make())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", help="recorded pairs")
    parser.add_argument("--only", default="", help="exporters whose name has this in it")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    features = read_pairs([options.pairs]).features[:500]
    table: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for exporter, layer, result in results(Data(features, Path(folder)), options.only):
            table.setdefault(exporter, {})[layer] = result
            print(f"{exporter:20} {layer:24} {result}", flush=True)
    print()
    for exporter, cells in table.items():
        read_ones = [float(result) for result in cells.values() if result[0].isdigit()]
        exported = sum(not result.startswith("no export") for result in cells.values())
        largest = f"{max(read_ones):.0e}" if read_ones else "–"
        others = ", ".join(layer for layer, result in cells.items() if result.startswith("refused"))
        print(f"| {exporter} | {len(read_ones)} of {exported} | {largest} | {others or '–'} |")


if __name__ == "__main__":
    main()
