"""The report of a run: one file, its numbers those of --json, every text as text, and what a browser makes of it."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import subprocess
import threading

import numpy as np
import pytest

from onnx_builder import Dense, Network
from onnx_builder.write import to_bytes
from sidecar.evaluation.report import render
from sidecar.evaluation.residuals import Judged, Model, by_group, by_score, importance, worst
from sidecar.learning.metrics import rmse
from sidecar.learning.recipe import OBSERVATIONS, Recipe, fit
from sidecar.pairs.recorded import RecordedPairs, read_pairs
from tests.conftest import EXAMPLE, run, tree
from tests.journals import write_journal

NAMES = EXAMPLE.with_name("recorded-80.features")
MARKUP = "</script><img src=x onerror=alert(1)>&amp;"
UNSEEN = "a\u2028b\u202ec\x1b[31m\x07"
UNSEEN_SHOWN = r"a\u2028b\u202ec\x1b[31m\x07"
MARKUP_IN_A_NAME = MARKUP.replace("/", "∕")  # a file's name has no slash
MOST_BYTES = 1_500_000


def document_of(path):
    """What a page shows, from its JSON."""
    found = re.search(r'<script type="application/json" id="document">(.*?)</script>', path.read_text(), flags=re.DOTALL)
    return json.loads(found[1])


def model_of(path):
    """What a page shows of its one model."""
    (model,) = document_of(path)["models"]
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on the example from a base model, its report, and what --json said."""
    directory = tmp_path_factory.mktemp("report")
    base = ("train-offline", EXAMPLE, "--epochs", 2, "--output", directory / "base")
    assert run(*base).returncode == 0
    fine_tuned = ("--epochs", 4, "--output", directory / "c", "--base-model", directory / "base" / "latest.onnx")
    done = run("train-offline", EXAMPLE, *fine_tuned, "--report", directory / "report.html", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return directory, json.loads(done.stdout)


@pytest.fixture
def hostile(tmp_path, random_rows):
    """A directory whose file, checkpoint directory, jobs, groups and report are all named in markup."""
    directory = tmp_path / MARKUP_IN_A_NAME
    directory.mkdir()
    rows = [{**row, "job_id": f"{MARKUP}{UNSEEN}{i}", "clip": f"{MARKUP}{i % 3}"} for i, row in enumerate(random_rows(120))]
    pairs = directory / f"{MARKUP_IN_A_NAME}.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("--epochs", 2, "--group-by", "clip", "--output", directory / "c", "--report", directory / "report.html")
    assert run("train-offline", pairs, *arguments).returncode == 0
    return directory / "report.html"


def test_numbers_are_those_of_json(trained):
    directory, said = trained
    shown = document_of(directory / "report.html")
    assert shown["said"] == said
    held_out = said["metrics"]["held_out"]
    judged = shown["models"][0]["judged"]
    assert {name: judged[name] for name in held_out["ema"]} == held_out["ema"]
    assert judged["base"] == held_out["base"]
    assert shown["models"][0]["model"]["SHA-256"] == said["sha256"]
    last = shown["curve"][-1]
    assert last["held_out"]["ema"] == pytest.approx(held_out["ema"]["rmse"], rel=1e-3)
    assert last["train"]["live"] == pytest.approx(said["metrics"]["train"]["live"]["rmse"], rel=1e-3)
    assert shown["data"]["files"][0]["pairs"] == 2496
    assert len(shown["worst"]) == 20
    assert all(each["job_id"] for each in shown["worst"])
    for parts in (shown["scores"], shown["groups"]):
        squares = sum(each["rmse"] ** 2 * each["pairs"] for each in parts)
        assert squares == pytest.approx(held_out["ema"]["rmse"] ** 2 * held_out["ema"]["pairs"])
    pairs = read_pairs([EXAMPLE], group_by="group")
    encodes = {pairs.group_names[each] for each in pairs.group[pairs.position < 0.1]}
    assert {each["group"] for each in shown["groups"]} == encodes
    assert {each["group"] for each in shown["worst"]} <= encodes


def test_evaluate_reports_the_same_pairs_by_group(trained, tmp_path):
    directory, _ = trained
    report = tmp_path / "evaluated.html"
    done = run("evaluate", directory / "c" / "latest.onnx", EXAMPLE, "--group-by", "source", "--report", report, "--json")
    assert done.returncode == 0, done.stderr
    said, shown = json.loads(done.stdout), document_of(report)
    assert shown["said"] == {name: value for name, value in said.items() if name != "groups"}
    assert {name: shown["models"][0]["judged"][name] for name in ("plcc", "srocc", "rmse", "pairs")} == {
        name: said[name] for name in ("plcc", "srocc", "rmse", "pairs")
    }
    assert {g["group"]: g["rmse"] for g in shown["groups"]} == {g["group"]: g["rmse"] for g in said["groups"]}
    assert "curve" not in shown


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """The report of a run that leaves out each source once and holds out a tenth, and what --json said."""
    directory = tmp_path_factory.mktemp("validated")
    options = ("--group-by", "source", "--holdout", 0.1, "--epochs", 1, "--features", NAMES.read_text().strip())
    where = ("--output", directory / "c", "--report", directory / "r.html", "--json")
    done = run("train-offline", EXAMPLE, *options, *where)
    return directory / "r.html", json.loads(done.stdout)


def test_the_groups_of_a_validated_run_are_predicted_by_models_that_have_not_seen_them(validated):
    report, said = validated
    shown = document_of(report)
    assert shown["models"][0]["judged"]["rmse"] == said["loso"]["pooled_rmse"]
    assert {g["group"]: g["rmse"] for g in shown["groups"]} == {g["group"]: g["rmse"] for g in said["loso"]["groups"]}
    assert [g["rmse"] for g in shown["groups"]] == sorted((g["rmse"] for g in shown["groups"]), reverse=True)


def test_what_workers_have_read_is_told_by_pod_and_by_encode(tmp_path, chromium):
    state = write_journal(
        tmp_path / f"pod-{MARKUP_IN_A_NAME}", {"000000000000.jsonl": gzip.decompress(EXAMPLE.read_bytes()).splitlines()[:600]}
    )
    arguments = ("--workers", 1, "--sample", 500, "--epochs", 1, "--output", tmp_path / "c", "--report", tmp_path / "r.html")
    done = run("train-offline", state, EXAMPLE, *arguments, "--json")
    said, shown = json.loads(done.stdout), document_of(tmp_path / "r.html")
    assert shown["said"] == said
    assert [(pod["name"], pod["read"]) for pod in said["sampled"]["pods"]] == [("files", 2496), (str(state), 600)]
    assert [each["pairs"] for each in shown["data"]["files"]] == [600, 2496]
    assert "sha256" not in shown["data"]["files"][0]
    pairs = read_pairs([EXAMPLE], group_by="group")
    assert {each["group"] for each in shown["groups"]} <= {
        pairs.group_names[each] for each in pairs.group[pairs.position < 0.1]
    }
    assert sum(each["pairs"] for each in shown["groups"]) == said["metrics"]["held_out"]["ema"]["pairs"]
    drawn(chromium, tmp_path / "r.html")
    text = chromium.ask("document.getElementById('pods').textContent")
    assert str(state) in text
    assert "Of 3,096 pairs that were read, 500 were kept" in text


def test_a_report_changes_no_byte_of_the_model(trained, tmp_path, random_rows, write_lines):
    path = write_lines(random_rows(300))
    digests = []
    for name, more in (("plain", ()), ("reported", ("--report", tmp_path / "r.html"))):
        done = run("train-offline", path, "--epochs", 30, "--output", tmp_path / name, *more, "--json")
        digests.append(json.loads(done.stdout)["sha256"])
    assert digests[0] == digests[1]


def test_observing_covers_the_run_and_gives_the_same_bytes(example):
    seen = []
    rows, recipe = np.arange(600), Recipe(epochs=200)
    observed = fit(
        example.features, example.true_score, rows, recipe, observe=lambda step, live, ema: seen.append((step, live, ema))
    )
    plain = fit(example.features, example.true_score, rows, recipe)
    assert (observed.live.parameters == plain.live.parameters).all()
    assert (observed.ema.parameters == plain.ema.parameters).all()
    steps = [step for step, _, _ in seen]
    assert (steps[0], steps[-1]) == (0, observed.steps)
    assert OBSERVATIONS / 2 < len(steps) <= OBSERVATIONS + 1
    assert steps == sorted(set(steps))


def test_the_page_is_small_and_asks_for_nothing(trained):
    page = (trained[0] / "report.html").read_text()
    assert len(page.encode()) < MOST_BYTES
    assert re.findall(r"""\b(?:src|srcset|action|data|poster)\s*=\s*["']?[\w./:]+""", page.partition("<script")[0]) == []
    assert set(re.findall(r'href="([^"]*)"', page.partition("<script")[0])) == {"#content"}
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_a_report_of_many_pairs_and_features_stays_small(tmp_path):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30_000, 12)).astype(np.float32)
    scores = np.clip(50 + 9 * features[:, :4].sum(axis=1), 0, 100)
    groups = np.array([("😀" + UNSEEN) * 30 + str(i % 5000) for i in range(len(scores))])
    np.savez(tmp_path / "p.npz", features=features, true_score=scores, group=groups, job_id=groups)
    assert run("train-offline", tmp_path / "p.npz", "--epochs", 1, "--output", tmp_path / "c").returncode == 0
    report = tmp_path / "r.html"
    done = run("evaluate", tmp_path / "c" / "latest.onnx", tmp_path / "p.npz", "--group-by", "group", "--report", report)
    assert done.returncode == 0, done.stderr
    assert report.stat().st_size < MOST_BYTES
    shown = document_of(report)
    assert shown["n_groups"] == 5000
    assert {len(each["group"]) for each in shown["groups"]} == {256}


