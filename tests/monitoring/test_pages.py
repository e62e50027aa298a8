"""What there is to see over HTTP: paths and their codes, and the JSON of the live page."""

from __future__ import annotations

import dataclasses
import json
import time
from types import SimpleNamespace

import pytest

import sidecar.monitoring.pages as pages_module
from sidecar.monitoring.history import COLUMNS, History
from sidecar.monitoring.pages import Pages
from sidecar.monitoring.status import Status
from sidecar.monitoring.status_document import status_document
from sidecar.network.http_server import start_http
from tests.monitoring.live import GOOD, ask, strict_json, write_checkpoint
from tests.monitoring.statuses import FULL


@pytest.fixture
def pages(tmp_path):
    """The pages of a sidecar with a hundred seconds of history, and its checkpoint directory."""
    history = History()
    for tick in range(11):
        history.tell(Status(position=tick), float(10 * tick), 1000 + 10 * tick)
    return Pages(lambda: Status(progress=time.monotonic()), lambda: history, tmp_path, {"seed": 3}), tmp_path


def look_up(pages, target, **headers):
    found = pages.look_up(target, headers)
    return found() if callable(found) else found


def test_the_history_tells_the_present_the_settings_and_the_rows(pages):
    told = strict_json(look_up(pages[0], "/api/history").body)
    assert list(told) == ["now", "version", "limits", "lost", "settings", "every_seconds", "tiers", "columns", "rows"]
    assert told["now"]["phase"] == "initializing"
    assert told["now"]["making_progress"] is True
    assert abs(told["now"]["time"] - time.time()) < 60
    assert (told["settings"], told["every_seconds"], told["columns"]) == ({"seed": 3}, 10, list(COLUMNS))
    assert [row[0] for row in told["rows"]] == list(range(1000, 1101, 10))


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("since=1080", 1090), ("x=1&since=1080&y=2", 1090), ("since=1085", 1090), ("since=0", 1000), ("since=-1", 1000),
        ("since=", 1000), ("since=" + "9" * 5000, 1000), ("sincere=1080", 1000),
    ],
)  # fmt: skip
def test_rows_since_a_moment(pages, query, first):
    assert strict_json(look_up(pages[0], f"/api/history?{query}").body)["rows"][0][0] == first


def test_what_a_thousand_ask_for_is_made_once_a_second(tmp_path, monkeypatch):
    clock, calls = [100.0], []
    monkeypatch.setattr("sidecar.monitoring.pages.time.monotonic", lambda: clock[0])
    pages = Pages(lambda: calls.append(1) or Status(), History, tmp_path, {})
    for path in ("/api/history", "/api/history?since=3", "/api/checkpoints"):
        for _ in range(1000):
            look_up(pages, path)
    assert len(calls) == 1
    clock[0] += 1
    pages.look_up("/api/history", {})
    assert len(calls) == 2


def test_checkpoints_are_told_the_newest_first_with_what_the_links_name(pages):
    pages, directory = pages
    for version in (1, 2, 12):
        (directory / "latest.onnx").unlink(missing_ok=True)
        (directory / "latest.onnx").symlink_to(f"{write_checkpoint(directory, version, GOOD)}.onnx")
    (directory / "stable.onnx").symlink_to("model_v000002.onnx")
    told = strict_json(look_up(pages, "/api/checkpoints").body)
    assert (told["latest"], told["stable"]) == ("model_v000012", "model_v000002")
    assert [each["version"] for each in told["checkpoints"]] == [12, 2, 1]
    assert told["checkpoints"][2] == {
        "name": "model_v000001", "version": 1, "created_at": GOOD["created_at"], "gate": "stable", "reason": "good", "step": 4,
        "plcc": 0.99, "srocc": 0.98, "rmse": 1.5, "held_out": 40, "pairs_seen": 16, "base_model": "m.onnx", "sha256": "ab" * 32,
    }  # fmt: skip


def test_no_checkpoints_and_no_directory(pages, tmp_path):
    nothing = {"latest": None, "stable": None, "checkpoints": []}
    assert strict_json(look_up(pages[0], "/api/checkpoints").body) == nothing
    nowhere = Pages(Status, History, tmp_path / "nowhere", {})
    assert strict_json(look_up(nowhere, "/api/checkpoints").body) == nothing


@pytest.mark.parametrize(
    "about",
    [
        "junk", "[]", "3", "[" * 100_000, "{}", {"gate": 3, "metrics": [1], "sha256": {"a": 1}, "base_model": None},
        '{"metrics": {"rmse": NaN, "plcc": Infinity, "srocc": 1e999}}', {"created_at": ["x"] * 10_000},
        '{"step": 1%s}' % ("0" * 400),
    ],
)  # fmt: skip
def test_a_checkpoint_whose_json_is_not_as_it_should_be_has_its_name(pages, about):
    write_checkpoint(pages[1], 1, about)
    assert strict_json(look_up(pages[0], "/api/checkpoints").body)["checkpoints"] == [{"name": "model_v000001", "version": 1}]


