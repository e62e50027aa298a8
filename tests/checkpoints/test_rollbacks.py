"""Which checkpoint is on trial, and what `stable.onnx` goes back to: over publications, promotions, pruning and crashes."""

from __future__ import annotations

import os

import pytest

from sidecar.checkpoints.directory import (
    STABLE,
    Checkpoint,
    CheckpointError,
    checkpoints,
    end_trial,
    linked,
    promote,
    publish,
)
from sidecar.checkpoints.rollbacks import ROLLBACKS, read_rollbacks

WHY = {"reason": "worse"}


def stable(directory, **options):
    return publish(directory, b"model", {}, stable=True, on_trial=True, **options)


def of(directory):
    """What the links name, what is on trial, and what was taken back."""
    record = read_rollbacks(directory)
    assert os.readlink(directory / "stable.json") == os.readlink(directory / STABLE).replace(".onnx", ".json")
    return linked(directory, STABLE).version, record.on_trial, [*record.rolled_back]


def test_the_first_one_has_nothing_to_go_back_to(tmp_path):
    first = stable(tmp_path)
    assert of(tmp_path) == (1, {}, [])
    assert not (tmp_path / ROLLBACKS).exists()
    assert not end_trial(first, WHY)
    assert of(tmp_path) == (1, {}, [])


def test_one_that_is_taken_back_is_marked_and_its_json_stays(tmp_path):
    stable(tmp_path)
    second = stable(tmp_path)
    publish(tmp_path, b"another", {})
    assert of(tmp_path) == (2, {"model_v000002": "model_v000001"}, [])
    before = second.description.read_bytes()
    assert end_trial(second, WHY)
    assert of(tmp_path) == (1, {}, ["model_v000002"])
    assert read_rollbacks(tmp_path).rolled_back["model_v000002"] == {"predecessor": "model_v000001", "reason": "worse"}
    assert second.description.read_bytes() == before
    assert os.readlink(tmp_path / "latest.onnx") == "model_v000003.onnx"
    assert not end_trial(second, WHY)


def test_one_that_stays_is_what_the_next_goes_back_to(tmp_path):
    stable(tmp_path)
    assert end_trial(stable(tmp_path), None)
    assert of(tmp_path) == (2, {}, [])
    third = stable(tmp_path)
    assert of(tmp_path) == (3, {"model_v000003": "model_v000002"}, [])
    end_trial(third, WHY)
    assert of(tmp_path) == (2, {}, ["model_v000003"])
    stable(tmp_path)
    assert of(tmp_path) == (4, {"model_v000004": "model_v000002"}, ["model_v000003"])


def test_one_that_was_replaced_before_its_trial_ended_is_not_gone_back_to(tmp_path):
    stable(tmp_path)
    second = stable(tmp_path)
    third = stable(tmp_path)
    assert not end_trial(second, WHY)
    assert read_rollbacks(tmp_path).on_trial["model_v000003"] == "model_v000001"
    end_trial(third, WHY)
    assert of(tmp_path)[0] == 1


def test_one_that_is_not_to_be_tried_is_the_next_ones_predecessor(tmp_path):
    stable(tmp_path)
    publish(tmp_path, b"by hand", {}, stable=True)
    stable(tmp_path)
    assert of(tmp_path) == (3, {"model_v000003": "model_v000002"}, [])


def test_whoever_promotes_has_decided(tmp_path):
    for _ in range(3):
        stable(tmp_path)
    end_trial(Checkpoint(tmp_path, 3), WHY)
    promote(tmp_path, 3)
    assert of(tmp_path) == (3, {}, [])
    assert not end_trial(Checkpoint(tmp_path, 3), WHY)
    stable(tmp_path)
    promote(tmp_path, 4)
    assert of(tmp_path) == (4, {}, [])


def test_what_may_come_back_is_not_pruned(tmp_path):
    stable(tmp_path)
    last = stable(tmp_path)
    for _ in range(5):
        publish(tmp_path, b"unstable", {}, keep=2)
    assert [each.version for each in checkpoints(tmp_path)] == [1, 2, 6, 7]
    end_trial(last, None)
    publish(tmp_path, b"unstable", {}, keep=2)
    assert [each.version for each in checkpoints(tmp_path)] == [2, 7, 8]


def test_without_its_predecessor_it_stays(tmp_path):
    first, second = stable(tmp_path), stable(tmp_path)
    first.model.unlink()
    assert not end_trial(second, WHY)
    assert linked(tmp_path, STABLE) == second


@pytest.mark.parametrize(
    "found", [b"", b"{}\n\xff", b"[]", b'{"on_trial": {"model_v000002": 7}}', b'{"rolled_back": []}', b"{" * 9999]
)
def test_a_record_of_another_make_is_passed_over_and_replaced(tmp_path, found, caplog):
    stable(tmp_path)
    (tmp_path / ROLLBACKS).write_bytes(found)
    stable(tmp_path)
    assert of(tmp_path)[:2] == (2, {"model_v000002": "model_v000001"})
    assert "is passed over" in caplog.text


def test_a_link_in_its_place_is_not_followed(tmp_path):
    stable(tmp_path / "d")
    (tmp_path / "elsewhere").write_bytes(b"theirs")
    (tmp_path / "d" / ROLLBACKS).symlink_to(tmp_path / "elsewhere")
    stable(tmp_path / "d")
    assert of(tmp_path / "d")[:2] == (2, {"model_v000002": "model_v000001"})
    assert (tmp_path / "elsewhere").read_bytes() == b"theirs"


def test_a_record_that_cannot_be_read_now_is_not_replaced(tmp_path, monkeypatch):
    stable(tmp_path)
    second = stable(tmp_path)

    def fails(path, most):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("sidecar.checkpoints.rollbacks.read_regular", fails)
        for changing in (lambda: end_trial(second, WHY), lambda: promote(tmp_path, 1), lambda: stable(tmp_path)):
            with pytest.raises(CheckpointError, match="Permission denied"):
                changing()
    assert of(tmp_path) == (2, {"model_v000002": "model_v000001"}, [])


def killed(doing, steps):
    """Whether a process that is killed before its n-th change of a name ends before it has done with it."""
    child = os.fork()
    if child == 0:
        left = [steps]
        replace = os.replace

        def dying(*names):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            replace(*names)

        os.replace = dying
        doing()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_killed_at_any_moment_it_is_finished_by_the_next_trial(tmp_path):
    for steps in range(10):
        directory = tmp_path / str(steps)
        stable(directory)
        second = stable(directory)
        again = killed(lambda: end_trial(second, WHY), steps)  # noqa: B023 (called at once)
        if linked(directory, STABLE) == second:
            assert again
            assert end_trial(second, WHY)
        third = stable(directory)
        assert of(directory) == (3, {"model_v000003": "model_v000001"}, ["model_v000002"])
        assert end_trial(third, None)
        if not again:
            assert steps == 4  # record, two links, record
            return
    pytest.fail("it did not end")


def test_killed_while_it_publishes_the_trial_before_goes_on(tmp_path):
    for steps in range(12):
        directory = tmp_path / str(steps)
        stable(directory)
        second = stable(directory)
        again = killed(lambda: stable(directory), steps)  # noqa: B023
        record, present = read_rollbacks(directory), linked(directory, STABLE)
        assert record.on_trial[present.name] == "model_v000001"
        if present == second:
            assert end_trial(second, WHY)
            assert of(directory)[0] == 1
        if not again:
            assert present.version == 3
            return
    pytest.fail("it did not end")
