"""The journal: what was appended is there again, what was torn is not, and a failed write leaves no trace."""

from __future__ import annotations

import gzip
import os

import pytest

import sidecar.journal.writer as journal_module
from sidecar.journal.retention import compress_closed, prune
from sidecar.journal.segments import Entry, JournalError, journal_segments, read_journal
from sidecar.journal.writer import Journal


def pair(number):
    return b'{"features": [%d], "true_score": 1}' % number


def lines(state, start=0):
    return [(entry.position, entry.line) for entry in read_journal(state, start) if entry.run is None]


def segments(state, sizes):
    """A journal of segments of so many pairs."""
    journal, number = Journal(state), 0
    for size in sizes:
        journal.append([pair(number + i) for i in range(size)])
        number += size
        journal.roll()
    journal.close()


def test_what_was_appended_is_there_again_with_its_positions(tmp_path):
    journal = Journal(tmp_path)
    journal.append_run({"seed": 3})
    journal.append([pair(0), pair(1)])
    journal.append_run({"seed": 4})
    journal.append([pair(2)])
    assert journal.position == 3
    journal.close()
    assert list(read_journal(tmp_path)) == [
        Entry(0, None, {"seed": 3}), Entry(0, pair(0)), Entry(1, pair(1)), Entry(2, None, {"seed": 4}), Entry(2, pair(2)),
    ]  # fmt: skip
    assert Journal(tmp_path).position == 3


def test_where_there_is_no_journal_there_is_nothing_to_read(tmp_path):
    assert list(read_journal(tmp_path)) == []


def test_reading_begins_where_it_is_asked_to(tmp_path):
    segments(tmp_path, [3, 2, 4])
    assert [path.name for path in journal_segments(tmp_path)] == [
        "000000000000.jsonl",
        "000000000003.jsonl",
        "000000000005.jsonl",
    ]
    assert lines(tmp_path, 4) == [(position, pair(position)) for position in range(4, 9)]
    assert lines(tmp_path, 9) == []


@pytest.mark.parametrize("torn", [b"{", pair(2), b"#run {", b"#gon"])
def test_a_torn_last_line_was_never_answered_and_is_cut_off(tmp_path, torn):
    segments(tmp_path, [2])
    with (tmp_path / "journal" / "000000000000.jsonl").open("ab") as stream:
        stream.write(torn)
    assert lines(tmp_path) == [(0, pair(0)), (1, pair(1))]
    journal = Journal(tmp_path)
    assert journal.position == 2
    journal.append([pair(7)])
    journal.close()
    assert lines(tmp_path) == [(0, pair(0)), (1, pair(1)), (2, pair(7))]


def test_a_torn_line_longer_than_a_read_is_cut_off(tmp_path):
    segments(tmp_path, [1])
    with (tmp_path / "journal" / "000000000000.jsonl").open("ab") as stream:
        stream.write(b"x" * (3 << 20))
    journal = Journal(tmp_path)
    journal.close()
    assert (tmp_path / "journal" / "000000000000.jsonl").read_bytes() == pair(0) + b"\n"


def test_a_forgotten_pair_keeps_its_position(tmp_path):
    segments(tmp_path, [3])
    path = tmp_path / "journal" / "000000000000.jsonl"
    path.write_bytes(path.read_bytes().replace(pair(1), b"#gone"))
    assert lines(tmp_path) == [(0, pair(0)), (1, None), (2, pair(2))]
    assert Journal(tmp_path).position == 3


def test_segments_are_closed_by_size(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 100)
    journal = Journal(tmp_path)
    for number in range(12):
        journal.append([pair(number)])
    journal.close()
    assert len(journal_segments(tmp_path)) == 4
    assert lines(tmp_path) == [(number, pair(number)) for number in range(12)]
    assert journal.disk_bytes == sum(path.stat().st_size for path in journal_segments(tmp_path))


def test_closed_segments_are_gzipped_and_read_the_same(tmp_path):
    segments(tmp_path, [3, 2])
    journal = Journal(tmp_path)
    journal.append([pair(5)])
    before = lines(tmp_path)
    compress_closed(tmp_path)
    journal.append([pair(6)])
    journal.close()
    assert [path.suffix for path in journal_segments(tmp_path)] == [".gz", ".jsonl"]
    assert lines(tmp_path) == [*before, (6, pair(6))]
    compress_closed(tmp_path)
    assert [path.suffix for path in journal_segments(tmp_path)] == [".gz", ".jsonl"]


