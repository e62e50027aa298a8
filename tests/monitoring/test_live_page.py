"""The live page: its JSON, what a browser shows of a real run, and the same in a terminal."""

from __future__ import annotations

import copy
import dataclasses
import http.client
import http.server
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import sidecar.monitoring.pages as pages_module
from sidecar.monitoring.fetch import NoSidecarError, fetch_status
from sidecar.monitoring.history import COLUMNS, HISTORY, History
from sidecar.monitoring.pages import JSON, Pages
from sidecar.monitoring.status import Status
from sidecar.monitoring.terminal import sparkline, watch
from sidecar.network.address import parse_address
from sidecar.network.http import Page, start_http
from tests.browser import browser
from tests.conftest import EXAMPLE, ROOT, run
from tests.running import PATIENCE_S, free_address, wait_until

PARTS = ["/", "/live.js", "/charts.js", "/plot.js", "/style.css"]
MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def ask(address, path, method="GET", headers=None):
    connection = http.client.HTTPConnection(*parse_address(address), timeout=PATIENCE_S)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def strict_json(body):
    return json.loads(body, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def ask_json(address, path):
    code, _, body = ask(address, path)
    assert code == 200
    return strict_json(body)


# The documents


@pytest.fixture
def pages(tmp_path):
    """The pages of a sidecar with a hundred seconds of history, and its checkpoint directory."""
    history = History()
    for tick in range(11):
        history.tell(Status(position=tick), float(10 * tick), 1000 + 10 * tick)
    return Pages(lambda: Status(progress=time.monotonic()), lambda: history, tmp_path, {"seed": 3}), tmp_path


def look_up(pages, target, **headers):
    return pages.look_up(target, headers)


def test_the_history_tells_the_present_the_settings_and_the_rows(pages):
    told = strict_json(look_up(pages[0], "/api/history").body)
    assert list(told) == ["now", "settings", "every_seconds", "columns", "rows"]
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
            pages.look_up(path, {})
    assert len(calls) == 1
    clock[0] += 1
    pages.look_up("/api/history", {})
    assert len(calls) == 2


def write_checkpoint(directory, version, about):
    name = f"model_v{version:06d}"
    (directory / f"{name}.json").write_text(about if isinstance(about, str) else json.dumps(about))
    (directory / f"{name}.onnx").touch()
    return name


GOOD = {
    "created_at": "2026-01-01T00:00:00+00:00", "gate": {"verdict": "stable", "reason": "good"}, "sha256": "ab" * 32, "step": 4,
    "metrics": {"plcc": 0.99, "srocc": 0.98, "rmse": 1.5, "pairs": 40}, "pairs_seen": 16, "base_model": {"path": "m.onnx"},
}  # fmt: skip


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
    assert strict_json(nowhere.look_up("/api/checkpoints", {}).body) == nothing


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


# What is served


@pytest.fixture
def live(serve, base_path, lines):
    """A sidecar that has seen some pairs, and its address."""
    address = free_address()
    sidecar = serve(base_model=base_path, http=address, holdout_fraction=0.2, checkpoint_interval=0, min_samples=500).connect()
    sidecar.send(lines[:300])
    return sidecar, address


def test_every_part_has_a_strict_policy_and_answers_get_and_head_alone(live):
    _, address = live
    for path in [*PARTS, "/api/history", "/api/checkpoints"]:
        code, headers, body = ask(address, path)
        assert code == 200
        assert (
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'" in headers["Content-Security-Policy"]
        )
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        head = ask(address, path, "HEAD")
        assert (head[0], head[2]) == (200, b"")
        if path != "/api/history":
            assert int(head[1]["Content-Length"]) == len(body)
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            code, headers, _ = ask(address, path, method)
            assert (code, headers["Allow"]) == (405, "GET, HEAD")


def test_a_part_that_the_browser_has_is_not_sent_again(live):
    _, address = live
    for path in PARTS:
        _, headers, _ = ask(address, path)
        code, again, body = ask(address, path, headers={"If-None-Match": headers["ETag"]})
        assert (code, again["ETag"], body) == (304, headers["ETag"], b"")
        assert ask(address, path, headers={"If-None-Match": '"another"'})[0] == 200


def test_the_page_loads_nothing_from_anywhere_else():
    web = ROOT / "sidecar" / "web"
    for name in ("live.html", "live.js", "charts.js", "style.css"):
        assert "//" not in (web / name).read_text().replace("// ", ""), name
        assert "innerHTML" not in (web / name).read_text()


def test_rejected_input_is_told_by_reason(live, lines):
    sidecar, address = live
    sidecar.send(
        [b"junk", b"junk", b'{"features": [1], "true_score": 3}', lines[0].replace(b'"true_score": ', b'"true_score": 1e3')]
    )
    wait_until(lambda: sum(ask_json(address, "/status")["rejected"].values()) == 4)
    assert ask_json(address, "/status")["rejected"] == {"not JSON": 2, "features": 1, "true_score": 1}


def test_the_history_outlives_the_process(live, serve, base_path):
    sidecar, address = live
    wait_until(lambda: ask_json(address, "/api/history")["rows"])
    assert sidecar.stop() == 0
    kept = (sidecar.checkpoint_dir / "state" / HISTORY).read_bytes().splitlines()
    time.sleep(1)  # there is one row a second at most
    sidecar = serve(base_model=base_path, http=address).connect()
    wait_until(lambda: len(ask_json(address, "/api/history")["rows"]) > len(kept))
    rows = ask_json(address, "/api/history")["rows"]
    assert rows[: len(kept)] == [json.loads(row) for row in kept]
    assert rows[len(kept)][1] is None
    assert sidecar.stop() == 0


def test_a_damaged_history_does_not_stop_the_start(live, serve, base_path):
    sidecar, address = live
    assert sidecar.stop() == 0
    (sidecar.checkpoint_dir / "state" / HISTORY).write_bytes(b"junk")
    sidecar = serve(base_model=base_path, http=address).connect()
    assert "history.jsonl is damaged; it was ignored" in sidecar.log.read_text()
    assert sidecar.stop() == 0


# In a browser


@pytest.fixture(scope="module")
def page():
    with browser() as page:
        yield page


def text_of(page, selector):
    return page.ask(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")


def lost(page):
    return page.ask("document.querySelector('#lost').checkVisibility()")


def test_the_page_follows_a_replay_shows_a_checkpoint_and_the_loss_of_the_sidecar(page, serve, base_path):
    address = free_address()
    options = {"base_model": base_path, "http": address, "checkpoint_interval": 0, "min_samples": 800}
    sidecar = serve(**options).connect()
    page.open(f"http://{address}/")
    wait_until(lambda: "running" in text_of(page, "#state"), "the first answer")
    assert "None yet." in text_of(page, "main")
    assert run("replay", EXAMPLE, "--socket", sidecar.socket_path, "--rate", 500).returncode == 0
    wait_until(lambda: "2,496" in text_of(page, "#tiles"), "the pairs of the replay")
    wait_until(lambda: page.ask("document.querySelectorAll('.chart svg path').length") >= 2, "lines")
    wait_until(lambda: "model_v000001" in text_of(page, "#checkpoints"), "the checkpoint")
    assert "latest" in text_of(page, "#checkpoints")
    newest = ask_json(address, "/api/checkpoints")["checkpoints"][0]
    wait_until(lambda: newest["sha256"][:16] in text_of(page, "#checkpoints"), "its digest")
    assert not lost(page)
    assert page.console() == []
    assert all(url.startswith(f"http://{address}/") for url in page.requests())

    sidecar.process.kill()
    sidecar.process.wait()
    wait_until(lambda: lost(page), "the loss")
    assert "The sidecar does not answer" in text_of(page, "#lost")
    assert "2,496" in text_of(page, "#tiles")

    serve(**options).connect()
    wait_until(lambda: not lost(page), "its return")


def test_hostile_text_is_text(page, serve, base_path, lines, tmp_path):
    address, hostile = free_address(), tmp_path / MARKUP.replace("/", "∕")
    hostile.mkdir()
    base = hostile / "base.onnx"
    base.write_bytes(base_path.read_bytes())
    directory = hostile / "checkpoints"
    sidecar = serve(base_model=base, http=address, checkpoint_dir=directory, holdout_fraction=0.2).connect()
    named = [{**json.loads(line), "job_id": f"{i}{MARKUP}", "group": MARKUP} for i, line in enumerate(lines[:400])]
    refused = [{"job_id": MARKUP, "features": MARKUP}, {"job_id": MARKUP, MARKUP: 1}, MARKUP]
    sidecar.send([json.dumps(each).encode() for each in [*named, *refused]])
    gate = {"verdict": MARKUP, "reason": MARKUP}
    write_checkpoint(directory, 7, {"gate": gate, "sha256": MARKUP, "created_at": MARKUP, "name": MARKUP})
    (directory / "latest.onnx").symlink_to("model_v000007.onnx")
    page.open(f"http://{address}/")
    wait_until(lambda: MARKUP in text_of(page, "#checkpoints"), "the checkpoint's texts")
    page.ask("document.querySelector('details').open = true")
    wait_until(lambda: str(base) in text_of(page, "#settings"), "the base model's path")
    wait_until(lambda: "features" in text_of(page, "#rejected"), "what was refused")
    assert page.ask("document.querySelectorAll('main img, main script').length") == 0
    assert page.ask("document.title") == "vmafx-sidecar"
    assert page.console() == []


@pytest.fixture
def show(page, tmp_path):
    """Opens the page of a sidecar that is made up of rows and the fields of a status; gives its address, and its server."""
    servers = []

    def start(rows, address="127.0.0.1:0", settings=None, **fields):
        history = History(tuple((row[0], json.dumps(row).encode()) for row in rows))
        status = Status(**{"phase": "running", "replay_capacity": 10, "held_out_capacity": 10, "n_features": 5, **fields})
        pages = Pages(
            lambda: dataclasses.replace(status, progress=time.monotonic()), lambda: history, tmp_path, settings or {"seed": 3}
        )
        servers.append(start_http(address, pages.look_up))
        page.open(f"http://{servers[-1].address}/")
        wait_until(lambda: text_of(page, "#tiles"), "the first answer")
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def rows_of(loss, count=30, end=0, **columns):
    """So many rows up to so many seconds ago; loss and columns: what row i has."""
    now = int(time.time()) - end - 10 * count
    values = {"time": lambda i: now + 10 * i, "loss": loss, **columns}
    return [[values.get(name, lambda i: 1.5)(i) for name in COLUMNS] for i in range(count)]


def labels(page, chart, axis="y"):
    wait_until(lambda: page.ask(f"document.querySelector('#{chart} svg')"), "the chart")
    parts = f"document.querySelectorAll('#{chart} [aria-label=\"{axis}-axis tick label\"] text')"
    return page.ask(f"[...{parts}].map(each => each.textContent)")


@pytest.mark.parametrize(
    ("loss", "ticks"),
    [
        (lambda i: 900 * 0.5**i * 1.02, ["1e-6", "0.0001", "0.01", "1", "100", "10,000"]),
        (lambda i: 900 * 0.8**i, ["1", "10", "100", "1,000"]),
        (lambda i: 3 + i, ["2", "5", "10", "20", "50"]),
        (lambda i: 3.1 + i % 2, ["3", "4", "5"]),
        (lambda i: 2.25, ["2", "3"]),
        (lambda i: 2, ["2", "3"]),
        (lambda i: 1e9, ["1e+9", "2e+9"]),
        (lambda i: [None, 0, 4][i % 3], ["4", "5"]),
    ],
)
def test_the_ticks_of_the_loss_are_few_and_each_has_its_label(page, show, loss, ticks):
    show(rows_of(loss))
    assert labels(page, "loss") == ticks
    assert page.ask("document.querySelectorAll('#loss [aria-label=\"y-axis tick\"] path').length") == len(ticks)
    assert "score points²" in text_of(page, "#loss")
    assert page.console() == []


def test_a_value_that_never_changes_has_an_axis_with_room(page, show):
    show(rows_of(lambda i: 1, prequential_plcc=lambda i: 1, prequential_rmse=lambda i: 0.25))
    assert labels(page, "prequential_plcc")[-1] == "1.00"
    assert len(labels(page, "prequential_rmse")) >= 3
    left = "document.querySelector('#prequential_rmse').getBoundingClientRect().left"
    assert page.ask(
        f"[...document.querySelectorAll('#prequential_rmse text')].every(each => each.getBoundingClientRect().left >= {left})"
    )


def test_without_history_the_page_says_so(page, show):
    show([], phase="initializing")
    assert "No charts yet" in text_of(page, "#live")
    assert page.ask("document.querySelectorAll('.chart').length") == 0
    assert page.console() == []


def test_what_has_no_value_has_no_chart_and_a_gap_is_a_gap(page, show):
    def nothing(i):
        return None

    early, late = (rows_of(lambda i: 2 + i, 10, end, prequential_rmse=nothing, prequential_plcc=nothing) for end in (600, 0))
    show(early + late)
    labels(page, "loss")
    assert "No charts yet" not in text_of(page, "#live")
    assert page.ask("[...document.querySelectorAll('.chart')].map(each => each.id)") == ["loss", "pairs_per_second"]
    line = page.ask("document.querySelector('#loss [aria-label=line] path').getAttribute('d')")
    assert line.count("M") >= 2


def test_a_single_point_is_seen_on_an_axis_of_minutes(page, show):
    show(rows_of(lambda i: 2, 1), loss=2.0)
    assert 4 <= len(labels(page, "loss", "x")) <= 6
    assert page.ask("document.querySelectorAll('#loss [aria-label=dot] path').length") >= 1


def test_all_that_is_told_is_text(page, show):
    hostile = {"phase": MARKUP, "reason": MARKUP, "rejected": {MARKUP: 1}, "pairs": {MARKUP: 2}}
    show(rows_of(lambda i: 2), settings={MARKUP: MARKUP, "base_model": f"/{MARKUP}.onnx"}, **hostile)
    page.ask("document.querySelector('details').open = true")
    for part, times in (("#state", 2), ("#rejected", 1), ("#pairs", 1), ("#settings", 3)):
        assert text_of(page, part).count(MARKUP) == times, part
    assert page.ask("document.querySelectorAll('main img, main script, header img, header script').length") == 0
    assert page.ask("document.title") == "vmafx-sidecar"
    assert page.console() == []


def test_the_browser_runs_nothing_that_is_not_the_sidecars_own_file(page, show):
    show([])
    page.driver.execute_script(
        "const inline = document.createElement('script'); inline.textContent = 'document.title = `owned`';"
        "document.body.append(inline);"
        "const image = document.createElement('img'); image.setAttribute('onerror', 'document.title = `owned`');"
        "image.src = '/none'; document.body.append(image);"
        "const link = document.createElement('a'); link.href = 'javascript:document.title = `owned`';"
        "document.body.append(link); link.click();"
        "const code = document.createElement('script'); code.src = 'http://localhost:1/x.js'; document.body.append(code);"
    )
    wait_until(lambda: page.ask("performance.now()") > 500)
    assert page.ask("document.title") == "vmafx-sidecar"
    refused = [message for message in page.console() if "Content Security Policy" in message]
    assert len(refused) == 4, refused


def test_another_server_in_the_sidecars_place_is_its_loss_and_the_page_recovers(page, show):
    server = show(rows_of(lambda i: 2), position=17)
    server.close()
    another = start_http(server.address, lambda target, headers: Page(b'{"hello": "world"}', JSON))
    wait_until(lambda: lost(page), "the loss")
    assert "17" in text_of(page, "#tiles")
    page.resize(400, 400)
    page.driver.execute_script("window.scrollTo(0, 700)")
    assert page.ask("window.scrollY") == 700
    assert page.ask("document.querySelector('#lost').getBoundingClientRect().top") == 0  # still in sight
    time.sleep(2.5)  # a poll later it still asks
    assert lost(page)
    another.close()
    pages = Pages(lambda: Status(position=18, progress=time.monotonic()), History, Path("nowhere"), {})
    back = start_http(server.address, pages.look_up)
    wait_until(lambda: not lost(page), "its return")
    assert "18" in text_of(page, "#tiles")
    back.close()


@pytest.mark.parametrize("width", [1400, 400])
def test_nothing_sticks_out_at_the_side(page, live, width):
    sidecar, address = live
    sidecar.process.send_signal(signal.SIGUSR1)
    page.open(f"http://{address}/", width)
    wait_until(lambda: "model_v000001" in text_of(page, "#checkpoints"), "the checkpoint")
    page.ask("document.querySelector('details').open = true")
    assert page.ask("document.documentElement.scrollWidth") == width


# In a terminal


def test_a_sparkline_is_the_means_between_the_lowest_and_the_highest():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], range(8), 8, 1) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 2, 7, 7], range(4), 2, 1) == "▁█"
    assert sparkline([5, 5, 5], range(3), 3, 1) == "▁▁▁"
    assert sparkline([1, None, 3], [0, 50, 100], 10, 25) == "▁▁▁      █"


