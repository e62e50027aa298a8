"""The README says what the program does."""

from __future__ import annotations

import dataclasses
import re

from sidecar.cli.main import cli
from sidecar.cli.train import train_offline_command
from sidecar.settings import Settings
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_every_training_option_stands_in_the_table_with_its_default():
    table = dict(re.findall(r"^\| `(--[a-z-]+)` \| (.*?) \|", README, flags=re.MULTILINE))
    options = {option.opts[0]: option for option in train_offline_command.params if option.opts[0].startswith("--")}
    assert table.keys() == options.keys() - {"--json"}
    for name, stated in table.items():
        default = options[name].default
        if isinstance(default, float | int) and not isinstance(default, bool):
            assert float(stated) == default, name
        elif isinstance(default, str):
            assert stated == f"`{default}`", name


def test_every_setting_of_serve_stands_in_the_table():
    """docs/configuration.md has the other columns, and a test of its own."""
    rows = re.findall(r"^\| `(VMAFX_\w+)` \| (?:`(\w+)`|–) \| (.*?) \|$", README, flags=re.MULTILINE)
    table = [(each.metadata["env"], each.metadata["helm"] or "") for each in dataclasses.fields(Settings)]
    assert [row[:2] for row in rows] == table
    for (env, _, stated), each in zip(rows, dataclasses.fields(Settings), strict=True):
        if "otherwise" in each.metadata:
            assert stated.strip("`") == each.metadata["otherwise"]
        else:
            assert each.metadata["kind"].parse(stated.strip("`")) == each.default, env


def test_settings_that_the_text_names_exist():
    assert set(re.findall(r"VMAFX_[A-Z_]+", README)) == {each.metadata["env"] for each in dataclasses.fields(Settings)}


def test_every_command_stands_in_the_readme():
    assert set(re.findall(r"^\| `vmafx-sidecar ([a-z-]+)[ `]", README, flags=re.MULTILINE)) == set(cli.commands)


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
