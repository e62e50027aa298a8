"""An encode as numbers: as the JSON beside a model says, and nothing made up where it does not say."""

from __future__ import annotations

import pytest

from sidecar.features.encoder_block import EncoderBlock, EncoderBlockError

VOCAB = ["libx264", "libx265", "unknown"]
ABOUT = {
    "encoder_vocab": VOCAB,
    "preset_norm": {"libx264": {"fast": 0.25, "slow": 0.75}, "libx265": {"5": 0.5}},
    "crf_norm": {"min": 10, "max": 50},
}
BLOCK = EncoderBlock.of_description(ABOUT)


def test_an_encode_becomes_a_one_hot_and_fractions():
    assert BLOCK.names == (*(f"encoder_onehot[{name}]" for name in VOCAB), "preset_norm", "crf_norm")
    assert [*BLOCK.numbers("libx264", "slow", 20).values()] == [1.0, 0.0, 0.0, 0.75, 0.25]
    assert [*BLOCK.numbers("libx265", 5, 50.0).values()] == [0.0, 1.0, 0.0, 0.5, 1.0]


def test_an_encoder_that_is_not_in_the_vocabulary_is_the_unknown_one_if_there_is_one():
    assert [*BLOCK.numbers("libaom-av1").values()] == [0.0, 0.0, 1.0]
    closed = EncoderBlock.of_description({"encoder_vocab": VOCAB[:2]})
    with pytest.raises(EncoderBlockError, match="encoder: expected one of libx264, libx265, got 'libaom-av1'"):
        closed.numbers("libaom-av1")


def test_what_the_json_does_not_say_is_not_made_up():
    assert EncoderBlock.of_description({}) is None
    block = EncoderBlock.of_description({"encoder_vocab": VOCAB})
    assert [*block.numbers("libx264", "slow", 20)] == [*block.names[:3]]


def test_a_constant_preset_is_that_of_every_encode():
    block = EncoderBlock.of_description({**ABOUT, "preset_norm": 0.5})
    assert block.numbers("libx264", "whatever", 20)["preset_norm"] == 0.5
    assert block.numbers() == {}


@pytest.mark.parametrize(
    ("encode", "said"),
    [
        ((5, "slow", 20), "encoder: expected one of libx264, libx265, unknown, got '5'"),
        (("libx264", "medium", 20), "preset: expected one of fast, slow, got 'medium'"),
        (("libx264", "slow", "20"), "crf: expected a number, got '20'"),
        (("libx264", "slow", True), "crf: expected a number, got 'True'"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(encode, said):
    with pytest.raises(EncoderBlockError) as refused:
        BLOCK.numbers(*encode)
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"encoder_vocab": []}, "expected lists of names"),
        ({"encoder_vocab": "libx264"}, "expected lists of names"),
        ({"codec_block_layout": ["encoder_onehot[libx264]", "crf_norm"]}, r"encoder_onehot\[libx265\] is missing"),
        ({"crf_norm": {"min": 50, "max": 10}}, "crf_norm: expected"),
        ({"crf_norm": 63}, "crf_norm: expected"),
        ({"preset_norm": "slow"}, "preset_norm: expected a number, or numbers by preset, got slow"),
    ],
)
def test_a_description_that_is_none_is_refused(changed, said):
    with pytest.raises(EncoderBlockError, match=said):
        EncoderBlock.of_description({**ABOUT, **changed})


def test_it_is_written_down_as_the_json_has_it():
    assert EncoderBlock.of_description(BLOCK.as_json()) == BLOCK
    assert BLOCK.as_json()["encoder_vocab"] == VOCAB
