"""Starting from base models: their scaling, their inputs and outputs, and what `train-offline` says of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_builder import Activation, Dense, Elementwise, Network, NetworkError, Port
from onnx_builder.runtime import Scorer
from onnx_builder.write import to_bytes
from sidecar.checkpoints.verify import probe_features
from sidecar.models.base_model import load, load_or_fresh
from sidecar.models.evidence import judged
from sidecar.models.json_scaling import json_scaling, scaled
from sidecar.pairs.recorded import read_pairs
from tests.conftest import SHARED, run, tree
from tests.torch_files import Tensor, linears, zip_file

GOOD = {
    "vmaf_tiny_v1": (6, "none"),
    "vmaf_tiny_v2": (6, "none"),
    "vmaf_tiny_v3": (6, "none"),
    "fr_regressor_v1": (6, "json"),
    "fr_regressor_v3": (24, "json"),
}
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no base models beside the checkout")


@pytest.fixture
def base_network():
    """Two inputs, GELU, output (batch,), as torch exports the field's codec-aware regressors; its scaling is outside."""
    rng = np.random.default_rng(0)

    def dense(n_out, n_in):
        return Dense((rng.normal(size=(n_out, n_in)) / n_in**0.5).astype(np.float32), rng.normal(size=n_out).astype(np.float32))

    out = (Elementwise("Mul", np.float32(15).reshape(())), Elementwise("Add", np.float32(60).reshape(())))
    steps = (dense(8, 5), Activation("gelu"), dense(8, 8), Activation("gelu"), dense(1, 8), *out)
    return Network(5, steps, (Port("features", ("N", 3)), Port("codec", ("N", 2))), Port("vmaf", ("N",)))


@pytest.fixture
def base_path(tmp_path, base_network):
    """The model file with its JSON beside it."""
    path = tmp_path / "base.onnx"
    path.write_bytes(to_bytes(base_network))
    path.with_suffix(".json").write_text(json.dumps({"feature_mean": [1.0, -2.0, 0.5], "feature_std": [2.0, 0.5, 10.0]}))
    return path


@pytest.fixture
def pairs_path(random_rows, write_lines):
    return write_lines(random_rows(240))


def train(pairs, output, *options):
    return run("train-offline", pairs, "--output", output, "--json", *options)


def test_the_jsons_scaling_is_baked_in_for_the_first_input_alone(base_path, base_network):
    features = np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32)
    by_hand = features.copy()
    by_hand[:, :3] = (features[:, :3] - np.float32([1, -2, 0.5])) / np.float32([2, 0.5, 10])
    base = load(base_path, scaler="json")
    assert np.allclose(base.network.forward(features), base_network.forward(by_hand), atol=1e-4)
    assert np.allclose(scaled(features, json_scaling(base_path, 3)), by_hand)
    assert base.network.inputs == (Port("features", ("batch", 5)),)


@pytest.mark.parametrize("scaler", ["none", "json"])
@pytest.mark.parametrize("export_io", ["canonical", "base"])
def test_no_epochs_publish_what_the_base_computes(tmp_path, base_path, base_network, pairs_path, scaler, export_io):
    options = ("--base-model", base_path, "--base-scaler", scaler, "--export-io", export_io, "--epochs", 0)
    done = train(pairs_path, tmp_path / "c", *options)
    assert done.returncode in (0, 1), done.stderr
    model = tmp_path / "c" / "model_v000001.onnx"
    features = read_pairs([pairs_path]).features
    outside = json_scaling(base_path, 3) if (scaler, export_io) == ("json", "base") else ()
    inside = json_scaling(base_path, 3) if scaler == "json" else ()
    published = Scorer(model).predict(scaled(features, outside))
    expected = base_network.forward(scaled(features, inside))
    assert np.abs(published - expected).max() <= 1e-5 * np.ptp(expected)
    about = json.loads(model.with_suffix(".json").read_text())
    assert about["base_model"]["path"] == str(base_path)
    assert about["step"] == 0
    assert about.get("feature_mean") == ([1.0, -2.0, 0.5] if outside else None)
    assert about["input_names"] == (["features", "codec"] if export_io == "base" else ["features"])
    assert about["output_name"] == ("vmaf" if export_io == "base" else "score")