def test_watch_shows_what_the_sidecar_says_then_that_it_is_lost_and_goes_on(live, monkeypatch, serve, base_path):
    sidecar, address = live
    sidecar.process.send_signal(signal.SIGUSR1)
    monkeypatch.setenv("COLUMNS", "80")
    looks = watch(address, sleep=lambda seconds: time.sleep(0.05))
    seen = next(told for told in looks if "model_v000001" in told)
    assert seen.startswith("vmafx-sidecar: running, ")
    for part in ("RMSE    ", "PLCC    ", "loss    ", "latest, stable", "pairs in the journal   300", "hold", "base_model="):
        assert part in seen
    assert max(map(len, seen.splitlines())) <= 80
    assert len(seen.partition("settings:")[0].splitlines()) <= 23
    sidecar.process.kill()
    sidecar.process.wait()
    gone = next(looks)
    assert gone.startswith("SIDECAR LOST at ")
    assert "Connection refused" in " ".join(gone.split())
    assert "model_v000001" in gone
    assert next(looks).startswith("SIDECAR LOST")
    serve(base_model=base_path, http=address).connect()
    assert next(told for told in looks if "LOST" not in told)


def test_watch_without_a_sidecar_says_so_and_without_a_terminal_prints_a_block_a_look():
    watching = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "status", "--watch", "--http", free_address()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert watching.stdout.readline().startswith(b"NO SIDECAR at ")
    watching.send_signal(signal.SIGINT)
    out, errors = watching.communicate(timeout=PATIENCE_S)
    assert (watching.returncode, errors) == (130, b"\ninterrupted\n")
    assert b"\x1b" not in out


