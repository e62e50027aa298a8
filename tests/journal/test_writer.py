"""The journal: what was appended is there again, what was torn is not, and a failed write leaves no trace."""

from __future__ import annotations

import errno
import os

import pytest

import sidecar.journal.writer as journal_module
from sidecar.journal.blocks import encode_block
from sidecar.journal.repair import find_end, replace_segment
from sidecar.journal.segments import Entry, JournalError, journal_segments, read_journal, whole_blocks
from sidecar.journal.writer import Journal


def journal_at(state, fsync="everysec"):
    """The writing end of a journal, as a start opens it."""
    return Journal(state, find_end(state, lambda path, reason: pytest.fail(f"{path}: {reason}")), fsync)


def pair(number):
    return b'{"features": [%d], "true_score": 1}' % number


def lines(state, start=0):
    return [(entry.position, entry.line) for entry in read_journal(state, start) if entry.run is None]


def segments(state, sizes):
    """A journal of segments of so many pairs."""
    journal, number = journal_at(state), 0
    for size in sizes:
        journal.append([pair(number + i) for i in range(size)])
        number += size
        journal.roll()
    journal.close()


def test_what_was_appended_is_there_again_with_its_positions(tmp_path):
    journal = journal_at(tmp_path)
    journal.append_run({"seed": 3})
    journal.append([pair(0), pair(1)])
    journal.append_run({"seed": 4})
    journal.append([pair(2)])
    assert journal.position == 3
    journal.close()
    assert list(read_journal(tmp_path)) == [
        Entry(0, None, {"seed": 3}), Entry(0, pair(0)), Entry(1, pair(1)), Entry(2, None, {"seed": 4}), Entry(2, pair(2)),
    ]  # fmt: skip
    assert journal_at(tmp_path).position == 3


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


@pytest.mark.parametrize("kept", [1, 7, 20, 44, 50, 60])
def test_a_torn_last_write_was_never_answered_and_is_cut_off(tmp_path, kept):
    segments(tmp_path, [2])
    with (tmp_path / "journal" / "000000000000.jsonl").open("ab") as stream:
        stream.write(encode_block(2, [pair(2)])[:kept])
    assert lines(tmp_path) == [(0, pair(0)), (1, pair(1))]
    journal = journal_at(tmp_path)
    assert journal.position == 2
    journal.append([pair(7)])
    journal.close()
    assert lines(tmp_path) == [(0, pair(0)), (1, pair(1)), (2, pair(7))]


def test_a_torn_write_longer_than_a_read_is_cut_off(tmp_path):
    segments(tmp_path, [1])
    path = tmp_path / "journal" / "000000000000.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + encode_block(1, [b"x" * (3 << 20)])[:-1])
    journal_at(tmp_path).close()
    assert path.read_bytes() == whole


def test_a_forgotten_pair_keeps_its_position(tmp_path):
    segments(tmp_path, [3])
    (path,) = journal_segments(tmp_path)
    replace_segment(path, iter([encode_block(0, [pair(0), b"#gone", pair(2)])]))
    assert lines(tmp_path) == [(0, pair(0)), (1, None), (2, pair(2))]
    assert journal_at(tmp_path).position == 3


def test_segments_are_closed_by_size(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 200)
    journal = journal_at(tmp_path)
    for number in range(12):
        journal.append([pair(number)])
    journal.close()
    assert len(journal_segments(tmp_path)) == 4
    assert lines(tmp_path) == [(number, pair(number)) for number in range(12)]
    assert journal.disk_bytes == sum(path.stat().st_size for path in journal_segments(tmp_path))


def fail(monkeypatch, *names):
    """These calls of the operating system fail as on a full disk."""

    def full(*arguments):
        raise OSError(28, "No space left on device")

    for name in names:
        monkeypatch.setattr(journal_module.os, name, full)


def test_a_write_that_fails_half_way_is_undone(tmp_path, monkeypatch):
    journal = journal_at(tmp_path)
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
    journal = journal_at(tmp_path, fsync="always")
    journal.append([pair(0)])
    with monkeypatch.context() as patch:
        fail(patch, "fsync")
        with pytest.raises(JournalError):
            journal.append([pair(1)])
    assert lines(tmp_path) == [(0, pair(0))]


def test_where_it_cannot_be_undone_it_is_tried_again_without_a_restart(tmp_path, monkeypatch):
    journal = journal_at(tmp_path)
    journal.append([pair(0)])
    with monkeypatch.context() as patch:
        fail(patch, "pwrite", "ftruncate")
        with pytest.raises(JournalError):
            journal.append([pair(1)])
        assert not journal.try_again()
        assert journal.error == "no space left on device"
    assert journal.try_again()
    journal.append([pair(2)])
    journal.close()
    assert lines(tmp_path) == [(0, pair(0)), (1, pair(2))]


def test_what_could_not_be_undone_is_not_left_behind_what_comes_next(tmp_path, monkeypatch):
    journal = journal_at(tmp_path, fsync="always")
    journal.append([pair(0)])
    with monkeypatch.context() as patch:
        fail(patch, "fsync", "ftruncate")
        with pytest.raises(JournalError):
            journal.append([pair(1 + number) for number in range(100)])
    journal.append([pair(101)])
    assert lines(tmp_path) == [(0, pair(0)), (1, pair(101))]


