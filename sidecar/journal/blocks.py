"""The journal's frame: blocks of lines, each under a checksum, in a file that a person can read with `less`.

    #block 000000000128 16 24731 5c0e9f2a 81b3c5d7
    {"job_id": "a1", "features": [0.97, …], "true_score": 42.7}
    …

A block is what one write appended, or a part of it. Its header has the position of its first pair, how many positions it takes,
how many bytes follow, their CRC-32 (over the position and the number too) and the CRC-32 of the header itself. So a reader
knows of every byte whether it is as it was written. It can tell what a crash leaves of the last write (a whole header and too
few bytes) from damage, and after damage finds the next whole block, with the positions of its pairs.

etcd, RocksDB and Prometheus frame the records of their logs in the same way, in binary.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

RUN, GONE, LOST = b"#run ", b"#gone", b"#lost"
MOST_BYTES = 64 << 20
"""No block is larger. One read of a client gives a few hundred lines, and a line has at most a mebibyte."""
_START = b"#block "
_HEADER = re.compile(rb"#block (\d{12,15}) (\d{1,9}) (\d{1,9}) ([0-9a-f]{8}) ([0-9a-f]{8})\n")
_BEGINNING = re.compile(rb"#block( (\d{0,15}( (\d{0,9}( (\d{0,9}( ([0-9a-f]{0,8}( ([0-9a-f]{0,8})?)?)?)?)?)?)?)?)?)?")
_LONGEST_HEADER = 80
_CHUNK = 1 << 20
_LINES = 32


class Block(NamedTuple):
    """A whole block. lines: without their newlines, position: of its first pair; end: after its last."""

    position: int
    end: int
    lines: list[bytes]


class Damage(NamedTuple):
    """Bytes of a file, from `start` up to `stop`, that are not as they were written.

    end: the position after the last pair that was there, as far as headers tell it, else 0.
    """

    start: int
    stop: int
    reason: str
    end: int = 0


class Torn(NamedTuple):
    """What a crash left of the last write, from `start` to the end of the file. It was never answered."""

    start: int


def encode_block(position: int, lines: Sequence[bytes]) -> bytes:
    """A block of lines, without newlines, whose first pair has this position."""
    return b"".join(_header_and_payload(position, _pairs(lines), lines))


def encode_blocks(position: int, lines: Sequence[bytes]) -> bytes:
    """As `encode_block`, in blocks of at most so many lines that damage does not cost many pairs."""
    pieces = list[bytes]()
    for start in range(0, len(lines), _LINES):
        part = lines[start : start + _LINES]
        pairs = _pairs(part)
        pieces += _header_and_payload(position, pairs, part)
        position += pairs
    return b"".join(pieces)


def _header_and_payload(position: int, pairs: int, lines: Sequence[bytes]) -> tuple[bytes, bytes]:
    payload = b"\n".join([*lines, b""])
    text = b"#block %012d %d %d" % (position, pairs, len(payload))
    seed = zlib.crc32(text)
    checksum = b" %08x" % zlib.crc32(payload, seed)
    return b"%b%b %08x\n" % (text, checksum, zlib.crc32(checksum, seed)), payload


def _pairs(lines: Sequence[bytes]) -> int:
    return len(lines) - sum([line.startswith(RUN) for line in lines])


class _Header(NamedTuple):
    position: int
    pairs: int
    size: int
    checksum: int
    seed: int

    def fits(self, payload: bytes) -> bool:
        return len(payload) == self.size and zlib.crc32(payload, self.seed) == self.checksum


def _parse(line: bytes) -> _Header | None:
    match = _HEADER.fullmatch(line)
    if match is None or zlib.crc32(line[: match.start(5) - 1]) != int(match[5], 16) or int(match[3]) > MOST_BYTES:
        return None
    position, pairs, size = (int(match[number]) for number in (1, 2, 3))
    return _Header(position, pairs, size, int(match[4], 16), zlib.crc32(line[: match.end(3)]))


def read_blocks(stream: IO[bytes]) -> Iterator[Block | Damage | Torn]:
    """The whole blocks of a file, in order, and what is wrong with it between and after them.

    stream: can be sought in. Raises whatever reading it raises.
    """
    at = 0  # where the next block begins
    bad: int | None = None  # where the damage that goes on begins
    end = 0  # the position after it, if its headers are whole
    while True:
        stream.seek(at)
        line = stream.readline(_LONGEST_HEADER)
        if not line:
            break
        header = _parse(line)
        payload = stream.read(header.size) if header else b""
        if header and header.fits(payload):
            if bad is not None:
                yield Damage(bad, at, "no whole block", end)
                bad, end = None, 0
            lines = payload[:-1].split(b"\n")
            yield Block(header.position, header.position + header.pairs, lines)
            at += len(line) + header.size
        elif bad is None and ((header and len(payload) < header.size) or _is_cut_header(line, stream)):
            yield Torn(at)
            return
        else:
            bad, end = (at if bad is None else bad), max(end, header.position + header.pairs if header else 0)
            at = at + len(line) + header.size if header else next_start(stream, at + 1)
    if bad is not None:
        yield Damage(bad, stream.tell(), "no whole block", end)


def _is_cut_header(line: bytes, stream: IO[bytes]) -> bool:
    if line.endswith(b"\n") or stream.read(1):
        return False
    return _START.startswith(line) or _BEGINNING.fullmatch(line) is not None


def next_start(stream: IO[bytes], at: int) -> int:
    """Where the next header may begin, or the end of the file. It need not begin a line: zeros may stand before it."""
    stream.seek(at)
    kept = b""
    while chunk := stream.read(_CHUNK):
        data = kept + chunk
        found = data.find(_START)
        if found >= 0:
            return at + found
        kept = data[-len(_START) + 1 :]
        at += len(data) - len(kept)
    return at + len(kept)
