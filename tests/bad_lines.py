"""Request lines for sidecars of three features: those that are refused, and odd ones that are pairs all the same.

Each refused line has one thing wrong with it. The tests of the line protocol and of bad input to `serve` read the same tables.
"""

from __future__ import annotations

from typing import NamedTuple

from sidecar.pairs.errors import PairError
from sidecar.pairs.line_protocol import Answer, refusal
from sidecar.pairs.pair import Pair, PairReader

N_FEATURES = 3


class Refused(NamedTuple):
    """A line, what its answer says, and the job_id that the answer gives back, None where it cannot be known."""

    line: bytes
    says: str
    job_id: str | None = None


class Odd(NamedTuple):
    """A line that is a pair, and what it says."""

    line: bytes
    features: list[float]
    true_score: float = 1.0
    job_id: str | None = None
    group: str | None = None


def answer_to(line: bytes) -> Pair | Answer:
    """What a sidecar of three features and scores from 0 to 100 makes of a line."""
    try:
        return PairReader(N_FEATURES).read(line)
    except PairError as error:
        return refusal(line, error)


def _features(*values: bytes) -> bytes:
    return b'{"features": [%b], "true_score": 1}' % b", ".join(values)


def _score(value: bytes) -> bytes:
    return b'{"job_id": "s", "features": [1, 2, 3], "true_score": %b}' % value


def _with(field: bytes) -> bytes:
    return b'{"features": [1, 2, 3], "true_score": 1, %b}' % field


_MANY_DIGITS = b"1" + b"0" * 400

