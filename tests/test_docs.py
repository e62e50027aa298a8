"""The pages in docs/ say what the program does."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from sidecar.cli import cli
from sidecar.exposition import metric_families
from sidecar.status import Status
from tests.conftest import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def test_the_page_of_settings_is_current():
    done = subprocess.run([sys.executable, ROOT / "docs" / "configuration.py"], capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "configuration.md").read_text() == done.stdout


def test_every_metric_is_explained_and_no_other():
    # A value that is not there yet is not exported.
    gauges = ("loss", "prequential_rmse", "prequential_plcc", "feature_drift", "step_seconds", "checkpoint_time")
    status = Status(version=1, **dict.fromkeys(gauges, 0.5))
    exported = {family.name + ("_total" if family.type == "counter" else "") for family in metric_families(status)}
    assert set(re.findall(r"^\| `(vmafx_training_\w+)", OPERATIONS, flags=re.MULTILINE)) == exported


def test_every_alert_is_explained_and_no_other():
    rules = (ROOT / "deploy" / "helm" / "vmafx-sidecar" / "templates" / "prometheusrule.yaml").read_text()
    alerts = set(re.findall(r"- alert: (\w+)", rules))
    assert len(alerts) > 8
    assert set(re.findall(r"^\| `(Vmafx\w+)`", OPERATIONS, flags=re.MULTILINE)) == alerts


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_commands_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    for command in re.findall(r"^    vmafx-sidecar ([a-z-]+)", text, flags=re.MULTILINE):
        assert command in cli.commands, command


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES if f"docs/{page.name}" not in readme] == []
