"""What is found to be wrong: the same as by the alerts, in the log when it begins and when it ends, and in `/status`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from sidecar.monitoring.status import Status
from sidecar.monitoring.status_document import STATUS_BYTES, encode_status, status_document
from sidecar.monitoring.verdict.findings import Findings
from sidecar.monitoring.verdict.rules import RULES
from sidecar.settings import Settings
from tests.conftest import ROOT
from tests.monitoring import statuses

yaml = pytest.importorskip("yaml", reason="pip install pyyaml")

FULL = replace(statuses.FULL, degraded=(), base_refused="")
"""With nothing wrong."""
CASES = yaml.load((ROOT / "tests" / "chart" / "alerts.test.yaml").read_text(), yaml.BaseLoader)["tests"]
"""What promtool is asked about the alerts; BaseLoader, since 0x10 is no number there."""


# The same series, to the alerts and to the program


def samples(text: str) -> list[float]:
    """What promtool makes of a series: `a+bxn` is a and n more, each b higher; `axn` is a and n more."""
    found = []
    for each in text.split():
        start, step, more = re.fullmatch(r"([\d.]+)(?:\+([\d.]+))?(?:x(\d+))?", each).groups()
        found += [float(start) + float(step or 0) * number for number in range(int(more or 0) + 1)]
    return found


def fields_of(series: dict[str, str], minute: int) -> dict[str, Any]:
    """The part of a status that a series tells of, at a minute."""
    name, label, labelled = re.match(
        r'vmafx_training_(\w+)\{.*?(?:(result|stage|gate|phase)="(\w+)"|\})', series["series"]
    ).groups()
    values = samples(series["values"])
    value = values[min(minute, len(values) - 1)]
    if label == "phase":
        return {"phase": labelled if value else "running"}
    counter = name.endswith("_total")
    return {name.removesuffix("_total"): {labelled: int(value)} if label else int(value) if counter else value}


def merged(series: list[dict[str, str]], minute: int) -> Status:
    known: dict[str, Any] = {}
    for each in series:
        for field, value in fields_of(each, minute).items():
            if field == "degraded_files":
                known["degraded"] = ("damaged",) * int(value)
            elif field == "base_model_refused":
                known["base_refused"] = "it has other features" if value else ""
            else:
                known[field] = known.get(field, {}) | value if isinstance(value, dict) else value
    return Status(**known)


def asked(case: dict[str, Any]) -> Iterator[tuple[str, int, set[str]]]:
    """Alert, minute, and the pods for which it fires then."""
    for each in case.get("alert_rule_test", []):
        yield each["alertname"], int(each["eval_time"][:-1]), {one["exp_labels"]["pod"] for one in each["exp_alerts"]}
    for each in case.get("promql_expr_test", []):
        alert = re.search('alertname="(\\w+)"', each["expr"])[1]
        yield alert, int(each["eval_time"][:-1]), {re.search('pod="(.)"', one["labels"])[1] for one in each["exp_samples"]}


SEEN_FROM_INSIDE = [case for case in CASES if "vmafx_" in case["input_series"][0]["series"]]


@pytest.mark.parametrize("case", SEEN_FROM_INSIDE, ids=[case["name"] for case in SEEN_FROM_INSIDE])
def test_the_program_finds_what_the_alerts_do(case):
    pods: dict[str, list[dict[str, str]]] = {}
    for series in case["input_series"]:
        if "elsewhere" not in series["series"]:
            pods.setdefault(re.search('pod="(.)"', series["series"])[1], []).append(series)
    questions = list(asked(case))
    firing: dict[tuple[str, int], set[str]] = {}
    for pod, series in pods.items():
        findings = Findings(Settings())
        for minute in range(max(minute for _, minute, _ in questions) + 1):
            found = findings.look(merged(series, minute), 60.0 * minute, 0.0)
            firing[pod, minute] = {each.alert for each in found if each.firing}
    for alert, minute, expected in questions:
        assert {pod for pod in pods if alert in firing[pod, minute]} == expected, (alert, minute)


def test_every_rule_of_the_inside_is_among_them():
    tried = {alert for case in SEEN_FROM_INSIDE for alert, _, _ in asked(case)}
    assert tried == {rule.alert for rule in RULES} - {"VmafxTrainingDown", "VmafxTrainingRestarts"}


# Beginning and end


def look(findings, status, clock):
    """While pairs arrive; the first second is 10⁹ seconds after the epoch."""
    return findings.look(replace(status, pairs={"accepted": int(clock)}), float(clock), 1e9 + clock)


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "sidecar.monitoring.verdict.findings")
    return caplog


def test_what_is_wrong_is_in_the_log_once_when_it_begins_and_once_when_it_ends(log):
    findings, reversed_order = Findings(Settings()), replace(FULL, feature_drift=9.0)
    (pending,) = look(findings, reversed_order, 100.0)
    assert (pending.firing, pending.since, pending.alert_at) == (False, 1e9 + 100, 1e9 + 700)
    assert not log.records
    for clock in (699.0, 700.0, 701.0, 5000.0):
        (finding,) = look(findings, reversed_order, clock)
        assert (finding.firing, finding.since) == (clock >= 700, 1e9 + 100)
    (begun,) = log.records
    assert (begun.levelname, begun.message) == ("WARNING", finding.what)
    assert begun.fields == {"alert": "VmafxTrainingFeatureDrift", "detail": "adm2", "do": finding.do}
    assert look(findings, FULL, 5001.0) == ()
    look(findings, FULL, 5002.0)
    ended = log.records[-1]
    assert len(log.records) == 2
    assert (ended.levelname, ended.message, ended.fields["seconds"]) == ("INFO", f"no longer: {finding.what}", 4901)


def test_what_has_not_lasted_is_not_in_the_log(log):
    findings = Findings(Settings())
    look(findings, replace(FULL, feature_drift=9.0), 0.0)
    look(findings, FULL, 599.0)
    (again,) = look(findings, replace(FULL, feature_drift=9.0), 601.0)
    assert (again.since, again.firing) == (1e9 + 601, False)
    assert not log.records


def test_the_worst_comes_first_and_what_has_not_lasted_last(log):
    findings = Findings(Settings(journal_max_bytes=10))
    wrong = replace(FULL, phase="paused", feature_drift=4.0)
    look(findings, replace(wrong, feature_drift=0.0), 0.0)
    found = look(findings, wrong, 1000.0)
    assert [each.alert.removeprefix("VmafxTraining") for each in found] == ["Paused", "JournalNearLimit", "FeatureDrift"]
    assert [record.levelname for record in log.records] == ["WARNING", "INFO"]


def test_counters_are_remembered_for_the_longest_window_and_no_longer():
    findings = Findings(Settings(checkpoint_interval=86400.0))
    before = replace(FULL, checkpoints={"stable": 1})
    worse = replace(FULL, checkpoints={"stable": 1, "unstable": 3})
    look(findings, before, 0.0)
    for clock in range(600, 9 * 86400, 600):
        found = look(findings, worse, clock)
        assert bool(found) == (clock < 6 * 86400 + 1440), clock  # it may be one sample longer
    assert all(len(span._samples) <= 362 for span in findings._past._spans)


def test_without_a_limit_no_journal_is_near_it():
    assert Findings(Settings(journal_max_bytes=0)).look(replace(FULL, journal_bytes=1 << 60), 0.0, 0.0) == ()


# In /status


def test_status_tells_the_worst_and_what_to_do_and_stays_within_its_size():
    findings = Findings(Settings(journal_max_bytes=10))
    wrong = replace(
        FULL, phase="paused", reason="é" * 500, feature_drift=9.0, drifting_feature="é" * 500, prequential_rmse=90.0
    )
    wrong = replace(wrong, prequential_constant_rmse=20.0)
    look(findings, wrong, 0.0)
    wrong = replace(wrong, findings=look(findings, wrong, 1000.0))
    assert len(wrong.findings) == 4
    document = status_document(wrong)
    assert [each["alert"] for each in document["findings"]] == [
        f"VmafxTraining{name}" for name in ("Paused", "FeatureDrift", "Inaccurate")
    ]
    assert ["do" in each for each in document["findings"]] == [True, False, False]
    assert document["findings"][2]["since"] == "2001-09-09T01:46:40Z"
    assert "alert_at" not in document["findings"][2]
    body = encode_status(document)
    assert len(body) <= STATUS_BYTES
    assert b"model_version" in body
    assert "findings" not in status_document(FULL)
