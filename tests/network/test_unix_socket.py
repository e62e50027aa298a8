"""The listening Unix socket."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from sidecar.network.unix_socket import ListenError, listen


def test_one_that_accepts_nobody_any_more_is_left_alone_and_not_waited_for(tmp_path):
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(ListenError, match=f"socket {path}: another sidecar answers there"):
            listen(path, 0o600)


def test_where_no_socket_can_be_made_the_error_names_the_path(tmp_path, monkeypatch):
    def no_more(*arguments):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socket", no_more)
    with pytest.raises(ListenError, match=f"socket {tmp_path / 's.sock'}: Too many open files"):
        listen(tmp_path / "s.sock", 0o600)
