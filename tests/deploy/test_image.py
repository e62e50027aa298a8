"""The image's files agree with the project. That it builds and runs is tried by deploy/image/check."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

CONTAINERFILE = (ROOT / "Containerfile").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
DEPENDENCIES = {"requirements": PROJECT["dependencies"], "cuda": PROJECT["optional-dependencies"]["cuda"]}
LOCKS = {name: (ROOT / "deploy" / "image" / f"{name}.lock").read_text() for name in DEPENDENCIES}
LOCKED = {name: dict(re.findall(r"^([\w.-]+)==(\S+) \\$", text, flags=re.MULTILINE)) for name, text in LOCKS.items()}


@pytest.mark.parametrize(("lock", "dependency"), [(name, each) for name, all_of in DEPENDENCIES.items() for each in all_of])
def test_a_lock_satisfies_each_dependency(lock, dependency):
    requirement = Requirement(dependency)
    assert LOCKED[lock][canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_hashes(lock):
    for block in re.split(r"\n(?=\w)", LOCKS[lock].split("\n", 2)[2]):
        assert "--hash=sha256:" in block, block


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_index_and_no_torch(lock):
    assert "://" not in LOCKS[lock]
    assert "torch" not in LOCKED[lock]


def test_the_image_for_a_gpu_adds_to_the_plain_one_and_changes_nothing_of_it():
    assert not LOCKED["cuda"].keys() & LOCKED["requirements"].keys()
    assert re.findall(r"^ARG EXTRA.*", CONTAINERFILE, flags=re.MULTILINE) == ["ARG EXTRA=", "ARG EXTRA"]
    assert re.findall(r"^FROM base AS (\S+)\n.*\n(ENV \S+)", CONTAINERFILE, flags=re.MULTILINE) == [
        ("base-cuda", "ENV NVIDIA_VISIBLE_DEVICES=all")
    ]


def test_the_image_holds_what_the_wheel_holds():
    packages = re.findall(r"^COPY (\w+) /out/usr/local/lib/python3.11/dist-packages/\1$", CONTAINERFILE, flags=re.MULTILINE)
    assert packages == PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    module, function = PROJECT["scripts"]["vmafx-sidecar"].split(":")
    assert rf"from {module} import {function}\n\n{function}()\n" in CONTAINERFILE


def test_the_image_serves_as_a_user_without_rights():
    final = CONTAINERFILE.rpartition("\nFROM ")[2]
    assert re.findall(r"^(?:USER|ENTRYPOINT|CMD) .*", final, flags=re.MULTILINE) == [
        "USER 65532:65532",
        'ENTRYPOINT ["vmafx-sidecar"]',
        'CMD ["serve"]',
    ]


def test_both_base_images_can_be_given():
    assert re.findall(r"^ARG (BUILDER|BASE)=\S+", CONTAINERFILE, flags=re.MULTILINE) == ["BUILDER", "BASE"]
    assert re.findall(r"^FROM (\S+)", CONTAINERFILE, flags=re.MULTILINE) == [
        "${BASE}",
        "base",
        "${BUILDER}",
        "base${EXTRA:+-$EXTRA}",
    ]