def test_watch_redraws_in_place_in_a_terminal(live):
    _, address = live
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "sidecar", "status", "--watch", "--http", address]
    environment = {**os.environ, "COLUMNS": "80", "LINES": "24"}
    watching = subprocess.Popen(command, stdout=terminal, stderr=subprocess.DEVNULL, env=environment)
    os.close(terminal)
    drawn = b""
    deadline = time.monotonic() + PATIENCE_S
    while drawn.count(b"\x1b[H") < 2:
        assert time.monotonic() < deadline
        if select.select([controller], [], [], 1)[0]:
            drawn += os.read(controller, 65536)
    watching.send_signal(signal.SIGINT)
    assert watching.wait(PATIENCE_S) == 130
    os.close(controller)
    first = drawn.split(b"\x1b[H")[1]
    assert first.count(b"\x1b[K\r\n") == first.count(b"\n") <= 23
    assert first.endswith(b"\x1b[J")


@pytest.mark.parametrize("arguments", [("--watch", "--json"), ("--watch", "--http", "nowhere")])
def test_watch_with_what_it_cannot_do(arguments):
    done = run("status", *arguments)
    assert done.returncode == 2
    assert "--watch" in done.stderr or "nowhere" in done.stderr


# What a sidecar says at /api/history, as far as `watch` needs it, and at /api/checkpoints.
HISTORY_TOLD = {
    "now": {
        "phase": "running", "current_samples": 3, "time": 1030.5, "making_progress": True, "replay_size": 3,
        "replay_capacity": 9, "held_out_size": 0, "held_out_capacity": 9, "pairs": {"accepted": 3}, "rejected": {},
        "prequential_rmse": 1.5,
    },
    "settings": {"seed": 3}, "every_seconds": 10, "columns": list(COLUMNS),
    "rows": [[1000, None, None, None, None, 0, 0], [1010, 0.3, 2.5, 0.9, 7, 3, 0]],
}  # fmt: skip
CHECKPOINTS_TOLD = {"latest": None, "stable": None, "checkpoints": [{"name": "model_v000001", "version": 1}]}


