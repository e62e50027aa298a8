"""State-dicts and safetensors as networks: what is read, and what is refused in which words.

Where torch is installed, its own files are read too.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_builder import Activation, NetworkError
from sidecar.models.pytorch.archive import MAX_BYTES
from sidecar.models.pytorch.state_dict import Choices
from sidecar.models.pytorch.state_dict import from_bytes as read
from sidecar.models.pytorch.unpickle import MAX_PICKLE_BYTES
from tests.conftest import SHARED
from tests.torch_files import (
    FORMS,
    SMALL,
    STATE,
    Call,
    Global,
    Tensor,
    Writer,
    X,
    every_form,
    expected,
    legacy_file,
    linears,
    numbers,
    safetensors_file,
    zip_file,
)  # fmt: skip


def from_bytes(data, **choices):
    return read(data, Choices(**choices)).network


def dense_layers(data):
    return [*read(data).keys]


# What is read.


@every_form
def test_a_state_dict_is_its_layers_with_relu_between(tmp_path, form):
    path = tmp_path / "model.anything"
    path.write_bytes(FORMS[form](STATE))
    network = from_bytes(path.read_bytes())
    assert network.dense_widths == (3, 4, 1)
    assert [type(step).__name__ for step in network.steps] == ["Dense", "Activation", "Dense"]
    assert np.array_equal(network.forward(X), expected(STATE, X))
    assert list(dense_layers(path.read_bytes())) == ["0.weight", "2.weight"]


@every_form
def test_one_linear_layer_is_a_network(form):
    assert from_bytes(FORMS[form](SMALL)).forward([[1, 1], [0, 3]]).tolist() == [1.5, -2.5]


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "gelu", "sigmoid"])
def test_the_activation_is_a_setting(activation):
    assert from_bytes(zip_file(STATE), activation=activation).steps[1].name == activation
    with pytest.raises(NetworkError, match="activation 'softsign' is not one of relu"):
        from_bytes(zip_file(STATE), activation="softsign")


@every_form
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "model.net.layers."])
def test_layers_run_in_the_order_of_their_numbers(form, prefix):
    state = linears(*[(6, 6)] * 11, (1, 6), names=[f"{prefix}{n}" for n in range(12)])
    shuffled = dict(sorted(state.items()))
    assert [key.split(".")[-2] for key in shuffled if key.endswith("weight")][:4] == ["0", "1", "10", "11"]
    x = numbers(5, 6)
    for given_order in (state, shuffled):
        np.testing.assert_array_equal(from_bytes(FORMS[form](given_order)).forward(x), expected(state, x))


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_layers_without_numbers_run_in_the_order_of_definition(form):
    state = linears((3, 3), (3, 3), (1, 3), names=["zulu", "alpha", "mike"])
    assert list(dense_layers(FORMS[form](state))) == ["zulu.weight", "alpha.weight", "mike.weight"]


def test_safetensors_layers_without_numbers_run_in_the_only_order_that_fits():
    read = lambda state: list(dense_layers(FORMS["safetensors"](state)))  # noqa: E731
    names = ["input", "hidden", "a_head"]
    assert read(linears((4, 3), (4, 4), (1, 4), names=names)) == [f"{name}.weight" for name in names]
    names = ["trunk.2", "trunk.10", "head"]  # of one width, but numbered
    assert read(linears((3, 3), (3, 3), (1, 3), names=names)) == [f"{name}.weight" for name in names]
    with pytest.raises(NetworkError, match=r"keeps no order, and the widths of .* fit in 2: number them"):
        read(linears((3, 3), (3, 3), (1, 3), names=["zulu", "alpha", "mike"]))
    with pytest.raises(NetworkError, match="the names of its 8 layers do not number them"):
        read(linears(*[(3, 3)] * 7, (1, 3), names="abcdefgh"))
    with pytest.raises(NetworkError, match=r"'a.weight' gives 4 values, but 'b.weight', the next, takes 5"):
        read(linears((4, 3), (1, 5), names="ab"))


@every_form
def test_a_missing_bias_is_zero(form):
    state = {key: tensor for key, tensor in STATE.items() if key != "0.bias"}
    np.testing.assert_array_equal(
        from_bytes(FORMS[form](state)).forward(X), expected(STATE | {"0.bias": Tensor(np.zeros(4, dtype=np.float32))}, X)
    )


def bfloat16(values):
    return (values.view(np.uint32) >> 16).astype(np.uint16)


KINDS = {
    "Half": lambda values: values.astype(np.float16),
    "BFloat16": bfloat16,
    "Double": lambda values: values.astype(np.float64),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_floating_point_types_become_float32(kind):
    state = {key: Tensor(KINDS[kind](tensor.values), kind=kind) for key, tensor in STATE.items()}
    name = {"Half": "F16", "BFloat16": "BF16", "Double": "F64"}[kind]
    tensors = {key: (name, tensor.values) for key, tensor in state.items()}
    for data in (zip_file(state), zip_file(state, byte_order="big"), legacy_file(state), safetensors_file(tensors)):
        network = from_bytes(data)
        assert network.steps[0].weight.dtype == np.float32
        np.testing.assert_array_equal(network.forward(X), expected(STATE, X))


def test_byte_order_of_the_zip_form():
    np.testing.assert_array_equal(from_bytes(zip_file(STATE, byte_order="big")).forward(X), expected(STATE, X))
    np.testing.assert_array_equal(from_bytes(zip_file(STATE, byteorder=None)).forward(X), expected(STATE, X))
    with pytest.raises(NetworkError, match="byte order b'middle'; expected little or big"):
        from_bytes(zip_file(STATE, byteorder="middle"))


@pytest.mark.parametrize("write", [zip_file, legacy_file])
def test_windows_into_a_shared_storage(write):
    pool = np.concatenate([[99], STATE["0.weight"].values.T.ravel(), STATE["2.weight"].values.ravel(), [77]]).astype(np.float32)
    state = STATE | {
        "0.weight": Tensor(pool, (4, 3), (1, 4), 1),  # transposed
        "2.weight": Tensor(pool, (1, 4), (2**62, 1), 13),  # there is no second row for this stride
        "2.bias": Tensor(np.repeat(STATE["2.bias"].values, 3), (1,), (0,), 2),
    }
    np.testing.assert_array_equal(from_bytes(write(state)).forward(X), expected(STATE, X))


@pytest.mark.parametrize("write", [zip_file, legacy_file])
@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_training_checkpoints(write, wrapper):
    moments = {index: {"step": Tensor(numbers(1), ()), "exp_avg": tensor} for index, tensor in enumerate(STATE.values())}
    checkpoint = {
        "epoch": 3,
        "loss": 0.25,
        "best": None,
        "done": False,
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1, 2, 3]}]},
        "schedule": Call("collections.Counter", ({30: 1, 80: 1},)),
        "rng": Tensor(np.arange(16, dtype=np.uint8), kind="Byte"),
        "device": Call("torch.device", ("cuda", 0)),
        "size": Call("torch.Size", ((4, 3),)),
        wrapper: {f"model.{key}": tensor for key, tensor in STATE.items()},
    }
    data = write(checkpoint)
    assert list(dense_layers(data)) == ["model.0.weight", "model.2.weight"]
    np.testing.assert_array_equal(from_bytes(data).forward(X), expected(STATE, X))


def test_metadata_parameters_and_buffers_of_integers():
    weight = Call("torch._utils._rebuild_parameter", (STATE["0.weight"], True, Call("collections.OrderedDict", ())))
    ordered = Writer()
    items = b"(" + b"".join(ordered.encode(part) for item in (STATE | {"0.weight": weight}).items() for part in item)
    counter = ordered.encode("n_averaged") + ordered.encode(Tensor(np.array([7]), (), kind="Long"))
    metadata = ordered.encode({"_metadata": Call("collections.OrderedDict", ())})
    pickled = b"\x80\x02" + ordered.encode(Call("collections.OrderedDict", ())) + items + counter + b"u" + metadata + b"b."
    members = {f"data/{key}": values.tobytes() for key, values in ordered.storages.items()}
    data = zip_file({}, **{"data.pkl": pickled}, **members)
    np.testing.assert_array_equal(from_bytes(data).forward(X), expected(STATE, X))
    integers = {key: ("F32", tensor.values) for key, tensor in STATE.items()} | {"n_averaged": ("I64", np.array(7))}
    np.testing.assert_array_equal(from_bytes(safetensors_file(integers)).forward(X), expected(STATE, X))


def test_safetensors_whose_header_length_begins_like_a_pickle():
    data = FORMS["safetensors"](STATE)
    (length,) = struct.unpack_from("<Q", data)
    padding = (0x80 - length) % 256
    padded = struct.pack("<Q", length + padding) + data[8 : 8 + length] + b" " * padding + data[8 + length :]
    assert padded[:1] == b"\x80"
    np.testing.assert_array_equal(from_bytes(padded).forward(X), expected(STATE, X))


# What is no chain of Linear layers.


@every_form
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": numbers(8, 3, 3, 3)}, r"'0.weight' has shape \(8, 3, 3, 3\): Conv is not part of an MLP regressor"),
        ({"0.weight": numbers(8, 3, 3)}, r"'0.weight' has shape \(8, 3, 3\): Conv is not part"),
        ({"1.weight": numbers(4)}, r"'1.weight' of shape \(4,\) may be of a PReLU or of a normalisation: export"),
        ({"1.running_mean": numbers(4)}, r"'1.running_mean' of shape \(4,\) belongs to no Linear, BatchNorm or LayerNorm"),
        ({"scale": numbers(3)}, r"'scale' of shape \(3,\) belongs to no Linear"),
        ({"1.bias": numbers(4)}, r"'1.bias' of shape \(4,\) belongs to no Linear"),
        ({"rnn.weight_ih_l0": numbers(4, 4)}, "'rnn.weight_ih_l0' of shape .* belongs to no Linear"),
        ({"0.bias": numbers(5)}, r"'0.bias' has shape \(5,\); expected \(4,\)"),
        ({"0.bias": numbers(4, 1)}, r"'0.bias' has shape \(4, 1\); expected \(4,\)"),
        ({"2.weight": numbers(1, 7)}, "'0.weight' gives 4 values, but '2.weight', the next, takes 7"),
        (
            {"2.weight": numbers(3, 4), "2.bias": numbers(3)},
            "'2.weight', the last, gives 3 values per row; expected one, the score",
        ),
        ({"0.weight": np.full((4, 3), np.nan, dtype=np.float32)}, "'0.weight': 12 of 12 values are not finite"),
        ({"2.bias": np.array([-np.inf], dtype=np.float32)}, "'2.bias': 1 of 1 values are not finite"),
    ],
)
def test_other_architectures_are_refused(form, change, message):
    with pytest.raises(NetworkError, match=message):
        from_bytes(FORMS[form](STATE | {key: Tensor(values) for key, values in change.items()}))


@pytest.mark.parametrize("write", [zip_file, legacy_file])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "no dict of tensors; it holds nothing"),
        ({"epoch": 3, "weights": [1.0]}, "no dict of tensors; it holds 'epoch', 'weights'"),
        ({"state_dict": {}}, "no dict of tensors; it holds 'state_dict'"),
        (
            {"model": Call("app.Net", ({"0.weight": Tensor(numbers(1, 3))},))},
            "holds 'model', a 'app.Net', which is no state-dict",
        ),
        (
            Call("sklearn.neural_network.MLPRegressor", (1,)),
            "a scikit-learn model, which has no state-dict: convert it with skl2onnx",
        ),
        ({"num_batches_tracked": Tensor(np.array([3]), kind="Long")}, "no weight of a Linear layer"),
        ([1, 2], "holds a list; expected a state-dict"),
        (STATE["0.weight"], "holds a Tensor; expected a state-dict"),
        ({0: STATE["0.weight"]}, "a tensor has the key '0'; expected text"),
        ({(1, 2): STATE["0.weight"]}, "a tensor has the key 'tuple'; expected text"),
        ({2**61: STATE["0.weight"]}, "a tensor has the key 'int'; expected text"),
        (STATE | {"0.weight": Tensor(np.ones((4, 3), dtype=np.int8), kind="Char")}, "'0.weight' holds int8"),
        (STATE | {"0.bias": Tensor(np.ones(4, dtype=np.int32), kind="Int")}, "'0.bias' holds int32"),
        (STATE | {"0.bias": Tensor(np.full(4, 1e300), kind="Double")}, "'0.bias': 4 of 4 values are not finite in float32"),
        (
            STATE | {"1.packed": Call("torch._utils._rebuild_qtensor", ())},
            "_rebuild_qtensor', a quantised tensor: use the float original; nothing",
        ),
        (STATE | {"0.weight": Call("torch._utils._rebuild_sparse_tensor", ())}, "a sparse tensor: save it as .to_dense()"),
        (Call("torch.nn.modules.linear.Linear", ()), "holds a 'torch.nn.modules.linear.Linear', which is no state-dict: save"),
    ],
)
def test_other_objects_are_refused(write, value, message):
    with pytest.raises(NetworkError, match=message):
        from_bytes(write(value))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "neither a PyTorch state-dict nor safetensors"),
        (b"<html>not found</html>", "neither a PyTorch state-dict nor safetensors"),
        (bytes(MAX_BYTES + 1), "more than 50,000,000 bytes"),
        (pickle.dumps({"0.weight": [1.0]}), "a pickle that torch.save did not write"),
        (zip_file(STATE, **{"data.pkl": None}), "a zip archive with 0 members data.pkl"),
        (zip_file(STATE, **{"constants.pkl": b""}), "a TorchScript archive, not a state-dict"),
        (zip_file(STATE, **{"code/__torch__.py": b""}), "a TorchScript archive, not a state-dict"),
        (zip_file(STATE, **{"data/0": None}), "damaged or truncated: KeyError: .*archive/data/0"),
        (zip_file(STATE, **{"data/0": b"1234"}), "'0.weight': its storage has 4 bytes for 12 values"),
        (legacy_file(STATE)[:-1], "'2.bias': its storage has 3 bytes for 1 values"),
    ],
)
def test_other_files_are_refused(data, message):
    with pytest.raises(NetworkError, match=message):
        from_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_offsets": [0, 12]}, r"'weight' has shape \[?.*1, 2\W+ 8 bytes, but is stored in 12"),
        ({"data_offsets": [4, 16]}, "'weight' is at bytes 4 to 16 of 12"),
        ({"data_offsets": [-4, 4]}, "'weight' is at bytes -4 to 4 of 12"),
        ({"data_offsets": [0, 8]}, "describes 8 bytes of values, but there are 12"),
        ({"shape": [1, 3]}, "'weight' has shape .*, 12 bytes, but is stored in 8"),
        ({"shape": [2**40, 2**40]}, "bytes, but is stored in 8"),
        ({"shape": [0, 2]}, "0 bytes, but is stored in 8"),
        ({"shape": [-1, -2]}, "are not natural numbers"),
        ({"shape": [1] * 9}, "'weight' has 9 dimensions"),
        ({"shape": "12"}, "damaged or truncated: ValidationError: Expected `array`, got `str`"),
        ({"shape": [True, 2]}, "damaged or truncated: ValidationError"),
        ({"dtype": "F8_E4M3"}, "'weight' has dtype 'F8_E4M3'; expected one of F32"),
    ],
)
def test_safetensors_that_do_not_add_up_are_refused(change, message):
    tensors = {key: ("F32", tensor.values) for key, tensor in SMALL.items()}
    if change.get("data_offsets") == [0, 8]:
        change = {"weight": change, "bias": {"data_offsets": [0, 4]}}
    else:
        change = {"weight": change}
    with pytest.raises(NetworkError, match=message):
        from_bytes(safetensors_file(tensors, **change))


@pytest.mark.parametrize("length", [0, 1, 10**6 + 1, 2**63, 2**64 - 1])
def test_safetensors_with_a_wrong_header_length_are_refused(length):
    data = FORMS["safetensors"](STATE)
    with pytest.raises(NetworkError):
        from_bytes(struct.pack("<Q", length) + data[8:])


# Files made to do harm.


class Command:
    """Creates a file when Python's own unpickler reads it."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "name"), [(os.system, "posix.system"), (os.mkdir, "posix.mkdir"), (eval, "builtins.eval")]
)
def test_nothing_is_executed(tmp_path, protocol, function, name):
    victim = tmp_path / "victim"
    argument = {"posix.system": f"touch {victim}", "posix.mkdir": str(victim)}.get(name, f"open({str(victim)!r}, 'w').close()")
    pickled = pickle.dumps({"0.weight": Command(function, argument)}, protocol)
    pickle.loads(pickled)
    assert victim.exists()
    victim.rmdir() if victim.is_dir() else victim.unlink()
    legacy = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})) + pickled + pickle.dumps([], 2)
    # Before protocol 3 the builtins have Python 2's name; the first opcode of protocol 0 is refused already.
    named = name.replace("builtins", "__builtin__") if protocol < 3 else name
    message = (
        f"holds '0.weight', a '{named}', .*; nothing was executed" if protocol else "opcode b'd', .*; nothing was executed"
    )
    for data in (zip_file({}, **{"data.pkl": pickled}), legacy):
        with pytest.raises(NetworkError, match=message):
            from_bytes(data)
    assert not victim.exists()


