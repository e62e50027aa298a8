"""What is seen of the checkpoint directory while it serves."""

from __future__ import annotations

import errno
import os

from sidecar.checkpoints.directory import LATEST, STABLE, publish
from sidecar.serve.directory_watch import DirectoryWatch


def test_what_cannot_be_read_now_is_as_it_was_at_the_last_look(tmp_path, monkeypatch, caplog):
    publish(tmp_path, b"model", {})
    watch = DirectoryWatch(tmp_path, holds_state=False)
    assert watch.look() == {LATEST: 1, STABLE: None}
    stat = os.stat

    def stale(path, **options):
        if str(path).endswith(".onnx"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", stale)
    assert watch.look() == {LATEST: 1, STABLE: None}
    assert f"{tmp_path}: Stale file handle; looking again" in caplog.text
    monkeypatch.undo()
    publish(tmp_path, b"model", {}, stable=True)
    assert watch.look() == {LATEST: 2, STABLE: 2}
