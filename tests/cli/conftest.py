"""What the tests of the commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import EXAMPLE, run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A directory with one checkpoint, trained on the example, and what --json said."""
    directory = tmp_path_factory.mktemp("trained") / "checkpoints"
    done = run("train-offline", EXAMPLE, "--output", directory, "--json")
    assert done.returncode == 0, done.stderr
    return directory, json.loads(done.stdout)
