"""docs/image.md says which container engine builds the image."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.conftest import ROOT

TOOLS = ("bash", "cat", "dirname", "git", "head", "mktemp", "python3", "rm", "sed", "sort")


@pytest.fixture
def build(tmp_path):
    """Runs deploy/image/build where only some engines are installed. An engine says its name; docker's daemon may be down."""

    def run(*engines: str, daemon: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        tools = tmp_path / "bin"
        tools.mkdir()
        for tool in TOOLS:
            (tools / tool).symlink_to(shutil.which(tool))
        for engine in engines:
            down = "" if daemon else "[ $1 != info ] || exit 1\n"
            (tools / engine).write_text(f"#!/bin/sh\n{down}echo {engine} $1\n")
            (tools / engine).chmod(0o755)
        script = ROOT / "deploy" / "image" / "build"
        everything = {"PATH": str(tools), "HOME": str(tmp_path), **environment}
        return subprocess.run([tools / "bash", script, "name"], env=everything, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize(
    ("engines", "daemon", "chosen"),
    [
        (("buildah", "docker", "podman"), True, "docker"),
        (("buildah", "docker", "podman"), False, "podman"),
        (("buildah", "docker"), False, "buildah"),
        (("buildah",), True, "buildah"),
    ],
)
def test_the_first_engine_that_works_builds(build, engines, daemon, chosen):
    assert build(*engines, daemon=daemon).stdout == f"{chosen} build\n"


def test_another_can_be_chosen(build):
    assert build("docker", "podman", ENGINE="podman").stdout == "podman build\n"


def test_where_none_works_one_line_names_them(build):
    done = build("docker", daemon=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "docker with a running daemon, podman and buildah" in done.stderr