SYSTEM = Call("posix.system", ("false",))
SIZE = Global("torch.Size")


@pytest.mark.parametrize("write", [zip_file, legacy_file])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (STATE | {"more": SYSTEM}, "'more', among the tensors, is 'posix.system', not a tensor; nothing was executed"),
        (STATE | {"0.weight": SYSTEM}, "'0.weight', among the tensors, is 'posix.system'"),
        (STATE | {"more": Call("collections.OrderedDict", (), {"_metadata": [SYSTEM]})}, "'more', .*, is a dict, not a tensor"),
        (SYSTEM, "holds a 'posix.system'"),
        (Call("torch.storage._load_from_bytes", ("",)), "'torch.storage._load_from_bytes'"),
        (Call("torch.hub.load", ()), "'torch.hub.load'"),
        (Call("torch._utils._rebuild_tensor_v2.__globals__", ()), "_rebuild_tensor_v2.__globals__'"),
        (Call("collections.OrderedDict.update", ()), "'collections.OrderedDict.update'"),
        (Call("collections.OrderedDict", (1,)), "holds a 'collections.OrderedDict'"),
        (
            STATE | {"more": Call("torch._utils._rebuild_tensor_v2", (1, 2))},
            "torch._utils._rebuild_tensor_v2', not a tensor",
        ),
        (Call("torch.FloatStorage", ()), "holds a 'torch.FloatStorage'"),
        (b"X\0\0\0\0)R", "a str where a Placeholder belongs"),
        (b"X\0\0\0\0)\x81", "a str where a Placeholder belongs"),
        (b"ctorch\nSize\n}R", "a Dict where a tuple belongs"),
        (b"N}b", "a NoneType where a Dict belongs"),
        (b"NNa", "a NoneType where a list belongs"),
        (b"NX\0\0\0\0Ns", "a NoneType where a Dict belongs"),
        (b"NQ", "refers to a storage in a way that torch.save does not use"),
        (b"(X\1\0\0\0\xffQ", "damaged or truncated: UnicodeDecodeError"),
        (b"a", "takes more values than it gives"),
        (b"h\0", "damaged or truncated: KeyError"),
        (b"ctorch\nSize\n)\x81", "holds a 'torch.Size'"),  # NEWOBJ
        (b"(iposix\nsystem\n", "opcode b'i'"),  # INST
        (b"\x82\1", r"opcode b'\\x82'"),  # EXT1
        (b"\x8cposix", "does not end within the file"),
        (b"X\xff\xff\xff\xff", "does not end within the file"),  # 4 GB of text
        (b"\x8e" + b"\xff" * 7 + b"\x7f", "does not end within the file"),  # BINBYTES8
        (b"\x8e" + b"\xff" * 8, "damaged or truncated: OverflowError"),
        (b"\x8b\xff\xff\xff\x7f", "does not end within the file"),  # LONG4
        (b"0", "takes more values than it gives"),
        (b"N2" + b"]" + b"2a" * 200_000 + b"e", "damaged or truncated"),  # a list that holds itself
        (b"Nr\xff\xff\xff\xff", "holds a NoneType"),  # Python's unpickler makes a list of 2**33 for this memo
        (b"})" + b"\x85" * 100_000 + b"Ns", "it holds 'tuple'"),  # hashing it overflows the stack
        (b")q\0" + b"h\0h\0\x86q\0" * 60 + b"}h\0Ns", "it holds 'tuple'"),  # hashing it takes 2**60 steps
        (b"]" * 100_000 + b"a" * 99_999, "holds a list"),
        (b"N" * (MAX_PICKLE_BYTES + 1), "or the limit of 1,000,000 bytes"),
    ],
)
def test_hostile_pickles_are_refused_at_once(write, value, message):
    with pytest.raises(NetworkError, match=message):
        from_bytes(write(value))