@pytest.mark.parametrize("export_io", ["canonical", "base"])
def test_fine_tuning_is_better_than_the_base_and_can_be_fine_tuned_again(tmp_path, base_path, pairs_path, export_io):
    options = ("--base-scaler", "json", "--export-io", export_io, "--epochs", 40)
    done = train(pairs_path, tmp_path / "c", "--base-model", base_path, *options)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)["metrics"]["held_out"]
    assert measured["ema"]["rmse"] < measured["base"]["rmse"] / 4
    published = tmp_path / "c" / "model_v000001.onnx"
    scaler = "json" if export_io == "base" else "none"
    again = train(
        pairs_path, tmp_path / "c", "--base-model", published, "--base-scaler", scaler, "--export-io", export_io, "--epochs", 0
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["metrics"]["held_out"]["ema"]["rmse"] == pytest.approx(measured["ema"]["rmse"], rel=1e-3)
    assert (tmp_path / "c" / "model_v000002.onnx").read_bytes() == published.read_bytes()


def test_a_scaling_that_is_left_out_is_told_with_the_bases_error_both_ways(tmp_path, base_path, base_network, pairs_path):
    features = read_pairs([pairs_path]).features
    left_out = load(base_path)
    assert [step.value.tolist() for step in left_out.left_out] == [[1.0, -2.0, 0.5], [2.0, 0.5, 10.0]]
    scores = left_out.network.forward(features)
    said = judged(left_out, features, scores)
    assert "the RMSE of the base model is 0.000 as they come and" in said
    assert said.endswith("with that scaling; they seem to be scaled already")
    scaled_scores = load(base_path, scaler="json").network.forward(features)
    said = judged(left_out, features, scaled_scores)
    assert said.startswith(f"{base_path.with_suffix('.json')} has feature_mean and feature_std, which its graph does not hold")
    assert said.endswith("0.000 with that scaling; set base-scaler json")
    assert judged(load(base_path, scaler="json"), features, scores) == ""
    done = train(pairs_path, tmp_path / "c", "--base-model", base_path, "--epochs", 0)
    assert done.stderr.startswith(f"WARNING: {base_path.with_suffix('.json')} has feature_mean and feature_std")
    done = train(pairs_path, tmp_path / "c", "--base-model", base_path, "--stream")
    assert done.stderr.startswith(f"WARNING: {base_path.with_suffix('.json')} has feature_mean and feature_std")


@pytest.mark.parametrize("form", ["input", "normalization"])
@pytest.mark.parametrize("begins", [("Sub", "Div"), ("Sub", "Mul"), ("Div", "Sub"), ()])
def test_a_scaling_that_the_graph_begins_with_is_not_left_out_and_not_applied_twice(tmp_path, base_network, form, begins):
    mean, std = np.float32([1, -2, 0.5, 0, 0]), np.float32([2, 0.5, 10, 1, 1])
    value = {"Sub": mean / (std if begins[:1] == ("Div",) else 1), "Div": std, "Mul": 1 / std}
    steps = (*(Elementwise(operator, np.float32(value[operator])) for operator in begins), *base_network.steps)
    path = tmp_path / "base.onnx"
    path.write_bytes(to_bytes(Network(5, steps, base_network.inputs, base_network.output)))
    stated = {"mean": mean[:3].tolist(), "std": std[:3].tolist()}
    about = {f"input_{key}": value for key, value in stated.items()} if form == "input" else {"normalization": stated}
    path.with_suffix(".json").write_text(json.dumps(about))
    assert bool(load(path).left_out) == (not begins)
    assert bool(load(path, scaler="json").scaling) == (not begins)
    path.with_suffix(".json").write_text(json.dumps({**about, "onnx_has_scaler": True}))
    assert not load(path).left_out
    assert not load(path, scaler="json").scaling


def test_export_io_base_warns_of_scaling_that_stays_outside(tmp_path, base_path, pairs_path):
    options = ("--base-model", base_path, "--base-scaler", "json", "--epochs", 0)
    done = train(pairs_path, tmp_path / "c", *options, "--export-io", "base")
    assert f"WARNING: {base_path}: export-io base leaves the scaling of its JSON outside of its checkpoints too" in done.stderr
    about = json.loads((tmp_path / "c" / "latest.json").read_text())
    assert about["normalization"] == {"mean": about["feature_mean"], "std": about["feature_std"]}
    assert about["onnx_has_scaler"] is False
    assert train(pairs_path, tmp_path / "d", *options).stderr == ""
    assert json.loads((tmp_path / "d" / "latest.json").read_text())["onnx_has_scaler"] is True


def test_a_json_that_cannot_be_read_is_a_warning_where_it_is_not_needed(base_path, caplog):
    for text, said in (("{", "not JSON"), ('{"feature_mean": ["x"], "feature_std": [1]}', "feature_mean: expected a list")):
        base_path.with_suffix(".json").write_text(text)
        assert not load(base_path).left_out
        assert said in caplog.text


@pytest.mark.parametrize(
    ("about", "named"),
    [
        ({"mean": [1, 2, 3], "std": [1, 1, 1]}, "mean, std"),
        ({"scaler": {"mean_": [1, 2, 3], "scale_": [1, 2, 3], "n": 3}}, "scaler.mean_, scaler.scale_"),
        ({"feature_min": {"a": 1, "b": 2, "c": 3}}, "feature_min"),
        ({"target_mean": 50, "output_scale": 20.0}, "target_mean, output_scale"),
        ({"feature_mean": None, "feature_std": None, "metrics": {"mean": [1, 2]}, "score_min": 0, "std": [True] * 3}, ""),
    ],
)
def test_what_may_be_a_scaling_in_another_form_is_a_warning(tmp_path, about, named, caplog):
    path = tmp_path / "m.onnx"
    network = Network(3, (Dense(np.ones((1, 3), np.float32), np.ones(1, np.float32)),))
    path.write_bytes(to_bytes(network))
    path.with_suffix(".json").write_text(json.dumps(about))
    load(path)
    assert [f"{named} may be a scaling, which is not applied" in text for text in caplog.messages] == ([True] if named else [])
    caplog.clear()
    path.write_bytes(to_bytes(Network(3, (Elementwise("Sub", np.float32([1, 2, 3])), *network.steps))))
    load(path)
    assert not caplog.messages


def test_a_fixed_batch_of_one_is_kept(tmp_path, pairs_path, base_network):
    base = tmp_path / "one.onnx"
    base.write_bytes(to_bytes(Network(5, base_network.steps, (Port("input", (1, 5)),), Port("vmaf", (1, 1)))))
    done = train(pairs_path, tmp_path / "c", "--base-model", base, "--export-io", "base", "--epochs", 5)
    assert done.returncode == 0, done.stderr
    again = load(tmp_path / "c" / "model_v000001.onnx")
    assert again.declared is not None
    assert (again.declared.inputs, again.declared.output) == ((Port("input", (1, 5)),), Port("vmaf", (1, 1)))
    assert run("evaluate", tmp_path / "c" / "model_v000001.onnx", pairs_path).returncode == 0


def test_a_base_of_another_float_type_is_published_in_canonical_form_only(tmp_path, pairs_path):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 5])]
    weight = numpy_helper.from_array(np.full((5, 1), 8, dtype=np.float16), "w")
    output = [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 1])]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", inputs, output, [weight])
    base = tmp_path / "half.onnx"
    base.write_bytes(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    refused = train(pairs_path, tmp_path / "c", "--base-model", base, "--export-io", "base")
    assert refused.returncode == 2
    assert f"{base}: input 'x' is FLOAT16; a checkpoint takes float32: use export-io canonical" in refused.stderr
    assert train(pairs_path, tmp_path / "c", "--base-model", base).returncode == 0
    assert run("evaluate", base, pairs_path).returncode == 0


def test_group_validation_starts_each_fold_from_the_base(tmp_path, base_path, pairs_path):
    done = train(pairs_path, tmp_path / "c", "--base-model", base_path, "--epochs", 0, "--group-by", "group")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["loso"]["pooled_rmse"] == pytest.approx(said["metrics"]["train"]["base"]["rmse"], rel=1e-4)


def test_a_base_path_where_nothing_is_starts_fresh_with_a_warning(tmp_path, pairs_path):
    done = train(pairs_path, tmp_path / "c", "--base-model", tmp_path / "none.onnx", "--epochs", 2)
    assert f"base model {tmp_path / 'none.onnx'} does not exist; training starts from a new model" in done.stderr
    assert json.loads((tmp_path / "c" / "model_v000001.json").read_text())["base_model"] is None
    assert load_or_fresh(tmp_path / "none.onnx") is None


def test_a_base_of_another_width_is_refused_with_both_numbers(tmp_path, base_path, random_rows, write_lines):
    pairs = write_lines(random_rows(40, n_features=4))
    done = train(pairs, tmp_path / "c", "--base-model", base_path)
    assert done.returncode == 2
    assert "takes 5 = 3 features (features) + 2 features (codec)" in done.stderr
    assert f"the pairs in {pairs} have 4" in done.stderr
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"junk", "not an ONNX model"),
        (b"", "not an ONNX model"),
        (b"PK\x03\x04 junk", "zip"),
        (b"\x80\x02junk", ""),
    ],
)
def test_a_base_that_cannot_be_used_stops_with_its_name(tmp_path, pairs_path, content, message):
    base = tmp_path / "base.onnx"
    base.write_bytes(content)
    before = tree(tmp_path)
    done = train(pairs_path, tmp_path / "c", "--base-model", base)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {base}: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (None, "no such file"),
        ("[", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("{}", "no feature_mean and feature_std, input_mean and input_std, or normalization; it has no fields"),
        ('{"id": "x", "notes": "y"}', "or normalization; it has id, notes"),
        ('{"normalization": {"mean": [1]}}', "normalization.std: expected a list of finite numbers, got None"),
        ('{"feature_mean": [1, 2], "feature_std": [1]}', "2 values in feature_mean and 1 in feature_std, for 3 features"),
        (
            '{"feature_mean": [1, 2, 3, 4], "feature_std": [1, 1, 1, 1]}',
            "4 values in feature_mean and 4 in feature_std, for 3 features",
        ),
        ('{"feature_mean": [1, 2, true], "feature_std": [1, 1, 1]}', "feature_mean: expected a list"),
        ('{"feature_mean": [1, 2, NaN], "feature_std": [1, 1, 1]}', "feature_mean: expected a list"),
        ('{"feature_mean": [1, 2, 3], "feature_std": [1, 0, 1]}', "feature_std: expected numbers above 0"),
        ('{"feature_mean": [1, 2, 3], "feature_std": [1, 1e-60, 1]}', "feature_std: expected numbers above 0"),
    ],
)
def test_a_json_that_gives_no_scaling_is_refused(base_path, about, message):
    beside = base_path.with_suffix(".json")
    beside.unlink()
    if about is not None:
        beside.write_text(about)
    with pytest.raises(NetworkError, match=message):
        load(base_path, scaler="json")


