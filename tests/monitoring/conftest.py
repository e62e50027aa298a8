"""Running sidecars with HTTP, for tests of what is seen of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import Sidecar, free_address

OPTIONS = {"holdout_fraction": 0.2, "checkpoint_interval": 0, "min_samples": 500}


@pytest.fixture
def live(serve: Callable[..., Sidecar], base_path: Path, lines: list[bytes]) -> tuple[Sidecar, str]:
    """A sidecar that has seen some pairs, and its address."""
    address = free_address()
    sidecar = serve(base_model=base_path, http=address, **OPTIONS).connect()
    sidecar.send(lines[:300])
    return sidecar, address


@pytest.fixture(scope="module")
def served(tmp_path_factory: Any, base_path: Path, lines: list[bytes]) -> Iterator[tuple[Sidecar, str]]:
    """The same, of all tests that only look at it."""
    address = free_address()
    sidecar = Sidecar(tmp_path_factory.mktemp("served"), base_model=base_path, http=address, **OPTIONS).connect()
    sidecar.send(lines[:300])
    yield sidecar, address
    sidecar.end()
