"""Makes the pictures in docs/ from real runs in a real browser: `python docs/screenshots.py`, in a checkout with the dev extra.

Needs Chromium and chromedriver, and takes six minutes. The report is of the README's first command, with the features' names,
`--group-by source` and a holdout. The live page is that of a sidecar that receives the example pairs at 12 per second, with
some bad lines and one restart.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from sidecar.client.replay import read_requests  # noqa: E402
from tests.browser import Browser, browser  # noqa: E402
from tests.running import Sidecar, free_address  # noqa: E402

PAIRS = ROOT / "examples" / "recorded-80.jsonl.gz"
VMAFX_SIDECAR = [sys.executable, "-m", "sidecar"]


def main() -> None:
    with browser() as chromium, tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.html"
        train(report)
        picture(chromium, report.as_uri(), "report.png", width=1400, height=1440)
        picture(chromium, f"{report.as_uri()}#predictions", "report-narrow.png", width=400, height=1180, dark=True)
        with tempfile.TemporaryDirectory() as other, live(Path(other)) as address:
            picture(chromium, f"http://{address}/", "live.png", width=1400, height=1200)
            picture(chromium, f"http://{address}/", "live-narrow.png", width=400, height=1180, dark=True)


def train(report: Path) -> None:
    names = PAIRS.with_name("recorded-80.features").read_text().strip()
    options = ["--group-by", "source", "--holdout", "0.1", "--features", names]
    options += ["--output", report.parent / "checkpoints", "--report", report]
    run("train-offline", PAIRS.relative_to(ROOT), *options)


def run(*arguments: object) -> None:
    subprocess.run([*VMAFX_SIDECAR, *map(str, arguments)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def live(directory: Path) -> Iterator[str]:
    """Gives the HTTP address of a sidecar at work."""
    address, base = free_address(), directory / "base"
    run("train-offline", PAIRS, "--epochs", "15", "--hidden", "16", "--output", base)
    lines = [request.line for request in read_requests([PAIRS])]
    options = {"base_model": base / "latest.onnx", "http": address, "checkpoint_interval": 20, "min_samples": 300}
    for part, pause in ((lines[:1500], 45), (lines[1500:], 0)):
        pairs = directory / "part.jsonl"
        pairs.write_bytes(b"\n".join(part))
        with ending(Sidecar(directory, **options, steps_per_batch=16)) as running:
            running.connect().send([b"not JSON", *2 * [b'{"features": [1, 2], "true_score": 3}']])
            run("replay", pairs, "--socket", running.socket_path, "--rate", "12")
            if not pause:
                yield address
            running.stop()
        time.sleep(pause)


@contextlib.contextmanager
def ending(running: Sidecar) -> Iterator[Sidecar]:
    try:
        yield running
    finally:
        running.end()


def picture(chromium: Browser, url: str, name: str, *, width: int, height: int, dark: bool = False) -> None:
    """Saves a page from its top, or from a section, width × height pixels."""
    chromium.open(url, width, height, dark)
    chromium.wait("[...document.querySelectorAll('.chart')].every(each => each.querySelector('svg[role=img]'))")
    chromium.driver.save_screenshot(str(ROOT / "docs" / name))


if __name__ == "__main__":
    main()
