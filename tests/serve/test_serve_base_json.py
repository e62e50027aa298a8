"""A codec-aware base model whose JSON says how it is fed: what the log says of it, and what its checkpoints say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnx_builder import Activation, Dense, Elementwise, Network, Port
from onnx_builder.write import to_bytes
from tests.running import wait_until

NAMES, VOCAB = ["adm2", "vif_scale0", "motion2"], ["libx264", "libx265"]
MEAN, STD = [0.9, 0.5, 8.0], [0.05, 0.2, 4.0]
BLOCK = ["encoder_onehot[libx264]", "encoder_onehot[libx265]", "preset_norm", "crf_norm"]
ABOUT = {
    "feature_order": NAMES, "feature_mean": MEAN, "feature_std": STD, "encoder_vocab": VOCAB, "encoder_vocab_version": 2,
    "codec_aware": True, "codec_block_layout": BLOCK, "target": "vmaf_v0.6.1",
}  # fmt: skip
CARRIED = ("encoder_vocab", "encoder_vocab_version", "codec_aware", "codec_block_layout", "target")


def write_base(directory):
    """Right for scaled features alone. Returns its path."""
    weight = np.array([[10, 5, -2, 1, -1, 3, -20]], dtype=np.float32)
    steps = (
        Dense(weight, np.zeros(1, dtype=np.float32)),
        Activation("leaky_relu", 1.0),
        Elementwise("Add", np.float32(70).reshape(())),
    )
    path = directory / "base.onnx"
    path.write_bytes(to_bytes(Network(7, steps, (Port("features", ("N", 3)), Port("codec", ("N", 4))), Port("vmaf", ("N",)))))
    path.with_suffix(".json").write_text(json.dumps(ABOUT))
    return path


def request_lines(count=400):
    rng = np.random.default_rng(0)
    for place in range(count):
        z = rng.normal(size=3)
        encoder, crf = VOCAB[place % 2], int(rng.integers(20, 45))
        score = 70 + 10 * z[0] + 5 * z[1] - 2 * z[2] + (1, -1)[place % 2] + 3 * 6 / 9 - 20 * crf / 63
        features = dict(zip(NAMES, (z * STD + MEAN).tolist(), strict=True))
        pair = {"features": features, "true_score": float(np.clip(score, 0, 100)), "group": f"g{place // 4}"}
        yield json.dumps(pair | {"encoder": encoder, "preset": "slow", "crf": crf}).encode()


def test_a_scaling_that_is_left_out_is_told_with_the_bases_error_both_ways(serve, tmp_path):
    sidecar = serve(base_model=write_base(tmp_path)).connect()
    assert all(answer["ok"] for answer in sidecar.send([*request_lines()]))
    wait_until(lambda: "the RMSE of the base model is" in sidecar.log.read_text())
    log = sidecar.log.read_text()
    assert log.count("has feature_mean and feature_std, which its graph does not hold and base-scaler none does not apply") == 1
    assert log.count("on the first 256 pairs the RMSE") == 1
    assert log.count("set base-scaler json") == 1
    assert log.count("cannot use these checkpoints: it does not measure encoder_onehot[libx264]") == 1


@pytest.mark.parametrize("export_io", ["canonical", "base"])
def test_its_checkpoints_say_how_they_are_fed_also_after_its_file_is_gone(serve, tmp_path, export_io):
    base, told = write_base(tmp_path), []
    for _ in range(2):
        sidecar = serve(base_model=base, base_scaler="json", export_io=export_io).connect()
        assert all(answer["ok"] for answer in sidecar.send([*request_lines()]))
        sidecar.stop()
        told.append(json.loads((sidecar.checkpoint_dir / "latest.json").read_text()))
        base.unlink(missing_ok=True)
        base.with_suffix(".json").unlink(missing_ok=True)
    for about in told:
        assert {key: about[key] for key in CARRIED} == {key: ABOUT[key] for key in CARRIED}
        assert (about["codec_preset_norm"], about["codec_crf_norm"], about["opset"]) == ("ordinal", "div63", 17)
        if export_io == "base":
            assert {key: about[key] for key in ABOUT} == ABOUT
            assert (about["onnx_has_scaler"], about["normalization"]) == (False, {"mean": MEAN, "std": STD})
            assert (about["input_names"], about["output_names"]) == (["features", "codec"], ["vmaf"])
        else:
            assert about["feature_order"] == about["features"] == NAMES + BLOCK
            assert about["onnx_has_scaler"] is True
            assert "feature_mean" not in about
            assert (about["input_names"], about["output_names"]) == (["features"], ["score"])
    log = sidecar.log.read_text()
    assert "RMSE of the base model" not in log
    assert ("with export-io base they keep the two inputs that it takes" in log) == (export_io == "canonical")
