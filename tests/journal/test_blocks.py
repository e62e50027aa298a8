"""The frame of the journal: bytes in, whole blocks out, and what is damaged is known."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.journal.blocks import Block, Damage, Torn, encode_block, read_blocks

BLOCKS = [
    encode_block(0, [b'#run {"seed":1}', b'{"a":1}', b'{"b":2}']),
    encode_block(2, [b'{"c":3}']),
    encode_block(3, [b'{"d":4}' * 50, b"#gone", b"#lost"]),
    encode_block(6, [b"#run {}"]),
]
DATA = b"".join(BLOCKS)


def parts(data: bytes) -> list[Block | Damage | Torn]:
    return list(read_blocks(io.BytesIO(data)))


GOOD = parts(DATA)


def test_blocks_are_read_as_they_were_written():
    assert parts(DATA) == [
        Block(0, 2, [b'#run {"seed":1}', b'{"a":1}', b'{"b":2}']),
        Block(2, 3, [b'{"c":3}']),
        Block(3, 6, [b'{"d":4}' * 50, b"#gone", b"#lost"]),
        Block(6, 6, [b"#run {}"]),
    ]


def test_a_person_can_read_it():
    assert DATA.decode().splitlines()[:3] == ["#block 000000000000 2 32 f380ef40 1f3b28f1", '#run {"seed":1}', '{"a":1}']


def test_every_flipped_bit_is_known_and_costs_no_other_block():
    for at in range(len(DATA)):
        for bit in range(8):
            changed = bytearray(DATA)
            changed[at] ^= 1 << bit
            found = parts(bytes(changed))
            assert any(isinstance(part, Damage) for part in found), (at, bit)
            blocks = [part for part in found if isinstance(part, Block)]
            assert len(blocks) == len(BLOCKS) - 1, (at, bit)
            assert all(block in GOOD for block in blocks), (at, bit)


def test_what_a_crash_leaves_of_the_last_write_is_no_damage():
    for size in range(len(DATA)):
        found = parts(DATA[:size])
        assert not any(isinstance(part, Damage) for part in found), size
        whole = sum(size >= len(b"".join(BLOCKS[: number + 1])) for number in range(len(BLOCKS)))
        assert found[:whole] == GOOD[:whole]
        assert len(found) - whole == (size != len(b"".join(BLOCKS[:whole])))


@pytest.mark.parametrize("hole", [(0, 40), (30, 90), (60, 400), (100, 5000)])
def test_a_hole_of_zeros_costs_the_blocks_that_it_touches(hole):
    blocks = [encode_block(number, [b'{"number": %d}' % number * 20]) for number in range(40)]
    data = bytearray(b"".join(blocks))
    start, stop = hole
    data[start:stop] = bytes(stop - start)
    found = [part for part in parts(bytes(data)) if isinstance(part, Block)]
    touched, at = set(), 0
    for number, block in enumerate(blocks):
        if at < stop and start < at + len(block):
            touched.add(number)
        at += len(block)
    assert [block.position for block in found] == [number for number in range(40) if number not in touched]


def test_damage_says_where_it_is_and_which_pairs_headers_still_name():
    changed = DATA.replace(b'{"c":3}', b'{"c":4}')
    (damage,) = [part for part in parts(changed) if isinstance(part, Damage)]
    assert (damage.start, damage.stop, damage.end) == (len(BLOCKS[0]), len(BLOCKS[0]) + len(BLOCKS[1]), 3)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_bytes_of_any_kind_before_and_after_hide_no_whole_block(before, after):
    blocks = [part for part in parts(before + BLOCKS[1] + after) if isinstance(part, Block)]
    assert GOOD[1] in blocks
