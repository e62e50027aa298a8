"""What the tests share: real pairs, small networks, and the command run as a process."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# As the command sets it: what tests compute themselves is compared with what processes have computed.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest

from onnx_builder import Activation, Clip, Dense, Elementwise, Network
from onnx_builder.write import to_bytes
from sidecar.cli.main import main
from sidecar.learning import recipe
from sidecar.learning.recipe import Recipe, fit
from sidecar.monitoring import fetch
from sidecar.pairs.recorded import RecordedPairs, read_pairs
from tests.browser import Browser, browser
from tests.firefox import Firefox, firefox
from tests.running import PATIENCE_S, Sidecar

# Hypothesis measures how long an example takes, which says nothing on a busy machine.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "recorded-80.jsonl.gz"
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def _patience() -> None:
    """What looks at a sidecar from here waits for it, however busy the machine is."""
    fetch.CLIENT_SECONDS = PATIENCE_S


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short one: with the test's name in it, as in pytest's own, a socket's path soon has more than 107 bytes."""
    return tmp_path_factory.mktemp(f"t{next(_numbers)}", numbered=False)


_numbers = itertools.count()


@pytest.fixture(scope="session")
def example() -> RecordedPairs:
    """2,496 real pairs of 80 features, from eight sources."""
    return read_pairs([EXAMPLE], group_by="source")


@pytest.fixture(scope="session")
def lines(example: RecordedPairs) -> list[bytes]:
    """The same pairs as request lines, in groups of twelve."""
    return [
        json.dumps({"job_id": f"j{i}", "group": f"g{i // 12}", "features": x, "true_score": y}).encode()
        for i, (x, y) in enumerate(zip(example.features.tolist(), example.true_score.tolist(), strict=True))
    ]


@pytest.fixture(scope="session")
def base(example: RecordedPairs) -> Network:
    """A head that has seen the first hundred pairs."""
    return fit(example.features, example.true_score, np.arange(100), Recipe(epochs=5)).ema.network()


@pytest.fixture(scope="session")
def base_path(base: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.onnx"
    path.write_bytes(to_bytes(base))
    return path


@pytest.fixture
def quick_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh heads are fitted here in a hundredth of the epochs: for tests to which it is all one how good they are."""
    monkeypatch.setattr(recipe, "TRAINED_PAIRS", recipe.TRAINED_PAIRS // 100)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Sidecar]]:
    """Starts sidecars in a directory, with settings by name, and ends those that a test leaves running."""
    started: list[Sidecar] = []

    def start(directory: Path = tmp_path, **settings: Any) -> Sidecar:
        directory.mkdir(exist_ok=True)
        started.append(Sidecar(directory, **settings))
        return started[-1]

    yield start
    for sidecar in started:
        sidecar.end()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A browser for the tests of pages, which skip where there is none."""
    with browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def another_browser() -> Iterator[Firefox]:
    """Firefox, for the tests of what every browser must show."""
    with firefox() as opened:
        yield opened


@pytest.fixture
def make_network() -> Callable[..., Network]:
    """A random network of the given widths, scaled as a fresh head's is."""

    def make(widths: Sequence[int], activation: Any = "relu", seed: int = 0) -> Network:
        rng = np.random.default_rng(seed)

        def normal(*shape: int) -> Any:
            return rng.normal(size=shape).astype(np.float32)

        steps: list[Any] = [Elementwise("Sub", normal(widths[0])), Elementwise("Mul", abs(normal(widths[0])) + 0.5)]
        for n_in, n_out in itertools.pairwise(widths):
            steps += [Dense(normal(n_out, n_in) / np.float32(n_in**0.5), normal(n_out)), Activation(activation)]
        scale, offset = np.asarray(20, dtype=np.float32), np.asarray(75, dtype=np.float32)
        return Network(widths[0], (*steps[:-1], Elementwise("Mul", scale), Elementwise("Add", offset), Clip(0, 100)))

    return make


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """A JSON lines file of the given objects (or raw bytes)."""

    def write(rows: Sequence[Any], name: str = "pairs.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
        return path

    return write


@pytest.fixture
def random_rows() -> Callable[..., list[dict[str, Any]]]:
    """Request lines of a linear problem, in groups of four."""

    def make(count: int, n_features: int = 5, seed: int = 0) -> list[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        features = rng.normal(size=(count, n_features))
        scores = np.clip(60 + 12 * features.sum(axis=1), 0, 100)
        return [
            {"job_id": f"j{i}", "group": f"g{i // 4}", "features": list(x), "true_score": float(y)}
            for i, (x, y) in enumerate(zip(features, scores, strict=True))
        ]

    return make


def run(*arguments: Any, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """The command, called in this process: its exit code, and what it and the libraries under it wrote to both outputs.

    What only a process shows (signals, its environment, an exception that nobody catches) is for `run_process`.
    """
    root = logging.getLogger()
    before, level, root.handlers = root.handlers, root.level, []  # as the command finds it
    try:
        with pytest.MonkeyPatch.context() as patch, _captured(1) as output, _captured(2) as errors:
            patch.setattr(sys, "argv", ["vmafx-sidecar", *map(str, arguments)])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            with open(1, "w", closefd=False) as stdout, open(2, "w", closefd=False) as stderr:
                patch.setattr(sys, "stdout", stdout)
                patch.setattr(sys, "stderr", stderr)
                with pytest.raises(SystemExit) as end:
                    main()
    finally:
        root.handlers = before
        root.setLevel(level)
    return subprocess.CompletedProcess(arguments, end.value.code, "".join(output), "".join(errors))


@contextlib.contextmanager
def _captured(descriptor: int) -> Iterator[list[str]]:
    """A list that at the end has all that was written to a descriptor."""
    saved, seen = os.dup(descriptor), list[str]()
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), descriptor)
        try:
            yield seen
        finally:
            os.dup2(saved, descriptor)
            os.close(saved)
            file.seek(0)
            seen.append(file.read().decode())


def run_process(*arguments: Any, stdin: bytes = b"", **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m sidecar` as a process of its own, its output as text."""
    done = subprocess.run([sys.executable, "-m", "sidecar", *map(str, arguments)], input=stdin, capture_output=True, **options)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def tree(directory: Path) -> dict[str, bytes | str]:
    """All names below a directory with their contents, to compare before and after."""
    found: dict[str, bytes | str] = {}
    for path in sorted(directory.rglob("*")):
        found[str(path.relative_to(directory))] = (
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "directory"
        )
    return found
