"""One name for all spellings, and one order for all."""

from __future__ import annotations

import pytest

from sidecar.features.names import NamesError, canonical, in_order, is_feature


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("adm2", "adm2"),
        ("integer_adm2", "adm2"),
        (" integer_adm2 ", "adm2"),
        ("VMAF_integer_feature_adm2_score", "adm2"),
        ("VMAF_feature_adm2_score", "adm2"),
        ("VMAF_integer_feature_vif_scale3_score", "vif_scale3"),
        ("integer_adm2_egl_1", "adm2_egl_1"),
        ("VMAF_integer_feature_adm2_egl_1_score", "adm2_egl_1"),
        ("VMAF_integer_feature_adm2_score_egl_1", "adm2_egl_1"),
        ("integer_vif_scale0_egl_1_mean", "vif_scale0_egl_1_mean"),
        ("float_ms_ssim", "ms_ssim"),
        ("integer_motion2_p10", "motion2_p10"),
        ("psnr_hvs_y", "psnr_hvs_y"),
        ("VMAF_integer_feature_motion_sad_score", "motion_sad"),
        ("integer_aim_egl_1", "aim_egl_1"),
        ("integer_overflow", "integer_overflow"),  # no feature of libvmaf
        ("encoder_onehot[libx264]", "encoder_onehot[libx264]"),
        ("ADM2", "ADM2"),
    ],
)
def test_all_spellings_of_a_feature_are_one_name(spelling, name):
    assert canonical(spelling) == name
    assert canonical(canonical(spelling)) == name


def test_columns_that_are_no_features_are_not_taken_for_them():
    features = ("adm3", "aim", "integer_motion3", "psnr_cb", "ciede2000", "cambi_mean", "vif_scale0_std", "speed_chroma_uv_p10")
    assert all(map(is_feature, features))
    others = (
        "vmaf vmaf_mean mos mos_raw_0_100 mos_std_dev frame_index Frame enc_time_ms cq crf width n_ratings motion_fps_weight"
    )
    assert not any(map(is_feature, others.split()))


def test_names_in_another_order_are_put_in_order():
    assert in_order(["b", "c", "a"], ["a", "b", "c"]) == [2, 0, 1]
    assert in_order([], []) == []


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "b"], "missing: c"),
        (["a", "b", "c", "d"], "not known: d"),
        (["a", "b", "e"], "missing: c; not known: e"),
        (["a", "b", "c", "c"], "more than once: c"),
        ([], "missing: a, b, c"),
    ],
)
def test_other_names_are_told(names, said):
    with pytest.raises(NamesError) as refused:
        in_order(names, ["a", "b", "c"])
    assert str(refused.value) == said


def test_many_other_names_are_not_all_told():
    with pytest.raises(NamesError, match=r"missing: n0, n1, .*, n7 and 92 more$"):
        in_order([], [f"n{i}" for i in range(100)])
