"""Layers of a state-dict: their kinds, their order, and where the activations lie between them."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_builder import NetworkError
from sidecar.models.pytorch.state_dict import Choices
from sidecar.models.pytorch.state_dict import from_bytes as read
from tests.torch_files import FORMS, STATE, Ordered, Tensor, X, every_form, expected, linears, numbers, zip_file


def from_bytes(data, **choices):
    return read(data, Choices(**choices)).network


def linear(name, n_out, n_in, seed=0):
    return {f"{name}.weight": Tensor(numbers(n_out, n_in, seed=seed)), f"{name}.bias": Tensor(numbers(n_out, seed=seed + 1))}


def batch_norm(name, width, seed=5):
    parts = {part: Tensor(numbers(width, seed=seed + n)) for n, part in enumerate(("weight", "bias", "running_mean"))}
    parts["running_var"] = Tensor(np.abs(numbers(width, seed=seed + 3)) + 0.5)
    parts["num_batches_tracked"] = Tensor(np.array([7]), (), kind="Long")
    return {f"{name}.{part}": tensor for part, tensor in parts.items()}


def layer_norm(name, width, seed=7):
    return {f"{name}.weight": Tensor(numbers(width, seed=seed)), f"{name}.bias": Tensor(numbers(width, seed=seed + 1))}


def apply_linear(state, name, x):
    return x @ state[f"{name}.weight"].values.T + state[f"{name}.bias"].values


def apply_batch_norm(state, name, x):
    weight, bias, mean, variance = (
        state[f"{name}.{part}"].values.astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def apply_layer_norm(state, name, x):
    centred = x - x.mean(axis=1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * state[f"{name}.weight"].values
        + state[f"{name}.bias"].values
    )


def relu(x):
    return np.maximum(x, 0)


def assert_computes(state, scores, form="zip"):
    network = from_bytes(FORMS[form](state) if form != "safetensors" else zip_file(state))
    np.testing.assert_allclose(network.forward(X), scores[:, 0], rtol=1e-4, atol=1e-4)


def test_batch_norm_before_an_activation_after_it_and_of_the_inputs():
    before = linear("0", 4, 3) | batch_norm("1", 4) | linear("3", 1, 4)
    assert_computes(before, apply_linear(before, "3", relu(apply_batch_norm(before, "1", apply_linear(before, "0", X)))))
    after = linear("0", 4, 3) | batch_norm("2", 4) | linear("3", 1, 4)
    assert_computes(after, apply_linear(after, "3", apply_batch_norm(after, "2", relu(apply_linear(after, "0", X)))))
    inputs = batch_norm("0", 3) | linear("1", 4, 3) | linear("3", 1, 4)
    assert_computes(inputs, apply_linear(inputs, "3", relu(apply_linear(inputs, "1", apply_batch_norm(inputs, "0", X)))))


def test_batch_norm_without_weights_of_its_own():
    state = linear("0", 4, 3) | batch_norm("1", 4) | linear("3", 1, 4)
    plain = {key: tensor for key, tensor in state.items() if key not in ("1.weight", "1.bias")}
    ones = state | {"1.weight": Tensor(np.ones(4, dtype=np.float32)), "1.bias": Tensor(np.zeros(4, dtype=np.float32))}
    assert np.array_equal(from_bytes(zip_file(plain)).forward(X), from_bytes(zip_file(ones)).forward(X))


@pytest.mark.parametrize("change", [{"1.running_var": numbers(3)}, {"1.running_var": -np.ones(4, np.float32)}])
def test_batch_norm_that_does_not_fit_is_refused(change):
    state = linear("0", 4, 3) | batch_norm("1", 4) | linear("3", 1, 4)
    with pytest.raises(NetworkError, match="the tensors of a BatchNorm do not fit together"):
        from_bytes(zip_file(state | {key: Tensor(values) for key, values in change.items()}))


def test_layer_norm():
    state = linear("0", 4, 3) | layer_norm("1", 4) | linear("3", 1, 4)
    assert read(zip_file(state)).read_as.endswith("; of LayerNorm, torch's epsilon of 1e-5 is assumed, and no groups")
    assert_computes(state, apply_linear(state, "3", relu(apply_layer_norm(state, "1", apply_linear(state, "0", X)))))


def test_layer_norm_in_blocks_of_their_own():
    state = linear("blocks.0.0", 4, 3) | layer_norm("blocks.0.1", 4) | linear("blocks.1.0", 4, 4) | layer_norm("blocks.1.1", 4)
    state |= linear("head", 1, 4)
    with pytest.raises(NetworkError, match=r"may be before or after 'blocks.0.1.weight'"):
        from_bytes(zip_file(state))
    state = Ordered(state, *(f"blocks.{n}.{m}" for n in (0, 1) for m in range(3)))  # a third, without weights
    x = relu(apply_layer_norm(state, "blocks.0.1", apply_linear(state, "blocks.0.0", X)))
    x = relu(apply_layer_norm(state, "blocks.1.1", apply_linear(state, "blocks.1.0", x)))
    assert_computes(state, apply_linear(state, "head", x))


@pytest.mark.parametrize(
    "state",
    [
        linear("fc1", 4, 3) | batch_norm("bn1", 4) | linear("fc2", 1, 4),  # before or after?
        linear("0", 4, 3) | layer_norm("2", 4) | linear("4", 1, 4),  # a dropout, and where?
        linear("0", 4, 3) | layer_norm("1", 4) | linear("2", 1, 4),  # a ModuleList
    ],
)
def test_an_activation_that_may_be_in_two_places_is_refused(state):
    with pytest.raises(NetworkError, match=r"between .*, an activation may be before or after .*; export the model to ONNX"):
        from_bytes(zip_file(state))


def test_prelu_of_one_slope_is_the_activation():
    state = linear("0", 4, 3) | {"1.weight": Tensor(np.array([0.25], np.float32))} | linear("2", 1, 4)
    x = apply_linear(state, "0", X)
    assert_computes(state, apply_linear(state, "2", np.where(x < 0, 0.25 * x, x)))
    shared = linear("a", 4, 3) | {"act.weight": Tensor(np.array([0.25], np.float32))} | linear("b", 4, 4) | linear("c", 1, 4)
    with pytest.raises(NetworkError, match=r"one PReLU may serve several layers"):
        from_bytes(zip_file(shared))
    with pytest.raises(NetworkError, match=r"'act.weight', a PReLU, is not between two Linear layers"):
        from_bytes(zip_file(linear("a", 4, 3) | linear("b", 1, 4) | {"act.weight": Tensor(np.array([0.25], np.float32))}))


@pytest.mark.parametrize(
    "names", [("0.weight_g", "0.weight_v"), tuple(f"0.parametrizations.weight.original{n}" for n in (0, 1))]
)
@pytest.mark.parametrize("shape", [(4, 1), ()])
def test_weight_norm(names, shape):
    g, v = Tensor(numbers(*(shape or (1,)), seed=3) + 5, shape), Tensor(numbers(4, 3, seed=4) + 0.01)
    norm = np.sqrt((v.values.astype(np.float64) ** 2).sum(axis=1 if shape else None, keepdims=True))
    weight = Tensor((g.values.reshape(norm.shape) * v.values / norm).astype(np.float32))
    state = {key: tensor for key, tensor in STATE.items() if key != "0.weight"} | dict(zip(names, (g, v), strict=True))
    plain = STATE | {"0.weight": weight}
    np.testing.assert_allclose(from_bytes(zip_file(state)).forward(X), expected(plain, X), rtol=1e-5, atol=1e-5)
    with pytest.raises(NetworkError, match="expected one value a row"):
        from_bytes(zip_file(state | {names[0]: Tensor(numbers(3, 1))}))


@every_form
@pytest.mark.parametrize(
    ("name", "kind", "values"), [("perm", "Long", np.arange(3)), ("mask", "Bool", np.array([True, False, True]))]
)
def test_integers_and_booleans_stop_the_reading(form, name, kind, values):
    from tests.torch_files import legacy_file, safetensors_file

    data = {
        "zip": zip_file(STATE | {name: Tensor(values, kind=kind)}),
        "legacy": legacy_file(STATE | {name: Tensor(values, kind=kind)}),
        "safetensors": safetensors_file(
            {key: ("F32", tensor.values) for key, tensor in STATE.items()}
            | {name: ({"Long": "I64", "Bool": "BOOL"}[kind], values)}
        ),
    }[form]
    with pytest.raises(NetworkError, match=f"'{name}' holds .*, which is no part of a layer; an order, a mask or a range"):
        from_bytes(data)


@pytest.mark.parametrize("name", ["block.skip", "gate", "attn.0", "embedding"])
def test_names_that_tell_of_no_chain_stop_the_reading(name):
    with pytest.raises(NetworkError, match="by its name not a part of a plain chain"):
        from_bytes(zip_file(linear("0", 3, 3) | linear(name, 3, 3) | linear("2", 1, 3)))


def test_numbers_without_room_have_no_activation_between_them():
    state = linear("0", 4, 3) | linear("2", 4, 4) | linear("3", 1, 4)  # a Sequential: 1 is an activation
    x = relu(apply_linear(state, "0", X))
    assert_computes(state, apply_linear(state, "3", apply_linear(state, "2", x)))
    state = linear("0", 4, 3) | linear("1", 4, 4) | linear("2", 1, 4)  # a ModuleList
    x = relu(apply_linear(state, "1", relu(apply_linear(state, "0", X))))
    assert_computes(state, apply_linear(state, "2", x))


def test_what_follows_the_score_is_a_correction_of_it():
    state = linear("net.0", 4, 3) | linear("net.2", 1, 4) | linear("calib", 1, 1)
    assert_computes(state, apply_linear(state, "calib", apply_linear(state, "net.2", relu(apply_linear(state, "net.0", X)))))


def test_the_order_of_definition_is_taken_where_that_of_the_numbers_does_not_fit():
    state = linears((4, 3), (5, 4), (1, 5), names=["layer3", "layer1", "layer2"])
    assert np.array_equal(from_bytes(zip_file(state)).forward(X), expected(state, X))
    with pytest.raises(NetworkError, match=r"'layer2.weight' gives 1 values, but 'layer3.weight', the next, takes 3"):
        from_bytes(FORMS["safetensors"](state))
