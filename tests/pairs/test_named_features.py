"""Pairs whose features have names: an array in a known order, or an object in any."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from sidecar.features.encoder_block import EncoderBlock
from sidecar.features.names import NamesError
from sidecar.pairs.errors import PairError
from sidecar.pairs.named_features import NamedFeatures
from sidecar.pairs.pair import PairReader

NAMES = ("adm2", "vif_scale0", "motion2")
BLOCK = EncoderBlock.of_description({"encoder_vocab": ["libx264", "libx265"]})
WITH_BLOCK = (*NAMES, *BLOCK.names)


def read(document, named, target=""):
    line = document if isinstance(document, bytes) else json.dumps(document).encode()
    return np.frombuffer(PairReader(len(named.names), 0, 100, named, target).read(line).features, np.float32).tolist()


def pair(features, **more):
    return {"features": features, "true_score": 50, **more}


def test_an_object_in_any_order_and_spelling_is_the_array():
    named, draw = NamedFeatures(NAMES), random.Random(0)
    spelled = [("integer_adm2", 0.5), ("VMAF_integer_feature_vif_scale0_score", 0.25), ("motion2", 4)]
    assert read(pair([0.5, 0.25, 4]), named) == [0.5, 0.25, 4]
    for _ in range(6):
        draw.shuffle(spelled)
        assert read(pair(dict(spelled)), named) == [0.5, 0.25, 4]


def test_what_comes_in_another_order_than_the_models_is_put_into_that():
    named = NamedFeatures(NAMES, ("motion2", "adm2", "vif_scale0"))
    assert read(pair([0.5, 0.25, 4]), named) == [4, 0.5, 0.25]
    assert read(pair({"adm2": 0.5, "vif_scale0": 0.25, "motion2": 4}), named) == [4, 0.5, 0.25]
    with pytest.raises(NamesError, match="missing: vif_scale1; not known: motion2"):
        NamedFeatures(NAMES, ("adm2", "vif_scale0", "vif_scale1"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (pair({"adm2": 1, "motion2": 1}), "features: missing: vif_scale0"),
        (pair({"adm2": 1, "motion2": 1, "vif_scale0": 1, "psnr_y": 40}), "features: not known: psnr_y"),
        (pair({"adm2": 1, "motion": 1, "vif_scale0": 1}), "features: missing: motion2; not known: motion"),
        (pair({"adm2_egl_1": 1, "motion2": 1, "vif_scale0": 1}), "features: missing: adm2; not known: adm2_egl_1"),
        (pair({"adm2": 1, "integer_adm2": 1, "motion2": 1}), "features: a feature is named twice, in two spellings"),
        (b'{"features":{"adm2":1,"motion2":1,"vif_scale0":1,"adm2":2},"true_score":5}', "features: 'adm2' is named 2 times"),
        (pair({"adm2": 1, "motion2": "1", "vif_scale0": 1}), "features['motion2']: expected a number, got str"),
        (pair({"adm2": 1, "motion2": None, "vif_scale0": 1}), "features['motion2']: expected a number, got null"),
        (pair({"adm2": 1, "motion2": {}, "vif_scale0": 1}), "features['motion2']: expected a number, got object"),
        (pair({"adm2": 1, "motion2": 1e39, "vif_scale0": 1}), "features[2]: 1e+39 does not fit float32"),
        (pair({}), "features: missing: adm2, vif_scale0, motion2"),
        (pair([1, 2]), "features: expected 3 numbers, got 2"),
    ],
)
def test_other_names_are_refused_and_told(line, said):
    with pytest.raises(PairError) as refused:
        read(line, NamedFeatures(NAMES))
    assert str(refused.value) == said


def test_names_with_quotes_and_backslashes_are_told_apart():
    named = NamedFeatures(('a"b', "a\\", "c"))
    assert read(pair({"c": 3, 'a"b': 1, "a\\": 2}), named) == [1, 2, 3]


def test_an_object_without_names_is_refused():
    with pytest.raises(PairError, match="features: expected array, got object; a sidecar takes one if its features have names"):
        PairReader(1).read(b'{"features":{"adm2":1},"true_score":5}')


def test_an_encoder_and_preset_stand_for_their_numbers():
    named = NamedFeatures(WITH_BLOCK, block=BLOCK)
    numbers = [0.5, 0.25, 4, 0, 1, 1, 0.5]
    assert read(pair(numbers), named) == numbers
    measured = {"motion2": 4, "adm2": 0.5, "vif_scale0": 0.25}
    assert read(pair({**measured, "crf_norm": 0.5}, encoder="libx265", preset="placebo"), named) == numbers
    assert read(pair({**measured, "crf_norm": 0.5, "preset_norm": 0.25}, encoder="libx265"), named) == [*numbers[:5], 0.25, 0.5]
    assert read(pair(measured, encoder="libx265", preset="placebo", crf=31.5), named) == numbers
    with pytest.raises(PairError, match="features: missing: crf_norm"):
        read(pair(measured, encoder="libx265", preset="slow"), named)
    with pytest.raises(PairError, match="encoder: expected one of libx264, libx265, got 'av1'"):
        read(pair(measured, encoder="av1", preset="slow"), named)


def test_an_array_of_what_is_measured_is_enough_where_the_encode_is_given():
    scaled = {"codec_crf_norm": "minmax", "codec_crf_min": 0, "codec_crf_max": 50}
    block = EncoderBlock.of_description({**BLOCK.as_json(), **scaled})
    named = NamedFeatures(WITH_BLOCK, block=block)
    assert read(pair([0.5, 0.25, 4], encoder="libx264", preset="placebo", crf=25), named) == [0.5, 0.25, 4, 1, 0, 1, 0.5]
    with pytest.raises(PairError, match="features: missing: encoder_onehot"):
        read(pair([0.5, 0.25, 4]), named)


def test_a_pair_of_another_target_is_refused():
    named = NamedFeatures(NAMES)
    for more in ({}, {"target": "vmaf_v0.6.1"}):
        assert read(pair([1, 2, 3], **more), named, "vmaf_v0.6.1") == [1, 2, 3]
    for other in ("vmaf_v0.6.1neg", 7, None):
        with pytest.raises(PairError, match=r"target: '.*' is not what is trained on here, 'vmaf_v0.6.1'"):
            read(pair([1, 2, 3], target=other), named, "vmaf_v0.6.1")
    assert read(pair([1, 2, 3], target="anything"), named) == [1, 2, 3]