def test_what_a_state_dict_does_not_say_is_an_option(tmp_path, base_path, pairs_path):
    state = linears((4, 5), (1, 4))
    path = tmp_path / "model.ckpt"
    path.write_bytes(zip_file({"state_dict": state, "normalizer_dict": {"mean": Tensor(np.float32([79]))}}))
    refused = train(pairs_path, tmp_path / "c", "--base-model", path)
    assert refused.returncode == 2
    assert "'normalizer_dict.mean', a tensor of shape (1,), beside the layers, may change the scores" in refused.stderr
    choices = ("--base-key", "state_dict", "--base-activation", "tanh", "--base-output", "*23+79")
    done = train(pairs_path, tmp_path / "c", "--base-model", path, *choices, "--epochs", 0)
    assert done.returncode in (0, 1), done.stderr
    assert f"INFO: {path}: read as a plain chain of Linear and tanh\n" in done.stderr
    features = read_pairs([pairs_path]).features
    (first, last), (before, after) = ([state[f"{n}.{part}"].values for n in (0, 2)] for part in ("weight", "bias"))
    scores = (np.tanh(features @ first.T + before) @ last.T + after)[:, 0] * 23 + 79
    np.testing.assert_allclose(Scorer(tmp_path / "c" / "model_v000001.onnx").predict(features), scores, rtol=1e-4, atol=1e-3)
    refused = train(pairs_path, tmp_path / "c", "--base-model", base_path, *choices)
    assert "an ONNX model; base-activation, base-output and base-key are for PyTorch files" in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--export-io", "base"], "--base-scaler and --export-io need --base-model"),
        (["--base-scaler", "json"], "--base-scaler and --export-io need --base-model"),
        (["--epochs", "0"], "there is no base model"),
        (["--base-model", "nowhere.onnx", "--epochs", "0"], "there is no base model"),
    ],
)
def test_options_that_need_a_base_say_so(tmp_path, pairs_path, options, message):
    done = train(pairs_path, tmp_path / "c", *options)
    assert done.returncode == 2
    assert message in done.stderr


