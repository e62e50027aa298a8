"""Certificates for a Dask cluster, and the journals of many pods."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest

from tests.conftest import EXAMPLE
from tests.journals import write_journal


@pytest.fixture
def certificates(tmp_path, monkeypatch):
    """An authority, and one certificate of it for all sides, in Dask's configuration."""
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for command in (
        ("req", "-x509", *curve, "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem"),
        ("req", *curve, "-subj", "/CN=fleet", "-keyout", "fleet.key", "-out", "fleet.csr"),
        ("x509", "-req", "-in", "fleet.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
         "-out", "fleet.pem"),
    ):  # fmt: skip
        subprocess.run(["openssl", *command], cwd=tmp_path, check=True, capture_output=True)
    found = {"CA_FILE": tmp_path / "ca.pem"}
    for role in ("CLIENT", "SCHEDULER", "WORKER"):
        found |= {f"{role}__CERT": tmp_path / "fleet.pem", f"{role}__KEY": tmp_path / "fleet.key"}
    for name, path in found.items():
        monkeypatch.setenv(f"DASK_DISTRIBUTED__COMM__TLS__{name}", str(path))
    pytest.importorskip("dask.config").refresh()


@pytest.fixture
def journals(tmp_path) -> list[Path]:
    """The state directories of six pods, with 2,496 pairs in each of eight segments."""
    rows = gzip.decompress(EXAMPLE.read_bytes()).splitlines()
    names = [f"{at * len(rows):012d}.jsonl.gz" for at in range(8)]
    return [write_journal(tmp_path / f"pod-{number}", dict.fromkeys(names, rows)) for number in range(6)]
