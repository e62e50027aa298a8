"""The pages in docs/ say what the program does."""

from __future__ import annotations

import dataclasses
import gzip
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.cli.main import cli
from sidecar.cli.train import train_offline_command
from sidecar.client.feedback_client import _metrics
from sidecar.monitoring.prometheus import metric_families
from sidecar.monitoring.status import Status, TenantFigures
from sidecar.settings import Settings, option_of
from tests.conftest import EXAMPLE, ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
OTHER_PAGES = [
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "examples" / "README.md",
]
ARCHITECTURE, CONFIGURATION, OPERATIONS, SECURITY, TRAINING = (
    (ROOT / "docs" / f"{name}.md").read_text()
    for name in ("architecture", "configuration", "operations", "security", "training")
)
UNITS = {"MiB": 1 << 20, "KiB": 1 << 10, "MB": 1_000_000}


def test_the_page_of_settings_is_current():
    done = subprocess.run([sys.executable, ROOT / "docs" / "configuration.py"], capture_output=True, text=True, check=True)
    assert done.stdout == CONFIGURATION, "python docs/configuration.py > docs/configuration.md"


def test_the_page_of_settings_has_each_once_as_the_program_reads_it():
    cells = r"^\| `(VMAFX_\w+)` \| `(--.*?)` \| (?:`(\w+)`|–) \| (.*?) \| (.*?) \| (.*?) \|$"
    rows = {row[0]: row[1:] for row in re.findall(cells, CONFIGURATION, flags=re.MULTILINE)}
    assert CONFIGURATION.count("\n| `VMAFX_") == len(rows) == len(dataclasses.fields(Settings))
    for each in dataclasses.fields(Settings):
        about, (options, helm, default, allowed, meaning) = each.metadata, rows[each.metadata["env"]]
        assert options.split("`, `") == [option for option in (option_of(each.name), about.get("also")) if option]
        assert (helm, allowed) == (about["helm"] or "", about["kind"].allowed)
        assert meaning == about["help"]
        if "otherwise" in about:
            assert default.strip("`") == about["otherwise"]
        else:
            assert about["kind"].parse(default.strip("`")) == each.default, each.name


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES, *OTHER_PAGES], ids=lambda page: page.name)
def test_settings_that_a_page_names_exist(page):
    known = {each.metadata["env"] for each in dataclasses.fields(Settings)}
    assert set(re.findall(r"VMAFX_[A-Z_]+[A-Z]", page.read_text())) <= known


def test_every_training_option_stands_in_the_table_with_its_default():
    rows = {
        tuple(re.findall(r"`(--[a-z-]+)`", names)): default
        for names, default in re.findall(r"^\| (`--.*?) \| (.*?) \|", TRAINING, flags=re.MULTILINE)
    }
    options = [
        option for option in train_offline_command.params if option.opts[0].startswith("--") and option.name != "as_json"
    ]
    assert len(rows) == len(options)
    for option in options:
        (stated,) = (default for names, default in rows.items() if set(option.opts) == set(names))
        default = option.default
        if isinstance(default, float | int) and not isinstance(default, bool):
            assert float(stated) == default, option.name
        elif isinstance(default, str):
            assert stated == f"`{default}`", option.name


def test_every_metric_is_explained_and_no_other():
    # A value that is not there yet is not exported.
    errors = ("loss", *(f"prequential_{figure}" for figure in ("rmse", "winsorized_rmse", "constant_rmse", "plcc")))
    gauges = (*errors, "feature_drift", "feature_distance", "step_seconds", "checkpoint_time")
    status = Status(
        version=1, tenants=(TenantFigures("a", 60, 2.0, 1.0, True),), tenant_pairs={"head": 1}, **dict.fromkeys(gauges, 0.5)
    )
    exported = {family.name + ("_total" if family.type == "counter" else "") for family in metric_families(status, True)}
    assert set(re.findall(r"^\| `(vmafx_training_\w+)", OPERATIONS, flags=re.MULTILINE)) == exported
    clients = {f"{counter.describe()[0].name}_total" for counter in _metrics(None)}
    assert set(re.findall(r"vmafx_training_\w+", OPERATIONS)) == exported | clients