@shared
def test_the_fields_models_jsons_are_told_apart_by_their_graphs():
    left_out = {name for name in GOOD if load(SHARED / "models" / "onnx" / f"{name}.onnx").left_out}
    assert left_out == {"fr_regressor_v1", "fr_regressor_v3"}
    assert len(load(SHARED / "models" / "onnx" / "fr_regressor_v3.onnx").inputs.names) == 24


@shared
@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("export_io", ["canonical", "base"])
def test_the_fields_models_are_published_untouched_and_trained(tmp_path, name, export_io):
    n_features, scaler = GOOD[name]
    pairs, model = SHARED / "data" / f"recorded-{n_features}.jsonl.gz", SHARED / "models" / "onnx" / f"{name}.onnx"
    options = ("--base-model", model, "--base-scaler", scaler, "--export-io", export_io)
    assert train(pairs, tmp_path / "c", *options, "--epochs", 0).returncode == 0
    features = read_pairs([pairs]).features
    scaling = json_scaling(model, 6) if scaler == "json" else ()
    expected = Scorer(model).predict(scaled(features, scaling))
    published = Scorer(tmp_path / "c" / "model_v000001.onnx").predict(scaled(features, scaling if export_io == "base" else ()))
    assert np.abs(published - expected).max() <= 1e-5 * np.ptp(expected)
    done = train(pairs, tmp_path / "c", *options, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)["metrics"]["held_out"]
    assert measured["ema"]["rmse"] < measured["base"]["rmse"]
    assert run("verify", tmp_path / "c").returncode == 0


