"""One pass online improves base models as exporters make them, and onnxruntime computes the same of what is published."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_builder.read import from_bytes
from onnx_builder.runtime import Scorer
from onnx_builder.write import OPERATORS, to_bytes
from sidecar.learning.metrics import rmse
from sidecar.learning.online.trainer import Trainer
from sidecar.learning.training_settings import TrainingSettings
from tests.onnx_builder.test_elementwise import CONSTANTS, SPELLED_OUT
from tests.onnx_builder.test_read import HEAD as LAST
from tests.onnx_builder.test_read import HIDDEN as DENSE
from tests.onnx_builder.test_read import graph

HIDDEN = 16
SCORE = "s = Gemm(a, w2, b2) y = Add(s, mean_score)"
PARTS = """u = ai.onnx.ml.ArrayFeatureExtractor(x, first) v = ai.onnx.ml.ArrayFeatureExtractor(x, second)
    p = Sub(u, mean_1) q = Mul(p, scale_1) r = Sub(v, mean_2) t = Mul(r, scale_2) n = Concat <axis = 1> (t, q)"""
BODIES = {
    "SiLU": f"n = BatchNormalization(x, ones, zeros, mean, variance) h = Gemm(n, w1, b1) g = Sigmoid(h) a = Mul(h, g) {SCORE}",
    "BatchNorm": f"""n = BatchNormalization(x, ones, zeros, mean, variance) h = Gemm(n, w1, b1)
        c = BatchNormalization(h, gain, shift, shift, gain) a = Relu(c) {SCORE}""",
    "scikit-learn": f"{PARTS} f = Cast <to = 1> (n) h = Gemm(f, w1, b1) a = Tanh(h) z = Gemm(a, w2, b2) s = Reshape(z, column) "
    "y = Add(s, mean_score)",
    "a logarithm of some": f"""u = ai.onnx.ml.ArrayFeatureExtractor(x, first) v = ai.onnx.ml.ArrayFeatureExtractor(x, second)
        r = Sub(v, mean_2) t = Mul(r, scale_2) l = Softplus(u) p = Log(l)
        n = Concat <axis = 1> (t, p) h = Gemm(n, w1, b1) a = Relu(h) {SCORE}""",
    "PReLU": f"n = BatchNormalization(x, ones, zeros, mean, variance) h = Gemm(n, w1, b1) a = PRelu(h, slope) {SCORE}",
}


@pytest.fixture(scope="module")
def constants(example):
    features = example.features[:256].astype(np.float64)
    mean, variance = features.mean(axis=0), features.var(axis=0) + 1e-3
    rng = np.random.default_rng(5)
    first, second = np.arange(0, 80, 2), np.arange(1, 80, 2)
    values = {
        "ones": np.ones(80), "zeros": np.zeros(80), "mean": mean, "variance": variance,
        "w1": rng.normal(size=(80, HIDDEN)) / 9, "b1": rng.normal(size=HIDDEN) / 4, "w2": rng.normal(size=(HIDDEN, 1)),
        "b2": np.zeros(1), "gain": rng.uniform(0.5, 2, HIDDEN), "shift": rng.normal(size=HIDDEN) / 4,
        "slope": np.full(HIDDEN, 0.2), "mean_score": example.true_score[:256].mean(),
        "mean_1": mean[first], "scale_1": variance[first] ** -0.5, "mean_2": mean[second], "scale_2": variance[second] ** -0.5,
    }  # fmt: skip
    whole = {"first": first[None], "second": second[None], "column": np.array([-1, 1])}
    return {name: np.asarray(value, dtype=np.float32) for name, value in values.items()} | whole


@pytest.mark.parametrize("name", BODIES)
def test_one_pass_improves_a_base_model_and_its_checkpoint_is_sound(example, constants, name):
    model = graph(BODIES[name], inputs="float[N,80] x", **constants)
    base = from_bytes(model.SerializeToString())
    trainer = Trainer(80, TrainingSettings(), base)
    for _ in trainer.add(example.features[256:1856], example.true_score[256:1856]):
        pass
    rest, true = example.features[1856:], example.true_score[1856:]
    trained = trainer.network(trainer.ema)
    assert rmse(trained.forward(rest), true) < 0.5 * rmse(base.forward(rest), true)
    data = to_bytes(trained)
    assert {node.op_type for node in onnx.load_from_string(data).graph.node} <= OPERATORS
    assert np.abs(Scorer(data).predict(rest) - trained.forward(rest)).max() < 1e-4 * 100
    assert to_bytes(from_bytes(data)) == data
    again = Trainer.from_state(80, TrainingSettings(), trainer.state())
    for each in (trainer, again):
        for _ in each.add(rest, true):
            pass
    assert_same_state(again.state(), trainer.state())


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("body", SPELLED_OUT.values(), ids=SPELLED_OUT)
def test_the_state_keeps_every_function_exactly(body):
    """Its structure is a graph, in units that were measured: it has to read as the same steps with the same parameters."""
    network = from_bytes(graph(f"{DENSE} {body} {LAST}", **CONSTANTS).SerializeToString())
    features = np.random.default_rng(0).normal(size=(600, 3)).astype(np.float32)
    scores = np.clip(75 + 9 * features[:, 0], 0, 100)
    trainer = Trainer(3, TrainingSettings(), network)
    for _ in trainer.add(features[:300], scores[:300]):
        pass
    again = Trainer.from_state(3, TrainingSettings(), trainer.state())
    for each in (trainer, again):
        for _ in each.add(features[300:], scores[300:]):
            pass
    assert_same_state(again.state(), trainer.state())