def test_names_of_markup_stay_inside_the_json(hostile):
    assert MARKUP not in hostile.read_text()
    assert hostile.read_text().count("</script>") == hostile.read_text().count("<script")
    shown = document_of(hostile)
    assert {each["group"] for each in shown["groups"]} == {f"{MARKUP}{i}" for i in range(3)}
    assert all(each["job_id"].startswith(MARKUP) for each in shown["worst"])


def shown_of(document):
    page = render(document).decode()
    return json.loads(re.search(r'id="document">(.*?)</script>', page, flags=re.DOTALL)[1])


def test_characters_that_would_not_be_seen_are_escaped_and_others_are_not():
    names = [UNSEEN, "\udcff", "العربية", "ni\u200cm", "naïve – ok", r"C:\new"]
    assert shown_of({"names": names}) == {"names": [UNSEEN_SHOWN, r"\udcff", *names[2:]]}


def test_figures_that_are_not_finite_are_none():
    assert shown_of({"a": [math.inf, 1.5], "b": {"c": math.nan}}) == {"a": [None, 1.5], "b": {"c": None}}


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("nowhere/r.html", "nowhere is not a directory"),
        (".", "is a directory; the report needs a file"),
        ("pairs.jsonl", "is an input of this command"),
        ("/dev/full", "/dev/full: cannot be written: not a regular file"),
        ("c", "is a directory; the report needs a file"),
        ("n" * 251, "cannot be written: File name too long"),
        ("c/latest.onnx", "belongs to a checkpoint"),
        ("model_v000001.json", "belongs to a checkpoint"),
    ],
)
def test_a_report_that_cannot_be_written_stops_before_training(tmp_path, random_rows, write_lines, report, message):
    write_lines(random_rows(100))
    before = tree(tmp_path)
    done = run("train-offline", tmp_path / "pairs.jsonl", "--output", tmp_path / "c", "--report", tmp_path / report)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert tree(tmp_path) == before


