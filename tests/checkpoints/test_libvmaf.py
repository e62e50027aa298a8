"""Which checkpoints the loader of libvmaf (VMAF fork) takes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnx_builder import Activation, Dense, Network, Port
from onnx_builder.write import to_bytes
from sidecar.checkpoints.libvmaf import refused_by_libvmaf
from sidecar.models.base_model import load
from sidecar.models.inputs import ModelInputs
from tests.conftest import EXAMPLE, run

SIX = ("adm2", "vif_scale0", "vif_scale1", "vif_scale2", "vif_scale3", "motion2")
VOCAB = ["libx264", "libx265"]
NO = "libvmaf of the VMAF fork (vmaf --tiny-model) cannot use these checkpoints: "


@pytest.mark.parametrize(
    ("names", "n_features", "why"),
    [
        (SIX, 6, ""),
        ((), 6, ""),
        (SIX[:3], 3, ""),
        ((), 80, "they take 80 features, it gives 32 at most"),
        ((), 32, "their 32 features have no names; without, it gives 6"),
        (("adm2", "bitrate"), 2, "it does not measure bitrate; it gives what it has of a frame"),
        (("adm2_mean", "adm2_std"), 2, "it does not measure adm2_mean, adm2_std; it gives what it has of a frame"),
    ],
)
def test_fresh_heads(names, n_features, why):
    assert refused_by_libvmaf(None, "canonical", ModelInputs(names), n_features) == (NO + why if why else "")


@pytest.fixture
def base(tmp_path):
    """Loads a base model with these inputs and JSON."""

    def make(*ports, **about):
        width = sum(port.width for port in ports)
        dense = Dense(np.zeros((1, width), dtype=np.float32), np.zeros(1, dtype=np.float32))
        path = tmp_path / "base.onnx"
        path.write_bytes(to_bytes(Network(width, (dense, Activation("relu")), ports, Port("vmaf", ("batch", 1)))))
        path.with_suffix(".json").write_text(json.dumps(about))
        return load(path, export_io="base")

    return make


def test_base_models(base):
    features, codec = Port("features", ("batch", 6)), Port("codec", ("batch", 4))
    aware = base(features, codec, feature_order=[*SIX], encoder_vocab=VOCAB)
    assert refused_by_libvmaf(aware, "base", aware.inputs, 10) == ""
    assert refused_by_libvmaf(aware, "canonical", aware.inputs, 10) == (
        f"{NO}it does not measure encoder_onehot[libx264], encoder_onehot[libx265], preset_norm …; it gives what it has of a "
        "frame; with export-io base they keep the two inputs that it takes"
    )
    other = base(features, codec, feature_order=[*SIX, *(f"x{place}" for place in range(4))])
    assert "10 names for an input of 6" in refused_by_libvmaf(other, "base", other.inputs, 10)
    unnamed = base(features, codec)
    assert "of inputs besides features it knows only one" in refused_by_libvmaf(unnamed, "base", unnamed.inputs, 10)
    fixed = base(Port("features", (8, 6)))
    assert "they take 8 rows at a time, it gives 1" in refused_by_libvmaf(fixed, "base", fixed.inputs, 6)
    assert refused_by_libvmaf(fixed, "canonical", fixed.inputs, 6) == ""
    deep = base(Port("features", ("batch", 6, 1)))
    assert "input features has 3 dimensions, it takes 2" in refused_by_libvmaf(deep, "base", deep.inputs, 6)


def test_train_offline_says_it_once(tmp_path, random_rows, write_lines):
    why = f"{NO}they take 80 features, it gives 32 at most"
    done = run("train-offline", EXAMPLE, "--output", tmp_path / "a", "--epochs", 1)
    assert done.stdout.count(why) == 1
    assert json.loads(run("train-offline", EXAMPLE, "--stream", "--output", tmp_path / "a", "--json").stdout)["refused"] == why
    six = run("train-offline", write_lines(random_rows(40, 6)), "--output", tmp_path / "b", "--epochs", 1, "--json")
    assert "refused" not in json.loads(six.stdout)
