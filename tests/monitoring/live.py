"""A running sidecar's HTTP, and its checkpoint directory, for tests of what looks at them."""

from __future__ import annotations

import http.client
import json
from datetime import datetime

import pytest

from sidecar.network.address import parse_address
from tests.running import PATIENCE_S

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


def told_of_one_checkpoint(address, directory):
    """Which checkpoint `/status` tells of, whose time it has to tell, too; None before the first."""
    told = ask_json(address, "/status")
    name = told.get("model_version")
    assert (name is None) == ("last_checkpoint_time" not in told)
    if name is not None:
        created = datetime.fromisoformat(json.loads((directory / f"{name}.json").read_text())["created_at"])
        assert datetime.fromisoformat(told["last_checkpoint_time"]) == created.replace(microsecond=0)
    return name


def ask_json(address, path):
    code, _, body = ask(address, path)
    assert code == 200
    return strict_json(body)


def write_checkpoint(directory, version, about):
    name = f"model_v{version:06d}"
    (directory / f"{name}.json").write_text(about if isinstance(about, str) else json.dumps(about))
    (directory / f"{name}.onnx").touch()
    return name


GOOD = {
    "created_at": "2026-01-01T00:00:00+00:00", "gate": {"verdict": "stable", "reason": "good"}, "sha256": "ab" * 32, "step": 4,
    "metrics": {"plcc": 0.99, "srocc": 0.98, "rmse": 1.5, "pairs": 40}, "pairs_seen": 16, "base_model": {"path": "m.onnx"},
}  # fmt: skip