@shared
@pytest.mark.parametrize(
    ("name", "low", "high"), [("fr_regressor_v2", 0, 100), ("predictor_libx264", 0, 100), ("konvid_mos_head_v1", 1, 5)]
)
@pytest.mark.parametrize("export_io", ["canonical", "base"])
def test_models_that_no_recorded_pairs_fit_are_trained_on_pairs_of_their_own(tmp_path, name, low, high, export_io):
    model = SHARED / "models" / "onnx" / f"{name}.onnx"
    features = probe_features(load(model).network, 600)
    expected = Scorer(model).predict(features)
    share = np.clip(0.5 + (expected - expected.mean()) / (6 * expected.std()), 0, 1)
    pairs = tmp_path / "pairs.npz"
    np.savez(pairs, features=features, true_score=low + (high - low) * share**1.5)
    options = ("--base-model", model, "--export-io", export_io, "--score-min", low, "--score-max", high)
    assert train(pairs, tmp_path / "c", *options, "--epochs", 0).returncode in (0, 1)
    published = Scorer(tmp_path / "c" / "model_v000001.onnx").predict(features)
    assert np.abs(published - expected).max() <= 1e-5 * np.ptp(expected)
    done = train(pairs, tmp_path / "c", *options, "--epochs", 1)
    assert done.returncode in (0, 1), done.stderr  # one pass over 540 pairs may cost a little PLCC
    measured = json.loads(done.stdout)["metrics"]["held_out"]
    assert measured["ema"]["rmse"] < measured["base"]["rmse"]
    assert run("verify", tmp_path / "c").returncode == 0


@shared
@pytest.mark.parametrize("name", ["head_80_64_1.pt", "head_80_64_1_legacy.pth", "head_80_64_1.safetensors"])
def test_state_dicts_are_published_untouched(tmp_path, name):
    torch = SHARED / "models" / "torch"
    done = train(SHARED / "data" / "recorded-80.jsonl.gz", tmp_path / "c", "--base-model", torch / name, "--epochs", 0)
    assert done.returncode in (0, 1), done.stderr
    assert "a state-dict does not name its activation; relu is assumed" in done.stderr
    with np.load(torch / "head_80_64_1.expected.npz") as expected:
        published = Scorer(tmp_path / "c" / "model_v000001.onnx").predict(expected["features"])
        assert np.allclose(published, expected["score"][:, 0], atol=1e-5)


@shared
@pytest.mark.parametrize("name", ["onnx/vmaf_tiny_v3.int8.onnx", "onnx/vmaf_tiny_v1_medium.onnx", "onnx/nr_metric_v1.onnx"])
def test_the_fields_bad_models_are_refused(tmp_path, name):
    done = train(SHARED / "data" / "recorded-6.jsonl.gz", tmp_path / "c", "--base-model", SHARED / "models" / name)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {SHARED / 'models' / name}: ")


@shared
@pytest.mark.parametrize("name", ["malicious.pt", "not_a_head_conv.pt"])
def test_the_bad_state_dicts_are_refused(tmp_path, name):
    done = train(SHARED / "data" / "recorded-80.jsonl.gz", tmp_path / "c", "--base-model", SHARED / "models" / "torch" / name)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