@pytest.mark.parametrize("write", [zip_file, legacy_file])
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Tensor(numbers(1), (10**9, 10**9), (0, 0)), r"shape \(1000000000, 1000000000\); expected 1 to 12,500,000 values"),
        (Tensor(numbers(1), (10**7, 2), (0, 0)), "expected 1 to 12,500,000 values"),
        (Tensor(numbers(1), (10**7,) * 10_000, (0,) * 10_000), "has 10000 dimensions"),
        (Tensor(numbers(12), (4, 3), (3, 1), 1), "offset 1 and strides .* reach beyond its storage"),
        (Tensor(numbers(12), (5, 3), (2**62, 1)), "reach beyond its storage"),  # wraps around to 0 in 64 bits
        (Tensor(numbers(12), (4, 3), (3, -1), 2), "are not natural numbers"),
        (Tensor(numbers(12), (4, 3), (3, 1), -1), "are not natural numbers"),
        (Tensor(numbers(12), (4, 3.0), (3, 1)), "are not natural numbers"),
        (Tensor(numbers(12), (4, 3), (3, 1), 2**100), "are not natural numbers"),
        (Tensor(numbers(12), (0, 3), (3, 1)), "expected 1 to"),
        (Tensor(numbers(12), (4, 3), (3,)), "one stride per dimension"),
    ],
)
def test_tensors_that_reach_out_of_their_storage_are_refused(write, tensor, message):
    with pytest.raises(NetworkError, match=message):
        from_bytes(write(STATE | {"0.weight": tensor}))


