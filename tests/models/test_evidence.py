"""What the first pairs tell of a base model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_builder import NetworkError
from onnx_builder.write import to_bytes
from sidecar.models.base_model import load
from sidecar.models.evidence import compared, evidence, judged
from sidecar.offline.training import train_offline
from sidecar.online.backlog import Backlog
from sidecar.serve.base.check import BaseCheck
from tests.torch_files import linears, zip_file

X = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)


@pytest.fixture
def base(tmp_path, make_network):
    path = tmp_path / "base.onnx"
    path.write_bytes(to_bytes(make_network((3, 4, 1))))
    return load(path)


@pytest.fixture
def misread(base, make_network):
    """A base model whose graph is another network."""
    return replace(base, declared=make_network((3, 4, 1), seed=1))


def half_precision(path):
    """A graph that takes and gives float16."""
    weight = numpy_helper.from_array(np.float16([[0.1], [2.3], [-31.7]]), "w")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n", width]) for name, width in (("x", 3), ("y", 1))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "half", ports[:1], ports[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_a_base_model_that_was_read_rightly_needs_no_word(base):
    scores = base.network.forward(X)
    assert evidence(base, X, scores, 100) == []


def test_another_computation_in_onnxruntime_is_an_error(misread):
    with pytest.raises(NetworkError, match=r"base.onnx: what was read differs .* by up to .* on the first 300 pairs; 0.01 is"):
        compared(misread, X, 100)


def test_a_difference_in_half_precision_is_told(tmp_path):
    half_precision(tmp_path / "half.onnx")
    said = compared(load(tmp_path / "half.onnx"), X, 100)
    assert "half.onnx computes in half precision; trained in float32, it differs by up to 0.0" in said


def test_a_file_that_has_changed_since_is_not_compared(misread, base, make_network):
    misread.path.write_bytes(to_bytes(make_network((3, 5, 1))))
    assert "has changed since it was read: it is not compared" in compared(misread, X, 100)


def test_a_width_that_the_graph_does_not_declare_is_no_hindrance(tmp_path, base):
    model = onnx.load(base.path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "features"
    onnx.save(model, tmp_path / "open.onnx")
    opened = load(tmp_path / "open.onnx")
    assert opened.network.n_features == 3
    assert compared(opened, X, 100) == ""


def test_a_model_that_scores_pairs_worse_than_their_mean_is_a_warning(base, tmp_path):
    scores = base.network.forward(X)
    causes = "a scaling that is applied outside of it, features in another order, or scores of another range"
    said = judged(base, X, scores + 3 * np.std(scores))
    assert said.startswith(f"base model {base.path} is far off: on the first 300 pairs its RMSE is")
    assert said.endswith(f"Likely causes: {causes}")
    assert judged(base, X, scores + np.std(scores)) == ""
    assert judged(base, X[:20], scores[:20] + 100) == ""
    path = tmp_path / "base.pt"
    path.write_bytes(zip_file(linears((4, 3), (1, 4))))
    assert "or that it is no plain chain of layers: see --base-activation" in judged(load(path), X, scores + 1000)
    with np.errstate(all="ignore"):
        assert "is far off" in judged(base, np.full((300, 3), 1e38, np.float32), scores)


def test_nothing_is_trained_or_published_offline_from_a_misread_base(tmp_path, misread, random_rows, write_lines):
    rows = [{**row, "features": row["features"][:3]} for row in random_rows(60)]
    with pytest.raises(NetworkError, match="what was read differs from what onnxruntime computes"):
        train_offline([write_lines(rows)], tmp_path / "out", base=misread)
    assert not (tmp_path / "out").exists() or not [*(tmp_path / "out").glob("*.onnx")]


def test_a_sidecar_stops_training_on_a_misread_base_and_tells_of_one_that_is_fed_wrongly(base, misread, caplog):
    def online(rows):
        replay = type("Replay", (), {"rows": lambda self, newest: rows[-newest:], "__len__": lambda self: len(rows)})()
        learner = SimpleNamespace(trainer=SimpleNamespace(replay=replay))
        return SimpleNamespace(learner=learner, backlog=Backlog(learner, None))

    scores = base.network.forward(X)
    with ThreadPoolExecutor(1) as worker:

        def looked(base, rows):
            trained = online(rows)
            check = BaseCheck(base, trained, 100, worker)
            for _ in range(4):
                check.turn()
                worker.submit(int).result()  # the look before is done
            return trained.backlog.failed

        assert looked(misread, np.c_[X, scores][:31]) == ""
        assert looked(base, np.c_[X, scores]) == ""
        assert "what was read differs" in looked(misread, np.c_[X, scores][:32])
        assert "phase failed: pairs are recorded but not trained on" in caplog.text
        assert "is far off" not in caplog.text
        assert looked(base, np.c_[X, scores + 100]) == ""
        assert "is far off: on the first 256 pairs" in caplog.text