def test_every_alert_is_explained_and_no_other():
    rules = (ROOT / "deploy" / "helm" / "vmafx-sidecar" / "templates" / "prometheusrule.yaml").read_text()
    alerts = set(re.findall(r"- alert: (\w+)", rules))
    assert len(alerts) > 8
    assert set(re.findall(r"^\| `(Vmafx\w+)`", OPERATIONS, flags=re.MULTILINE)) == alerts


def test_the_limits_are_the_programs():
    rows = re.findall(r"^\| .* \| ([\d.,]+)(?: (\w+))? \| `([\w.]+)` \|$", SECURITY, flags=re.MULTILINE)
    assert len(rows) == len(re.findall(r"^\| .* `(?:sidecar|onnx_builder)\.", SECURITY, flags=re.MULTILINE)) > 15
    for number, unit, constant in rows:
        stated = float(number.replace(",", "")) * UNITS.get(unit, 1)
        assert stated == pkgutil.resolve_name(constant), constant


def contents(page: Path, heading: str) -> str:
    """What is below a heading of the second level."""
    return re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", page.read_text(), flags=re.MULTILINE | re.DOTALL)[1]


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES], ids=lambda page: f"{page.parent.name}/{page.name}")
def test_files_that_a_page_names_exist(page):
    places = "sidecar|onnx_builder|tests|docs|deploy|benchmarks|examples|tools|\\.ci"
    for path in re.findall(rf"`((?:{places})/[\w./-]*)", page.read_text()):
        assert (ROOT / path.partition("::")[0]).exists(), path


def test_contributors_find_every_folder():
    first_cells = re.findall(r"^\| (.*?) \|", contents(ROOT / "CONTRIBUTING.md", "Layout"), flags=re.MULTILINE)
    named = {name for cell in first_cells for name in re.findall(r"`([\w/]+)/`", cell)}
    folders = {file.parent for file in [*(ROOT / "sidecar").rglob("*.py"), *(ROOT / "sidecar").rglob("*.html")]}
    assert {str(folder.relative_to(ROOT)) for folder in folders} - {"sidecar"} <= named


def test_each_question_of_contributors_is_answered_by_one_file():
    rows = re.findall(
        r"^\| (.*\?) \| `([\w/.]+)` \|$", contents(ROOT / "CONTRIBUTING.md", "Where is it decided that …"), flags=re.M
    )
    assert len(rows) == len(set(rows)) >= 20
    assert all((ROOT / path).is_file() for _, path in rows)


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES], ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_lead_to_files_and_headings_and_commands_exist(page):
    text = page.read_text()
    for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
        file = page.parent / target if target else page
        assert file.exists(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE) if heading else []
        assert not heading or heading in {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}, heading
    for command in re.findall(r"^    vmafx-sidecar ([a-z-]+)", text, flags=re.MULTILINE):
        assert command in cli.commands, command


def test_the_commands_of_operations_work_one_after_the_other(serve, tmp_path):
    """As they stand there, after a sidecar that has had some of the example's pairs."""
    base, online = tmp_path / "none.onnx", tmp_path / "online"
    sidecar = serve(base_model=base, checkpoint_dir=online).connect()
    sidecar.send(gzip.decompress(EXAMPLE.read_bytes()).splitlines()[:500])
    assert sidecar.stop() == 0
    commands = re.findall(r"^    ((?:vmafx-sidecar|cp|mv) .*)$", OPERATIONS, flags=re.MULTILINE)
    assert len(commands) > 5
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = "\n".join(commands)
    done = subprocess.run(
        ["sh", "-exc", script], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "stable.onnx now points to model_v000001" in done.stdout
    assert re.search(r": [1-9]\d* pairs deleted", done.stdout)
    again = serve(base_model=base, checkpoint_dir=online).connect()  # from what was put back
    assert again.stop() == 0
    again.logged("recovered position=500")


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES if f"docs/{page.name}" not in readme] == []