def test_a_checkpoint_whose_json_could_not_be_read_is_read_again(pages, monkeypatch):
    pages, directory = pages
    write_checkpoint(directory, 1, GOOD)
    monkeypatch.setattr(pages_module, "_FRESH_S", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(pages_module, "read_description", lambda model: None)
        assert strict_json(look_up(pages, "/api/checkpoints").body)["checkpoints"] == [{"name": "model_v000001", "version": 1}]
    assert strict_json(look_up(pages, "/api/checkpoints").body)["checkpoints"][0]["gate"] == "stable"


@pytest.mark.parametrize("accept", ["application/openmetrics-text;version=abc", "text/plain;version=x", ";;", "\xff"])
def test_metrics_are_told_whatever_is_accepted(pages, accept):
    page = pages[0].look_up("/metrics", {"accept": accept})
    assert (page.status, b"vmafx_training_phase" in page.body) == (200, True)


def test_many_checkpoints_with_long_texts_make_a_bounded_document_with_the_stable_one(pages):
    for version in range(1, 151):
        write_checkpoint(pages[1], version, {**GOOD, "gate": {"verdict": "x" * 10_000, "reason": "x" * 10_000}})
    (pages[1] / "stable.onnx").symlink_to("model_v000001.onnx")
    body = look_up(pages[0], "/api/checkpoints").body
    versions = [each["version"] for each in strict_json(body)["checkpoints"]]
    assert versions == [*range(150, 50, -1), 1]
    assert len(body) < 200_000


# Over a real connection


@pytest.fixture
def server(tmp_path):
    """A server of a sidecar without checkpoints; `set_status` changes what it tells."""
    board = SimpleNamespace(status=dataclasses.replace(FULL, progress=time.monotonic()))
    server = start_http("127.0.0.1:0", Pages(lambda: board.status, History, tmp_path, {"seed": 3}).look_up)
    server.set_status = lambda status: setattr(board, "status", status)
    yield server
    server.close()


def test_the_status_is_json_whatever_the_query(server):
    code, headers, body = ask(server.address, "/status?pretty=1")
    assert (code, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body) == status_document(FULL)


def test_metrics_in_the_open_metrics_format(server):
    _, headers, body = ask(server.address, "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    ("path", "change", "code", "body"),
    [
        ("/healthz", {}, 200, b"making progress (running)\n"),
        ("/healthz", {"progress": -1e9}, 503, b"no progress for more than 10 s (running)\n"),
        ("/readyz", {}, 200, b"accepting pairs (running)\n"),
        ("/readyz", {"accepting": False, "phase": "paused"}, 503, b"not accepting pairs (paused)\n"),
    ],
)
def test_probes(server, path, change, code, body):
    server.set_status(dataclasses.replace(FULL, **{"progress": time.monotonic(), **change}))
    assert ask(server.address, path)[::2] == (code, body)


@pytest.mark.parametrize("path", ["/status", "/metrics", "/healthz", "/readyz", "/nowhere"])
def test_head_is_get_without_the_body(server, path):
    got, head = ask(server.address, path), ask(server.address, path, "HEAD")
    assert head[0] == got[0]
    assert head[2] == b""
    for headers in (got[1], head[1]):
        assert sorted(headers) == [
            "Cache-Control",
            "Connection",
            "Content-Length",
            "Content-Type",
            "Date",
            "X-Content-Type-Options",
        ]
        assert int(headers["Content-Length"]) == len(got[2])
        assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
        assert headers["Connection"] == "close"
    assert got[1]["Content-Type"] == head[1]["Content-Type"]


@pytest.mark.parametrize(
    "path",
    [
        "//",
        "/status/",
        "/Status",
        "/statusx",
        "/%73tatus",
        "/../status",
        "/./status",
        "/static",
        "/web/live.html",
        "/live.html",
        "/api",
        "/api/history/",
        "*",
    ],
)
def test_other_paths_are_not_there(server, path):
    code, _, body = ask(server.address, path)
    assert (code, body) == (
        404,
        b"not found; available: /, /status, /metrics, /healthz, /readyz, /api/history, /api/drift and /api/checkpoints\n",
    )


@pytest.mark.parametrize("path", ["/status", "/metrics", "/healthz", "/readyz"])
def test_a_status_that_cannot_be_read_is_an_error_of_that_request_alone(server, path, caplog):
    server.set_status(None)
    code, _, body = ask(server.address, path)
    assert (code, body) == (500, b"Internal Server Error\n")
    assert "AttributeError" in caplog.text
    server.set_status(dataclasses.replace(FULL, progress=time.monotonic()))
    assert ask(server.address, path)[0] == 200
