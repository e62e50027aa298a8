"""Which pairs are held out: whole encodes, by a hash that needs no seed."""

from __future__ import annotations

import functools
import hashlib

from msgspec import UnsetType


def is_held_out(position: float, fraction: float) -> bool:
    """Whether a pair with this position in [0, 1) is held out, if this share of all pairs is."""
    return position < fraction


def holdout_position(group: str | UnsetType, job_id: str | UnsetType, features: bytes | bytearray) -> float:
    """The position of a pair in [0, 1), by which it is held out or not.

    BLAKE2b-64, read big-endian and divided by 2⁶⁴, of the pair's group, else of its job_id, else of its float32
    features (native bytes). It is unseeded, so that all pairs of an encode stay together and a larger fraction holds out a
    superset.
    """
    name = group or job_id
    return _position_of_name(name) if name else _position_of(features)


@functools.lru_cache(maxsize=1024)  # the pairs of a group come one after the other
def _position_of_name(name: str) -> float:
    return _position_of(name.encode())


def _position_of(data: bytes | bytearray) -> float:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") / 2.0**64
