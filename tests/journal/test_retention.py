"""Closed segments: compressed where there is room, deleted when they are too old or too much."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

import sidecar.journal.retention as retention_module
from sidecar.journal.retention import SURE_S, Retention, compress_closed
from sidecar.journal.segments import JournalError, journal_segments, read_journal
from tests.journal.test_writer import journal_at, lines, pair, segments


def test_closed_segments_are_gzipped_and_read_the_same(tmp_path):
    segments(tmp_path, [3, 2])
    journal = journal_at(tmp_path)
    journal.append([pair(5)])
    before = lines(tmp_path)
    compress_closed(tmp_path, 0)
    journal.append([pair(6)])
    journal.close()
    assert [path.suffix for path in journal_segments(tmp_path)] == [".gz", ".jsonl"]
    assert lines(tmp_path) == [*before, (6, pair(6))]
    compress_closed(tmp_path, 0)
    assert [path.suffix for path in journal_segments(tmp_path)] == [".gz", ".jsonl"]


def test_after_closed_segments_alone_the_next_pair_begins_another(tmp_path):
    segments(tmp_path, [3, 1])
    compress_closed(tmp_path, 0)
    journal_segments(tmp_path)[-1].unlink()
    journal = journal_at(tmp_path)
    journal.append([pair(3)])
    journal.close()
    assert lines(tmp_path) == [(number, pair(number)) for number in range(4)]


@pytest.mark.parametrize("leftover", ["000000000000.jsonl.gz", ".tmp-000000000000.jsonl.gz"])
def test_what_a_crash_left_of_compressing_is_removed(tmp_path, leftover):
    segments(tmp_path, [2, 1])
    (tmp_path / "journal" / leftover).write_bytes(b"half")
    assert lines(tmp_path) == [(number, pair(number)) for number in range(3)]
    journal_at(tmp_path).close()
    assert not (tmp_path / "journal" / leftover).exists()


def test_compressing_needs_no_room_that_pairs_need_and_leaves_nothing_behind(tmp_path, monkeypatch):
    segments(tmp_path, [3, 2])
    before = sorted(path.name for path in (tmp_path / "journal").iterdir())
    monkeypatch.setattr(retention_module.os, "statvfs", lambda path: SimpleNamespace(f_bavail=10, f_frsize=1))
    compress_closed(tmp_path, 0)
    monkeypatch.undo()

    def full(stream, pieces):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(retention_module, "write_gzipped", full)
        with pytest.raises(OSError, match="No space"):
            compress_closed(tmp_path, 0)
    assert sorted(path.name for path in (tmp_path / "journal").iterdir()) == before


def test_a_damaged_segment_is_not_compressed(tmp_path):
    segments(tmp_path, [3, 2])
    path = journal_segments(tmp_path)[0]
    damaged = path.read_bytes().replace(pair(1), pair(9))
    path.write_bytes(damaged)
    compress_closed(tmp_path, 0)
    assert path.read_bytes() == damaged
    assert len([*path.parent.iterdir()]) == 2


def test_retention_goes_by_age_and_by_bytes_and_keeps_what_is_needed(tmp_path):
    segments(tmp_path, [2, 2, 2, 2])
    paths = journal_segments(tmp_path)
    for path, mtime in zip(paths, (100, 200, 300, 400), strict=True):
        os.utime(path, (mtime, mtime))
    each = paths[0].stat().st_size
    day = 86400

    def prune(needed_from, days=0.0, max_bytes=0, wall=0.0):
        retention = Retention(tmp_path, days, max_bytes)
        assert retention.prune(needed_from, wall, 0.0) == [] or max_bytes
        return retention.prune(needed_from, wall, SURE_S)

    assert prune(1, days=1, wall=1000 + day) == []
    assert prune(8) == []
    assert prune(8, days=1, wall=150 + day) == paths[:1]
    assert Retention(tmp_path, 0, 2 * each).prune(8, 0, 0) == paths[1:2]
    assert Retention(tmp_path, 1, 1).prune(8, 1000 + day, 0) == paths[2:3]
    with pytest.raises(JournalError, match="begins at position 6; pairs from 4 on are needed, and retention has removed them"):
        list(read_journal(tmp_path, 4))
    assert lines(tmp_path, 6) == [(6, pair(6)), (7, pair(7))]


def test_a_clock_that_jumps_deletes_nothing_until_it_has_said_so_for_an_hour(tmp_path):
    segments(tmp_path, [2, 2])
    now = journal_segments(tmp_path)[0].stat().st_mtime
    retention, years = Retention(tmp_path, 90, 0), 10 * 365 * 86400
    assert retention.prune(4, now, 0) == []
    for minute in range(50):
        assert retention.prune(4, now + years, 60 * minute) == []
    assert retention.prune(4, now, 3000) == []  # it is right again
    assert retention.prune(4, now + years, 4000) == []
    assert len(retention.prune(4, now + years, 4000 + SURE_S)) == 1