@pytest.mark.parametrize(("fsync", "at_append"), [("always", 1), ("everysec", 0), ("never", 0)])
def test_always_brings_each_append_to_disk_and_the_others_leave_it_to_a_syncer(tmp_path, monkeypatch, fsync, at_append):
    synced = []
    journal = journal_at(tmp_path, fsync=fsync)
    journal.append([pair(0)])
    monkeypatch.setattr(journal_module.os, "fsync", lambda descriptor: synced.append(descriptor))
    journal.append([pair(1)])
    assert len(synced) == at_append
    sync = journal.syncer()
    if sync is not None:
        sync()
    assert len(synced) == 1
    assert journal.syncer() is None


def bytes_of(state):
    return journal_segments(state)[-1].read_bytes()


def test_what_could_not_be_brought_to_disk_is_written_again_from_memory_before_anything_else(tmp_path, monkeypatch):
    journal = journal_at(tmp_path)
    journal.append([pair(0)])
    journal.syncer()()
    kept = len(bytes_of(tmp_path))
    journal.append([pair(1), pair(2)])
    journal.append([pair(3)])
    lost = bytes_of(tmp_path)[kept:]
    with monkeypatch.context() as patch:
        fail(patch, "fsync")
        with pytest.raises(OSError, match="No space"):
            journal.syncer()()
        with pytest.raises(JournalError):
            journal.append([pair(4)])
        assert journal.error == "no space left on device"
        assert not journal.try_again()
        assert journal.errors >= 2
    path = journal_segments(tmp_path)[0]
    with path.open("r+b") as stream:  # the kernel calls these pages written, and then drops them
        stream.seek(kept)
        stream.write(bytes(len(lost)))
    assert journal.try_again()
    assert bytes_of(tmp_path)[kept:] == lost
    assert journal.error == ""
    journal.append([pair(4)])
    journal.close()
    assert lines(tmp_path) == [(number, pair(number)) for number in range(5)]


def test_an_fsync_that_failed_on_another_thread_is_seen_by_the_next_append(tmp_path, monkeypatch):
    journal = journal_at(tmp_path)
    journal.append([pair(0)])
    sync = journal.syncer()
    with monkeypatch.context() as patch:
        fail(patch, "fsync")
        with pytest.raises(OSError, match="No space"):
            sync()
    synced = []
    monkeypatch.setattr(journal_module.os, "fsync", synced.append)
    journal.append([pair(1)])
    assert synced, "it was written again and brought to disk first"
    assert journal.errors == 1


def test_a_segment_is_not_closed_while_an_fsync_of_it_runs(tmp_path):
    journal = journal_at(tmp_path)
    journal.append([pair(0)])
    sync = journal.syncer()
    assert not journal.roll()
    sync()
    assert journal.roll()
    journal.append([pair(1)])
    assert len(journal_segments(tmp_path)) == 2


def test_what_could_not_be_closed_is_not_written_to_any_more(tmp_path, monkeypatch):
    journal = journal_at(tmp_path)
    journal.append([pair(0)])
    close = os.close

    def failing(descriptor):
        close(descriptor)  # as Linux does, whatever it says
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", failing)
        assert journal.roll()
    another = (tmp_path / "another").open("xb")  # which has its number
    journal.append([pair(1)])
    assert os.fstat(another.fileno()).st_size == 0
    another.close()
    journal.close()
    assert lines(tmp_path) == [(0, pair(0)), (1, pair(1))]


def test_what_is_not_surely_on_disk_is_bounded_and_pairs_are_refused_until_it_is_less(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "UNSYNCED_BYTES", 1000)
    monkeypatch.setattr(journal_module, "SYNC_BYTES", 500)
    journal = journal_at(tmp_path, "never")
    accepted = 0
    while journal._unsynced_bytes <= 1000:
        journal.append([pair(accepted)])
        accepted += 1
    with pytest.raises(JournalError, match="still on their way to the disk"):
        journal.append([pair(accepted)])
    assert journal.wants_sync
    journal.syncer()()
    assert journal.try_again()
    journal.append([pair(accepted)])
    journal.close()
    assert lines(tmp_path) == [(number, pair(number)) for number in range(accepted + 1)]


def test_trying_again_tells_when_there_is_room_and_leaves_nothing_behind(tmp_path, monkeypatch):
    journal = journal_at(tmp_path)
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
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 200)
    journal = journal_at(tmp_path)
    journal.append_run({"seed": 3})
    for number in range(4):
        journal.append([pair(number)])
    journal.close()
    journal = journal_at(tmp_path)
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
    assert len(segments) >= 3
    runs = [next(whole_blocks(path)).lines[0] for path in segments]
    assert runs == [b'#run {"seed":3}'] * (len(segments) - 1) + [b'#run {"seed":4}']
    assert lines(tmp_path) == [(number, pair(number)) for number in range(11)]


def test_a_segment_of_an_earlier_day_is_closed(tmp_path):
    journal = journal_at(tmp_path)
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
    journal = journal_at(tmp_path)
    journal.roll_daily(now)
    journal.append([pair(3)])
    journal.close()
    assert len(journal_segments(tmp_path)) == 3


def test_a_journal_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "journal").write_bytes(b"")
    with pytest.raises(JournalError, match="journal"):
        journal_at(tmp_path)
