"""One pair: what is accepted, what is refused and in which words."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.pairs.errors import PairError
from sidecar.pairs.holdout import holdout_position
from sidecar.pairs.pair import PairReader


def read(line: bytes, n_features: int = 2) -> list[float]:
    return np.frombuffer(PairReader(n_features).read(line).features, dtype=np.float32).tolist()


@pytest.mark.parametrize(
    ("line", "features"),
    [
        (b'{"features":[1,2.5],"true_score":100}', [1, 2.5]),
        (b' {"true_score":0,"features":[-1e-3,3e38],"codec":"x264","n":[{}]} ', [np.float32(-1e-3), np.float32(3e38)]),
        (b'{"features":[1e-60,-0.0],"true_score":5,"job_id":"","group":"g"}', [0, 0]),
        (b'{"features":[0.1,123456789],"true_score":5}', [np.float32(0.1), np.float32(123456789)]),
    ],
)
def test_good_pairs_become_float32(line, features):
    assert read(line) == features


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "not JSON: input data was truncated"),
        (b"hello", "not JSON: invalid character at byte 0: 'hello'"),
        (b"\xff\xfe\x00", "not JSON: invalid character at byte 0: '\ufffd\ufffd\\x00'"),
        (b'{"features":[1,2],"true_score":5', "not JSON: input data was truncated"),
        (b'{"features":[1,2],"true_score":5} x', "not JSON: trailing characters at byte 35"),
        (b"[1,2]", "expected object, got array"),
        (b"5", "expected object, got int"),
        (b'{"true_score":5}', "features: missing"),
        (b'{"features":[1,2]}', "true_score: missing"),
        (b'{"features":5,"true_score":5}', "features: expected array or object, got int"),
        (b'{"features":[],"true_score":5}', "features: expected 2 numbers, got 0"),
        (b'{"features":[1],"true_score":5}', "features: expected 2 numbers, got 1"),
        (b'{"features":[1,2,3],"true_score":5}', "features: expected 2 numbers, got 3"),
        (b'{"features":[1,true],"true_score":5}', "features[1]: expected a number, got bool"),
        (b'{"features":[1,null],"true_score":5}', "features[1]: expected a number, got null"),
        (b'{"features":["1",2],"true_score":5}', "features[0]: expected a number, got str"),
        (b'{"features":[[1],2],"true_score":5}', "features[0]: expected a number, got array"),
        (b'{"features":[NaN,2],"true_score":5}', "not JSON: invalid character at byte 13: 'NaN,2],\"true'"),
        (b'{"features":[1,-Infinity],"true_score":5}', "not JSON: invalid character at byte 16"),
        (b'{"features":[1,1e39],"true_score":5}', "features[1]: 1e+39 does not fit float32"),
        (b'{"features":[-1e39,1],"true_score":5}', "features[0]: -1e+39 does not fit float32"),
        (b'{"features":[1,1e400],"true_score":5}', "features[1]: number out of range"),
        (b'{"features":[1,' + b"9" * 400 + b'],"true_score":5}', "features[1]: number out of range"),
        (b'{"features":[1,2],"true_score":true}', "true_score: expected a number, got bool"),
        (b'{"features":[1,2],"true_score":"5"}', "true_score: expected a number, got str"),
        (b'{"features":[1,2],"true_score":null}', "true_score: expected a number, got null"),
        (b'{"features":[1,2],"true_score":100.1}', "true_score: 100.1 is outside 0 to 100"),
        (b'{"features":[1,2],"true_score":-0.1}', "true_score: -0.1 is outside 0 to 100"),
        (b'{"features":[1,2],"true_score":5,"job_id":7}', "job_id: expected str, got int"),
        (b'{"features":[1,2],"true_score":5,"job_id":null}', "job_id: expected str, got null"),
        (b'{"features":[1,2],"true_score":5,"group":"' + b"g" * 257 + b'"}', "group: expected str of length <= 256"),
        (b'{"features":[1,2],"true_score":5,"job_id":"\xff"}', "not UTF-8: byte 0xff"),
        (b'{"features":[1,2],"true_score":5,"x":' + b"[" * 5000 + b"]" * 5000 + b"}", "nested deeper than 64 levels"),
    ],
)
def test_bad_pairs_are_refused_in_plain_words(line, message):
    with pytest.raises(PairError) as refused:
        read(line)
    assert str(refused.value).startswith(message)


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_give_a_pair_or_a_pair_error(line):
    with pytest.raises(PairError):
        read(line)


@given(st.floats(width=64, allow_nan=False, allow_infinity=False))
def test_every_number_is_rounded_as_numpy_rounds_or_refused(value):
    line = b'{"features":[%s],"true_score":1}' % repr(value).encode()
    with np.errstate(over="ignore"):
        rounded = np.float32(value)
    if np.isfinite(rounded):
        assert np.float32(read(line, 1)[0]) == rounded
    else:
        with pytest.raises(PairError, match="does not fit float32"):
            read(line, 1)


def test_holdout_position_is_blake2b_of_the_group_else_the_job_else_the_features():
    def position(data: bytes) -> float:
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") / 2**64

    features = struct.pack("=2f", 1, 2)
    assert holdout_position("encodé", "job", features) == position("encodé".encode())
    assert holdout_position("", "job", features) == position(b"job")
    assert holdout_position("", "", features) == position(features)
    positions = [holdout_position(f"g{i}", "", b"") for i in range(4000)]
    assert np.mean(np.array(positions) < 0.1) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("tenant", ["a", "Team-7_x.y", "0" * 64])
def test_a_pair_has_the_tenant_that_it_names_where_there_are_tenants(tenant):
    line = b'{"features":[1,2],"true_score":5,"tenant":"%s"}' % tenant.encode()
    assert PairReader(2, tenants=True).read(line).tenant == tenant
    assert PairReader(2).read(line).tenant == ""
    assert PairReader(2, tenants=True).read(b'{"features":[1,2],"true_score":5}').tenant == ""


@pytest.mark.parametrize("tenant", ['""', '"' + "a" * 65 + '"', '".."', '"a/b"', '"a\\n"', '"é"', "null", "5"])
def test_a_tenant_that_cannot_name_a_directory_is_refused_where_there_are_tenants(tenant):
    line = b'{"features":[1,2],"true_score":5,"tenant":%s}' % tenant.encode()
    with pytest.raises(PairError, match=r"tenant: .*; expected 1 to 64 letters, digits, dots, underscores and hyphens"):
        PairReader(2, tenants=True).read(line)
    assert PairReader(2).read(line).tenant == ""