def test_many_windows_into_one_storage_are_refused_before_they_are_copied():
    pool = numbers(10**6)
    with pytest.raises(NetworkError, match="more than 12,500,000 values"):
        from_bytes(zip_file({f"{n}.weight": Tensor(pool, (1000, 1000), (1000, 1)) for n in range(1000)}))


def test_a_storage_has_one_type_and_length():
    window = b"(" + Writer().encode(("storage", Global("torch.LongStorage"), "0", "cpu", 6))[1:] + b"Q"
    with pytest.raises(NetworkError, match="storage '0' has two types or lengths"):
        from_bytes(zip_file(STATE | {"more": window}))


def test_zip_bombs_are_refused():
    with pytest.raises(NetworkError, match="a compressed zip archive"):
        from_bytes(zip_file(STATE, compression=zipfile.ZIP_DEFLATED, **{"data/9": bytes(10**6)}))
    data = zip_file(STATE)
    position = data.index(b"PK\x01\x02")
    with pytest.raises(NetworkError, match="the members of the zip archive have more than 50,000,000 bytes"):
        from_bytes(data[: position + 20] + b"\xf0\xff\xff\x7f" * 2 + data[position + 28 :])
    with pytest.raises(NetworkError, match=r"damaged or truncated: (EOFError|BadZipFile)"):
        from_bytes(data[: position + 20] + b"\xf0\xff\0\0" * 2 + data[position + 28 :])
    with pytest.raises(NetworkError, match="more than 10,000 members"):
        from_bytes(data + b"PK\x01\x02" * 10_001)


