"""The live page: what is served, and what a browser shows of it."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from sidecar.learning.drift.two_samples import Comparison
from sidecar.monitoring.history import COLUMNS, HISTORY, History, write_history
from sidecar.monitoring.pages import JSON, Pages
from sidecar.monitoring.status import Finding, Status, TenantFigures
from sidecar.monitoring.verdict.rules import DOWN
from sidecar.network.http import Page
from sidecar.network.http_server import start_http
from sidecar.state.checked import read_checked
from tests.conftest import ROOT, run
from tests.monitoring.live import GOOD, MARKUP, ask, ask_json, write_checkpoint
from tests.running import free_address, wait_until

PARTS = ["/", "/live.js", "/checkpoint", "/checkpoint.js", "/page.js", "/charts.js", "/plot.js", "/style.css"]


# What is served


def test_every_part_has_a_strict_policy_and_answers_get_and_head_alone(served):
    _, address = served
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


def test_a_part_that_the_browser_has_is_not_sent_again(served):
    _, address = served
    for path in PARTS:
        _, headers, _ = ask(address, path)
        code, again, body = ask(address, path, headers={"If-None-Match": headers["ETag"]})
        assert (code, again["ETag"], body) == (304, headers["ETag"], b"")
        assert ask(address, path, headers={"If-None-Match": '"another"'})[0] == 200


def test_the_page_loads_nothing_from_anywhere_else():
    web = ROOT / "sidecar" / "web"
    for name in ("live.html", "live.js", "checkpoint.html", "checkpoint.js", "page.js", "charts.js", "style.css"):
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
    kept = read_checked(sidecar.checkpoint_dir / "state" / HISTORY, "history").splitlines()[1:]
    wait_until(lambda: time.time() >= json.loads(kept[-1])[0] + 1, "the next second: there is one row a second at most")
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
    sidecar.logged("damage in the state directory")
    sidecar.logged("kind=history")
    assert sidecar.stop() == 0


# In a browser


@pytest.fixture
def page(chromium):
    return chromium


def text_of(page, selector):
    return page.ask(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")


def lost(page):
    return page.ask("document.querySelector('#lost').checkVisibility()")


def test_the_page_follows_a_replay_shows_a_checkpoint_and_the_loss_of_the_sidecar(page, serve, base_path, lines, tmp_path):
    address, options = free_address(), {"base_model": base_path, "checkpoint_interval": 0, "min_samples": 800}
    (tmp_path / "checkpoints" / "state").mkdir(parents=True)
    earlier = [
        int(time.time()) - 40,
        None,
        2.5,
        2,
        20,
        0.9,
        6.25,
        0.1,
        300,
    ]  # so that there is a line before ten seconds are over
    write_history(tmp_path / "checkpoints" / "state", History(((earlier[0], json.dumps(earlier).encode()),)))
    sidecar = serve(**options, http=address).connect()
    page.open(f"http://{address}/")
    wait_until(lambda: text_of(page, "#state") == "running, and nothing is wrong", "the first answer")
    assert "None yet." in text_of(page, "main")
    (tmp_path / "pairs.jsonl").write_bytes(b"\n".join(lines[:1111]))
    assert run("replay", tmp_path / "pairs.jsonl", "--socket", sidecar.socket_path).returncode == 0
    wait_until(lambda: "1,111" in text_of(page, "#tiles"), "the pairs of the replay")
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
    assert DOWN.do.replace("`", "") in text_of(page, "#lost")
    assert "1,111" in text_of(page, "#tiles")

    serve(**options, http=address).connect()
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

    def start(rows, address="127.0.0.1:0", settings=None, limits=None, **fields):
        history = History(tuple((row[0], json.dumps(row).encode()) for row in rows))
        status = Status(**{"phase": "running", "replay_capacity": 10, "held_out_capacity": 10, "n_features": 5, **fields})
        pages = Pages(
            lambda: dataclasses.replace(status, progress=time.monotonic()), lambda: history, tmp_path, settings or {"seed": 3},
            limits=limits or {},
        )  # fmt: skip
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


def test_the_first_line_says_what_is_wrong_and_below_it_what_to_do(page, show):
    now = time.time()
    drift = Finding(
        "A",
        "feature_drift",
        "warning",
        "the features do not look right",
        "vif_scale0",
        "Compare `nFeatures`.",
        now - 600,
        now,
        True,
    )
    idle = Finding("B", "pairs", "warning", "no pairs arrive", "", "Look at the log.", now - 60, now + 3000, False)
    show([], findings=(drift, idle))
    assert text_of(page, "#state") == "running, but the features do not look right: vif_scale0"
    first, second = page.ask("[...document.querySelectorAll('#findings li')].map(each => [each.className, each.innerText])")
    assert first[0] == "warning"
    assert re.fullmatch(r"Since .+, 10 minutes\. Compare nFeatures\.", first[1])
    assert second[0] == "quiet"
    assert re.fullmatch(r"No pairs arrive\. Since .+, 1 minute, alert at .+\. Look at the log\.", second[1])
    show([], findings=(idle,))
    assert text_of(page, "#state") == "running, and nothing is wrong"
    show([], phase="paused", reason="journal: no space")
    assert text_of(page, "#state") == "paused: journal: no space"


def tiles(page):
    """By name: its class and its lines."""
    parts = "[each.querySelector('dt').innerText, each.className, ...[...each.querySelectorAll('dd')].map(dd => dd.innerText)]"
    return {name: rest for name, *rest in page.ask(f"[...document.querySelectorAll('#tiles > div')].map(each => {parts})")}


def test_each_figure_has_its_limit_and_what_it_is_compared_with(page, show, tmp_path):
    compared = [
        {"model": model, "on": on, "pairs": 40, "plcc": plcc, "rmse": rmse, "winsorized_rmse": 1}
        for model, plcc, rmse in (("this model", 0.9, 9), ("model_v000001", 0.99, 1.5), ("base model m.onnx", 0.98, 2.5))
        for on in ("held-out pairs", "anchor")
    ]
    write_checkpoint(tmp_path, 1, GOOD)
    write_checkpoint(tmp_path, 2, {**GOOD, "gate": {"verdict": "unstable", "reason": "bad", "compared": compared}})
    (tmp_path / "latest.onnx").symlink_to("model_v000002.onnx")
    (tmp_path / "stable.onnx").symlink_to("model_v000001.onnx")
    now = time.time()
    far_off = Finding("A", "prequential_rmse", "warning", "far off", "", "", now, now, True)
    moved = Finding("B", "feature_drift", "warning", "moved", "", "", now, now + 60, False)
    show(
        rows_of(lambda i: 2, journal_bytes=lambda i: i * 10**6), findings=(far_off, moved), latest_version=2, stable_version=1,
        prequential_rmse=12.0, prequential_winsorized_rmse=3.0, prequential_constant_rmse=20.0, prequential_plcc=0.99998,
        feature_drift=4.0, drifting_feature="adm2", outliers=3, divergences=1, rate_share=0.25, shifts=2,
        refits={"adopted": 7, "rejected": 1},
        journal_bytes=30 * 10**6, disk_free_bytes=60 * 10**6, settings={"journal_max_bytes": 10**8},
        limits={"feature_drift": 3, "prequential_rmse/prequential_constant_rmse": 0.5, "journal_bytes": 9 * 10**7},
    )  # fmt: skip
    wait_until(lambda: "model_v000001" in text_of(page, "#tiles"), "the models' figures")
    told = tiles(page)
    assert told["RMSE, score points"] == [
        "warning", "12", "winsorized: 3", "of a constant: 20", "stable, model_v000001, held out: 1.5",
        "base model m.onnx, held out: 2.5", "alert above 10",
    ]  # fmt: skip
    assert told["PLCC"][1:3] == ["0.999980", "stable, model_v000001, held out: 0.99"]
    assert told["Feature drift, deviations"] == ["pending", "4", "most: adm2", "alert above 3"]
    assert told["Outliers, not trained on"][1] == "3"
    assert told["Weights diverged"][1:] == ["1", "learning rate: 0.25 of what is set"]
    assert told["Scores changed meaning"][1] == "2"
    assert told["Fits to the replay buffer, adopted"][1:] == ["7", "no better, not adopted: 1"]
    assert told["Journal"][1:] == ["30 MB of 100 MB", "at its limit in about 11 minutes", "alert above 90 MB"]
    assert told["Disk"][1:] == ["60 MB free", "full in about 10 minutes"]
    wait_until(lambda: "base model m.onnx, held out" in text_of(page, "#prequential_rmse"), "the base model's line")
    assert "stable, model_v000001, held out" in text_of(page, "#prequential_rmse")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prequential_rmse": 20.0, "prequential_plcc": 0.0}, ["0", "all predictions are the same"]),
        ({"prequential_rmse": 20.0}, ["undefined", "all scores are the same"]),
        ({}, ["–"]),
    ],
)
def test_a_correlation_of_what_never_changes_is_said_to_be_none(page, show, fields, told):
    show([], **fields)
    assert tiles(page)["PLCC"][1:] == told


def test_features_that_have_changed_are_shown_beside_what_they_were(page, show):
    rng = np.random.default_rng(0)
    reference, latest = np.sort(rng.normal(size=(128, 20)), axis=0), rng.normal(size=(64, 20))
    since = np.full(20, -1)
    latest[:, 7], since[7] = 5, 4096
    comparison = Comparison(since, reference, latest)
    names = tuple(f"feature_{place}" for place in range(20))
    show([], comparison=comparison, feature_distance=1.0, shifted_features=1, shifted="feature_7", features=names)
    wait_until(lambda: page.ask("document.querySelectorAll('#features svg').length") == 12, "twelve charts")
    first, second = page.ask("[...document.querySelectorAll('#features figcaption')].slice(0, 2).map(each => each.innerText)")
    assert first == "feature_7 distance 1, since pair 4,096"
    assert "since" not in second
    assert "The farthest 12 of 20." in text_of(page, "#about-features")
    assert "1 distributed otherwise than before" in tiles(page)["Feature drift, deviations"]
    assert page.console() == []


def test_ranges_show_as_much_of_the_past(page, show):
    now = int(time.time())
    ages = (6 * 86400, 86000, 43200, 7200, 3000, 600, 10)
    show([[now - age, *[i + 1.0] * (len(COLUMNS) - 1)] for i, age in enumerate(ages)])
    labels(page, "loss")

    def shown():
        return page.ask("document.querySelectorAll('#loss [aria-label=dot] path').length")

    for name, points in (("15 min", 3), ("1 h", 4), ("24 h", 7), ("7 days", 8)):
        page.ask(f"[...document.querySelectorAll('#ranges label')].find(each => each.innerText.trim() === '{name}').click()")
        wait_until(lambda points=points: shown() in (points, points - 1), name)  # the last has no loss
    assert page.console() == []


def test_checkpoints_are_marked_on_the_charts(page, show, tmp_path):
    for version, verdict in ((1, "stable"), (2, "unstable")):
        created = datetime.fromtimestamp(time.time() - 100 * version, UTC).isoformat()
        write_checkpoint(tmp_path, version, {**GOOD, "created_at": created, "gate": {"verdict": verdict, "reason": ""}})
    (tmp_path / "latest.onnx").symlink_to("model_v000002.onnx")
    show(rows_of(lambda i: 2), latest_version=2)
    wait_until(lambda: page.ask("document.querySelectorAll('#loss [aria-label=rule] line').length") == 2, "two marks")


# The page of a checkpoint


def test_a_checkpoint_has_a_page_beside_its_parent_or_another_one(page, serve, base_path, lines):
    address = free_address()
    sidecar = serve(base_model=base_path, http=address, checkpoint_interval=0, min_samples=300, holdout_fraction=0.2).connect()
    directory = sidecar.checkpoint_dir
    for version, part in ((1, lines[:600]), (2, lines[600:1200])):
        sidecar.send(part)
        wait_until(lambda version=version: (directory / f"model_v{version:06d}.onnx").exists())
    assert sidecar.stop() == 0
    sidecar = serve(base_model=base_path, http=address).connect()
    about = json.loads((directory / "model_v000002.json").read_text())
    assert ask_json(address, "/api/checkpoints/model_v000002") == {**about, "rolled_back": None}
    page.open(f"http://{address}/checkpoint?model_v000002", 400)
    wait_until(lambda: "this model" in text_of(page, "#compared"), "the figures")
    assert text_of(page, "#verdict").startswith(about["gate"]["verdict"])
    rows = page.ask(
        "[...document.querySelectorAll('#compared tbody tr')].map(row => [...row.cells].map(cell => cell.innerText))"
    )
    compared = about["gate"]["compared"]
    assert [row[:3] for row in rows if row[0] != "its limits"] == [
        [each["model"], each["on"], f"{each['pairs']:,}"] for each in compared
    ]
    limited = [each for each in compared if "limits" in each]
    assert [row[1:3] for row in rows if row[0] == "its limits"] == [[each["on"], ""] for each in limited] != []
    assert all(re.match("≤ [0-9.]+$", row[3]) and re.match("≥ 0", row[5]) for row in rows if row[0] == "its limits")
    assert {row[0] for row in rows} >= {"this model", f"base model {base_path.name}"}
    wait_until(lambda: page.ask("document.querySelectorAll('#held-out svg').length") == 2, "two charts")
    assert page.ask("document.querySelectorAll('#held-out svg')[0].querySelectorAll('[aria-label=dot] *').length") == len(
        about["held_out"]
    )
    assert "model_v000001, its parent" in text_of(page, "#other")
    assert "pairs_seen" in text_of(page, "#differences")
    assert "seed" not in text_of(page, "#differences")
    assert page.ask("document.documentElement.scrollWidth") == 400
    assert not [message for message in page.console() if address in message]


@pytest.mark.parametrize("query", ["", "?model_v000009", f"?{quote(MARKUP)}", "?../../etc/passwd&x"])
def test_a_checkpoint_that_is_not_there_is_said_to_be_none(page, served, query):
    page.open(f"http://{served[1]}/checkpoint{query}")
    wait_until(lambda: "cannot be shown: answered 404" in text_of(page, "#verdict"), "the answer")
    assert page.ask("document.querySelectorAll('header img, header script').length") == 0


def test_what_a_hostile_json_says_is_text(page, show, tmp_path):
    hostile = {"gate": {"verdict": MARKUP, "reason": MARKUP, "compared": [{"model": MARKUP, "on": [MARKUP]}, 3, None]}}
    write_checkpoint(
        tmp_path, 7, {**hostile, "held_out": [[1, 2], MARKUP, None], "settings": {MARKUP: MARKUP}, "parent": MARKUP}
    )
    write_checkpoint(tmp_path, 8, GOOD)
    server = show([])
    page.open(f"http://{server.address}/checkpoint?model_v000007")
    wait_until(lambda: MARKUP in text_of(page, "#verdict"), "the verdict")
    assert page.ask("document.querySelectorAll('main img, main script, header img').length") == 0
    assert page.ask("document.title") == "vmafx-sidecar: model_v000007"


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

    without = dict.fromkeys(("prequential_rmse", "prequential_plcc", "feature_drift"), nothing)
    early, late = (rows_of(lambda i: 2 + i, 10, end, **without) for end in (600, 0))
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
    refused = []

    def all_are_refused():
        refused.extend(message for message in page.console() if "Content Security Policy" in message)
        return len(refused) >= 4

    wait_until(all_are_refused, "four refusals")
    assert page.ask("document.title") == "vmafx-sidecar"
    assert len(refused) == 4, refused


def test_another_server_in_the_sidecars_place_is_its_loss_and_the_page_recovers(page, show):
    server = show(rows_of(lambda i: 2), position=17)
    server.close()
    asked = []
    another = start_http(server.address, lambda target, headers: asked.append(target) or Page(b'{"hello": "world"}', JSON))
    wait_until(lambda: lost(page), "the loss")
    assert "17" in text_of(page, "#tiles")
    page.resize(400, 400)
    page.driver.execute_script("window.scrollTo(0, 700)")
    assert page.ask("window.scrollY") == 700
    assert page.ask("document.querySelector('#lost').getBoundingClientRect().top") == 0  # still in sight
    before = len(asked)
    wait_until(lambda: len(asked) >= before + 2, "two more polls")
    assert lost(page)
    another.close()
    pages = Pages(lambda: Status(position=18, progress=time.monotonic()), History, Path("nowhere"), {})
    back = start_http(server.address, pages.look_up)
    wait_until(lambda: not lost(page), "its return")
    assert "18" in text_of(page, "#tiles")
    back.close()


@pytest.mark.parametrize("width", [1400, 400])
def test_nothing_sticks_out_at_the_side(page, served, width):
    sidecar, address = served
    sidecar.process.send_signal(signal.SIGUSR1)
    page.open(f"http://{address}/", width)
    wait_until(lambda: "model_v000001" in text_of(page, "#checkpoints"), "the checkpoint")
    page.ask("document.querySelector('details').open = true")
    assert page.ask("document.documentElement.scrollWidth") == width


def test_tenants_are_in_a_table_that_can_be_sorted(page, show):
    figures = (TenantFigures("b", 300, 2.5, 0.5, True), TenantFigures(MARKUP, 4000, 1.0, 1.25, False))
    show(rows_of(lambda i: 2), tenants=figures)

    def names():
        return page.ask("[...document.querySelectorAll('#tenants tbody tr')].map(each => each.cells[0].textContent)")

    def click(column):
        page.ask(f"[...document.querySelectorAll('#tenants button')].find(each => each.textContent === '{column}').click()")

    assert names() == [MARKUP, "b"]  # by pairs
    assert "4,000\t1\t1.25\tno" in text_of(page, "#tenants")
    click("RMSE, shared")
    assert names() == ["b", MARKUP]
    click("RMSE, shared")
    assert names() == [MARKUP, "b"]
    assert page.ask("document.querySelector('#tenants [aria-sort]').ariaSort") == "ascending"
    assert page.ask("document.querySelectorAll('main img, main script').length") == 0
    show(rows_of(lambda i: 2))
    assert not page.ask("document.querySelector('#tenants').checkVisibility()")
    assert page.console() == []
