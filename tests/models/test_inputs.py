"""What the JSON beside a model says of its inputs."""

from __future__ import annotations

import pytest

from sidecar.models.description import DescriptionError
from sidecar.models.inputs import inputs_of

SIX = ["adm2", "vif_scale0", "vif_scale1", "vif_scale2", "vif_scale3", "motion2"]
VOCAB = ["libx264", "libx265"]
BLOCK = ("encoder_onehot[libx264]", "encoder_onehot[libx265]", "preset_norm", "crf_norm")


@pytest.mark.parametrize("key", ["feature_order", "features", "feature_names"])
def test_names_are_read_wherever_tools_write_them(key):
    spelled = [f"integer_{name}" for name in SIX]
    inputs = inputs_of({key: spelled, "target": "vmaf_v0.6.1"}, [("features", 6)])
    assert (inputs.names, inputs.block, inputs.target) == (tuple(SIX), None, "vmaf_v0.6.1")


def test_a_json_without_names_gives_none():
    for about in ({}, {"features": 6}, {"features": [{"name": "adm2"}]}, {"feature_order": []}):
        assert inputs_of(about, [("features", 6)]).names == ()


@pytest.mark.parametrize(
    ("ports", "names"),
    [
        ([("features", 6), ("codec_block", 4)], (*SIX, *BLOCK)),
        ([("codec_block", 4), ("features", 6)], (*BLOCK, *SIX)),
        ([("x", 10)], (*SIX, *BLOCK)),
    ],
)
def test_the_encoder_block_has_names_after_or_before_the_features_as_the_graph_takes_them(ports, names):
    about = {"feature_order": SIX, "encoder_vocab": VOCAB, "input_names": ["features", "codec_block"]}
    inputs = inputs_of(about, ports)
    assert inputs.names == names
    assert inputs.block.names == BLOCK


def test_a_model_whose_graph_does_not_take_its_block_has_none():
    inputs = inputs_of({"feature_order": SIX, "encoder_vocab": VOCAB}, [("features", 6)])
    assert (inputs.names, inputs.block) == (tuple(SIX), None)


def test_other_numbers_of_names_than_the_graph_takes_are_an_error():
    with pytest.raises(DescriptionError, match="the JSON names adm2 more than once"):
        inputs_of({"features": ["adm2", "motion2", "integer_adm2"]}, [("features", 3)])
    with pytest.raises(DescriptionError, match="the JSON names 6 features; the graph takes 7"):
        inputs_of({"features": SIX}, [("features", 7)])
    with pytest.raises(DescriptionError, match="the JSON names 6 features and 4 of the encoder; the graph takes 24"):
        inputs_of({"features": SIX, "encoder_vocab": VOCAB}, [("features", 6), ("codec_block", 18)])
    with pytest.raises(DescriptionError, match="codec_crf_norm: expected"):
        inputs_of({"encoder_vocab": VOCAB, "codec_crf_norm": "x"}, [("features", 7)])


def test_fields_that_describe_the_inputs_are_carried_and_scaling_is_not():
    about = {
        "encoder_vocab": VOCAB, "encoder_vocab_version": 3, "codec_aware": True, "feature_pooling": "mean", "notes": "…",
        "feature_mean": [1.0], "input_std": [2.0], "feature_order": ["adm2"], "sha256": "…", "input_names": ["features"],
    }  # fmt: skip
    carried = dict(inputs_of(about, [("features", 1)]).carried)
    assert carried == {"encoder_vocab": VOCAB, "encoder_vocab_version": 3, "codec_aware": True, "feature_pooling": "mean"}