def test_a_report_beside_the_checkpoint_is_written_into_the_directory_that_the_run_makes(tmp_path, random_rows, write_lines):
    pairs, output = write_lines(random_rows(60)), tmp_path / "new" / "c"
    assert run("train-offline", pairs, "--epochs", 1, "--output", output, "--report", output / "r.html").returncode == 0
    assert document_of(output / "r.html")["data"]["pairs"] == 60


def test_a_link_is_followed_and_stays(tmp_path, random_rows, write_lines):
    pairs, link = write_lines(random_rows(60)), tmp_path / "latest.html"
    link.symlink_to("today.html")
    assert run("train-offline", pairs, "--epochs", 1, "--output", tmp_path / "c", "--report", link).returncode == 0
    assert link.readlink().name == "today.html"
    assert document_of(tmp_path / "today.html")["data"]["pairs"] == 60


def test_a_full_disk_is_one_line_and_leaves_the_report_that_was_there(tmp_path, random_rows, write_lines):
    pairs, disk = write_lines(random_rows(60)), tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    try:
        (disk / "r.html").write_text("before")
        done = run("train-offline", pairs, "--epochs", 1, "--output", tmp_path / "c", "--report", disk / "r.html")
        assert done.returncode == 2
        said = f"Error: {disk}/r.html: No space left on device; the checkpoint was published without a report\n"
        assert done.stderr == said
        assert tree(disk) == {"r.html": b"before"}
    finally:
        subprocess.run(["umount", disk], check=True)
    assert (tmp_path / "c" / "latest.onnx").exists()


def test_what_can_be_read_but_once_has_no_digest(tmp_path, random_rows, write_lines):
    pairs, pipe = write_lines(random_rows(60)), tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(pairs.read_bytes()))
    writer.start()
    arguments = ("--epochs", 1, "--output", tmp_path / "c", "--report", tmp_path / "r.html")
    assert run("train-offline", pipe, *arguments).returncode == 0
    writer.join()
    assert document_of(tmp_path / "r.html")["data"]["files"] == [{"path": str(pipe), "pairs": 60}]


def test_nothing_is_taken_from_the_json_of_another_model(trained, tmp_path):
    directory, _ = trained
    for suffix, source in (("onnx", "base"), ("json", "c")):
        (tmp_path / f"m.{suffix}").write_bytes((directory / source / f"model_v000001.{suffix}").read_bytes())
    assert run("evaluate", tmp_path / "m.onnx", EXAMPLE, "--report", tmp_path / "r.html").returncode == 0
    assert model_of(tmp_path / "r.html")["model"].keys() == {"file", "SHA-256", "JSON beside it"}


ROW = {"model": "this model", "on": "held-out pairs", "pairs": 40, "plcc": 0.9, "rmse": 2.0, "winsorized_rmse": 1.0}


