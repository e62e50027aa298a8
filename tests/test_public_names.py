"""What the package gives to programs in Python, and that importing it changes nothing there."""

from __future__ import annotations

import doctest
import subprocess
import sys

import pytest

import sidecar
from tests.client.fake_sidecar import OK, FakeSidecar, answers
from tests.conftest import EXAMPLE, ROOT
from tests.consumer.published import constant, publish_model

PUBLIC = ["FeedbackClient", "LiveModel", "VmafRegressor", "read_pairs"]


def python(code: str, *arguments: object) -> str:
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_public_names_are_the_contracts():
    assert sorted(sidecar.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(sidecar))
    for name in PUBLIC:
        assert getattr(sidecar, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        sidecar.Trainer  # noqa: B018


@pytest.mark.parametrize("names", ["", *PUBLIC, ", ".join(PUBLIC)])
def test_importing_changes_nothing_in_the_process(names):
    imports = f"from sidecar import {names}" if names else "import sidecar"
    before = "import os, signal, sys, threading, logging, socket, warnings\n"
    if "VmafRegressor" in names:  # scikit-learn sets variables and filters of its own
        before += "import sklearn.base, sklearn.utils.validation\n"
    look = (
        "(dict(os.environ), [signal.getsignal(n) for n in signal.valid_signals()], threading.active_count(),"
        " sys.getswitchinterval(), logging.root.handlers, logging.root.level, socket.getdefaulttimeout(), warnings.filters)"
    )
    assert python(f"{before}before = {look}\n{imports}\nprint(before == {look})") == "True\n"


def test_importing_the_package_alone_loads_nothing_heavy():
    assert python("import sys, sidecar; print({'numpy', 'onnx', 'onnxruntime', 'msgspec'} & set(sys.modules))") == "set()\n"


@pytest.mark.parametrize(
    ("imports", "found"),
    [("from sidecar import FeedbackClient, read_pairs", "None None"), ("import sidecar.cli.main", "1 1")],
)
def test_only_the_command_sets_the_number_of_blas_threads_and_turns_telemetry_off(imports, found):
    names = ("OPENBLAS_NUM_THREADS", "ORT_DISABLE_TELEMETRY")
    forget = f"import os; [os.environ.pop(name, None) for name in {names}]"
    assert python(f"{forget}; {imports}; print(*[os.environ.get(name) for name in {names}])") == f"{found}\n"


def test_a_session_of_onnxruntime_turns_its_telemetry_off(monkeypatch, base):
    import onnxruntime

    from onnx_builder.runtime import Scorer
    from onnx_builder.write import to_bytes

    asked = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: asked.append(True))
    Scorer(to_bytes(base))
    assert asked == [True]


@pytest.mark.parametrize("package", ["sidecar", "onnx_builder"])
def test_the_packages_are_typed(package):
    assert (ROOT / package / "py.typed").exists()


def test_a_program_that_uses_the_public_names_passes_a_strict_type_check(tmp_path):
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text((ROOT / "examples" / "send_pairs.py").read_text())
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path / "cache"), str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    program.write_text(program.read_text().replace("float(score)", "'a text'"))
    assert subprocess.run(command, capture_output=True, check=False, cwd=tmp_path).returncode == 1


def test_the_example_delivers_the_recorded_pairs(serve):
    running = serve().connect()
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "send_pairs.py", EXAMPLE, running.socket_path], capture_output=True, text=True
    )
    assert done.stdout == "2496 pairs delivered, 0 dropped\n", done.stderr
    assert running.stop() == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_the_examples_in_the_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "s.sock"
    with FakeSidecar(path, answers(OK)):
        publish_model(tmp_path / "online", constant(50))
        text = getattr(sidecar, name).__doc__.replace("/tmp/vmafx-sidecar.sock", str(path))
        text = text.replace("/mnt/vmafx-models/online", str(tmp_path / "online"))
        example = doctest.DocTestParser().get_doctest(text, {name: getattr(sidecar, name)}, name, None, None)
        assert example.examples
        assert doctest.DocTestRunner().run(example).failed == 0
