"""A damaged journal is repaired: what is lost keeps its positions, all else is as it was."""

from __future__ import annotations

import pytest

from sidecar.journal.blocks import Damage
from sidecar.journal.repair import find_end, repair
from sidecar.journal.retention import compress_closed
from sidecar.journal.segments import JournalError, journal_segments, read_journal, whole_blocks
from tests.journal.test_writer import journal_at, lines, pair, segments


@pytest.fixture
def aside():
    """What was kept of damaged files, by their names."""
    kept: dict[str, bytes] = {}
    return kept


def keep(kept):
    return lambda path, reason: kept.update({path.name: path.read_bytes()})


def one_by_one(state, count):
    journal = journal_at(state)
    for number in range(count):
        journal.append([pair(number)])
    journal.close()


@pytest.mark.parametrize("number", [0, 3, 6])
def test_a_damaged_pair_of_the_last_segment_is_lost_and_no_other(tmp_path, aside, number):
    one_by_one(tmp_path, 7)
    (path,) = journal_segments(tmp_path)
    damaged = path.read_bytes().replace(pair(number), pair(number).replace(b"1", b"2"))
    path.write_bytes(damaged)
    with pytest.raises(JournalError, match=f"{path}: damaged from byte"):
        list(read_journal(tmp_path))
    end = find_end(tmp_path, keep(aside))
    assert end.position == 7
    assert aside == {path.name: damaged}
    assert lines(tmp_path) == [(each, None if each == number else pair(each)) for each in range(7)]
    assert journal_at(tmp_path).position == 7  # it is whole again


def test_the_last_newline_flipped_loses_a_pair_that_is_named(tmp_path, aside):
    one_by_one(tmp_path, 3)
    (path,) = journal_segments(tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"\x0b")
    assert find_end(tmp_path, keep(aside)).position == 3
    assert aside
    assert lines(tmp_path)[-1] == (2, None)


def test_a_hole_of_zeros_at_the_end_costs_what_was_in_it(tmp_path, aside):
    one_by_one(tmp_path, 5)
    (path,) = journal_segments(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(4096))
    assert find_end(tmp_path, keep(aside)).position == 5
    assert path.read_bytes() == whole


@pytest.mark.parametrize("zipped", [False, True])
def test_a_damaged_closed_segment_is_repaired_in_its_place(tmp_path, aside, zipped):
    segments(tmp_path, [3, 2, 2])
    if zipped:
        compress_closed(tmp_path, 0)
    path = journal_segments(tmp_path)[1]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)
    found: list[Damage] = []
    blocks = whole_blocks(path, 5, lambda segment, damage: found.append(damage))
    assert sum(block.end - block.position for block in blocks) <= 2
    assert found
    repair(path, 5, keep(aside))
    assert aside == {path.name: bytes(data)}
    assert [position for position, _ in lines(tmp_path)] == list(range(7))
    assert all(line in (None, pair(position)) for position, line in lines(tmp_path))
    assert [line for _, line in lines(tmp_path)[:3]] == [pair(0), pair(1), pair(2)]


def test_a_segment_of_which_nothing_is_whole_is_removed(tmp_path, aside):
    segments(tmp_path, [3, 2])
    path = journal_segments(tmp_path)[1]
    path.write_bytes(b"junk" * 1000)
    end = find_end(tmp_path, keep(aside))
    assert (end.position, list(aside)) == (3, [path.name])
    assert lines(tmp_path) == [(number, pair(number)) for number in range(3)]


def test_a_snapshot_tells_how_many_pairs_a_segment_had_of_which_nothing_is_whole(tmp_path, aside):
    segments(tmp_path, [3, 2])
    journal_segments(tmp_path)[1].write_bytes(b"junk" * 1000)
    assert find_end(tmp_path, keep(aside), lambda: 5).position == 5
    assert lines(tmp_path)[3:] == [(3, None), (4, None)]


def test_a_segment_that_is_gone_is_told_and_the_one_before_it_says_what_is_lost(tmp_path, aside):
    segments(tmp_path, [2, 3, 2])
    journal_segments(tmp_path)[1].unlink()
    with pytest.raises(JournalError, match="pairs 2 to 4 are missing"):
        list(read_journal(tmp_path))
    repair(journal_segments(tmp_path)[0], 5, keep(aside))
    assert lines(tmp_path) == [(n, pair(n)) for n in (0, 1)] + [(n, None) for n in (2, 3, 4)] + [(n, pair(n)) for n in (5, 6)]


def test_an_error_that_may_pass_is_no_damage(tmp_path, monkeypatch, aside):
    one_by_one(tmp_path, 3)

    def fails(path):
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("sidecar.journal.segments.open_regular", fails)
        with pytest.raises(JournalError, match="Input/output error"):
            find_end(tmp_path, keep(aside))
    assert not aside
    assert journal_at(tmp_path).position == 3
