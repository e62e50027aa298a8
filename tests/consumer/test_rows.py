"""What callers may give for features, and what they are told if they give something else."""

from __future__ import annotations

import numpy as np
import pandas
import pytest

from sidecar.consumer.rows import RowReader
from sidecar.models.inputs import inputs_of

NAMES = ["adm2", "vif_scale0", "motion2"]
ROW = [0.5, 0.25, 2.0]
BLOCK = {"encoder_vocab": ["libx264", "libx265"], "feature_order": NAMES}
BY_NAME = RowReader(inputs_of({"feature_order": NAMES}, [("features", 3)]), 3)
BY_PLACE = RowReader(inputs_of({}, [("features", 3)]), 3)
CODEC_AWARE = RowReader(inputs_of(BLOCK, [("features", 7)]), 7)


@pytest.mark.parametrize("reader", [BY_NAME, BY_PLACE])
@pytest.mark.parametrize(
    "features",
    [
        np.array([ROW], dtype=np.float32),
        np.array([ROW], dtype=np.float64),
        np.array(ROW),
        np.array(ROW, dtype=object),
        [ROW],
        tuple(ROW),
        pandas.DataFrame([ROW]),
    ],
)
def test_arrays_are_in_the_models_order(reader, features):
    rows = reader.rows(features)
    assert rows.dtype == np.float32
    assert rows.tolist() == [ROW]


@pytest.mark.parametrize(
    "features",
    [
        {"motion2": 2.0, "adm2": 0.5, "vif_scale0": 0.25},
        [{"integer_motion2": 2, "VMAF_integer_feature_adm2_score": 0.5, "vif_scale0": np.float32(0.25)}],
        pandas.DataFrame([[2.0, 0.5, 0.25]], columns=["integer_motion2", "adm2", "vif_scale0"]),
    ],
)
def test_rows_by_name_have_any_order_and_spelling(features):
    assert BY_NAME.rows(features).tolist() == [ROW]


def test_several_rows_and_none():
    other = dict(zip(NAMES, [1.0, 2.0, 3.0], strict=True))
    assert BY_NAME.rows([dict(zip(NAMES, ROW, strict=True)), other]).tolist() == [ROW, [1, 2, 3]]
    assert BY_NAME.rows([]).shape == BY_PLACE.rows(np.zeros((0, 3))).shape == (0, 3)


def test_an_encode_is_given_as_encoder_preset_and_crf():
    job = {"encoder": "x265", "preset": "ultrafast", "crf": 63}
    frame = pandas.DataFrame([{**dict(zip(NAMES, ROW, strict=True)), **job}])
    expected = [*ROW, 0, 1, 0, 1]
    assert CODEC_AWARE.rows({**dict(zip(NAMES, ROW, strict=True)), **job}).tolist() == [expected]
    assert CODEC_AWARE.rows(frame).tolist() == [expected]
    assert CODEC_AWARE.rows({**dict(zip(NAMES, ROW, strict=True)), **job, "crf": np.int64(63)}).tolist() == [expected]
    assert CODEC_AWARE.rows(expected).tolist() == [expected]


@pytest.mark.parametrize(
    ("reader", "features", "message"),
    [
        (BY_NAME, [[1.0, 2.0]], r"features: expected rows of 3 numbers, got shape \(1, 2\)"),
        (BY_NAME, np.zeros((1, 1, 3)), r"features: expected rows of 3 numbers, got shape \(1, 1, 3\)"),
        (BY_NAME, 1.0, r"features: expected rows of 3 numbers, got shape \(\)"),
        (BY_NAME, [[1.0, 2.0], [1.0]], "features: expected rows of 3 numbers: "),
        (BY_NAME, [[1, 2, 3], [1.0, "b", 3]], "features: vif_scale0 in row 1: expected a finite number in float32, got b"),
        (BY_NAME, [[True, False, True]], "features: adm2 in row 0: expected a finite number in float32, got True"),
        (BY_NAME, [[1, 2, None]], "features: motion2 in row 0: expected a finite number in float32, got None"),
        (BY_NAME, np.ma.masked_array([ROW], [[0, 1, 0]]), "features: vif_scale0 in row 0: expected a finite number .* got nan"),
        (BY_NAME, {**dict(zip(NAMES, ROW, strict=True)), "motion2": True}, "motion2 in row 0: expected a finite .* got True"),
        (BY_NAME, [{**dict(zip(NAMES, ROW, strict=True)), "motion2": None}], "motion2 in row 0: expected a finite .* got None"),
        (BY_NAME, {"adm2": 1.0, "vif_scale0": 1.0, 3: 1.0}, "row 0: features: missing: motion2; not known: 3"),
        (BY_NAME, pandas.DataFrame([[*ROW, 1]], columns=[*NAMES, "adm2"]), "features: columns more than once: adm2"),
        (BY_NAME, [ROW, [1, np.nan, 2]], "features: vif_scale0 in row 1: expected a finite number in float32, got nan"),
        (BY_PLACE, [[1, 2, 1e39]], r"features: features\[2\] in row 0: expected a finite number in float32, got inf"),
        (BY_PLACE, {"adm2": 1.0}, "given by name, but the model's features have no names"),
        (BY_NAME, {"adm2": 1.0, "vif": 2.0, "motion2": 3.0}, "row 0: features: missing: vif_scale0; not known: vif"),
        (BY_NAME, {"adm2": 1.0, "integer_adm2": 1.0, "motion2": 3.0}, "row 0: features: a feature is named twice"),
        (BY_NAME, {**dict(zip(NAMES, ROW, strict=True)), "crf": 3}, "row 0: features: not known: crf"),
        (BY_NAME, [dict(zip(NAMES, ROW, strict=True)), ROW], "row 1: expected a mapping as in row 0, got list"),
        (CODEC_AWARE, {**dict(zip(NAMES, ROW, strict=True)), "encoder": "flac", "crf": 1}, "row 0: encoder: expected one of"),
    ],
)
def test_anything_else_is_told(reader, features, message):
    with pytest.raises(ValueError, match=message):
        reader.rows(features)
