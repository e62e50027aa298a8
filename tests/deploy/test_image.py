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
LOCK = (ROOT / "deploy" / "image" / "requirements.lock").read_text()
LOCKED = dict(re.findall(r"^([\w.-]+)==(\S+) \\$", LOCK, flags=re.MULTILINE))


@pytest.mark.parametrize("dependency", PYPROJECT["project"]["dependencies"])
def test_the_lock_satisfies_each_dependency(dependency):
    requirement = Requirement(dependency)
    assert LOCKED[canonicalize_name(requirement.name)] in requirement.specifier


def test_every_locked_package_has_hashes():
    for block in re.split(r"\n(?=\w)", LOCK.split("\n", 2)[2]):
        assert "--hash=sha256:" in block, block


def test_the_lock_names_no_index_and_no_torch():
    assert "://" not in LOCK
    assert "torch" not in LOCKED


def test_the_image_holds_what_the_wheel_holds():
    packages = re.findall(r"^COPY (\w+) /out/usr/local/lib/python3.11/dist-packages/\1$", CONTAINERFILE, flags=re.MULTILINE)
    assert packages == PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    module, function = PYPROJECT["project"]["scripts"]["vmafx-sidecar"].split(":")
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
    assert re.findall(r"^FROM (\S+)", CONTAINERFILE, flags=re.MULTILINE) == ["${BASE}", "${BUILDER}", "base"]
