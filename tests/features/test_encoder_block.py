"""An encode as numbers, as libvmaf of the VMAF fork has them."""

from __future__ import annotations

import pytest

from sidecar.features.encoder_block import EncoderBlock, EncoderBlockError

VOCAB = ["libx264", "libaom-av1", "av1_nvenc", "libsvtav1", "unknown"]
ABOUT = {"encoder_vocab": VOCAB}
BLOCK = EncoderBlock.of_description(ABOUT)
CLOSED = EncoderBlock.of_description({"encoder_vocab": VOCAB[:-1]})
MINMAX = {"codec_crf_norm": "minmax", "codec_crf_min": 19, "codec_crf_max": 37}


def in_order(block, *encode):
    found = block.numbers(*encode)
    return [found[name] for name in block.names]


def test_an_encode_becomes_a_one_hot_and_fractions():
    assert BLOCK.names == (*(f"encoder_onehot[{name}]" for name in VOCAB), "preset_norm", "crf_norm")
    assert in_order(BLOCK, "libx264", "slow", 21) == [1, 0, 0, 0, 0, 6 / 9, 21 / 63]
    assert in_order(BLOCK, "av1_nvenc", "p7", 0) == [0, 0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("encoder", "preset", "expected"),
    [
        ("libx264", "ultrafast", 0), ("libsvtav1", 13, 9), ("libsvtav1", 8.0, 8), ("libsvtav1", "4", 4), ("av1_nvenc", "p4", 5),
        ("libx264", None, 5), ("libx264", "", 5), ("libaom-av1", "4", 5), ("something", "slow", 5), (" H264 ", "Slow", 6),
    ],
)  # fmt: skip
def test_a_preset_is_its_place_in_the_order_of_its_encoder_or_five_where_there_is_none(encoder, preset, expected):
    assert in_order(BLOCK, encoder, preset, 20)[-2] == expected / 9


def test_an_encoder_that_is_not_in_the_vocabulary_is_the_unknown_one_if_there_is_one():
    assert in_order(BLOCK, "libx265", "slow", 20)[:5] == [0, 0, 0, 0, 1]
    with pytest.raises(EncoderBlockError, match=r"encoder: expected one of libx264, libaom-av1, .*, got 'libx265'"):
        in_order(CLOSED, "libx265", "slow", 20)


def test_the_json_may_say_that_presets_are_constant_and_crfs_have_a_range_of_their_own():
    block = EncoderBlock.of_description({**ABOUT, "codec_preset_norm": "constant", "codec_preset_value": 0.5, **MINMAX})
    assert in_order(block, "libx264", "whatever", 28)[-2:] == [0.5, 0.5]
    assert in_order(block, "libx264", None, 46)[-1] == 1.5


def test_a_layout_says_the_order_and_what_there_is():
    layout = ["crf_norm", *(f"encoder_onehot[{name}]" for name in reversed(VOCAB))]
    block = EncoderBlock.of_description({**ABOUT, "codec_block_layout": layout})
    assert block.names == tuple(layout)
    assert in_order(block, "libx264", "x", 63) == [1, 0, 0, 0, 0, 1]


def test_only_what_is_given_becomes_numbers():
    assert BLOCK.numbers() == {}
    assert BLOCK.numbers(crf=63) == {"crf_norm": 1.0}
    assert [*BLOCK.numbers("libx264")] == [*BLOCK.names[:-1]]


@pytest.mark.parametrize(
    ("encode", "said"),
    [
        ((5, "slow", 20), "encoder: expected one of libx264, libaom-av1, av1_nvenc, libsvtav1, unknown, got '5'"),
        (("av1_nvenc", "slow", 20), "preset: expected one of p1, p2, p3, p4, p5, p6, p7 for av1_nvenc, got 'slow'"),
        (("libx264", "slow", "20"), "crf: expected a number from 0 to 63, got '20'"),
        (("libx264", "slow", True), "crf: expected a number from 0 to 63, got 'True'"),
        (("libx264", "slow", 64), "crf: expected a number from 0 to 63, got '64'"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(encode, said):
    with pytest.raises(EncoderBlockError) as refused:
        in_order(BLOCK, *encode)
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"encoder_vocab": []}, "expected lists of names"),
        ({"encoder_vocab": "libx264"}, "expected lists of names"),
        ({**MINMAX, "codec_crf_max": 19}, "codec_crf_min, codec_crf_max: expected two numbers, the second larger"),
        ({"codec_crf_norm": "log"}, "codec_crf_norm: expected div63 or minmax, got 'log'"),
        ({"codec_preset_norm": "constant"}, "codec_preset_value: expected a number, got None"),
        ({"codec_preset_norm": "x"}, "codec_preset_norm: expected ordinal or constant, got 'x'"),
    ],
)
def test_a_description_that_is_none_is_refused(changed, said):
    with pytest.raises(EncoderBlockError, match=said):
        EncoderBlock.of_description({**ABOUT, **changed})


def test_a_layout_with_other_numbers_cannot_be_computed():
    for layout in ([*BLOCK.names, "bitrate_norm"], [*BLOCK.names[1:]]):
        assert EncoderBlock.of_description({**ABOUT, "codec_block_layout": layout}) is None
    assert EncoderBlock.of_description({}) is None


def test_it_is_written_down_as_the_json_has_it():
    for more in ({}, MINMAX, {"codec_preset_norm": "constant", "codec_preset_value": 0.5}):
        block = EncoderBlock.of_description({**ABOUT, **more})
        assert EncoderBlock.of_description(block.as_json()) == block
    assert BLOCK.preset_ordinals()["av1_nvenc"]["p7"] == 9