def test_after_closed_segments_alone_the_next_pair_begins_another(tmp_path):
    segments(tmp_path, [3])
    path = tmp_path / "journal" / "000000000000.jsonl"
    (tmp_path / "journal" / "000000000000.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    journal = Journal(tmp_path)
    journal.append([pair(3)])
    journal.close()
    assert lines(tmp_path) == [(number, pair(number)) for number in range(4)]


@pytest.mark.parametrize("leftover", ["000000000000.jsonl.gz", "000000000000.jsonl.gz.tmp"])
def test_what_a_crash_left_of_compressing_is_removed(tmp_path, leftover):
    segments(tmp_path, [2, 1])
    (tmp_path / "journal" / leftover).write_bytes(b"half")
    assert lines(tmp_path) == [(number, pair(number)) for number in range(3)]
    Journal(tmp_path).close()
    assert not (tmp_path / "journal" / leftover).exists()


def fail(monkeypatch, *names):
    """These calls of the operating system fail as on a full disk."""

    def full(*arguments):
        raise OSError(28, "No space left on device")

    for name in names:
        monkeypatch.setattr(journal_module.os, name, full)


def test_a_write_that_fails_half_way_is_undone(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.append([pair(0)])
    real = os.pwrite
    calls = []

    def short_then_full(descriptor, data, offset):
        calls.append(len(data))
        if len(calls) == 1:
            return real(descriptor, bytes(data)[:5], offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal_module.os, "pwrite", short_then_full)
    with pytest.raises(JournalError, match="journal: no space left on device"):
        journal.append([pair(1), pair(2)])
    monkeypatch.undo()
    assert journal.position == 1
    journal.append([pair(3)])
    journal.close()
    assert lines(tmp_path) == [(0, pair(0)), (1, pair(3))]


def test_an_fsync_that_fails_is_undone_too(tmp_path, monkeypatch):
    journal = Journal(tmp_path, fsync="always")
    journal.append([pair(0)])
    with monkeypatch.context() as patch:
        fail(patch, "fsync")
        with pytest.raises(JournalError):
            journal.append([pair(1)])
    assert lines(tmp_path) == [(0, pair(0))]


def test_where_it_cannot_be_undone_nothing_is_accepted_until_a_restart(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.append([pair(0)])
    with monkeypatch.context() as patch:
        fail(patch, "pwrite", "ftruncate")
        with pytest.raises(JournalError):
            journal.append([pair(1)])
    with pytest.raises(JournalError, match="restart the sidecar"):
        journal.append([pair(2)])
    journal.close()
    again = Journal(tmp_path)
    again.append([pair(2)])
    again.close()
    assert lines(tmp_path) == [(0, pair(0)), (1, pair(2))]


@pytest.mark.parametrize(("fsync", "at_append"), [("always", 1), ("everysec", 0), ("never", 0)])
def test_always_brings_each_append_to_disk_and_the_others_leave_it_to_a_syncer(tmp_path, monkeypatch, fsync, at_append):
    synced = []
    journal = Journal(tmp_path, fsync=fsync)
    journal.append([pair(0)])
    monkeypatch.setattr(journal_module.os, "fsync", lambda descriptor: synced.append(descriptor))
    journal.append([pair(1)])
    assert len(synced) == at_append
    sync = journal.syncer()
    if sync is not None:
        sync()
    assert len(synced) == 1
    assert journal.syncer() is None


def test_what_could_not_be_brought_to_disk_is_written_again_before_anything_else(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.append([pair(0)])
    journal.syncer()()
    journal.append([pair(1), pair(2)])
    with monkeypatch.context() as patch:
        fail(patch, "fsync")
        with pytest.raises(OSError, match="No space") as failed:
            journal.syncer()()
        journal.sync_failed(failed.value)
        assert journal.error == "no space left on device"
        with pytest.raises(JournalError):
            journal.append([pair(3)])
        assert not journal.try_again()
    path = tmp_path / "journal" / "000000000000.jsonl"
    kept = len(pair(0)) + 1
    lost = path.read_bytes()[kept:]  # what the kernel calls written, and the disk may not have
    assert lost == pair(1) + b"\n" + pair(2) + b"\n"
    written = []
    real = os.pwrite
    monkeypatch.setattr(journal_module.os, "pwrite", lambda *call: (written.append((bytes(call[1]), call[2])), real(*call))[1])
    assert journal.try_again()
    assert written[0] == (lost, kept)
    assert journal.error == ""
    journal.append([pair(3)])
    journal.close()
    assert lines(tmp_path) == [(number, pair(number)) for number in range(4)]


def test_trying_again_tells_when_there_is_room_and_leaves_nothing_behind(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.append_run({"seed": 1})
    journal.append([pair(0)])
    before = journal_segments(tmp_path)[0].read_bytes()
    with monkeypatch.context() as patch:
        fail(patch, "pwrite")
        with pytest.raises(JournalError):
            journal.append([pair(1)])
        assert not journal.try_again()
    assert journal.try_again()
    assert journal_segments(tmp_path)[0].read_bytes() == before


def test_each_segment_begins_with_the_run_that_its_pairs_are_trained_under(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 100)
    journal = Journal(tmp_path)
    journal.append_run({"seed": 3})
    for number in range(4):
        journal.append([pair(number)])
    journal.close()
    journal = Journal(tmp_path)
    for number in range(4, 9):
        journal.append([pair(number)])
    journal.roll()
    with monkeypatch.context() as patch:  # a segment that is begun on a full disk gets it too
        fail(patch, "pwrite")
        with pytest.raises(JournalError):
            journal.append([pair(9)])
    journal.append([pair(9)])
    journal.append_run({"seed": 4})
    journal.roll()
    journal.append([pair(10)])
    journal.close()
    segments = journal_segments(tmp_path)
    assert len(segments) > 3
    runs = [path.read_bytes().splitlines()[0] for path in segments]
    assert runs == [b'#run {"seed":3}'] * (len(segments) - 1) + [b'#run {"seed":4}']
    assert lines(tmp_path) == [(number, pair(number)) for number in range(11)]


def test_a_segment_of_an_earlier_day_is_closed(tmp_path):
    journal = Journal(tmp_path)
    journal.append([pair(0)])
    now = journal_segments(tmp_path)[0].stat().st_mtime
    journal.roll_daily(now)
    journal.append([pair(1)])
    assert len(journal_segments(tmp_path)) == 1
    journal.roll_daily(now + 86400)
    journal.roll_daily(now + 86400)  # there is none to close
    journal.append([pair(2)])
    journal.close()
    assert len(journal_segments(tmp_path)) == 2
    yesterday = journal_segments(tmp_path)[1]
    os.utime(yesterday, (now - 86400, now - 86400))
    journal = Journal(tmp_path)
    journal.roll_daily(now)
    journal.append([pair(3)])
    journal.close()
    assert len(journal_segments(tmp_path)) == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(gzip.compress(b"")), "ends at position 0, the next segment begins at 3"),
        (lambda path: path.write_bytes(b"not gzip"), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "damaged"),
        (lambda path: path.write_bytes(gzip.compress(b"#who\n" + pair(0) + b"\n")), "'#who' is no record"),
        (lambda path: path.write_bytes(gzip.compress(b"#run [\n" + pair(0) + b"\n")), "damaged run record"),
        (lambda path: path.write_bytes(gzip.compress(pair(0) + b"\n{")), "ends within a line"),
    ],
)
def test_a_damaged_segment_is_named_with_what_to_do(tmp_path, damage, message):
    segments(tmp_path, [3, 2])
    compress_closed(tmp_path)
    path = tmp_path / "journal" / "000000000000.jsonl.gz"
    damage(path)
    with pytest.raises(JournalError, match=message) as error:
        list(read_journal(tmp_path))
    assert str(error.value).startswith(str(path))
    assert "move the state directory away" in str(error.value)


def test_retention_goes_by_age_and_by_bytes_and_keeps_what_is_needed(tmp_path):
    segments(tmp_path, [2, 2, 2, 2])
    paths = journal_segments(tmp_path)
    for path, mtime in zip(paths, (100, 200, 300, 400), strict=True):
        os.utime(path, (mtime, mtime))
    each = paths[0].stat().st_size
    assert prune(tmp_path, needed_from=1, oldest=1000, max_bytes=0) == []
    assert prune(tmp_path, needed_from=8, oldest=0, max_bytes=0) == []
    assert prune(tmp_path, needed_from=8, oldest=150, max_bytes=0) == paths[:1]
    assert prune(tmp_path, needed_from=8, oldest=0, max_bytes=2 * each) == paths[1:2]
    assert prune(tmp_path, needed_from=8, oldest=1000, max_bytes=1) == paths[2:3]
    with pytest.raises(JournalError, match="begins at position 6; pairs from 4 on are needed, and retention has removed them"):
        list(read_journal(tmp_path, 4))
    assert lines(tmp_path, 6) == [(6, pair(6)), (7, pair(7))]


def test_a_journal_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "journal").write_bytes(b"")
    with pytest.raises(JournalError, match="journal"):
        Journal(tmp_path)
