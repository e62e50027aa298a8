"""Replay of recorded pairs to a sidecar that answers by script, or to a pipeline with a clock of its own."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import socket
import sys
import zipfile
from collections import deque

import numpy as np
import pytest

import sidecar.client.replay
import sidecar.pairs.tables.npz
from sidecar.client.replay import ReplayError, RequestLine, Summary, read_requests, replay
from sidecar.journal.blocks import encode_block
from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.line_protocol import Answer
from sidecar.pairs.request import MAX_LINE_BYTES
from sidecar.pairs.tables.choice import Columns
from tests.client.fake_sidecar import DUPLICATE, OK, REFUSED, RETRYABLE, FakeSidecar, Peer, answers, reads
from tests.conftest import EXAMPLE
from tests.journals import write_journal
from tests.running import wait_until

LINES = [
    b'{"job_id":"a1", "features": [1, 2.50],"true_score":42.0,"codec":"x264"}',
    b'{"job_id":"a2","group":"g","features":[3,4],"true_score":43}',
    b'{"features":[5,6],"true_score":44}',
]
ROWS = [json.loads(line) for line in LINES]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sidecar.sock"


@pytest.fixture
def jsonl(write_lines):
    return write_lines(LINES)


def lines_of(*paths):
    return [request.line for request in read_requests(paths)]


def test_lines_of_json_go_as_they_stand(jsonl, tmp_path, monkeypatch):
    zipped = tmp_path / "pairs.jsonl.gz"
    zipped.write_bytes(gzip.compress(b"\n" + b"\n \n".join(LINES)))  # blank lines, no newline at the end
    segments = {"000000000000.jsonl.gz": [b'#run {"seed":0}', LINES[0], b"#gone"], "000000000002.jsonl": LINES[1:]}
    write_journal(tmp_path / "state", segments, torn=LINES[0])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(LINES))))
    for form in (jsonl, zipped, tmp_path / "state", "-"):
        assert lines_of(form) == LINES, form
    assert lines_of(jsonl, jsonl) == LINES + LINES


def test_rows_of_arrays_become_lines_with_their_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(sidecar.pairs.tables.npz, "BLOCK_ROWS", 2)
    np.savez(
        tmp_path / "pairs.npz",
        features=np.asfortranarray([row["features"] for row in ROWS]),
        true_score=np.array([row["true_score"] for row in ROWS]),
        job_id=np.array([row.get("job_id", "") for row in ROWS]),
        group=np.array([row.get("group", "") for row in ROWS]),
        codec=np.array([row.get("codec", "") for row in ROWS]),
        frame=np.arange(7),  # of no concern
    )
    with zipfile.ZipFile(tmp_path / "pairs.npz", "a") as archive:
        archive.writestr("README.txt", "no array")
    expected = [{key: value for key, value in row.items() if key != "codec"} for row in ROWS]
    assert [json.loads(line) for line in lines_of(tmp_path / "pairs.npz")] == expected


def test_rows_of_tables_become_lines_by_name_and_missing_values_are_told(tmp_path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("vmaf,integer_vif,key,motion2\n42,1,a,2.5\n\n43,,a,3\n44,5,b,6\n")
    skipped = []
    read = [(each.number, each.where(), json.loads(each.line)) for each in read_requests([pairs], on_skipped=skipped.append)]
    assert read == [
        (2, f"{pairs}: line 2", {"features": {"vif": 1, "motion2": 2.5}, "true_score": 42, "group": "a"}),
        (5, f"{pairs}: line 5", {"features": {"vif": 5, "motion2": 6}, "true_score": 44, "group": "b"}),
    ]
    assert [each.said() for each in skipped] == [
        f"{pairs}: 1 of 3 rows skipped: 1 with a missing value, the first: line 4 (integer_vif)"
    ]
    asked = Columns(features=("motion2", "vif"), target="vmaf")
    assert json.loads(next(read_requests([pairs], asked)).line) == {"features": [2.5, 1], "true_score": 42, "group": "a"}
    pairs.write_text("vmaf,vif\n42,x\n")
    with pytest.raises(RecordedPairsError, match="line 2: vif: expected a number, got 'x'"):
        list(read_requests([pairs]))


def write(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def write_npz(**arrays):
    return lambda folder: np.savez(folder / "pairs.npz", **arrays)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("none.jsonl", lambda folder: None, "No such file"),
        ("none", lambda folder: None, "No such file"),
        ("pairs.txt", write("pairs.txt", b"\0"), "expected JSON lines"),
        ("state", lambda folder: (folder / "state").mkdir(), "without a journal"),
        ("pairs.jsonl", write("pairs.jsonl", b"\n \n"), "no pairs"),
        ("pairs.jsonl", write("pairs.jsonl", b"\n" + b"1" * (MAX_LINE_BYTES + 1) + b"\n"), "line 2: longer than 1048576"),
        ("pairs.jsonl.gz", write("pairs.jsonl.gz", b"nothing"), "line 1: not JSON"),
        ("pairs.jsonl.gz", write("pairs.jsonl.gz", gzip.compress(LINES[0])[:-6]), "gzip"),
        ("pairs.csv", write("pairs.csv", b""), "no pairs"),
        ("pairs.csv", write("pairs.csv", b"a,b\n1,2\n"), "columns: a, b"),
        ("pairs.csv", write("pairs.csv", b"vif,true_score\n1,\xff\n"), "not CSV text"),
        ("pairs.npz", write("pairs.npz", b"nothing"), "not a numpy .npz archive"),
        ("pairs.npz", write_npz(features=np.ones((2, 2))), "no score: no column true_score"),
        ("pairs.npz", write_npz(features=np.ones((2, 2)), true_score=np.ones(3)), "true_score has 3 rows"),
        ("pairs.npz", write_npz(features=np.ones(2), true_score=np.ones(2)), "features is float64 of shape"),
        ("pairs.npz", write_npz(features=np.ones((2, 2)), true_score=np.ones(2), group=np.full(3, "x")), "group has 3 rows"),
    ],
)
def test_what_cannot_be_read_is_named(name, make, reason, tmp_path, path):
    make(tmp_path)
    with FakeSidecar(path, answers()), pytest.raises(RecordedPairsError, match=reason) as raised:
        replay([tmp_path / name], path)
    assert str(tmp_path / name) in str(raised.value)


def test_real_pairs_are_sent_in_order_and_counted(path):
    progress = []
    with FakeSidecar(path, answers()) as fake:
        summary = replay([EXAMPLE], path, progress=progress.append)
    assert fake.received[0] == gzip.decompress(EXAMPLE.read_bytes()).splitlines()
    assert (summary.sent, summary.answered, summary.accepted) == (2496, 2496, 2496)
    assert progress == sorted(progress)
    assert progress[-1] == 2496
    assert summary.pairs_per_second == pytest.approx(2496 / summary.seconds)
    assert 0 < summary.latency_ms(0.5) <= summary.latency_ms(0.99) <= summary.latency_ms(1.0) <= summary.seconds * 1010


def test_a_sidecar_may_get_its_own_journal(path, tmp_path):
    state = write_journal(tmp_path / "state", {"000000000000.jsonl": [b'#run {"seed":0}', *LINES]})
    segment = state / "journal" / "000000000000.jsonl"

    def accept(peer: Peer) -> None:
        for number, line in enumerate(itertools.islice(peer, 20), len(LINES)):
            with segment.open("ab") as journal:
                journal.write(encode_block(number, [line]))
            peer.say(OK)

    with FakeSidecar(path, accept):
        assert replay([tmp_path / "state"], path, window=1).accepted == 3


def test_each_answer_is_counted_for_what_it_is(path, write_lines):
    trained = b'{"ok":true,"job_id":"a","step":8,"trained":true,"loss":3.1,"checkpoint":"/ckpt/model_v000001.onnx"}\n'
    said = [OK, DUPLICATE, trained, REFUSED, RETRYABLE, RETRYABLE, REFUSED, OK, trained.replace(b"v000001", b"v000002")]

    def script(peer: Peer) -> None:
        for answer, _ in zip(said, peer, strict=False):
            peer.say(answer)

    pairs = write_lines([LINES[0]] * len(said))
    with FakeSidecar(path, script):
        document = replay([pairs], path).as_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    latency, seconds, speed = (document.pop(key) for key in ("latency_ms", "seconds", "pairs_per_second"))
    assert latency.keys() == {"p50", "p99", "max"}
    assert seconds > 0
    assert speed > 0
    assert document == {
        "sent": 9,
        "accepted": 4,
        "duplicate": 1,
        "refused": 2,
        "retryable": 2,
        "trained": 2,
        "checkpoints": ["/ckpt/model_v000001.onnx", "/ckpt/model_v000002.onnx"],
        "first_refusal": f"{pairs}: line 4: features: expected 80 numbers, got 2",
        "skips": [],
    }


def test_a_refused_row_of_an_archive_is_named_as_such(path, tmp_path):
    np.savez(tmp_path / "pairs.npz", features=np.ones((3, 2)), true_score=np.ones(3))
    with FakeSidecar(path, lambda peer: [peer.say(answer) for answer, _ in zip([OK, REFUSED, OK], peer, strict=False)]):
        summary = replay([tmp_path / "pairs.npz"], path)
    assert summary.first_refusal == f"{tmp_path / 'pairs.npz'}: row 2: features: expected 80 numbers, got 2"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (reads(2, OK + OK), "the sidecar closed the connection; pairs answered: 2"),
        (reads(1, OK[:-4]), "the sidecar closed the connection; pairs answered: 0"),
        (reads(1, OK + b"bye\n"), "not an answer: b'bye' .*; pairs answered: 1"),
        (reads(1, OK + b'"\xff"\n'), "not an answer: .*; pairs answered: 1"),
        (reads(1, OK + b"[" * 5000 + b"\n"), "not an answer: .*; pairs answered: 1"),
        (reads(3, 4 * OK), "an answer without a request: .*; pairs answered: 3"),
    ],
)
def test_a_lost_connection_is_an_error_that_says_how_far_it_came(script, message, jsonl, path):
    with FakeSidecar(path, script), pytest.raises(ReplayError, match=f"{path}: {message}"):
        replay([jsonl], path)


def test_no_sidecar_at_the_socket(jsonl, path):
    with pytest.raises(ReplayError, match=f"{path}: No such file or directory; is the sidecar running"):
        replay([jsonl], path)
    with socket.socket(socket.AF_UNIX) as once:
        once.bind(str(path))
    with pytest.raises(ReplayError, match=f"{path}: Connection refused; is the sidecar running"):
        replay([jsonl], path)
    with pytest.raises(ReplayError, match="path too long"):
        replay([jsonl], "/tmp/" + 120 * "x")


def test_an_interrupt_closes_the_connection_and_goes_on_up(path, jsonl):
    def interrupt(answered: int) -> None:
        raise KeyboardInterrupt

    ended = []
    with FakeSidecar(path, lambda peer: ended.append([*peer])):
        with pytest.raises(KeyboardInterrupt):
            replay([jsonl], path, progress=interrupt)
        wait_until(lambda: ended)  # the sidecar came to the end of the connection, which is still open otherwise


class FakePipeline:
    """Answers each line after a time of its own; waiting moves the clock on."""

    def __init__(self, latencies_s, window):
        self.now = 0.0
        self.unanswered = deque()
        self.added_at = []
        self._latencies_s, self._window = latencies_s, window
        self._answered_at = deque()

    def clock(self):
        return self.now

    def has_room(self):
        return len(self.unanswered) < self._window

    def add(self, line, tag):
        self.added_at.append(round(self.now, 6))
        self._answered_at.append(self.now + next(self._latencies_s))
        self.unanswered.append(tag)

    def exchange(self, timeout_s):
        self.now += min(timeout_s, max(self._answered_at[0] - self.now, 0.0) if self._answered_at else timeout_s)
        while self._answered_at and self._answered_at[0] <= self.now:
            self._answered_at.popleft()
            yield self.unanswered.popleft(), Answer(ok=True)

    def close(self):
        pass


@pytest.fixture
def pipeline(monkeypatch):
    def make(latencies_s, window=512):
        made = FakePipeline(iter(latencies_s), window)
        monkeypatch.setattr(sidecar.client.replay, "Pipeline", lambda path, size: made)
        return made

    return make


def many(monkeypatch, count):
    """So many requests, and the list of those that were read."""
    read = []

    def requests(paths, columns, on_skipped):
        for number in range(count):
            read.append(number)
            yield RequestLine("pairs.jsonl", number, LINES[0])

    monkeypatch.setattr(sidecar.client.replay, "read_requests", requests)
    return read


@pytest.mark.parametrize(
    ("rate", "latencies_s", "window", "added_at"),
    [
        (None, [0.5] * 4, 512, [0, 0, 0, 0]),
        (None, [0.5] * 4, 2, [0, 0, 0.5, 0.5]),
        (10, [0.01] * 4, 512, [0, 0.1, 0.2, 0.3]),
        (10, [0.5] * 4, 512, [0, 0.1, 0.2, 0.3]),
        (10, [0.25, 0.01, 0.01, 0.01, 0.01], 1, [0, 0.25, 0.26, 0.3, 0.4]),  # a stall is caught up with
    ],
)
def test_pairs_go_at_the_rate_within_the_window(rate, latencies_s, window, added_at, pipeline, monkeypatch):
    fake = pipeline(latencies_s, window)
    many(monkeypatch, len(latencies_s))
    summary = replay(["pairs"], "socket", rate=rate, clock=fake.clock)
    assert fake.added_at == added_at
    assert summary.seconds == pytest.approx(fake.now)


def test_latencies_are_those_of_single_answers(pipeline, monkeypatch):
    fake = pipeline([0.001 * (1 + i) for i in range(201)], window=1)
    many(monkeypatch, 201)
    summary = replay(["pairs"], "socket", clock=fake.clock)
    assert [summary.latency_ms(share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 101, 199, 201]
    assert summary.seconds == pytest.approx(20.301)
    assert summary.pairs_per_second == pytest.approx(201 / 20.301)


def test_pairs_are_read_as_they_are_sent_and_memory_does_not_grow(pipeline, monkeypatch):
    fake = pipeline(itertools.repeat(0.0123456), window=8)
    read = many(monkeypatch, 10_000)
    ahead = []
    summary = replay(["pairs"], "socket", clock=fake.clock, progress=lambda answered: ahead.append(len(read) - answered))
    assert summary.answered == 10_000
    assert max(ahead) <= 8 + 1
    assert len(summary.latencies_ms) < 10


def test_a_summary_of_nothing_has_no_latency():
    assert Summary().as_json()["latency_ms"] == {"p50": None, "p99": None, "max": None}
    assert Summary().pairs_per_second == 0