@pytest.mark.parametrize("name", ["../../../../tmp/x", "/etc/passwd", "\0", "é" * 30_000, ".", "data.pkl/data.pkl"])
def test_names_of_zip_members_do_not_matter(tmp_path, name):
    np.testing.assert_array_equal(from_bytes(zip_file(STATE, **{name: b"x"})).forward(X), expected(STATE, X))


@every_form
def test_every_truncation_is_refused(form):
    data = FORMS[form](SMALL)
    for length in range(len(data)):
        with pytest.raises(NetworkError):
            from_bytes(data[:length])


def assert_network_or_line(data):
    try:
        line = f"a network of widths {from_bytes(data).dense_widths}"
    except NetworkError as error:
        line = str(error)
    assert 0 < len(line) < 2000
    assert line.isprintable()


@every_form
@settings(deadline=None, max_examples=150)
@given(st.data())
def test_damage_gives_a_network_or_an_error_of_one_line(form, data):
    damaged = bytearray(FORMS[form](SMALL))
    for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[position] = data.draw(st.integers(0, 255))
    assert_network_or_line(bytes(damaged))


# Whatever opcodes and small arguments there are, around the names that are known.
FRAGMENTS = [bytes([code]) for code in range(256)] + [
    *(Writer().encode(Global(name)) for name in ("collections.OrderedDict", "torch.Size", "torch._utils._rebuild_tensor_v2")),
    *(Writer().encode(value) for value in ("storage", "0", "cpu", 0, 1, (1, 1), {}, [])),
    *(Writer().encode(value) for value in (SMALL["weight"], Global("torch.FloatStorage"))),
]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30))
def test_any_opcodes_give_a_network_or_an_error(fragments):
    assert_network_or_line(zip_file({}, **{"data.pkl": b"\x80\x02" + b"".join(fragments) + b".", "data/0": bytes(8)}))