@pytest.mark.parametrize(
    ("gate", "compared"),
    [
        ({"compared": [ROW | {"limits": {"rmse": 3}}]}, [ROW | {"limits": {"rmse": 3}}]),
        ({"compared": [ROW | {"plcc": None, "on": UNSEEN}]}, [ROW | {"plcc": ..., "on": UNSEEN_SHOWN, "limits": {}}]),
        ({"compared": [3, {}, {"model": 3, "on": "x"}, ROW | {"rmse": "2", "pairs": True, "limits": [3]}]},
         [ROW | {"rmse": ..., "pairs": ..., "limits": {}}]),
        ({"compared": {"model": "x"}}, []),
        ([], []),
    ],
)  # fmt: skip
def test_of_what_the_gate_compared_only_what_is_well_formed_is_shown(trained, tmp_path, gate, compared):
    directory, said = trained
    (tmp_path / "m.onnx").write_bytes((directory / "c" / "model_v000001.onnx").read_bytes())
    (tmp_path / "m.json").write_text(json.dumps({"sha256": said["sha256"], "gate": gate}))
    assert run("evaluate", tmp_path / "m.onnx", EXAMPLE, "--report", tmp_path / "r.html").returncode == 0
    expected = [{name: value for name, value in row.items() if value is not ...} for row in compared]
    assert model_of(tmp_path / "r.html")["compared"] == expected


def test_features_are_named_by_the_header_of_a_csv(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(100, 2))
    lines = [f"{a},{b},{50 + 10 * a:.4f}" for a, b in rows]
    (tmp_path / "p.csv").write_text("\n".join(["vif,<b>motion</b>,true_score", *lines]) + "\n")
    arguments = ("--epochs", 50, "--output", tmp_path / "c", "--report", tmp_path / "r.html", "--features", "vif,<b>motion</b>")
    assert run("train-offline", tmp_path / "p.csv", *arguments).returncode == 0
    assert [each["name"] for each in document_of(tmp_path / "r.html")["features"]] == ["vif", "<b>motion</b>"]


def test_features_are_named_by_the_model_where_no_json_is_beside_it(validated, tmp_path):
    report, _ = validated
    (tmp_path / "m.onnx").write_bytes((report.parent / "c" / "latest.onnx").read_bytes())
    assert run("evaluate", tmp_path / "m.onnx", EXAMPLE, "--report", tmp_path / "r.html").returncode == 0
    names = NAMES.read_text().strip().split(",")
    assert sorted(each["name"] for each in document_of(tmp_path / "r.html")["features"]) == sorted(names)


