"""The page on predicting in Python says what `LiveModel` does."""

from __future__ import annotations

import contextlib
import inspect
import io
import re

import prometheus_client

from onnx_builder.write import to_bytes
from sidecar import LiveModel
from sidecar.consumer.metrics import Metrics
from tests.conftest import ROOT
from tests.consumer.published import constant, publish_model

PAGE = (ROOT / "docs" / "python.md").read_text()


def test_the_example_predicts_with_the_stable_model(tmp_path):
    base = tmp_path / "base.onnx"
    base.write_bytes(to_bytes(constant(10, width=80)))
    publish_model(tmp_path / "online", constant(50, width=80))
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    code = code.replace("/mnt/vmafx-models/online", str(tmp_path / "online"))
    code = code.replace("/mnt/vmafx-models/base/model.onnx", str(base))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, {})
    assert said.getvalue() == "model_v000001 [50.4]\n"


def test_the_table_has_every_argument_with_its_default():
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| `?([^|`]+)`? \| ", PAGE, flags=re.MULTILINE))
    defaults = {
        name: each.default
        for name, each in inspect.signature(LiveModel).parameters.items()
        if name not in ("source", "version")
    }
    assert rows.keys() == defaults.keys()
    for name, default in defaults.items():
        if default is not None:
            assert type(default)(rows[name]) == default


def test_the_table_has_every_metric_and_result():
    registry = prometheus_client.CollectorRegistry()
    Metrics(registry)
    families = {family.name: family for family in registry.collect()}
    assert {name.removesuffix("_total") for name in re.findall(r"^\| `(vmafx_\w+)", PAGE, flags=re.MULTILINE)} == {*families}
    samples = families["vmafx_model_checkpoint_swaps"].samples
    results = {sample.labels["result"] for sample in samples if sample.name.endswith("_total")}
    (row,) = (line for line in PAGE.splitlines() if "swaps_total" in line)
    assert {*re.findall(r"`(\w+)`: ", row)} == results
