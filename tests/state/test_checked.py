"""Checked files: every flipped bit is known, a newer format is no damage, and an error that may pass is neither."""

from __future__ import annotations

import os

import pytest

import sidecar.state.checked as checked_module
from sidecar.state.checked import DamagedError, NewerFormatError, read_checked, write_checked


def test_what_was_written_is_read(tmp_path):
    for payload in (b"", b"\n", b"any bytes \x00\xff\n" * 100):
        write_checked(tmp_path / "file", "anchor", payload)
        assert read_checked(tmp_path / "file", "anchor") == payload
    assert (tmp_path / "file").read_bytes().startswith(b"#vmafx-sidecar anchor 1 000000001300 ")


def test_every_flipped_bit_and_every_cut_is_known(tmp_path):
    path = tmp_path / "file"
    write_checked(path, "published", b"1234\n")
    data = path.read_bytes()
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(DamagedError):
                read_checked(path, "published")
        path.write_bytes(data[:at])
        with pytest.raises(DamagedError):
            read_checked(path, "published")
    path.write_bytes(data + b"x")
    with pytest.raises(DamagedError):
        read_checked(path, "published")


def test_a_file_of_another_kind_in_its_place_is_damage(tmp_path):
    write_checked(tmp_path / "file", "anchor", b"1")
    with pytest.raises(DamagedError, match="it is of kind anchor; expected snapshot"):
        read_checked(tmp_path / "file", "snapshot")


def test_a_newer_format_is_told_and_is_no_damage(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checked_module, "FORMAT", 2)
        write_checked(tmp_path / "file", "anchor", b"1")
    with pytest.raises(NewerFormatError, match="state of format 2; this program knows up to 1: use a newer one"):
        read_checked(tmp_path / "file", "anchor")


@pytest.mark.parametrize("plant", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/hostname", path)])
def test_what_is_planted_in_its_place_is_not_read_and_not_waited_for(tmp_path, plant):
    plant(tmp_path / "file")
    with pytest.raises(OSError, match="file"):
        read_checked(tmp_path / "file", "anchor")