REFUSED = [
    # Not an object.
    Refused(b"[]", "expected object, got array"),
    Refused(b"null", "expected object, got null"),
    Refused(b"true", "expected object, got bool"),
    Refused(b"7", "expected object, got int"),
    Refused(b'"text"', "expected object, got str"),
    Refused(b"[" * 10_000, "expected object, got array"),
    # Fields that are missing, or misspelt.
    Refused(b"{}", "features: missing"),
    Refused(b'{"true_score": 1, "job_id": "m1"}', "features: missing", "m1"),
    Refused(b'{"features": [1, 2, 3], "job_id": "m2"}', "true_score: missing", "m2"),
    Refused(b'{"Features": [1, 2, 3], "true_score": 1}', "features: missing"),
    # features: what is no list of numbers.
    Refused(b'{"features": 1, "true_score": 1}', "features: expected array or object, got int"),
    Refused(b'{"features": null, "true_score": 1}', "features: expected array or object, got null"),
    Refused(b'{"features": "[1, 2, 3]", "true_score": 1}', "features: expected array or object, got str"),
    Refused(b'{"features": {"0": 1, "1": 2, "2": 3}, "true_score": 1}', "features: expected array, got object"),
    Refused(_features(b"true", b"2", b"3"), "features[0]: expected a number, got bool"),
    Refused(_features(b"1", b"false", b"3"), "features[1]: expected a number, got bool"),
    Refused(_features(b"1", b"2", b'"3"'), "features[2]: expected a number, got str"),
    Refused(_features(b"1", b"2", b'"NaN"'), "features[2]: expected a number, got str"),
    Refused(_features(b"1", b"null", b"3"), "features[1]: expected a number, got null"),
    Refused(_features(b"1", b"[2]", b"3"), "features[1]: expected a number, got array"),
    Refused(_features(b"1", b"{}", b"3"), "features[1]: expected a number, got object"),
    Refused(b'{"features": ' + b"[" * 100_000, "features[0]: expected a number, got array"),
    # features: a wrong count.
    Refused(b'{"features": [], "true_score": 1}', "features: expected 3 numbers, got 0"),
    Refused(b'{"job_id": "c1", "features": [1, 2], "true_score": 1}', "features: expected 3 numbers, got 2", "c1"),
    Refused(b'{"job_id": "c2", "features": [1, 2, 3, 4], "true_score": 1}', "features: expected 3 numbers, got 4", "c2"),
    Refused(_features(*[b"1"] * 100_000), "features: expected 3 numbers, got 100000"),
    # features: numbers that JSON does not have, or that float32 does not have.
    Refused(_features(b"NaN", b"2", b"3"), "not JSON: invalid character at byte 14: 'NaN"),
    Refused(_features(b"1", b"Infinity", b"3"), "not JSON: invalid character at byte 17: 'Infinity"),
    Refused(_features(b"1", b"-Infinity", b"3"), "not JSON: invalid character at byte 18: 'Infinity"),
    Refused(_features(b"1", b"2", b"nan"), "not JSON: invalid character at byte 24: "),
    Refused(_features(b"1", b"2", b"+3"), "not JSON: invalid character at byte 20: '+3"),
    Refused(_features(b"1", b"2", b"03"), "not JSON: invalid number at byte 21: '3"),
    Refused(_features(b"1", b"2", b".3"), "not JSON: invalid character at byte 20: '.3"),
    Refused(_features(b"1", b"2", b"3."), "not JSON: invalid number at byte 22: "),
    Refused(_features(b"1", b"2", b"0x3"), "not JSON: expected ',' or ']' at byte 21: 'x3"),
    Refused(_features(b"1", b"2", b"1_000"), "not JSON: expected ',' or ']' at byte 21: '_000"),
    Refused(_features(b"1", b"2", b""), "not JSON: trailing comma in array"),
    Refused(_features(b"1e39", b"2", b"3"), "features[0]: 1e+39 does not fit float32"),
    Refused(_features(b"1", b"-1e39", b"3"), "features[1]: -1e+39 does not fit float32"),
    Refused(_features(b"1", b"2", b"3.5e38"), "features[2]: 3.5e+38 does not fit float32"),
    Refused(_features(b"1", b"2", b"1" + b"0" * 300), "features[2]: 1e+300 does not fit float32"),
    Refused(_features(b"1", b"2", b"1e400"), "features[2]: number out of range"),
    Refused(_features(b"-1e400", b"2", b"3"), "features[0]: number out of range"),
    Refused(_features(b"1", b"1e99999999999", b"3"), "features[1]: number out of range"),
    Refused(_features(b"1", _MANY_DIGITS, b"3"), "features[1]: number out of range"),
    Refused(_features(b"1", b"-" + _MANY_DIGITS, b"3"), "features[1]: number out of range"),
    Refused(_features(b"1", _MANY_DIGITS + b".5", b"3"), "features[1]: number out of range"),
    # true_score.
    Refused(_score(b"null"), "true_score: expected a number, got null", "s"),
    Refused(_score(b"true"), "true_score: expected a number, got bool", "s"),
    Refused(_score(b"false"), "true_score: expected a number, got bool", "s"),
    Refused(_score(b'"1"'), "true_score: expected a number, got str", "s"),
    Refused(_score(b"[1]"), "true_score: expected a number, got array", "s"),
    Refused(_score(b"{}"), "true_score: expected a number, got object", "s"),
    Refused(_score(b"NaN"), "not JSON: invalid character"),
    Refused(_score(b"-Infinity"), "not JSON: invalid character"),
    Refused(_score(b"1e400"), "true_score: number out of range", "s"),
    Refused(_score(_MANY_DIGITS), "true_score: number out of range", "s"),
    Refused(_score(b"1e39"), "true_score: 1e+39 is outside 0 to 100", "s"),
    Refused(_score(b"100.5"), "true_score: 100.5 is outside 0 to 100", "s"),
    Refused(_score(b"-1e-9"), "true_score: -1e-09 is outside 0 to 100", "s"),
    Refused(_score(b"-1"), "true_score: -1 is outside 0 to 100", "s"),
    # job_id and group.
    Refused(_with(b'"job_id": null'), "job_id: expected str, got null"),
    Refused(_with(b'"job_id": 5'), "job_id: expected str, got int"),
    Refused(_with(b'"job_id": true'), "job_id: expected str, got bool"),
    Refused(_with(b'"job_id": ["a"]'), "job_id: expected str, got array"),
    Refused(_with(b'"job_id": {}'), "job_id: expected str, got object"),
    Refused(_with(b'"job_id": "%b"' % (b"x" * 257)), "job_id: expected str of length <= 256"),
    Refused(_with('"job_id": "{}"'.format("💥" * 257).encode()), "job_id: expected str of length <= 256"),
    Refused(_with(b'"job_id": "%b"' % (b"x" * 500_000)), "job_id: expected str of length <= 256"),
    Refused(_with(b'"job_id": "g", "group": null'), "group: expected str, got null", "g"),
    Refused(_with(b'"job_id": "g", "group": 5'), "group: expected str, got int", "g"),
    Refused(_with(b'"job_id": "g", "group": "%b"' % (b"x" * 257)), "group: expected str of length <= 256", "g"),
    Refused(_with(rb'"job_id": "\ud800"'), "not JSON"),
    Refused(_with(rb'"job_id": "\ud800x"'), "not JSON"),
    Refused(_with(rb'"job_id": "\udc00 \ud800"'), "not JSON: invalid utf-16 surrogate pair"),
    Refused(_with(rb'"group": "\udfff\ud800"'), "not JSON: invalid utf-16 surrogate pair"),
    Refused(_with(rb'"job_id": "\ud83d\ud83d"'), "not JSON: invalid utf-16 surrogate pair"),
    Refused(_with(b'"job_id": "\xed\xa0\x80"'), "not UTF-8: byte 0xed"),
    Refused(_with(b'"job_id": "\xff"'), "not UTF-8: byte 0xff"),
    Refused(_with(b'"job_id": "\xf0\x9f\x92"'), "not UTF-8: byte 0xf0"),
    Refused(_with(b'"group": "caf\xe9"'), "not UTF-8: byte 0xe9"),
    Refused(_with(b'"job_id": "a\tb"'), r"not JSON: invalid character at byte 53: '\tb"),
    Refused(_with(b'"job_id": "a\x00b"'), r"not JSON: invalid character at byte 53: '\x00b"),
    # Fields given twice: the last one counts, and each has to be of the right type.
    Refused(b'{"features": null, "features": [1, 2, 3], "true_score": 1}', "features: expected array or object, got null"),
    Refused(_with(b'"job_id": "d", "job_id": 5'), "job_id: expected str, got int"),
    Refused(_with(b'"job_id": "d", "true_score": 101'), "true_score: 101 is outside 0 to 100", "d"),
    Refused(_with(b'"job_id": "d", "features": [1]'), "features: expected 3 numbers, got 1", "d"),
    # Other fields: they may be anything that is JSON and UTF-8, and not too deep.
    Refused(_with(b'"other": NaN'), "not JSON: invalid character at byte 50: 'NaN"),
    Refused(_with(b'"job_id": "\xc3\xa9", "other": "\xff"'), "not UTF-8: byte 0xff", "é"),
    Refused(_with(b'"\xe9": 1'), "not UTF-8: byte 0xe9"),
    Refused(_with(b'"other": "\xed\xa0\x80"'), "not UTF-8: byte 0xed"),
    Refused(_with(rb'"other": "\ud800"'), "not JSON"),
    Refused(_with(b'"other": ' + b"[" * 100_000), "nested deeper than 64 levels"),
    Refused(_with(b'"other": ' + b"[" * 100_000 + b"]" * 100_000), "nested deeper than 64 levels"),
    Refused(_with(b'"other": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested deeper than 64 levels"),
    Refused(_with(b'"other": ' + b"[" * 981 + b"]" * 981), "nested deeper than 64 levels"),
    Refused(_with(b'"job_id": "n", "other": ' + b"[" * 64 + b"]" * 64), "nested deeper than 64 levels", "n"),
    Refused(_with(b'"job_id": "n", "other": ["[\\"", "\\\\", %b]' % (b'{"]":' * 63 + b"1" + b"}" * 63)), "nested deeper", "n"),
    # Not one whole JSON text.
    Refused(b'{"features": [1, 2, 3], "true_score": 1', "not JSON: input data was truncated"),
    Refused(b'{"features": [1, 2, 3], "true_score": 1} x', "not JSON: trailing characters"),
    Refused(b'{"features": [1, 2, 3], "true_score": 1} {}', "not JSON: trailing characters"),
    Refused(b'{"features": [1, 2, 3], "true_score": 1}\x00', "not JSON: trailing characters"),
    Refused(b'{"features": [1, 2, 3], "true_score": 1,}', "not JSON: trailing comma in object"),
    Refused(b"{'features': [1, 2, 3], 'true_score': 1}", "not JSON: object keys must be strings"),
    Refused(b'#run {"n_features": 3}', "not JSON: invalid character at byte 0: '#run"),
    Refused(b"#gone", "not JSON: invalid character at byte 0: '#gone'"),
    Refused(b"GET /status HTTP/1.1\r", "not JSON: invalid character at byte 0: 'GET /status "),
    Refused(b"\x00\x01\x02", r"not JSON: invalid character at byte 0: '\x00\x01\x02'"),
    Refused(b'\xef\xbb\xbf{"features": [1, 2, 3], "true_score": 1}', "not JSON: invalid character at byte 0"),
    Refused('{"features": [1, 2, 3], "true_score": 1}'.encode("utf-16"), "not JSON: invalid character at byte 0"),
    Refused(b"\x1f\x8b\x08\x00\xff\xfe", "not JSON: invalid character at byte 0"),
]

_DEEP = b'"other": {"a": ' + b"[" * 61 + b'{"b": null}' + b"]" * 61 + b"}"
_FLAT = b'"other": [' + b"[], {}, " * 1000 + b'"' + b"[{" * 1000 + b'", "]"]'

ODD = [
    Odd(b'{"features": [1, 2, 3], "true_score": 1}\r', [1.0, 2.0, 3.0]),
    Odd(b' \t{ "true_score" :1,"features":[ 1 ,2\t,3]\r} \r', [1.0, 2.0, 3.0]),
    Odd(_features(b"-0", b"-0.0", b"0e5"), [0.0, -0.0, 0.0]),
    Odd(_features(b"0.5", b"1E2", b"-2e-3"), [0.5, 100.0, -0.002]),
    Odd(_features(b"9223372036854775808", b"1" + b"0" * 30, b"1." + b"3" * 400), [2.0**63, 1e30, 4 / 3]),
    Odd(_features(b"1e-400", b"1e-46", b"3.4028234663852886e38"), [0.0, 1e-46, 3.4028234663852886e38]),
    Odd(b'{"features": [1, 2, 3], "true_score": -0}', [1.0, 2.0, 3.0], 0.0),
    Odd(b'{"features": [1, 2, 3], "true_score": 100}', [1.0, 2.0, 3.0], 100.0),
    Odd(b'{"features": [1, 2, 3], "true_score": 1e2}', [1.0, 2.0, 3.0], 100.0),
    Odd(_with(b'"job_id": ""'), [1.0, 2.0, 3.0], job_id=""),
    Odd(_with(b'"job_id": "o1", "group": ""'), [1.0, 2.0, 3.0], job_id="o1", group=""),
    Odd(_with(b'"group": ""'), [1.0, 2.0, 3.0], group=""),
    Odd(_with(b'"job_id": "%b"' % (b"x" * 256)), [1.0, 2.0, 3.0], job_id="x" * 256),
    Odd(_with('"job_id": "{}"'.format("💥" * 256).encode()), [1.0, 2.0, 3.0], job_id="💥" * 256),
    Odd(_with(rb'"job_id": "\ud83d\udca5"'), [1.0, 2.0, 3.0], job_id="💥"),
    Odd(_with(rb'"job_id": "\u0000\n\" \/ \u2028"'), [1.0, 2.0, 3.0], job_id='\0\n" / \u2028'),
    Odd(_with(b'"job_id": "\xe2\x80\xa8\xc2\x85"'), [1.0, 2.0, 3.0], job_id="\u2028\x85"),
    Odd(_with(b'"job_id": "o2", "features": [4, 5, 6], "job_id": "o3"'), [4.0, 5.0, 6.0], job_id="o3"),
    Odd(_with(b'"other": 1e999, "more": null, "": true'), [1.0, 2.0, 3.0]),
    Odd(_with(b'"job_id": "o4", ' + _DEEP), [1.0, 2.0, 3.0], job_id="o4"),
    Odd(_with(b'"job_id": "o5", ' + _FLAT), [1.0, 2.0, 3.0], job_id="o5"),
    Odd(_with('"other": "ü 💥", "größe": [1]'.encode()), [1.0, 2.0, 3.0]),
]
"""They are pairs. What stands in other fields is kept in the journal as it came."""
