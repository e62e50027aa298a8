"""An output directory on a file system that is full, or that cannot be written."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from sidecar.checkpoints.directory import checkpoints
from tests.conftest import run, tree


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 128 KiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", directory], capture_output=True)
    if mount.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mount.stderr.decode().strip()}")
    yield directory
    subprocess.run(["umount", directory], check=True)


@pytest.fixture
def train(write_lines, random_rows):
    path = write_lines(random_rows(300, 80))
    return lambda directory: run("train-offline", path, "--output", directory, "--epochs", 2, "--holdout", 0)


@pytest.mark.parametrize("free", [0, 4096, 12288])
def test_full_disk_is_one_clear_line_and_no_half_written_file(small_disk, train, free):
    output = small_disk / "checkpoints"
    assert train(output).returncode == 0
    before = tree(output)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - free))

    done = train(output)
    assert done.returncode == 2
    assert f"Error: {output}: cannot publish a checkpoint: No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1
    after = tree(output)
    del before[".next_version"], after[".next_version"]
    assert after == before

    filler.unlink()
    assert train(output).returncode == 0
    assert len(checkpoints(output)) == 2


def test_read_only_disk_is_told_before_training(small_disk, train):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    done = train(small_disk / "checkpoints")
    assert done.returncode == 2
    assert "is not writable" in done.stderr
