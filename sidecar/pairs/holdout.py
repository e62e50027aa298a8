"""Which pairs are held out: whole encodes, by a hash that needs no seed."""

from __future__ import annotations

import functools
import hashlib

from msgspec import UnsetType

HASHES = 2.0**64
"""How many values a hash of a group has."""


def is_held_out(position: float, fraction: float) -> bool:
    """Whether a pair with this position in [0, 1) is held out, if this share of all pairs is."""
    return position < fraction


def holdout_position(group: str | UnsetType, job_id: str | UnsetType, features: bytes | bytearray) -> float:
    """The position of a pair in [0, 1), by which it is held out or not: its group's hash as a share of all hashes.

    It is unseeded, so that all pairs of an encode stay together and a larger fraction holds out a superset.
    """
    name = group or job_id
    return _position_of(name) if name else _hash(features) / HASHES


def group_hash(group: str | UnsetType, job_id: str | UnsetType, features: bytes | bytearray) -> int:
    """BLAKE2b-64, read big-endian, of a pair's group, else of its job_id, else of its float32 features (native bytes)."""
    name = group or job_id
    return _hash(name.encode()) if name else _hash(features)


@functools.lru_cache(maxsize=1024)  # the pairs of a group come one after the other
def _position_of(name: str) -> float:
    return _hash(name.encode()) / HASHES


def _hash(data: bytes | bytearray) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
