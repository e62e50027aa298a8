"""`Network`, its writer and reader, and the parity check."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_builder import Activation, Clip, Dense, Elementwise, Network, NetworkError
from onnx_builder.parity import parity
from onnx_builder.read import from_bytes
from onnx_builder.runtime import Scorer
from onnx_builder.write import OPERATORS, to_bytes
from tests.conftest import SHARED

ACTIVATIONS = ["relu", "leaky_relu", "tanh", "gelu", "sigmoid"]


def ones(*shape):
    return np.ones(shape, dtype=np.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("widths", [(3, 1), (80, 64, 1), (6, 16, 8, 1), (5, 9, 7, 4, 1)])
def test_graph_computes_what_numpy_computes_at_every_batch_size(make_network, widths, activation):
    network = make_network(widths, activation)
    model = to_bytes(network)
    features = np.random.default_rng(1).normal(size=(4096, widths[0])).astype(np.float32) * 3
    for batch in (1, 2, 33, 4096):
        assert parity(Scorer(model).predict(features[:batch]), network.forward(features[:batch])) <= 1e-4 * 100


def test_graph_is_what_the_contract_says(make_network):
    model = onnx.load_from_string(to_bytes(make_network((80, 64, 1), "gelu")))
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    assert {node.op_type for node in model.graph.node} <= OPERATORS
    (given_input,), (output,) = model.graph.input, model.graph.output
    dims = [[dim.dim_param or dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in (given_input, output)]
    assert (given_input.name, output.name, dims) == ("features", "score", [["batch", 80], ["batch", 1]])
    assert not model.metadata_props
    assert not any(tensor.HasField("data_location") for tensor in model.graph.initializer)


def test_equal_networks_give_equal_bytes(make_network):
    assert to_bytes(make_network((80, 64, 1))) == to_bytes(make_network((80, 64, 1)))
    assert to_bytes(make_network((80, 64, 1))) != to_bytes(make_network((80, 64, 1), seed=1))


def test_metadata_is_in_the_file_and_only_it_differs(make_network):
    network = make_network((80, 64, 1))
    model = to_bytes(network, {"b": "2", "a": "1"})
    assert Scorer(model).metadata == {"a": "1", "b": "2"}
    assert model == to_bytes(network, {"a": "1", "b": "2"})
    without = onnx.load_from_string(model)
    del without.metadata_props[:]
    assert without == onnx.load_from_string(to_bytes(network))


def test_features_of_very_different_scale_keep_parity():
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-20, 20, size=40)
    offset = scale * rng.normal(size=40) * 10
    features = (rng.normal(size=(500, 40)) * scale + offset).astype(np.float32)
    steps = (
        Elementwise("Sub", offset.astype(np.float32)),
        Elementwise("Mul", (1 / scale).astype(np.float32)),
        Dense(rng.normal(size=(64, 40)).astype(np.float32), rng.normal(size=64).astype(np.float32)),
        Activation("relu"),
        Dense(rng.normal(size=(1, 64)).astype(np.float32), ones(1)),
    )
    network = Network(40, steps)
    expected = network.forward(features)
    assert np.isfinite(expected).all()
    assert parity(Scorer(to_bytes(network)).predict(features), expected) <= 1e-4 * np.ptp(expected)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no recorded pairs beside the checkout")
@pytest.mark.parametrize("n_features", [6, 24, 80])
def test_parity_on_all_recorded_pairs(make_network, n_features):
    from sidecar.pairs.recorded import read_pairs

    features = read_pairs([SHARED / "data" / f"recorded-{n_features}.jsonl.gz"]).features
    network = make_network((n_features, 64, 1), "gelu")
    for batch in (1, 2, 33, 4096, len(features)):
        assert parity(Scorer(to_bytes(network)).predict(features[:batch]), network.forward(features[:batch])) <= 1e-4 * 100


def chains():
    """Random chains of steps, ending in one score."""
    number = st.floats(0.0625, 4, width=32) | st.floats(-4, -0.0625, width=32)

    @st.composite
    def chain(draw):
        width = n_features = draw(st.integers(1, 6))
        steps = []
        for target in [*draw(st.lists(st.integers(1, 6), max_size=3)), 1]:
            for _ in range(draw(st.integers(0, 2))):
                value = np.asarray(draw(number), dtype=np.float32) * ones(*draw(st.sampled_from([(), (width,)])))
                steps.append(Elementwise(draw(st.sampled_from(["Add", "Sub", "Mul", "Div"])), value))
            rng = np.random.default_rng(draw(st.integers(0, 9)))
            steps.append(Dense(rng.normal(size=(target, width)).astype(np.float32), rng.normal(size=target).astype(np.float32)))
            steps.append(
                draw(
                    st.sampled_from(
                        [*map(Activation, ACTIVATIONS), Activation("leaky_relu", 0.25), Clip(-1, 3), Elementwise("Mul", ones())]
                    )
                )
            )
            width = target
        return Network(n_features, tuple(steps))

    return chain()


@settings(deadline=None, max_examples=60)
@given(chains())
def test_reading_what_was_written_gives_the_same_network(network):
    model = to_bytes(network)
    again = from_bytes(model)
    features = np.random.default_rng(0).normal(size=(17, network.n_features)).astype(np.float32)
    expected = network.forward(features)
    assert np.array_equal(again.forward(features), expected)
    assert to_bytes(again) == model
    assert parity(Scorer(model).predict(features), expected) <= 1e-4 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((Dense(ones(4, 3), ones(4)),), "the last step gives 4 values"),
        ((Dense(ones(1, 2), ones(1)),), r"step 0 \(Dense\): it gets 3 values"),
        ((Dense(ones(1, 3), ones(2)),), r"bias \(2,\) do not fit"),
        ((Elementwise("Mul", ones(2)), Dense(ones(1, 3), ones(1))), r"step 0 \(Elementwise\)"),
        ((Dense(ones(1, 3) * np.nan, ones(1)),), "3 of 3 values are not finite"),
        ((Dense(ones(1, 3), ones(1) * np.inf),), "1 of 1 values are not finite"),
        ((Dense(ones(1, 3), ones(1)), Clip(1, 0)), "low 1 is above high 0"),
        ((Dense(ones(1, 3), ones(1)), Activation("softplus")), "activation 'softplus' is not one of relu"),
    ],
)
def test_a_network_that_does_not_fit_together_is_refused(steps, message):
    with pytest.raises(NetworkError, match=message):
        Network(3, steps)


@pytest.mark.parametrize("data", [b"", b"\x00" * 40, b"not a model", bytes(range(256))])
def test_bytes_that_are_no_model_are_refused(data):
    with pytest.raises(NetworkError, match="not an ONNX model"):
        from_bytes(data)
    with pytest.raises(NetworkError, match="onnxruntime cannot load it"):
        Scorer(data)


def test_parity_sees_a_wrong_weight_and_numbers_that_are_not_finite(make_network):
    network, other = make_network((4, 3, 1)), make_network((4, 3, 1), seed=5)
    features = ones(2, 4)
    assert parity(Scorer(to_bytes(other)).predict(features), network.forward(features)) > 1
    with pytest.raises(NetworkError, match="2 of 2 scores are not finite"):
        parity(Scorer(to_bytes(network)).predict(features), network.forward(features) * np.nan)


def test_scorer_splits_columns_over_inputs_and_feeds_a_fixed_batch():
    from onnx import TensorProto, helper

    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, w]) for n, w in (("a", 2), ("b", 1))]
    nodes = [helper.make_node("Concat", ["b", "a"], ["c"], axis=1), helper.make_node("Gemm", ["c", "w"], ["y"])]
    weight = onnx.numpy_helper.from_array(np.array([[100], [1], [10]], dtype=np.float32), "w")
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 1])
    graph = helper.make_graph(nodes, "g", inputs, [output], [weight])
    scorer = Scorer(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    assert scorer.n_features == 3
    assert scorer.predict(np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=np.float32)).tolist() == [321, 654, 987]
    with pytest.raises(NetworkError, match=r"expected 2 \+ 1 features, got shape \(1, 4\)"):
        scorer.predict(ones(1, 4))


def test_scorer_refuses_outputs_that_are_no_numbers():
    for output, body in (("seq(float[n,1])", "SequenceConstruct(x)"), ("string[n,1]", "Cast <to = 8> (x)")):
        text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[n,1] x) => ({output} y) {{ y = {body} }}'
        with pytest.raises(NetworkError, match=r"output 'y' is (seq|tensor)\(.*\); expected a tensor of numbers"):
            Scorer(onnx.parser.parse_model(text).SerializeToString())
