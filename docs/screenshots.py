"""Makes the pictures in docs/ from real runs in a real browser: `python docs/screenshots.py`, in a checkout with the dev extra.

Needs Chromium and chromedriver. The report is of the README's first command with `--group-by source`, and a holdout.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.browser import Browser, browser  # noqa: E402

PAIRS = ROOT / "examples" / "recorded-80.jsonl.gz"


def main() -> None:
    with browser() as chromium, tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.html"
        train(report)
        picture(chromium, report, "report.png", width=1400, height=1180)
        picture(chromium, report, "report-narrow.png", width=400, height=1180, dark=True)


def train(report: Path) -> None:
    options = ["--group-by", "source", "--holdout", "0.1", "--output", report.parent / "checkpoints", "--report", report]
    command = [sys.executable, "-m", "sidecar", "train-offline", PAIRS.relative_to(ROOT), *options]
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def picture(chromium: Browser, page: Path, name: str, *, width: int, height: int, dark: bool = False) -> None:
    """The top of a page, so many pixels of it."""
    chromium.open(page.as_uri(), width, height, dark)
    chromium.wait("[...document.querySelectorAll('.chart')].every(each => each.querySelector('svg[role=img]'))")
    chromium.driver.save_screenshot(str(ROOT / "docs" / name))


if __name__ == "__main__":
    main()