# The files of torch itself.


def torch_bytes(value, **options):
    import torch

    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


@pytest.fixture
def torch_model():
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[bench]'")
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8, bias=False), nn.ReLU(), nn.Linear(8, 1))


def assert_same(data, model, tolerance=1e-6):
    import torch

    features = np.random.default_rng(0).normal(size=(33, 6)).astype(np.float32)
    with torch.no_grad():
        scores = model(torch.from_numpy(features)).numpy()[:, 0]
    np.testing.assert_allclose(from_bytes(data).forward(features), scores, rtol=tolerance, atol=tolerance)


SAVE_OPTIONS = [
    *(
        {"_use_new_zipfile_serialization": new, "pickle_protocol": protocol}
        for new in (True, False)
        for protocol in (2, 3, 4, 5)
    ),
]


@pytest.mark.parametrize("options", SAVE_OPTIONS)
def test_what_torch_saves_computes_what_torch_computes(torch_model, options):
    import torch

    assert_same(torch_bytes(torch_model.state_dict(), **options), torch_model)
    assert_same(torch_bytes(dict(torch_model.named_parameters()), **options), torch_model)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        state = {key: value.to(dtype) for key, value in torch_model.state_dict().items()}
        assert_same(torch_bytes(state, **options), torch_model, 1e-6 if dtype == torch.float64 else 2e-2)


