"""The whole loop: sidecars record, one model is trained from all their journals while they run, and they go on from it."""

from __future__ import annotations

import json

import pytest

from tests.conftest import run_process
from tests.running import wait_until

pytestmark = pytest.mark.slow


def test_sidecars_follow_the_model_of_all_their_journals(serve, tmp_path, lines):
    base = tmp_path / "base"
    settings = {"base_model": base / "stable.onnx", "follow_base": 1, "holdout_fraction": 0.1}
    pods = [serve(tmp_path / name, **settings, state_dir=tmp_path / "state" / name).connect() for name in ("pod-0", "pod-1")]
    sent = [0, 0]

    def send(number: int, count: int) -> bool:
        """The next lines of a pod: each has every second one."""
        first, sent[number] = sent[number], sent[number] + count
        return all(answer["ok"] for answer in pods[number].send(lines[number::2][first : first + count]))

    for turn in range(2):
        for number in range(2):
            assert send(number, 500)
        done = run_process("train-offline", f"{tmp_path}/state/*", "--workers", 2, "--output", base, "--json")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert [pod["read"] for pod in said["sampled"]["pods"]] == sent
        for number, pod in enumerate(pods):  # the run begins with the next pair
            followed = f"base model followed: a new run begins path={base}/stable.onnx sha256={said['sha256']}"
            wait_until(lambda: send(number, 1) and followed in pod.log.read_text(), f"turn {turn}")  # noqa: B023
    assert [pod.stop() for pod in pods] == [0, 0]
