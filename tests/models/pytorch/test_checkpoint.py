"""State-dicts in company: which dict is read, what beside it is skipped, and what stops the reading."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnx_builder import NetworkError
from onnx_builder.read import from_bytes as from_network
from onnx_builder.write import to_bytes
from sidecar.models.pytorch.state_dict import Choices, from_bytes
from tests.torch_files import (
    STATE,
    Call,
    Global,
    Ordered,
    Tensor,
    X,
    expected,
    legacy_file,
    numbers,
    safetensors_file,
    zip_file,
)

MEAN = Tensor(numbers(3))
SCALAR = Tensor(numbers(1), ())
ARRAY = Call("numpy._core.multiarray._reconstruct", (Global("numpy.ndarray"), (0,), "b"), (1, (3,), "values"))
NUMBER = Call("numpy._core.multiarray.scalar", (Call("numpy.dtype", ("f8", False, True)), "12345678"))


def read(value, **choices):
    return from_bytes(zip_file(value), Choices(**choices))


@pytest.mark.parametrize("write", [zip_file, legacy_file])
@pytest.mark.parametrize("key", ["state_dict", "net", "model_state", "module", "best_model"])
def test_the_only_dict_of_tensors_is_read_under_whatever_key(write, key):
    assert np.array_equal(from_bytes(write({"epoch": 1, key: STATE})).network.forward(X), expected(STATE, X))
    assert np.array_equal(from_bytes(write({"a": {"b": [{key: STATE}]}})).network.forward(X), expected(STATE, X))


BESIDE = {
    "numpy scalar": {"best_rmse": NUMBER, "score": NUMBER},
    "numpy array of training": {"losses": ARRAY, "rng_state": [ARRAY, (1, 2, 3)]},
    "namespace": {"args": Call("argparse.Namespace", (), {"lr": 0.1, "hidden": [64, 32], "max_epochs": 3})},
    "path": {"data": Call("pathlib.PurePosixPath", ("/", "d"))},
    "keys of other kinds": {"grid": {(1, 2): 0.5, None: 1, 2.5: 2, 2**70: 3}},
    "class": {"kind": Global("app.Net"), "dtype": Global("torch.float32")},
    "set": {"tags": b"\x8f(X\1\0\0\0aX\1\0\0\0b\x90"},
    "frozenset": {"tags": b"(X\1\0\0\0aX\1\0\0\0b\x91"},
    "bytes": {"blob": b"C\3abc", "more": b"B\3\0\0\0abc\x9420", "last": None},
    "new-style object": {"config": b"capp\nConfig\n)\x81}X\4\0\0\0name" + b"X\1\0\0\0xsb"},
    "object with arguments by name": {"config": b"capp\nConfig\n)}X\1\0\0\0aK\1s\x92"},
    "dict of a kind": {"config": b"capp\nConfig\n)RX\1\0\0\0aK\1s(X\1\0\0\0bK\2u"},
    "list of a kind": {"config": b"capp\nList\n)RK\1a(K\2K\3e"},
    "text of Python 2": {"more": b"}U\1aT\1\0\0\0\xe9s"},
    "a hostile call": {"callbacks": Call("posix.system", ("false",)), "extra": Call("builtins.eval", ("1",))},
    "gradient scaler": {"scaler": {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "_growth_tracker": 3}},
    "averages of optimizers": {"optimizer_states": [{"state": {0: {"exp_avg": Tensor(numbers(4, 3))}}, "w": {"x": MEAN}}]},
    "optimizers by other names": {
        "opt": {"state": {0: {"exp_avg": Tensor(numbers(4, 3))}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "adamw_g": {"state": {}, "param_groups": [{"weight_decay": 0.1}]},
    },
    "no scalers": {"config": {"normalization": "batch", "scaler": "None", "normalize": False, "sigmoid": False, "name": "mlp"}},
    "sizes": {
        "size": Call("torch.Size", ((4, 3),)),
        "hyper_parameters": {"hidden_dims": [4], "dropout": 0.1, "layer_norm": True},
    },
}


@pytest.mark.parametrize("write", [zip_file, legacy_file])
@pytest.mark.parametrize("beside", BESIDE)
def test_what_is_beside_the_state_dict_is_skipped_unexecuted(write, beside):
    data = write({"state_dict": STATE, **BESIDE[beside]})
    assert np.array_equal(from_bytes(data).network.forward(X), expected(STATE, X))


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"mean": MEAN, "std": MEAN}, r"'mean', a tensor of shape \(3,\)"),
        ({"scaler": {"mean_": MEAN, "scale_": MEAN}}, "'scaler.mean_', a tensor"),
        ({"normalizer_dict": {"score": {"mean": SCALAR}}}, "'normalizer_dict.score.mean', a tensor"),
        ({"feature_mean": [0.5, 1.0, 2.0]}, "'feature_mean', 3 numbers"),
        ({"feature_mean": [NUMBER, NUMBER]}, "'feature_mean', a number"),
        ({"order": (2, 0, 1)}, "'order', 3 numbers"),
        ({"mask": [True, False, True]}, "'mask', 3 numbers"),
        ({"x": ARRAY}, "'x', an array"),
        ({"prep": Call("sklearn.preprocessing._data.StandardScaler", (), {"mean_": ARRAY})}, "'prep.mean_', an array"),
        ({"hyper_parameters": {"targetMean": 79.0, "target_std": 23.0}}, "'hyper_parameters.targetMean', 79.0"),
        ({"args": Call("argparse.Namespace", (), {"y_scale": 100})}, "'args.y_scale', 100"),
        ({"hyper_parameters": {"use_residual": True}}, "'hyper_parameters.use_residual', which says that there is a skip"),
        ({"config": {"normalize_features": True}}, "'config.normalize_features', which says that values are scaled"),
        ({"config": {"standardize": 1}}, "'config.standardize', which says that values are scaled or clipped"),
        ({"config": {"clamp": True}}, "'config.clamp', which says that values are scaled or clipped"),
        ({"config": {"normalize": "zscore"}}, "'config.normalize', 'zscore'"),
        ({"config": {"input_scaler": "sklearn.StandardScaler"}}, "'config.input_scaler', 'sklearn.StandardScaler'"),
        ({"scaler": Call("_codecs.encode", ("\x80\x04.", "latin1"))}, "'scaler', 3 bytes"),
        ({"label_divisor": 100}, "'label_divisor', 100"),
        ({"y_norm": NUMBER}, "'y_norm', a number"),
        ({"config": {"skip_connections": 2}}, "'config.skip_connections', which says that there is a skip"),
        ({"net": Call("torch.nn.modules.batchnorm.BatchNorm1d", (), {"_buffers": {"running_mean": MEAN}})}, "'net._buffers"),
    ],
)
def test_numbers_that_may_change_the_scores_stop_the_reading(beside, named):
    with pytest.raises(NetworkError, match=named + r".*, beside the layers, may change .* train-offline --base-key state_dict"):
        read({"state_dict": STATE, **beside})
    assert np.array_equal(read({"state_dict": STATE, **beside}, key="state_dict").network.forward(X), expected(STATE, X))


@pytest.mark.parametrize(
    "more", [{"mean": [0.5, 1.0]}, {"_extra_state": {"range": 1.0}}, {"mean": 0.5}, {"n": "text"}, {"x": Call("app.Thing", ())}]
)
def test_what_is_no_tensor_among_the_tensors_stops_the_reading(more):
    (name,) = more
    with pytest.raises(NetworkError, match=f"'{name}', among the tensors, is .*, not a tensor; nothing was executed"):
        read(STATE | more)
    assert np.array_equal(read(STATE | {name: None}).network.forward(X), expected(STATE, X))


def test_tensors_of_types_that_are_not_read_are_named():
    tensor = Call("torch._utils._rebuild_tensor_v3", (Global("torch.storage.UntypedStorage"), 0, (4, 3), (3, 1)))
    with pytest.raises(NetworkError, match=r"it holds 'a\.weight', a tensor of a type that is not read: save it as float32"):
        read({"a.weight": tensor})


def test_safetensors_metadata_is_looked_at():
    def file(**about):
        tensors = {key: ("F32", tensor.values) for key, tensor in STATE.items()}
        return safetensors_file(tensors, __metadata__=about)

    read_as = from_bytes(file(activation="tanh", format="pt")).read_as
    assert read_as == "read as a plain chain of Linear and tanh (named by activation)"
    with pytest.raises(NetworkError, match="'feature_mean', 3 numbers, beside the layers"):
        from_bytes(file(feature_mean=json.dumps([1, 2, 3.5])))


def test_two_dicts_of_tensors_are_a_question():
    other = {key: Tensor(tensor.values + 1) for key, tensor in STATE.items()}
    checkpoint = {"model": STATE, "ema": {"weights": other}}
    with pytest.raises(
        NetworkError, match=r"2 dicts of tensors, 'model', 'ema.weights': name one with train-offline --base-key"
    ):
        read(checkpoint)
    assert np.array_equal(read(checkpoint, key="model").network.forward(X), expected(STATE, X))
    assert np.array_equal(read(checkpoint, key="ema.weights").network.forward(X), expected(other, X))
    with pytest.raises(
        NetworkError, match=r"--base-key 'em' names none of its dicts of tensors; there is 'model', 'ema.weights'"
    ):
        read(checkpoint, key="em")


def test_two_dicts_of_tensors_in_a_list_are_a_question_too():
    other = {key: Tensor(tensor.values + 1) for key, tensor in STATE.items()}
    with pytest.raises(NetworkError, match=r"2 dicts of tensors, 'models\.0', 'models\.1': name one"):
        read({"models": [STATE, other]})
    assert np.array_equal(read({"models": [STATE, other]}, key="models.1").network.forward(X), expected(other, X))
    with pytest.raises(NetworkError, match=r"2 dicts of tensors, 'a\.b', 'a\.b \(1\)': name one"):
        read({"a": {"b": STATE}, "a.b": other})


@pytest.mark.parametrize(
    "more",
    [
        b"](" + b"N" * 200_000 + b"e",
        b"](" + b"K\1" * 100_000 + b"Ne",
        b"}(" + b"".join(b"M" + n.to_bytes(2, "little") + b"N" for n in range(2**15)) + b"u",
        b"]" * 100_000 + b"a" * 99_999,
        b"capp\nA\n)R" + b"Nb" * 100_000,
    ],
)
def test_company_of_any_size_is_looked_at(more):
    assert np.array_equal(read({"state_dict": STATE, "more": more}).network.forward(X), expected(STATE, X))


def test_names_of_any_length_are_looked_at():
    for name in ("a." * 100_000, "a" * 200_000):
        with pytest.raises(NetworkError):
            read(STATE | {f"{name}.weight": STATE["0.weight"], f"{name}.scale": STATE["0.weight"]})
    with pytest.raises(NetworkError, match="layers; a regressor has at most 500"):
        read({f"{n}.weight": Tensor(numbers(1, 1)) for n in range(501)})


@pytest.mark.parametrize("around", ["", "wrapped."])
def test_two_models_in_one_dict_are_a_question(around):
    other = {key: Tensor(tensor.values + 1) for key, tensor in STATE.items()}
    both = {f"{around}online_model.{key}": tensor for key, tensor in STATE.items()}
    both |= {f"{around}ema_model.{key}": tensor for key, tensor in other.items()}
    both |= {"initted": Tensor(np.array([True]), kind="Bool"), "step": Tensor(np.array([7]), kind="Long")}
    with pytest.raises(NetworkError, match=f"2 models in one dict, '{around}online_model', '{around}ema_model': name one"):
        read(both)
    assert np.array_equal(read(both, key=f"{around}ema_model").network.forward(X), expected(other, X))
    assert np.array_equal(read({"state": both}, key=f"{around}online_model").network.forward(X), expected(STATE, X))


# What a file says of its activations and its output.


RELU = Global("torch.nn.modules.activation.ReLU")


@pytest.mark.parametrize(
    ("about", "activation"),
    [
        ({"activation": "tanh"}, "tanh"),
        ({"act_fn": "nn.Tanh()"}, "tanh"),
        ({"hidden_activation": "LeakyReLU"}, "leaky_relu"),
        ({"nonlinearity": Global("torch.tanh")}, "tanh"),
        ({"x": Global("torch.nn.modules.activation.Sigmoid")}, "sigmoid"),
        ({"net": Call("torch.nn.modules.container.Sequential", (), {"_modules": {"1": Call(RELU.name, ())}})}, "relu"),
        ({"fn": Global("torch._C._nn.gelu")}, "gelu"),
        ({"output_activation": "none", "activation": "gelu"}, "gelu"),
        ({"nonlin": "tanh"}, "tanh"),
        ({"activation": {"name": "LeakyReLU"}}, "leaky_relu"),
        ({"layers": [{"type": "linear"}, {"type": "nn.GELU()"}, {"type": "linear"}]}, "gelu"),
        ({}, "relu"),
    ],
)
def test_a_declared_activation_is_taken(about, activation):
    checkpoint = {"state_dict": STATE, "hyper_parameters": about}
    assert read(checkpoint).network.steps[1].name == activation
    assert read(checkpoint, activation="leaky_relu").network.steps[1].name == "leaky_relu"
    assert read(checkpoint, otherwise="sigmoid").network.steps[1].name == (activation if about else "sigmoid")


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("SiLU", lambda x: x / (1 + np.exp(-x))),
        ("swish", lambda x: x / (1 + np.exp(-x))),
        ("Mish", lambda x: x * np.tanh(np.log1p(np.exp(x)))),
        ("Hardswish", lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
        ("elu", lambda x: np.where(x < 0, np.expm1(x), x)),
        ("SELU", lambda x: 1.0507009873554805 * np.where(x < 0, 1.6732632423543772 * np.expm1(x), x)),
        ("softplus", lambda x: np.log1p(np.exp(x))),
    ],
)
def test_other_activations_are_functions(name, function):
    weights, biases = ([STATE[f"{n}.{part}"].values.astype(np.float64) for n in (0, 2)] for part in ("weight", "bias"))
    hidden = function(X @ weights[0].T + biases[0])
    network = read({"state_dict": STATE, "hyper_parameters": {"activation": name}}).network
    np.testing.assert_allclose(network.forward(X), (hidden @ weights[1].T + biases[1])[:, 0], rtol=1e-5, atol=1e-5)
    assert from_network(to_bytes(network)).forward(X).tolist() == network.forward(X).tolist()


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"activation": "prelu"}, "hyper_parameters.activation says prelu; prelu cannot be read: name it with"),
        ({"activation": "tanh", "x": RELU}, "says tanh, hyper_parameters.x says relu; which of these is between the layers"),
    ],
)
def test_declared_activations_in_doubt_are_a_question(about, message):
    with pytest.raises(NetworkError, match=message):
        read({"state_dict": STATE, "hyper_parameters": about})
    assert read({"state_dict": STATE, "hyper_parameters": about}, activation="tanh").network.steps[1].name == "tanh"


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            ("0", "1", "2", "3"),
            "module '3' holds no weights and may be applied to the last layer's value: say .* --base-output",
        ),
        (("0", "1", "2", "sigmoid"), "module 'sigmoid' holds no weights"),
        (("0", "1", "2", "out_act"), "module 'out_act' holds no weights"),
    ],
)
def test_a_module_after_the_last_layer_is_a_question(modules, message):
    with pytest.raises(NetworkError, match=message):
        read(Ordered(STATE, "", *modules))
    score = 100 / (1 + np.exp(-expected(STATE, X).astype(np.float64)))
    network = read(Ordered(STATE, "", *modules), output="sigmoid*100").network
    np.testing.assert_allclose(network.forward(X), score, rtol=1e-5, atol=1e-4)
    assert np.array_equal(read(Ordered(STATE, "", *modules), output="identity").network.forward(X), expected(STATE, X))


def test_modules_without_weights_name_what_is_between():
    state = {
        f"fc{n}.{key.partition('.')[2]}": tensor
        for n, pair in ((1, "0"), (2, "2"))
        for key, tensor in STATE.items()
        if key[0] == pair
    }
    assert read(Ordered(state, "", "fc1", "tanh", "fc2", "dropout")).network.steps[1].name == "tanh"
    assert read({"state_dict": Ordered(state, "", "fc1", "fc2")}).network.steps[1].name == "relu"
    with pytest.raises(NetworkError, match="module 'skip_add', by its name, is not part of a plain chain"):
        read(Ordered(state, "", "fc1", "skip_add", "fc2"), output="identity")


@pytest.mark.parametrize("about", [{"output_activation": "sigmoid"}, {"use_sigmoid": True}])
def test_what_the_hyper_parameters_say_of_the_output_is_a_question(about):
    checkpoint = {"state_dict": STATE, "hyper_parameters": about}
    (name,) = about
    with pytest.raises(NetworkError, match=f"{name} says sigmoid: say with train-offline --base-output"):
        read(checkpoint)
    assert [type(step).__name__ for step in read(checkpoint, output="sigmoid*100").network.steps[-2:]] == [
        "Activation",
        "Elementwise",
    ]


def test_the_output_is_what_is_asked_for():
    last = expected(STATE, X)
    np.testing.assert_allclose(read(STATE, output="*23+79").network.forward(X), last * 23 + 79, rtol=1e-6)
    np.testing.assert_allclose(
        read(STATE, output="relu / 2 - 0.5").network.forward(X), np.maximum(last, 0) / 2 - 0.5, rtol=1e-6
    )
    for text in ("softmax", "sigmoid100", "*", "*nan", "*1e5", "sigmoid*-1", "100"):
        with pytest.raises(NetworkError, match=r"output .*: expected sigmoid, tanh, relu, identity or nothing, then numbers"):
            read(STATE, output=text)


def test_an_object_that_holds_itself_is_looked_at_once():
    for around in (b"]q\0h\0a", b"}q\0X\1\0\0\0xh\0s", b"capp\nNode\n)Rq\0h\0b", b")q\0" + b"h\0h\0\x86q\0" * 60):
        assert np.array_equal(read({"state_dict": STATE, "more": around}).network.forward(X), expected(STATE, X))
