"""The pages for everybody: accessibility as axe-core judges it, in both colour schemes and on a narrow screen; and Firefox."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest

from sidecar.monitoring.history import COLUMNS, History
from sidecar.monitoring.pages import Pages
from sidecar.monitoring.status import Finding
from sidecar.network.http_server import start_http
from tests.monitoring.live import GOOD, write_checkpoint
from tests.monitoring.statuses import FULL


@pytest.fixture
def address(tmp_path):
    now = int(time.time())
    rows = tuple(
        (now - 10 * age, json.dumps([now - 10 * age, *[1.5] * (len(COLUMNS) - 1)]).encode()) for age in range(30, 0, -1)
    )
    wrong = Finding("A", "feature_drift", "warning", "features have moved", "adm2", "Look at `reason`.", now - 60, now, True)
    pending = wrong._replace(figure="pairs", what="no pairs arrive", firing=False)
    status = dataclasses.replace(FULL, findings=(wrong, pending), latest_version=2, stable_version=1, degraded=())
    compared = [{"model": "this model", "on": "held-out pairs", "pairs": 40, "plcc": 0.9, "rmse": 2, "winsorized_rmse": 1}]
    write_checkpoint(tmp_path, 1, GOOD)
    bad = {"verdict": "unstable", "reason": "PLCC is low", "compared": compared}
    write_checkpoint(tmp_path, 2, {**GOOD, "gate": bad, "held_out": [[1, 2], [3, 4]], "parent": 1})
    for link, version in (("latest", 2), ("stable", 1)):
        (tmp_path / f"{link}.onnx").symlink_to(f"model_v{version:06d}.onnx")
    pages = Pages(
        lambda: dataclasses.replace(status, progress=time.monotonic()), lambda: History(rows), tmp_path, {"seed": 3},
        limits={"feature_drift": 3},
    )  # fmt: skip
    server = start_http("127.0.0.1:0", pages.look_up)
    yield server.address
    server.close()


PAGES = [
    ("", "document.querySelectorAll('#features svg').length && document.querySelectorAll('#checkpoints tbody tr').length"),
    ("checkpoint?model_v000002", "document.querySelectorAll('#held-out svg').length"),
]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
@pytest.mark.parametrize(("path", "ready"), PAGES)
def test_axe_finds_nothing(chromium, address, path, ready, width, dark):
    chromium.open(f"http://{address}/{path}", width, dark=dark)
    chromium.wait(ready)
    assert chromium.violations() == []


@pytest.mark.parametrize(("path", "ready"), PAGES)
def test_firefox_shows_them_too(another_browser, address, path, ready):
    another_browser.open(f"http://{address}/{path}", width=400)
    another_browser.wait(ready)
    assert another_browser.ask("document.documentElement.scrollWidth") <= 400
    assert another_browser.console == []
