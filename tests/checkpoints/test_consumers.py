"""Checkpoints as their consumers see them: fed by name, from the JSON alone, they give the trainer's scores."""

from __future__ import annotations

import itertools
import json
import random
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest

from onnx_builder import Activation, Dense, Elementwise, Network, NetworkError, Port
from onnx_builder.write import to_bytes
from sidecar.checkpoints.judging.gate import Evidence
from sidecar.checkpoints.publishing import Terms, publish_network
from sidecar.features.encoder_block import EncoderBlock
from sidecar.learning.recipe import Recipe, fit
from sidecar.models.base_model import load
from tests.conftest import SHARED, run

SIX = ["adm2", "vif_scale0", "vif_scale1", "vif_scale2", "vif_scale3", "motion2"]
MEAN = [0.865, 0.371, 0.732, 0.819, 0.874, 8.95]
STD = [0.098, 0.161, 0.193, 0.166, 0.137, 6.24]
VOCAB = ["libx264", "av1_nvenc", "libsvtav1", "unknown"]
PRESETS = {"libx264": ["fast", "slow"], "av1_nvenc": ["p1", "p7"], "libsvtav1": [4, 8], "prores": [None]}
MODELS = ("vmaf_tiny_v2", "fr_regressor_v1", "fr_regressor_v3")


def rows_of_encodes(count=160, seed=0):
    """What a scoring node knows of its jobs: features by name, and the encoder, preset and CRF."""
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    rows = []
    for features in rng.normal(MEAN, STD, size=(count, 6)):
        encoder = draw.choice([*PRESETS])
        job = {"encoder": encoder, "preset": draw.choice(PRESETS[encoder]), "crf": draw.randint(18, 51)}
        rows.append(dict(zip(SIX, features.tolist(), strict=True)) | job)
    return rows


def score(row):
    return float(np.clip(60 + 90 * (row["adm2"] - 0.87) + 60 * (row["vif_scale0"] - 0.37) - 0.6 * (row["crf"] - 30), 0, 100))


def made(name, directory):
    """A model of the shape of the published one, with a JSON in its form. Returns its path and options for `load`."""
    rng = np.random.default_rng(3)

    def dense(n_out, n_in):
        return Dense((rng.normal(size=(n_out, n_in)) / n_in**0.5).astype(np.float32), rng.normal(size=n_out).astype(np.float32))

    mean, std = np.array(MEAN, dtype=np.float32), np.array(STD, dtype=np.float32)
    end = (Elementwise("Mul", np.float32(9).reshape(())), Elementwise("Add", np.float32(60).reshape(())))
    about = {"id": name, "kind": "fr", "opset": 17, "onnx": f"{name}.onnx"}
    inputs, output, begin, scaler, width = (Port("features", ("batch", 6)),), Port("score", ("batch",)), (), "json", 6
    if name == "vmaf_tiny_v2":
        begin, scaler = (Elementwise("Sub", mean), Elementwise("Div", std)), "none"
        about |= {"features": SIX, "input_mean": MEAN, "input_std": STD}
    elif name == "fr_regressor_v1":
        about |= {"feature_order": SIX, "feature_mean": MEAN, "feature_std": STD}
    else:
        layout = [*(f"encoder_onehot[{each}]" for each in VOCAB), "preset_norm", "crf_norm"]
        inputs, output, width = (*inputs, Port("codec_block", ("batch", 6))), Port("vmaf", ("batch",)), 12
        about |= {"feature_order": SIX, "feature_mean": MEAN, "feature_std": STD, "codec_aware": True}
        about |= {"encoder_vocab": VOCAB, "encoder_vocab_version": 3, "codec_block_layout": layout}
    network = Network(width, (*begin, dense(8, width), Activation("gelu"), dense(1, 8), *end), inputs, output)
    path = directory / f"{name}.onnx"
    path.write_bytes(to_bytes(network))
    path.with_suffix(".json").write_text(json.dumps(about))
    return path, scaler


def base_of(name, kind, directory):
    if name == "fresh":
        return None, "none"
    if kind == "made":
        return made(name, directory)
    if not SHARED.is_dir():
        pytest.skip("no base models beside the checkout")
    for path in (SHARED / "models" / "onnx").glob(f"{name}.*"):
        shutil.copy(path, directory)
    return directory / f"{name}.onnx", "none" if name == "vmaf_tiny_v2" else "json"


def values(row, names, block):
    """The numbers of a row that have these names."""
    known = dict(row) | (block.numbers(row["encoder"], row["preset"], row["crf"]) if block else {})
    return [known[name] for name in names]


