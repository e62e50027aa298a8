"""The anchor, and the one before it, which is kept as long as its checkpoint may come back."""

from __future__ import annotations

import numpy as np

from sidecar.pairs.holdout import holdout_position
from sidecar.state.anchor import kept_anchors, read_anchor, restore_anchor, write_anchor
from sidecar.state.forget import forget
from sidecar.state.verify import check_state
from tests.journals import write_journal


def rows(value, groups=("a", "b")):
    return np.array([[value, value, holdout_position(group, "", b"")] for group in groups])


def test_the_anchor_of_the_predecessor_is_kept_until_another_is(tmp_path):
    write_anchor(tmp_path, rows(1))
    assert kept_anchors(tmp_path) == []
    write_anchor(tmp_path, rows(2), "model_v000001")
    write_anchor(tmp_path, rows(3), "model_v000001")  # the second was replaced before its trial ended
    assert [path.name for path in kept_anchors(tmp_path)] == ["anchor_model_v000001.npy"]
    restore_anchor(tmp_path, "model_v000002")
    np.testing.assert_array_equal(read_anchor(tmp_path), rows(3))
    restore_anchor(tmp_path, "model_v000001")
    np.testing.assert_array_equal(read_anchor(tmp_path), rows(1))
    write_anchor(tmp_path, rows(4), "model_v000003")
    write_anchor(tmp_path, rows(5), "model_v000004")
    assert [path.name for path in kept_anchors(tmp_path)] == ["anchor_model_v000004.npy"]
    write_anchor(tmp_path, rows(6))
    assert kept_anchors(tmp_path) == []


def test_where_there_was_none_there_is_none_again(tmp_path):
    write_anchor(tmp_path, rows(2), "model_v000001")
    restore_anchor(tmp_path, "model_v000001")
    assert read_anchor(tmp_path).shape == (0, 3)


def test_what_is_kept_is_verified_and_loses_what_is_forgotten(tmp_path):
    write_journal(tmp_path, {f"{0:012d}.jsonl": [b'{"group": "a"}']})
    write_anchor(tmp_path, rows(1))
    write_anchor(tmp_path, rows(2), "model_v000001")
    assert forget(["a"], tmp_path).anchor == 2
    restore_anchor(tmp_path, "model_v000001")
    np.testing.assert_array_equal(read_anchor(tmp_path), rows(1, ["b"]))

    write_anchor(tmp_path, rows(2), "model_v000001")
    (kept,) = kept_anchors(tmp_path)
    kept.write_bytes(kept.read_bytes()[:-1])
    assert [finding.path for finding in check_state(tmp_path) if finding.wrong] == [kept]