def test_numbers_of_an_encoder_are_named_among_the_features(tmp_path):
    rng = np.random.default_rng(0)
    features, crf = rng.normal(size=100), rng.integers(0, 64, size=100)
    lines = [f"{x},libx264,{c},{50 + x - c / 4:.4f}" for x, c in zip(features, crf, strict=True)]
    (tmp_path / "p.csv").write_text("\n".join(["adm2,encoder,crf,vmaf", *lines]) + "\n")
    names = ["adm2", "encoder_onehot[libx264]", "crf_norm"]
    model = to_bytes(Network(3, (Dense(np.array([[1, 0, -60]], np.float32), np.array([50], np.float32)),)))
    (tmp_path / "m.onnx").write_bytes(model)
    layout = {"encoder_vocab": ["libx264"], "codec_block_layout": names[1:], "feature_order": names[:1]}
    (tmp_path / "m.json").write_text(json.dumps(layout))
    done = run("evaluate", tmp_path / "m.onnx", tmp_path / "p.csv", "--report", tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    assert [each["name"] for each in document_of(tmp_path / "r.html")["features"]] == ["crf_norm", *names[1::-1]]


def judged(count=600):
    """Predictions by a model that knows the first of three features alone, in two groups."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(count, 3)).astype(np.float32)
    true = (50 + 10 * features[:, 0] + features[:, 1]).astype(np.float32)
    group = (np.arange(count) % 2).astype(np.int32)
    pairs = RecordedPairs(features, true, np.zeros(count), group, ["even", "odd"], job=[f"j{i}" for i in range(count)])
    predict = lambda x: 50 + 10 * x[:, 0]  # noqa: E731
    return Judged(pairs, np.arange(count), predict(features), [Model(predict, np.arange(count))])


def test_importance_is_the_growth_of_rmse_and_nothing_for_a_feature_that_is_not_used():
    found, n_pairs = importance(judged())
    assert n_pairs == 600
    assert found[0] == pytest.approx(10 * 2**0.5, rel=0.15)  # the difference of two independent values
    assert found[1] == found[2] == pytest.approx(0, abs=1e-6)


def test_importance_exchanges_values_among_all_pairs_whichever_model_they_are_judged_by():
    one = judged()
    alone = [Model(one.models[0].predict, np.array([row])) for row in range(600)]
    assert importance(Judged(one.pairs, one.rows, one.predicted, alone))[0] == pytest.approx(importance(one)[0])


def test_importance_takes_a_million_predictions_at_most():
    taken = 0

    def predict(features):
        nonlocal taken
        taken += len(features)
        return features[:, 0]

    rng = np.random.default_rng(0)
    pairs = RecordedPairs(rng.normal(size=(5000, 300)).astype(np.float32), np.zeros(5000, np.float32), np.zeros(5000))
    rows = np.arange(5000)
    _, n_pairs = importance(Judged(pairs, rows, pairs.features[:, 0], [Model(predict, rows[:9]), Model(predict, rows[9:])]))
    assert 500_000 < taken - n_pairs <= 1_000_000


def test_residuals_by_group_and_by_score_cover_every_pair():
    one = judged()
    for parts in (by_group(one, 9)[0], by_score(one, 0, 100)):
        assert sum(part["pairs"] for part in parts) == 600
        assert sum(part["pairs"] * part["mean"] for part in parts) == pytest.approx(one.residuals.sum())
    even = next(part for part in by_group(one, 9)[0] if part["group"] == "even")
    assert even["rmse"] == pytest.approx(rmse(one.predicted[::2], one.true[::2]))
    assert worst(one)[0]["job_id"] == f"j{np.argmax(np.abs(one.residuals))}"


def test_job_ids_are_kept_only_where_they_are_asked_for(write_lines, random_rows):
    path = write_lines(random_rows(20))
    assert read_pairs([path]).job == []
    assert read_pairs([path, path], names=True).job == [f"j{i}" for i in range(20)] * 2
    assert read_pairs([path, path]).file_pairs == [20, 20]


# In a browser.


def drawn(chromium, path, **how):
    """Open a report and wait for its charts."""
    chromium.open(path.as_uri(), **how)
    chromium.wait("[...document.querySelectorAll('.chart')].every(c => c.querySelector('svg[role=img]'))")


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (400, True)])
def test_it_opens_without_a_word_on_the_console_or_a_request(chromium, trained, width, dark):
    report = trained[0] / "report.html"
    drawn(chromium, report, width=width, dark=dark)
    assert chromium.console() == []
    assert chromium.requests() == [report.as_uri()]
    assert chromium.ask("document.documentElement.scrollWidth") <= width


def test_intervals_and_what_they_cover(chromium, trained, tmp_path):
    directory, said = trained
    table = said["intervals"]
    drawn(chromium, directory / "report.html")
    shown = chromium.ask("document.getElementById('intervals').innerText")
    assert f"Made from {table['pairs']} pairs of {table['groups']} held-out encodes; on unseen clips" in shown
    cells = "[...document.querySelectorAll('#intervals td')].map(each => each.textContent)"
    widths = zip(*table["half_widths"].values(), strict=True)
    assert chromium.ask(cells) == [cell for x, at in zip(table["predicted"], widths, strict=True)
                                   for cell in (f"{x:.5g}", *(f"{each:.3f}" for each in at))]  # fmt: skip
    evaluated = tmp_path / "evaluated.html"
    done = run("evaluate", directory / "c" / "latest.onnx", EXAMPLE, "--held-out", "--report", evaluated, "--json")
    covered = json.loads(done.stdout)["intervals"]["coverage"]
    drawn(chromium, evaluated)
    shown = chromium.ask(cells)
    for each in covered.values():
        figures = [f"{each[name]:.3f}" for name in ("covered", "by_group", "lowest", "width")]
        start = shown.index(figures[0])
        assert shown[start : start + 5] == [*figures, "240"]
    assert chromium.violations() == []


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_axe_finds_nothing(chromium, trained, width, dark):
    drawn(chromium, trained[0] / "report.html", width=width, dark=dark)
    assert chromium.violations() == []


def test_charts_have_marks_and_texts_in_their_place(chromium, trained):
    directory, said = trained
    drawn(chromium, directory / "report.html")
    marks = "[...document.querySelectorAll('#{} svg[role=img]')].map(s => s.querySelectorAll('{}').length)"
    for section, chart in (("predictions", "predicted"), ("scores", "residual")):
        document = document_of(directory / "report.html")
        shown = {**document, **document["models"][0]}[chart]
        assert len(shown["points"]) + sum(pairs for _, _, pairs in shown["cells"]) == said["pairs"]["held_out"]
        assert chromium.ask(marks.format(section, "[aria-label=rect] > *")) == [len(shown["cells"])]
        assert chromium.ask(marks.format(section, '[aria-label=dot] > :not([stroke-opacity="0"])')) == [len(shown["points"])]
    assert chromium.ask(marks.format("training", "[aria-label=line] path")) == [2, 2]
    fills = chromium.ask("[...document.querySelectorAll('#training [aria-label=dot] > *')].map(e => e.getAttribute('fill'))")
    assert set(fills) == {"var(--series-1)", "var(--series-2)"}
    assert chromium.ask(marks.format("features", "[aria-label=bar] rect")) == [20]
    calibration = model_of(directory / "report.html")["calibration"]
    assert chromium.ask(marks.format("calibration", "[aria-label=dot] > *")) == [len(calibration)]
    assert chromium.ask(marks.format("calibration", "[aria-label=rect] > *")) == [
        sum(each["band"] is not None for each in calibration)
    ]
    labels = chromium.ask("[...document.querySelectorAll('.chart svg[role=img]')].map(s => s.getAttribute('aria-label'))")
    assert len(labels) == 8
    assert all(labels)
    assert chromium.ask("[...document.querySelectorAll('figure:has(> .chart)')].every(f => f.querySelector('figcaption'))")


@pytest.fixture(scope="module")
def of_groups(trained, tmp_path_factory):
    """Gives a report on pairs in so many groups of much the same size."""
    directory = tmp_path_factory.mktemp("groups")
    rows = [json.loads(line) for line in gzip.decompress(EXAMPLE.read_bytes()).splitlines()]

    def report(count):
        pairs, made = directory / f"{count}.jsonl", directory / f"{count}.html"
        pairs.write_text("".join(json.dumps({**row, "g": f"group {i % count}"}) + "\n" for i, row in enumerate(rows)))
        done = run("evaluate", trained[0] / "c" / "latest.onnx", pairs, "--group-by", "g", "--report", made)
        assert done.returncode == 0, done.stderr
        return made

    return report


@pytest.mark.parametrize("count", [2, 7, 8, 30])
def test_groups_are_told_apart_the_worst_six_where_there_are_many(chromium, of_groups, count):
    report = of_groups(count)
    drawn(chromium, report)
    worst_first = [each["group"] for each in document_of(report)["groups"]]
    legend = chromium.ask(
        "[...document.querySelectorAll('#predictions [class$=-swatch]:not(.cells-swatch)')].map(s => s.textContent)"
    )
    assert legend == (worst_first if count <= 7 else [*worst_first[:6], "all others"])
    assert (
        chromium.ask("new Set([...document.querySelectorAll('#predictions [class$=-swatch]')].map(s => s.offsetTop)).size") < 4
    )
    colours = "[...document.querySelectorAll('#scores [aria-label=dot] > *')].map(e => e.getAttribute('stroke'))"
    seen = set(chromium.ask(colours))
    assert len(seen) == len(legend)
    assert all(each.startswith("var(--") for each in seen)
    assert chromium.ask("document.querySelectorAll('#groups [aria-label=bar] rect').length") == count
    assert chromium.ask("document.querySelectorAll('#groups table')[0].tBodies[0].rows.length") == count


def test_a_logarithmic_axis_has_a_label_at_each_tick(chromium, trained):
    drawn(chromium, trained[0] / "report.html")
    series = "[{name: 'a', points: [{x: 0, y: 0.3}, {x: 1, y: 25}]}]"
    made = f"Charts.lines(600, {series}, {{x: 'x', y: 'y', log: true}})"
    labels = "[aria-label='y-axis tick label'] text"
    assert chromium.ask(f'[...{made}.querySelectorAll("{labels}")].map(t => t.textContent)') == [
        "0.2", "0.5", "1", "2", "5", "10", "20", "50",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [1400, 400])
def test_predicted_and_true_scores_have_the_same_scale(chromium, trained, width):
    drawn(chromium, trained[0] / "report.html", width=width)
    ticks = "[...document.querySelectorAll('#predictions [aria-label=\"{0}-axis tick label\"] text')]"
    place = ".map(t => [Number(t.textContent), t.getBoundingClientRect()]).map(([n, r]) => [n, r.{1} + r.{2} / 2])"
    per_point = []
    for axis, start, size in (("x", "x", "width"), ("y", "y", "height")):
        places = chromium.ask((ticks + place).format(axis, start, size))
        (low, low_at), (high, high_at) = min(places), max(places)
        per_point.append(abs(high_at - low_at) / (high - low))
    assert per_point[0] == pytest.approx(per_point[1], rel=0.01)


@pytest.mark.parametrize("scores", [[50.0] * 60, [50.0]])
def test_charts_of_one_value_have_axes_and_marks(chromium, tmp_path, random_rows, write_lines, scores):
    pairs = write_lines([{**row, "true_score": score} for row, score in zip(random_rows(len(scores)), scores, strict=True)])
    arguments = ("--epochs", 3, "--holdout", 0, "--output", tmp_path / "c", "--report", tmp_path / "r.html")
    assert run("train-offline", pairs, *arguments).returncode == 0
    drawn(chromium, tmp_path / "r.html")
    assert chromium.console() == []
    assert chromium.ask("[...document.querySelectorAll('svg *')].every(e => !e.outerHTML.includes('NaN'))")
    for chart in ("predictions", "scores"):
        marks = chromium.ask(f"document.querySelectorAll('#{chart} :is([aria-label=dot], [aria-label=rect]) > *').length")
        assert 0 < marks <= len(scores)
        assert chromium.ask(f"document.querySelectorAll('#{chart} [aria-label=\"x-axis tick label\"] text').length") > 2


def cells_of(chromium, section, table=0):
    """The texts in a table of a section, row by row."""
    rows = f"document.querySelectorAll('#{section} table')[{table}].tBodies[0].rows"
    return chromium.ask(f"[...{rows}].map(r => [...r.cells].map(c => c.textContent))")


def figures(found):
    return [
        f"{found['plcc']:.5f}", f"{found['srocc']:.5f}", f"{found['rmse']:.3f}", f"{found['winsorized_rmse']:.3f}",
        f"{found['pairs']:,}",
    ]  # fmt: skip


def test_the_numbers_shown_are_those_of_json(chromium, trained):
    directory, said = trained
    drawn(chromium, directory / "report.html")
    names = {"base": "base model", "live": "live", "ema": "EMA"}
    for table, place in enumerate(("held_out", "train")):
        kinds = said["metrics"][place]
        assert cells_of(chromium, "result", table) == [[names[kind], *figures(found)] for kind, found in kinds.items()]
    tiles = chromium.ask("[...document.querySelectorAll('#result .tiles dd')].map(e => e.textContent)")
    assert tiles == [figures(said["metrics"]["held_out"]["ema"])[n] for n in (0, 1, 2, 4)]
    assert said["sha256"] in chromium.ask("document.getElementById('model').textContent")


def test_what_the_gate_compared_is_a_table_with_the_limits(chromium, trained):
    directory, said = trained
    drawn(chromium, directory / "report.html")
    assert said["gate"]["reason"] in chromium.ask("document.getElementById('gate').textContent")
    about = json.loads((directory / "c" / "model_v000001.json").read_text())
    own, base = about["gate"]["compared"]
    caption = chromium.ask("document.querySelector('#gate caption').textContent")
    assert caption == f"On held-out pairs, 240 pairs: {said['gate']['verdict']}"
    limits = own["limits"]
    assert cells_of(chromium, "gate") == [
        ["this model", *(figures(own | {"srocc": 0})[n] for n in (0, 2, 3))],
        ["limit", f"≥ {limits['plcc']:.5f}", f"≤ {limits['rmse']:.3f}", f"≤ {limits['winsorized_rmse']:.3f}"],
        [base["model"], *(figures(base | {"srocc": 0})[n] for n in (0, 2, 3))],
    ]


def test_what_the_gate_found_too_high_is_marked_on_each_set(chromium, trained, tmp_path):
    directory, said = trained
    anchor = ROW | {"on": "anchor", "verdict": "unstable", "limits": {"plcc": 0.95, "rmse": 1.5, "winsorized_rmse": 1.5}}
    gate = {"verdict": "unstable", "reason": "as told", "compared": [ROW | {"verdict": "stable"}, anchor]}
    (tmp_path / "m.onnx").write_bytes((directory / "c" / "model_v000001.onnx").read_bytes())
    (tmp_path / "m.json").write_text(json.dumps({"sha256": said["sha256"], "gate": gate}))
    assert run("evaluate", tmp_path / "m.onnx", EXAMPLE, "--report", tmp_path / "r.html").returncode == 0
    drawn(chromium, tmp_path / "r.html")
    captions = chromium.ask("[...document.querySelectorAll('#gate caption')].map(e => e.textContent)")
    assert captions == ["On held-out pairs, 40 pairs: stable", "On anchor, 40 pairs: unstable"]
    assert cells_of(chromium, "gate", 0) == [["this model", "0.90000", "2.000", "1.000"]]
    assert cells_of(chromium, "gate", 1)[0] == ["this model", "0.90000 (too low)", "2.000 (too high)", "1.000"]


def test_figures_of_cross_validation_and_of_the_published_model_are_apart(chromium, validated):
    report, said = validated
    drawn(chromium, report)
    assert chromium.ask("[...document.querySelectorAll('#result h3')].map(e => e.textContent)") == [
        "Cross-validated",
        "The published model",
    ]
    tiles = chromium.ask("[...document.querySelectorAll('#result .tiles dd')].map(e => e.textContent)")
    assert tiles == [
        *(f"{said['loso'][f'pooled_{name}']:.{d}f}" for name, d in (("plcc", 5), ("srocc", 5), ("rmse", 3))),
        "2,496",
        "8",
    ]
    captions = chromium.ask("[...document.querySelectorAll('#result caption')].map(e => e.textContent)")
    assert captions[1] == "On its own training pairs: how well it fits them, no validation"
    marks = chromium.ask("[...document.querySelectorAll('h2 .mark')].map(e => e.textContent)")
    assert set(marks) == {"cross-validated"}
    assert chromium.ask("document.querySelectorAll('#predictions h2 .mark').length") == 1


@pytest.mark.parametrize("trained_on", ["all", "some"])
def test_a_fit_is_never_shown_as_a_validation(chromium, trained, tmp_path, random_rows, write_lines, trained_on):
    report = tmp_path / "r.html"
    if trained_on == "all":
        options = ("--epochs", 1, "--holdout", 0, "--output", tmp_path / "c", "--report", report)
        assert run("train-offline", write_lines(random_rows(80)), *options).returncode == 0
    else:
        assert run("evaluate", trained[0] / "c" / "latest.onnx", EXAMPLE, "--report", report).returncode == 0
    drawn(chromium, report)
    said = document_of(report)["said"]
    label = "training pairs, no validation" if trained_on == "all" else "2,256 of 2,496 pairs were trained on"
    marks = chromium.ask("[...document.querySelectorAll('h2 .mark.bad')].map(e => e.textContent)")
    assert len(marks) == chromium.ask("document.querySelectorAll('h2 .mark').length") >= 4
    assert set(marks) == {label}
    tiles = chromium.ask("[...document.querySelectorAll('#result .tiles dd')].map(e => e.textContent)")
    assert tiles == ([] if trained_on == "all" else [figures(said["not_trained_on"])[n] for n in (0, 1, 2, 4)])
    assert ("no validation" if trained_on == "all" else "flatter") in chromium.ask(
        "document.querySelector('#result').textContent"
    )


def test_markup_in_names_is_shown_as_text(chromium, hostile):
    drawn(chromium, hostile)
    assert chromium.console() == []
    assert chromium.ask("document.querySelectorAll('img').length") == 0
    for section, name in (("worst", MARKUP), ("groups", MARKUP), ("data", MARKUP_IN_A_NAME), ("model", MARKUP_IN_A_NAME)):
        assert name in chromium.ask(f"document.getElementById('{section}').textContent")
    assert UNSEEN_SHOWN in chromium.ask("document.getElementById('worst').textContent")


def test_a_keyboard_reaches_every_section_and_what_is_folded(chromium, trained):
    from selenium.webdriver.common.keys import Keys

    drawn(chromium, trained[0] / "report.html")
    body = chromium.driver.find_element("tag name", "body")
    reached = []
    for _ in range(60):
        body.send_keys(Keys.TAB)
        reached.append(chromium.ask("document.activeElement.getAttribute('href') ?? document.activeElement.localName"))
    sections = chromium.ask("[...document.querySelectorAll('main > section')].map(s => '#' + s.id)")
    assert {"#content", *sections, "summary"} <= set(reached)
    assert chromium.ask(
        "[...document.querySelectorAll('table')].every(t => t.caption && t.tHead.querySelector('th[scope=col]'))"
    )


def test_the_arrow_keys_go_through_the_values_of_each_chart(chromium, validated):
    from selenium.webdriver.common.keys import Keys

    report, _ = validated
    drawn(chromium, report)
    charts = chromium.driver.find_elements("css selector", ".chart")
    said = {}
    for chart in charts:
        section = chromium.driver.execute_script("arguments[0].focus(); return arguments[0].closest('section').id", chart)
        for key in (Keys.END, Keys.HOME, Keys.ARROW_RIGHT):
            chart.send_keys(key)
        words = chromium.driver.execute_script("return arguments[0].querySelector('[aria-live]').textContent", chart)
        tip = chromium.driver.execute_script("return arguments[0].querySelectorAll('[aria-label=tip] text').length", chart)
        assert (words != "", tip) == (True, 1), section
        said[section] = words
    assert {"training", "predictions", "groups", "scores", "calibration", "features"} <= said.keys()
    shown = document_of(report)
    second = shown["models"][0]["calibration"][1]
    assert f"pairs {second['pairs']:,}; groups {second['groups']}" in said["calibration"]
    assert f"name {shown['groups'][1]['group']}; " in said["groups"]
    assert f"name {shown['features'][1]['name']}; " in said["features"]
    charts[0].send_keys(Keys.END)
    before = chromium.ask("document.querySelector('.chart [aria-live]').textContent")
    chromium.resize(1000, 1000)  # draws it again
    chromium.wait("document.querySelector('.chart svg[role=img]').getAttribute('width') < 500")
    assert chromium.ask("document.querySelector('.chart [aria-label=tip] text') !== null")
    assert chromium.ask("document.querySelector('.chart [aria-live]').textContent") == before
    charts[0].send_keys(Keys.TAB)
    chromium.wait("!document.querySelector('[aria-label=tip] text')")


def test_a_wide_table_scrolls_in_its_box_and_keeps_its_first_column(chromium, validated):
    from selenium.webdriver.common.keys import Keys

    drawn(chromium, validated[0], width=400)
    box = chromium.driver.find_element("css selector", "#groups .scrolls")
    chromium.driver.execute_script("arguments[0].focus()", box)
    for _ in range(30):
        box.send_keys(Keys.ARROW_RIGHT)
    chromium.wait(
        "(box => box.scrollLeft + box.clientWidth >= box.scrollWidth - 1)(document.querySelector('#groups .scrolls'))"
    )
    cells = "[...document.querySelectorAll('#groups tbody tr:first-child > *')].map(c => c.getBoundingClientRect())"
    first, last = chromium.ask(f"(cells => [cells[0].left, cells.at(-1).right])({cells})")
    assert 0 <= first < last <= 400


def test_paper_is_white(chromium, trained):
    drawn(chromium, trained[0] / "report.html", dark=True)
    assert chromium.driver.print_page()
    chromium.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    background = chromium.ask("getComputedStyle(document.documentElement).backgroundColor")
    chromium.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert background == "rgb(255, 255, 255)"


def test_what_is_folded_is_on_paper(chromium, trained):
    drawn(chromium, trained[0] / "report.html")
    opened = "document.querySelectorAll('details[open]').length"
    chromium.driver.execute_script("addEventListener('beforeprint', () => { window.unfolded = " + opened + "; })")
    assert chromium.driver.print_page()
    assert (chromium.ask("window.unfolded"), chromium.ask(opened)) == (3, 0)


def test_firefox_shows_it_too(another_browser, validated):
    another_browser.open(validated[0].as_uri(), width=400)
    another_browser.wait("[...document.querySelectorAll('.chart')].every(c => c.querySelector('svg[role=img]'))")
    assert another_browser.ask("document.documentElement.scrollWidth") <= 400
    assert another_browser.console == []