class Reader:
    """A consumer that knows no more of a checkpoint than its JSON says."""

    def __init__(self, path):
        self.about = json.loads(path.read_text())
        self.session = onnxruntime.InferenceSession(path.with_name(self.about["onnx"]), providers=["CPUExecutionProvider"])

    def block(self, row):
        """As the JSON says: a one-hot, the preset's ordinal by its encoder, the CRF as a fraction."""
        about = self.about
        encoder = row["encoder"] if row["encoder"] in about["encoder_vocab"] else "unknown"
        found = {f"encoder_onehot[{name}]": float(name == encoder) for name in about["encoder_vocab"]}
        assert (about["codec_preset_norm"], about["codec_crf_norm"]) == ("ordinal", "div63")
        ordinal = about["codec_preset_ordinals"].get(row["encoder"], {}).get(str(row["preset"]), 5)
        return found | {"preset_norm": ordinal / 9, "crf_norm": row["crf"] / 63}

    def score(self, row):
        about = self.about
        known = dict(row) | (self.block(row) if "encoder_vocab" in about else {})
        first = np.array([[known[name] for name in about["feature_order"]]], dtype=np.float32)
        if not about["onnx_has_scaler"]:
            first = (first - np.float32(about["feature_mean"])) / np.float32(about["feature_std"])
        feed = {about["input_names"][0]: first}
        for name in about["input_names"][1:]:
            feed[name] = np.array([[known[each] for each in about["codec_block_layout"]]], dtype=np.float32)
        (scores,) = self.session.run(about["output_names"], feed)
        return float(scores.reshape(-1)[0])


FORMS = [("fresh", "made", "canonical"), *itertools.product(MODELS, ("made", "shared"), ("canonical", "base"))]


@pytest.mark.parametrize(("name", "kind", "export_io"), FORMS)
def test_fed_by_name_from_the_json_alone_a_checkpoint_gives_the_trainers_scores(tmp_path, name, kind, export_io):
    path, scaler = base_of(name, kind, tmp_path)
    base = load(path, scaler=scaler, export_io=export_io) if path else None
    names, block = (base.inputs.names, base.inputs.block) if base else (tuple(SIX), None)
    rows = rows_of_encodes()
    if kind == "shared" and block:  # a closed vocabulary
        rows = [row | {"encoder": "libx264", "preset": "slow"} if row["encoder"] == "prores" else row for row in rows]
    features = np.array([values(row, names, block) for row in rows], dtype=np.float32)
    scores = np.array([score(row) for row in rows], dtype=np.float32)
    fitted = fit(features, scores, np.arange(len(rows)), Recipe(epochs=3), base=base.network if base else None)
    description = {"step": fitted.steps, "settings": {"score_min": 0, "score_max": 100}}
    description |= {} if base else {"feature_order": SIX, "target": "vmaf_v0.6.1"}
    terms = Terms(tmp_path / "c", 100.0, base, export_io)
    publish_network(fitted.ema.network(), terms, [Evidence("held out", features, scores)], features, description)

    reader, expected = Reader(tmp_path / "c" / "latest.json"), fitted.ema.predict(features)
    shuffled = [dict(random.Random(place).sample([*row.items()], len(row))) for place, row in enumerate(rows)]
    assert np.ptp(expected) > 1
    assert np.abs([reader.score(row) for row in shuffled] - expected).max() <= 1e-4 * 100
    about = reader.about
    outside = export_io == "base" and scaler == "json"
    assert (about["onnx_has_scaler"], "feature_mean" in about, "normalization" in about) == (not outside, outside, outside)
    assert not any(key in about for key in ("input_mean", "input_std"))
    assert about["features"] == about["feature_order"]
    metadata = {each.key: json.loads(each.value) for each in onnx.load(tmp_path / "c" / "latest.onnx").metadata_props}
    assert metadata == {key: about[key] for key in ("feature_order", "codec_block_layout") if key in about}
    if base and block:
        given = json.loads(path.with_suffix(".json").read_text())
        carried = ("encoder_vocab", "encoder_vocab_version", "codec_aware", "codec_block_layout")
        assert {key: about[key] for key in carried} == {key: given[key] for key in carried}
        assert about["feature_order"] == (SIX if export_io == "base" else [*names])
    assert run("verify", tmp_path / "c").returncode == 0

    again = load(tmp_path / "c" / "model_v000001.onnx", scaler="json" if outside else "none", export_io=export_io)
    assert (again.inputs.names, again.inputs.block) == (names, block)
    assert np.abs(again.network.forward(features) - expected).max() <= 1e-4 * 100


def test_the_readers_block_is_libvmafs():
    """What the test's reader computes from the JSON is what the program computes from a pair."""
    block = EncoderBlock.of_description({"encoder_vocab": VOCAB})
    assert [*block.numbers("av1_nvenc", "p7", 63).items()] == [*zip(block.names, (0, 1, 0, 0, 1, 1), strict=True)]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (SIX[:5], "5 names for 6 features: adm2, vif_scale0"),
        (SIX[::-1], "the features are motion2, .*, but the base model .* takes adm2, .*, in this order"),
        ([*SIX[:5], "psnr_y"], "the features are adm2, .*, psnr_y, but the base model"),
    ],
)
def test_other_names_than_the_base_models_are_not_published(tmp_path, names, said):
    base = load(made("fr_regressor_v1", tmp_path)[0])
    features = np.zeros((1, 6), dtype=np.float32)
    with pytest.raises(NetworkError, match=said):
        publish_network(base.network, Terms(tmp_path / "c", base=base), [], features, {"feature_order": names})
    assert not (tmp_path / "c").exists()