@pytest.mark.parametrize("options", SAVE_OPTIONS)
def test_a_checkpoint_of_torch_with_optimizer_and_schedule(torch_model, options):
    import torch

    optimizer = torch.optim.Adam(torch_model.parameters())
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 1, 5])
    torch_model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    schedule.step()
    averaged = torch.optim.swa_utils.AveragedModel(torch_model)
    checkpoint = {
        "epoch": 3,
        "state_dict": averaged.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [schedule.state_dict()],
        "rng": torch.get_rng_state(),
    }
    data = torch_bytes(checkpoint, **options)
    assert list(dense_layers(data)) == ["module.0.weight", "module.2.weight", "module.4.weight"]
    assert_same(data, torch_model)


@pytest.mark.parametrize("options", SAVE_OPTIONS)
@pytest.mark.filterwarnings("ignore")
def test_what_torch_saves_of_other_kinds_is_refused(torch_model, options):
    import torch

    nn = torch.nn
    for value, message in [
        (torch_model, r"torch.nn.modules.container.Sequential', which is no state-dict: save"),
        (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).state_dict(), "before or after '1.weight'"),
        (nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 1)).state_dict(), "before or after '1.weight'"),
        (nn.Conv1d(3, 8, 3).state_dict(), r"'weight' has shape \(8, 3, 3\): Conv"),
        (nn.LSTM(3, 8).state_dict(), "'weight_ih_l0' of shape .* belongs to no Linear"),
        (
            {"0.weight": torch.quantize_per_tensor(torch.ones(1, 6), 0.1, 0, torch.qint8)},
            "a quantised tensor: use the float original",
        ),
        ({"0.weight": torch.ones(1, 6).to_sparse()}, "a sparse tensor: save it as .to_dense()"),
        ({"0.weight": torch.ones(1, 6, dtype=torch.int8)}, "'0.weight' holds int8"),
        ({"0.weight": torch.ones(1, 6, dtype=torch.complex64)}, "'0.weight' holds complex64"),
    ]:
        with pytest.raises(NetworkError, match=message):
            from_bytes(torch_bytes(value, **options))


