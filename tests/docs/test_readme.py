"""The README says what the program does, wherever it is displayed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sidecar.cli.main import cli
from sidecar.settings import Settings
from tests.conftest import EXAMPLE, ROOT
from tests.running import free_address, unhurried

README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Homepage"]
LINKS = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", README)
PATIENCE_S = 60


def file_of(url: str) -> Path | None:
    """The file or folder of this repository that an address of the project leads to; None for any other address."""
    found = re.fullmatch(rf"{re.escape(REPOSITORY)}/(blob|tree|raw)/main/([^#]+)(?:#.*)?", url)
    return ROOT / found[2] if found else None


def test_it_is_short():
    assert len(README.splitlines()) <= 160


def test_links_and_pictures_work_where_there_is_no_repository():
    assert len(LINKS) > 12
    for picture, url in LINKS:
        assert url.startswith("https://"), url
        assert f"{REPOSITORY}/{'raw' if picture else 'blob'}/main/" in url or not url.startswith(REPOSITORY), url


def test_links_and_pictures_of_the_project_lead_to_files():
    for url in [*(url for _, url in LINKS), *PROJECT["urls"].values()]:
        if url.startswith(f"{REPOSITORY}/") and url != f"{REPOSITORY}/issues":
            file = file_of(url)
            assert file is not None, url
            assert file.exists(), url


def test_settings_that_the_text_names_exist():
    assert set(re.findall(r"VMAFX_[A-Z_]+", README)) <= {each.metadata["env"] for each in dataclasses.fields(Settings)}


def test_every_command_stands_in_the_readme():
    assert set(re.findall(r"^\| `vmafx-sidecar ([a-z-]+)[ `]", README, flags=re.MULTILINE)) == set(cli.commands)


def test_the_five_commands_work_one_after_the_other(tmp_path):
    """As they stand there, but for the paths of the example pairs and of the socket, and the address of HTTP."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    text = README.replace("/tmp/s.sock", str(tmp_path / "s.sock"))
    commands = [line.split() for line in re.findall(r"^    (vmafx-sidecar .*)$", text, flags=re.MULTILINE)]
    assert [words[1] for words in commands] == ["train-offline", "serve", "replay", "status", "evaluate"]
    environment = {**os.environ, "VMAFX_SIDECAR_HTTP": free_address(), "PYTHONPATH": str(ROOT)}
    started = {"cwd": tmp_path, "env": environment, "text": True}
    said = {}
    with contextlib.ExitStack() as stack:
        for _, name, *arguments in commands:
            command = [*(unhurried() if name == "serve" else (sys.executable, "-m", "sidecar")), name, *arguments]
            if name == "serve":
                server = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, **started))
                stack.callback(server.kill)
                for line in server.stderr:
                    if " listening " in line:
                        break
                continue
            if name == "evaluate":
                server.send_signal(signal.SIGINT)  # Ctrl-C
                server.communicate(timeout=PATIENCE_S)
                assert server.returncode == 0
            done = subprocess.run(command, capture_output=True, timeout=5 * PATIENCE_S, check=False, **started)
            assert done.returncode == 0, done.stderr
            said[name] = done.stdout
    for line in re.findall(r"^    ((?:gate|parity|checkpoint).*)$", README, flags=re.MULTILINE):
        assert line.partition(" ")[0] in said["train-offline"]
    assert said["replay"].startswith("2496 accepted, 0 duplicates, 0 refused")
    assert "evaluated" in said["evaluate"]
    assert "trained on" not in said["evaluate"]


def python_example(name: str) -> str:
    (found,) = (each for each in re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL) if name in each)
    return found


def test_the_regressor_of_the_example_publishes_a_checkpoint(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    code = python_example("VmafRegressor").replace("examples/recorded-80.jsonl.gz", str(EXAMPLE))
    code = code.replace("VmafRegressor(", "VmafRegressor(epochs=5, ")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, {})
    assert said.getvalue() == "checkpoints/model_v000001.onnx\n"


def test_the_python_example_delivers_its_pair(serve):
    example = python_example("FeedbackClient")
    sidecar = serve()
    sidecar.connect()
    code = example.replace("/tmp/s.sock", str(sidecar.socket_path))
    assert code != example
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, {})
    assert said.getvalue() == "1 delivered, 0 dropped\n"


def test_the_values_for_helm_are_allowed():
    yaml, jsonschema = pytest.importorskip("yaml"), pytest.importorskip("jsonschema")
    (values,) = re.findall(r"^```yaml\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    chart = ROOT / "deploy" / "helm" / "vmafx-sidecar"
    trainer = yaml.safe_load((chart / "values.yaml").read_text())["sidecar"]["trainer"]
    trainer |= yaml.safe_load(values)["sidecar"]["trainer"]
    assert trainer["enabled"]
    jsonschema.validate({"sidecar": {"trainer": trainer}}, json.loads((chart / "values.schema.json").read_text()))