def changed(told, **values):
    """A document with a part of `now` or of itself replaced; None takes it away."""
    told = copy.deepcopy(told)
    for name, value in values.items():
        place = told["now"] if name in told.get("now", {}) else told
        place[name] = value
        if value is None:
            del place[name]
    return told


@pytest.fixture
def impostor():
    """A server whose answers, by path, are JSON documents or bytes: a dictionary to change, and its address."""
    answers = {"/api/history": HISTORY_TOLD, "/api/checkpoints": CHECKPOINTS_TOLD}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = answers[self.path]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield answers, f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_watch_needs_no_more_than_this(impostor):
    seen = next(watch(impostor[1]))
    for part in ("vmafx-sidecar: running, ", "RMSE ", "model_v000001", "seed=3"):
        assert part in seen


HUGE = b"1" + b"0" * 400
WRONG = {
    "answered 200 with b'<!doctype html>'": b"<!doctype html>",
    "answered 200 with b'[1]'": b"[1]",
    "answered 200 with b'\\x00\\xff'": b"\x00\xff",
    "answered 200 with b'": b"[" * 100_000,
    "answered 200 with b'{\"now\": NaN}'": b'{"now": NaN}',
    "object missing required field `now`": {"hello": "world"},
    "expected `object`, got `array` - at `$.now`": {**HISTORY_TOLD, "now": []},
    "object missing required field `phase` - at `$.now`": changed(HISTORY_TOLD, phase=None),
    "expected `str`, got `int` - at `$.now.phase`": changed(HISTORY_TOLD, phase=3),
    "expected `float` <= 100000000000.0 - at `$.now.time`": changed(HISTORY_TOLD, time=1e12),
    "expected `int`, got `str` - at `$.now.replay_size`": changed(HISTORY_TOLD, replay_size="many"),
    "expected `int`, got `array` - at `$.now.pairs[...]`": changed(HISTORY_TOLD, pairs={"accepted": []}),
    "expected `array`, got `object` - at `$.rows`": changed(HISTORY_TOLD, rows={}),
    "expected `float | null`, got `str` - at `$.rows[0][0]`": changed(HISTORY_TOLD, rows=[["x"] * len(COLUMNS)]),
    "expected rows as long as `columns`, with `time` first": changed(HISTORY_TOLD, rows=[[1000]]),
    "expected `float`, got `null` - at `$[0]`": changed(HISTORY_TOLD, rows=[[None] * len(COLUMNS)]),
    "number out of range": json.dumps(changed(HISTORY_TOLD, time=17)).encode().replace(b"17", HUGE),
}