@pytest.mark.parametrize("kind", ["batch_norm", "layer_norm", "prelu", "weight_norm", "old_weight_norm", "blocks", "hparams"])
@pytest.mark.filterwarnings("ignore")
def test_what_torch_computes_with_other_layers(kind):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[bench]'")
    torch.manual_seed(0)
    nn, norm = torch.nn, torch.nn.utils
    model = {
        "batch_norm": lambda: nn.Sequential(
            nn.BatchNorm1d(6), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.BatchNorm1d(8),
            nn.Linear(8, 1),
        ),
        "layer_norm": lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1)),
        "prelu": lambda: nn.Sequential(nn.Linear(6, 8), nn.PReLU(), nn.Linear(8, 8), nn.PReLU(), nn.Linear(8, 1)),
        "weight_norm": lambda: nn.Sequential(norm.parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 1)),
        "old_weight_norm": lambda: nn.Sequential(norm.weight_norm(nn.Linear(6, 8), dim=None), nn.ReLU(), nn.Linear(8, 1)),
        "blocks": lambda: nn.Sequential(
            nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1)),
            nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1)),
            nn.Linear(8, 1),
        ),
        "hparams": lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)),
    }[kind]()  # fmt: skip
    with torch.no_grad():
        model.train()(torch.randn(64, 6) * 2 + 1)  # running statistics
    state = model.state_dict()
    saved = {"state_dict": state, "hyper_parameters": {"net": model, "act": model[1]}} if kind == "hparams" else state
    assert_same(torch_bytes(saved), model.eval(), 1e-5)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused(torch_model):
    import torch

    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch_model), file)
    with pytest.raises(NetworkError, match="a TorchScript archive"):
        from_bytes(file.getvalue())


shared_files = pytest.mark.skipif(not (SHARED / "models" / "torch").is_dir(), reason="no models beside the checkout")


@shared_files
def test_files_from_the_field():
    directory = SHARED / "models" / "torch"
    with np.load(directory / "head_80_64_1.expected.npz") as truth:
        features, score = truth["features"], truth["score"][:, 0]
    good = sorted(path for path in directory.glob("head_80_64_1*") if path.suffix != ".npz")
    assert len(good) == 6
    for path in good:
        network = from_bytes(path.read_bytes())
        assert (network.dense_widths, network.steps[1]) == ((80, 64, 1), network.steps[1])
        assert isinstance(network.steps[1], Activation)
        error = np.abs(network.forward(features) - score).max() / np.abs(score).max()
        assert error <= (1e-2 if "fp16" in path.name else 1e-5), path.name


@shared_files
def test_bad_files_from_the_field(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NetworkError, match=r"'posix.system'.*nothing was executed"):
        from_bytes((SHARED / "models" / "torch" / "malicious.pt").read_bytes())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NetworkError, match=r"'0.weight' has shape \(4, 1, 3, 3\): Conv is not part of an MLP regressor"):
        from_bytes((SHARED / "models" / "torch" / "not_a_head_conv.pt").read_bytes())