@pytest.mark.parametrize("message", WRONG)
def test_watch_ends_with_one_line_where_something_else_answers(impostor, message):
    answers, address = impostor
    answers["/api/history"] = WRONG[message]
    with pytest.raises(NoSidecarError) as refused:
        next(watch(address))
    assert str(refused.value).startswith(f"{address}: /api/history is not from a sidecar: {message}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["latest", "checkpoints"])
def test_watch_looks_at_the_checkpoints_document_too(impostor, name):
    answers, address = impostor
    answers["/api/checkpoints"] = changed(CHECKPOINTS_TOLD, **{name: 3})
    with pytest.raises(
        NoSidecarError, match=f"/api/checkpoints is not from a sidecar: expected `.*, got `int` - at `.*{name}`"
    ):
        next(watch(address))


@pytest.mark.parametrize(
    "told",
    [
        changed(HISTORY_TOLD, rows=[]),
        changed(HISTORY_TOLD, rows=[[1000, *[None] * 6]], prequential_rmse=None),
        changed(HISTORY_TOLD, rows=[[5000, *[1] * 6], [10, *[1e100] * 6], [1020, *[-1e100] * 6]]),
        changed(HISTORY_TOLD, columns=["time", "another"], rows=[[1000, 3]]),
        changed(HISTORY_TOLD, settings={"\x1b[31m": "\x1b[32m\n" * 500}, phase="\x1b[2J" * 100, every_seconds=-1),
    ],
)
@pytest.mark.parametrize("columns", ["1", "80", "500"])
def test_watch_shows_what_is_odd_as_well_as_can_be(impostor, monkeypatch, told, columns):
    monkeypatch.setenv("COLUMNS", columns)
    answers, address = impostor
    answers["/api/history"] = told
    seen = next(watch(address))
    assert "\x1b" not in seen
    assert max(map(len, seen.splitlines())) <= max(40, int(columns)) or columns == "1"


def test_something_else_in_the_place_of_a_sidecar_is_its_loss_and_watch_goes_on(impostor):
    answers, address = impostor
    looks = watch(address, sleep=lambda seconds: None)
    assert next(looks).startswith("vmafx-sidecar: running")
    answers["/api/history"] = {"hello": "world"}
    lost = next(looks)
    assert lost.startswith("SIDECAR LOST at ")
    assert "/api/history is not from a sidecar: object missing required field `now`" in " ".join(lost.split())
    assert "vmafx-sidecar: running" in lost
    answers["/api/history"] = HISTORY_TOLD
    assert next(looks).startswith("vmafx-sidecar: running")


@pytest.mark.parametrize("arguments", [[], ["--watch"], ["--json"]])
def test_the_command_says_in_one_line_that_something_else_answers(impostor, arguments):
    answers, address = impostor
    answers["/status"] = answers["/api/history"] = {"hello": "world"}
    done = run("status", "--http", address, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {address}: /")
    assert " is not from a sidecar: object missing required field `" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("told", [{"phase": 3, "current_samples": 3}, {"phase": "running", "current_samples": 3.5}])
def test_a_status_has_what_every_reader_relies_on(impostor, told):
    answers, address = impostor
    answers["/status"] = told
    with pytest.raises(NoSidecarError, match="/status is not from a sidecar: expected "):
        fetch_status(address)


def test_a_closed_pipe_ends_watch_quietly(impostor, tmp_path):
    _, address = impostor
    with (tmp_path / "errors").open("wb") as errors:
        command = [sys.executable, "-m", "sidecar", "status", "--watch", "--http", address]
        watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert watching.stdout.readline().startswith(b"vmafx-sidecar: running, ")
        watching.stdout.close()
        assert watching.wait(PATIENCE_S) == 1
    assert (tmp_path / "errors").read_bytes() == b""


def test_watch_into_a_file_is_plain_lines_and_ctrl_c_ends_it(impostor, tmp_path):
    _, address = impostor
    command = [sys.executable, "-m", "sidecar", "status", "--watch", "--http", address]
    with (tmp_path / "seen").open("wb") as seen:
        watching = subprocess.Popen(command, stdout=seen, stderr=subprocess.PIPE)
        wait_until(lambda: (tmp_path / "seen").read_bytes().count(b"vmafx-sidecar: ") == 2)
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=PATIENCE_S)
    assert (watching.returncode, errors) == (130, b"\ninterrupted\n")
    text = (tmp_path / "seen").read_text()
    assert all(line.isprintable() for line in text.splitlines())
    first, second = text.split("vmafx-sidecar: ")[1:]
    assert first == second
    assert first.endswith("\n\n")
