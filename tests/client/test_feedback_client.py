"""The feedback client, against a sidecar that misbehaves on purpose."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY, CollectorRegistry

import sidecar.client.feedback_client
from sidecar.client.feedback_client import FeedbackClient
from sidecar.client.pipeline import Pipeline
from sidecar.log import Complaints
from sidecar.pairs.request import MAX_LINE_BYTES
from tests.client.fake_sidecar import (
    DUPLICATE,
    LONG,
    OK,
    REFUSED,
    RETRYABLE,
    SOON,
    FakeSidecar,
    Peer,
    answers,
    reads,
)
from tests.running import PATIENCE_S, wait_until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sidecar.sock"


@pytest.fixture
def make_client(path: Path) -> Iterator[Callable[..., FeedbackClient]]:
    clients = []

    def make(**options: Any) -> FeedbackClient:
        clients.append(FeedbackClient(path, **{"retry_s": SOON, "registry": CollectorRegistry(), **options}))
        return clients[-1]

    yield make
    for client in clients:
        client.close(0)


def send(client: FeedbackClient, *job_ids: str) -> list[bool]:
    return [client.send([0.5, 1.0], 42.0, job_id) for job_id in job_ids]


def counts(client: FeedbackClient) -> dict[str, int]:
    return {name: getattr(client, name) for name in ("delivered", "dropped", "refused", "queued")}


def metric(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value(f"vmafx_training_feedback_{name}_total")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("features", "sent"),
    [
        ([0.5, 1, -2.5e-7], [0.5, 1, -2.5e-7]),
        ((0.5, 1.25), [0.5, 1.25]),
        (np.array([0.1, 0.2]), [0.1, 0.2]),
        (np.array([0.1, 0.2], dtype=np.float32), [float(np.float32(0.1)), float(np.float32(0.2))]),
        ([np.float32(0.5), np.float64(0.25), np.int64(3)], [0.5, 0.25, 3]),
        ({"motion2": 3, "adm2": np.float32(0.5)}, {"motion2": 3, "adm2": 0.5}),
        (np.array([[1.0, 2.0], [3.0, 4.0]])[:, 0], [1.0, 3.0]),
        ([float("nan"), float("inf")], [None, None]),  # which the sidecar refuses with the field's name
    ],
)
def test_a_pair_goes_as_one_line_of_json(features, sent, path, make_client):
    with FakeSidecar(path, answers()) as sidecar, make_client() as client:
        assert client.send(features, np.float32(42.5), job_id="a\n1", group="g", codec="x264", crf=23)
        assert client.close(PATIENCE_S)
    expected = {"job_id": "a\n1", "group": "g", "features": sent, "true_score": 42.5, "codec": "x264", "crf": 23}
    assert [json.loads(line) for line in sidecar.received[0]] == [expected]


def test_names_that_are_not_given_are_absent(path, make_client):
    with FakeSidecar(path, answers()) as sidecar, make_client() as client:
        client.send([1.0], 42.0)
    assert json.loads(sidecar.received[0][0]).keys() == {"features", "true_score"}


def test_features_are_copied(path, make_client):
    features = np.zeros(2)
    with FakeSidecar(path, answers()) as sidecar, make_client() as client:
        client.send(features, 42.0)
        features += 1
    assert json.loads(sidecar.received[0][0])["features"] == [0, 0]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (OK, {"delivered": 3, "dropped": 0, "refused": 0, "queued": 0}),
        (DUPLICATE, {"delivered": 3, "dropped": 0, "refused": 0, "queued": 0}),
        (REFUSED, {"delivered": 0, "dropped": 3, "refused": 3, "queued": 0}),
        (b'{"ok":false}\n', {"delivered": 0, "dropped": 3, "refused": 3, "queued": 0}),
    ],
)
def test_what_becomes_of_pairs_is_counted(answer, expected, path, make_client):
    registry = CollectorRegistry()
    with FakeSidecar(path, answers(answer)) as sidecar, make_client(registry=registry) as client:
        assert send(client, "a", "b", "c") == [True] * 3
        assert client.close(PATIENCE_S)
    assert counts(client) == expected
    assert metric(registry, "delivered") == expected["delivered"]
    assert metric(registry, "dropped") == expected["dropped"]
    assert [sidecar.job_ids(i) for i in range(len(sidecar.received))] == [["a", "b", "c"]]


def test_a_refusal_is_logged_once_a_minute_with_its_reason(path, make_client, caplog):
    with FakeSidecar(path, answers(REFUSED)), make_client() as client:
        send(client, "a", "b", "c")
    assert messages(caplog) == [f"{path}: a pair was refused: features: expected 80 numbers, got 2"]


class Hostile:
    def tolist(self) -> list[float]:
        raise KeyError("no features today")


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        ({1.0, 2.0, object()}, "object is not a JSON value"),
        (Hostile(), "no features today"),
        ([0.25] * (MAX_LINE_BYTES // 5), "bytes of JSON; at most 1048576"),
    ],
)
def test_what_makes_no_request_line_is_refused_at_once(features, reason, path, make_client, caplog):
    with FakeSidecar(path, answers()) as sidecar, make_client() as client:
        assert client.send(features, 42.0) is False
        assert send(client, "b") == [True]
        assert client.close(PATIENCE_S)
    assert counts(client) == {"delivered": 1, "dropped": 1, "refused": 1, "queued": 0}
    assert sidecar.job_ids(0) == ["b"]
    assert reason in messages(caplog)[0]


def test_a_full_queue_drops_and_counts(path, make_client, caplog):
    registry = CollectorRegistry()
    client = make_client(capacity=5, retry_s=LONG, registry=registry)
    assert send(client, *"abcdefgh") == [True] * 5 + [False] * 3
    assert counts(client) == {"delivered": 0, "dropped": 3, "refused": 0, "queued": 5}
    assert [m for m in messages(caplog) if "dropped" in m] == [f"{path}: a pair was dropped: the queue is full (5 pairs)"]
    assert metric(registry, "dropped") == 3

    assert client.close(0) is False
    assert counts(client) == {"delivered": 0, "dropped": 8, "refused": 0, "queued": 0}
    assert metric(registry, "dropped") == 8
    assert f"{path}: closed with 5 pairs undelivered" in messages(caplog)


def test_pairs_in_flight_are_of_the_capacity_too(path, make_client):
    read = threading.Event()

    def script(peer: Peer) -> None:
        reads(2)(peer)
        read.set()
        peer.line()

    with FakeSidecar(path, script), make_client(capacity=2, in_flight=2) as client:
        send(client, "a", "b")
        assert read.wait(PATIENCE_S)
        assert send(client, "c") == [False]
        client.close(0)


def test_a_sidecar_that_never_reads_holds_up_nobody(path, make_client):
    stop = threading.Event()
    features = [0.125] * 10_000  # so that the socket is full before the window is
    with FakeSidecar(path, lambda peer: stop.wait(PATIENCE_S)), make_client(capacity=100) as client:
        assert [client.send(features, 42.0) for _ in range(110)] == [True] * 100 + [False] * 10
        assert client.close(0.05) is False
        assert counts(client) == {"delivered": 0, "dropped": 110, "refused": 0, "queued": 0}
        stop.set()


def test_lines_larger_than_the_socket_takes_arrive_whole(path, make_client):
    features = [0.125] * 50_000
    with FakeSidecar(path, answers()) as sidecar, make_client() as client:
        for score in range(6):
            client.send(features, score)
        assert client.close(PATIENCE_S)
    assert [json.loads(line) for line in sidecar.received[0]] == [{"features": features, "true_score": s} for s in range(6)]


def test_lines_go_without_waiting_for_answers_but_not_more_than_the_window(path, make_client):
    quiet = []

    def script(peer: Peer) -> None:
        peer.line()  # the first goes alone; the others came while it waited for its answer
        wait_until(lambda: client.queued == 10)
        peer.say(OK)
        for _ in range(2):
            for _ in range(4):
                assert peer.line() is not None
            quiet.append(peer.is_quiet())
            peer.say(4 * OK)
        answers()(peer)

    with FakeSidecar(path, script), make_client(in_flight=4) as client:
        send(client, *"abcdefghij")
        assert client.close(PATIENCE_S)
    assert quiet == [True, True]
    assert client.delivered == 10


def byte_by_byte(peer: Peer) -> None:
    for _ in peer:
        for byte in OK:
            peer.say(bytes([byte]))


def test_answers_may_come_in_pieces(path, make_client):
    with FakeSidecar(path, byte_by_byte) as sidecar, make_client() as client:
        send(client, *"abc")
        assert client.close(PATIENCE_S)
    assert client.delivered == 3
    assert len(sidecar.received) == 1


@pytest.mark.parametrize(
    ("script", "again"),
    [
        (reads(0), "abc"),
        (reads(1), "abc"),
        (reads(1, OK[:-5]), "abc"),
        (reads(1, OK + OK[:10]), "bc"),
        (reads(1, b"ready\n"), "abc"),
        (reads(1, b"{}\n"), "abc"),
        (reads(1, b"[true]\n"), "abc"),
        (reads(1, b'{"ok":1}\n'), "abc"),
        (reads(1, b'{"ok":true,"error":"\xff"}\n'), "abc"),
        (reads(1, b"\n"), "abc"),
        (reads(1, OK + b"[" * 5000 + b"\n"), "bc"),
        (reads(1, b'{"ok":true,"job_id":"' + b"x" * (1 << 16) + b'"}\n'), "abc"),
        (lambda peer: (peer.line(), peer.say(b"x" * 70_000), list(peer)), "abc"),  # no newline, and the connection stays open
        (reads(1, REFUSED), "bc"),
        (reads(3, 2 * OK), "c"),
    ],
)
def test_after_a_broken_connection_what_was_not_answered_goes_again(script, again, path, make_client):
    client = make_client()
    client.send([1.0], 1.0, "first")  # there is no sidecar yet: all three wait
    send(client, *"bc")
    with FakeSidecar(path, script, answers()) as sidecar:
        assert client.close(PATIENCE_S)
    names = {"a": "first", "b": "b", "c": "c"}
    assert sidecar.job_ids(1) == [names[each] for each in again]
    assert client.delivered + client.refused == 3
    assert client.queued == 0


def test_a_pipeline_returns_when_it_has_written_and_has_room_for_64_kib_unwritten(path):
    script = reads(2, OK)
    with FakeSidecar(path, lambda peer: (script(peer), peer.line())), closing(Pipeline[str](path, 8)) as pipeline:
        pipeline.add(b"1" * 65_535, "a")
        assert not pipeline.has_room()
        while not pipeline.has_room():
            assert list(pipeline.exchange(PATIENCE_S)) == []  # or the sidecar, which waits for two lines, hangs up
        pipeline.add(b"2", "b")
        while len(pipeline.unanswered) == 2:
            assert [tag for tag, _ in pipeline.exchange(PATIENCE_S)] in ([], ["a"])


def test_a_pipeline_wakes_when_it_can_write(path):
    size = 4_000_000  # more than the socket holds
    with FakeSidecar(path, answers()) as fake, closing(Pipeline[str](path, 8)) as pipeline:
        pipeline.add(b"1" * size, "a")
        while pipeline.unanswered:
            assert all(answer.ok for _, answer in pipeline.exchange(PATIENCE_S))
    assert len(fake.received[0][0]) == size


def test_what_was_answered_before_the_sidecar_hung_up_is_still_read(path):
    written = threading.Event()
    script = reads(1, REFUSED)
    with (
        FakeSidecar(path, lambda peer: written.wait(PATIENCE_S) and script(peer)) as fake,
        closing(Pipeline[str](path, 8)) as pipeline,
    ):
        pipeline.add(b"1", "a")
        assert list(pipeline.exchange(PATIENCE_S)) == []
        written.set()
        fake.join_connections()
        pipeline.add(b"2", "b")
        taken: list[str] = []

        def exchange() -> None:
            for _ in range(3):
                taken.extend(tag for tag, _ in pipeline.exchange(PATIENCE_S))

        with pytest.raises(ConnectionResetError):
            exchange()
    assert taken == ["a"]
    assert list(pipeline.unanswered) == ["b"]


def test_an_answer_to_no_request_breaks_the_connection(path, make_client):
    with FakeSidecar(path, reads(1, 2 * OK), answers()) as sidecar, make_client() as client:
        send(client, "a")
        wait_until(lambda: client.delivered == 1)
        send(client, "b")
        wait_until(lambda: client.delivered == 2)
    assert sidecar.job_ids(1) == ["b"]


def test_a_sidecar_that_restarted_while_nothing_was_sent(path, make_client):
    with FakeSidecar(path, reads(1, OK), answers()) as sidecar, make_client() as client:
        for delivered, job_id in enumerate("ab", 1):
            send(client, job_id)
            wait_until(lambda expected=delivered: client.delivered == expected)
    assert sidecar.job_ids(1) == ["b"]


def test_pauses_double_and_begin_anew_after_an_answer(path, make_client, monkeypatch, caplog):
    monkeypatch.setattr(sidecar.log, "REPEATED_S", 0.0)
    client = make_client(retry_s=(0.001, 0.003))
    send(client, "a")

    def pauses() -> list[str]:
        return [m.rpartition("connecting again in ")[2] for m in messages(caplog) if "connecting again" in m]

    wait_until(lambda: len(pauses()) >= 4)
    assert pauses()[:4] == ["0.001 s", "0.002 s", "0.003 s", "0.003 s"]
    assert messages(caplog)[0] == f"{path}: No such file or directory; queued pairs: 1; connecting again in 0.001 s"
    with FakeSidecar(path, reads(1, OK), answers()):
        wait_until(lambda: client.delivered == 1)
        send(client, "b")
        wait_until(lambda: client.delivered == 2)
    assert pauses()[-1] == "0.001 s"


def test_the_default_pauses_are_2_s_to_2_min(path, monkeypatch, caplog):
    monkeypatch.setattr(sidecar.log, "REPEATED_S", 0.0)
    with FeedbackClient(path, registry=CollectorRegistry()) as client:
        now = [0.0]
        monkeypatch.setattr(sidecar.client.feedback_client.time, "monotonic", lambda: now[0])
        pauses = []
        for _ in range(8):
            pauses.append(client._hold())
            assert client._hold() == pauses[-1]  # one pause at a time
            now[0] += pauses[-1]
    assert pauses == [2, 4, 8, 16, 32, 64, 120, 120]


def test_a_retryable_pair_goes_again_after_a_pause(path, make_client, caplog):
    def script(peer: Peer) -> None:
        reads(3, RETRYABLE + OK + RETRYABLE)(peer)
        answers()(peer)

    client = make_client()
    send(client, *"abc")
    with FakeSidecar(path, script) as sidecar:
        assert client.close(PATIENCE_S)
    assert sidecar.job_ids(0) == ["a", "b", "c", "a", "c"]
    assert counts(client) == {"delivered": 3, "dropped": 0, "refused": 0, "queued": 0}
    assert any(f"{path}: journal: no space left on device; sending again in 0.00" in m for m in messages(caplog))


def test_nothing_is_sent_in_the_pause_and_close_cuts_it_short(path, make_client):
    quiet = []

    def script(peer: Peer) -> None:
        reads(1, RETRYABLE)(peer)
        wait_until(lambda: client.queued == 2)
        quiet.append(peer.is_quiet())
        answers()(peer)

    with FakeSidecar(path, script) as sidecar, make_client(retry_s=LONG) as client:
        send(client, "a")
        wait_until(lambda: sidecar.received and sidecar.received[0])
        wait_until(lambda: client._hold_until > 0)
        send(client, "b")
        wait_until(lambda: quiet)
        assert client.close(PATIENCE_S)
    assert quiet == [True]
    assert sidecar.job_ids(0) == ["a", "a", "b"]
    assert client.delivered == 2


def test_close_delivers_what_waits_for_a_sidecar_that_has_come(path, make_client):
    client = make_client(retry_s=LONG)
    send(client, *"abc")
    wait_until(lambda: client._hold_until > 0)  # it has tried, and pauses
    with FakeSidecar(path, answers()) as sidecar:
        assert client.close(PATIENCE_S)
    assert sidecar.job_ids(0) == ["a", "b", "c"]


def test_close_ends_in_time_where_no_sidecar_comes(make_client):
    client = make_client(retry_s=LONG)
    send(client, *"abc")
    assert client.close(0.05) is False
    assert counts(client) == {"delivered": 0, "dropped": 3, "refused": 0, "queued": 0}


def test_a_pair_that_comes_as_the_thread_lies_down_keeps_it_up(make_client):
    class NoSleep(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise AssertionError("asleep, with a pair to send")

    client = make_client()
    client._news = NoSleep()
    client._waiting.append(b"{}")
    client._sleep(True, 1000.0)


def test_a_closed_client_drops(path, make_client, caplog):
    with FakeSidecar(path, answers()), make_client() as client:
        send(client, "a")
    assert send(client, "b") == [False]
    assert client.close()  # again
    assert counts(client) == {"delivered": 1, "dropped": 1, "refused": 0, "queued": 0}
    assert messages(caplog) == [f"{path}: a pair was dropped: the client is closed"]


def test_a_client_that_was_never_used_closes(make_client):
    with make_client() as client:
        pass
    assert counts(client) == {"delivered": 0, "dropped": 0, "refused": 0, "queued": 0}


def test_many_producers(path, make_client):
    with FakeSidecar(path, answers()) as sidecar, make_client(capacity=2000) as client:
        producers = [threading.Thread(target=send, args=(client, *(f"{p}-{i}" for i in range(200)))) for p in range(8)]
        for producer in producers:
            producer.start()
        for producer in producers:
            producer.join()
        assert client.close(PATIENCE_S)
    assert sorted(sidecar.job_ids(0)) == sorted(f"{p}-{i}" for p in range(8) for i in range(200))
    assert client.delivered == 1600


def test_nothing_that_goes_wrong_in_the_thread_ends_it(path, make_client, monkeypatch, caplog):
    failures = [MemoryError("no memory"), ZeroDivisionError("a bug")]

    def connect(*arguments: Any) -> Pipeline[bytes]:
        if failures:
            raise failures.pop()
        return Pipeline(*arguments)

    monkeypatch.setattr(sidecar.client.feedback_client, "Pipeline", connect)
    with FakeSidecar(path, answers()), make_client() as client:
        send(client, "a")
        wait_until(lambda: client.delivered == 1)
    assert "ZeroDivisionError('a bug')" in messages(caplog)[0]


def test_no_thread_to_be_had_is_a_dropped_pair(path, make_client, monkeypatch):
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with FakeSidecar(path, answers()), make_client() as client:
        with monkeypatch.context() as patch:
            patch.setattr(sidecar.client.feedback_client.threading.Thread, "start", start)
            assert send(client, "a") == [False]
        assert send(client, "b") == [True]
        assert client.close(PATIENCE_S)
    assert counts(client) == {"delivered": 1, "dropped": 1, "refused": 0, "queued": 0}


def test_clients_of_one_registry_share_its_counters(tmp_path):
    names = ("delivered", "dropped")
    before = [metric(REGISTRY, name) or 0.0 for name in names]
    with FakeSidecar(tmp_path / "a", answers()), FakeSidecar(tmp_path / "b", answers(REFUSED)):
        for name in "ab":
            with FeedbackClient(tmp_path / name) as client:
                send(client, "a", "b")
    assert [metric(REGISTRY, name) - old for name, old in zip(names, before, strict=True)] == [2.0, 2.0]


FORKING = """
import os, sys
from sidecar.client.feedback_client import FeedbackClient
client = FeedbackClient(sys.argv[1], retry_s=(0.001, 0.004))
client.send([1.0], 1.0, "before")
pid = os.fork()
client.send([1.0], 1.0, "child" if pid == 0 else "parent")
done = client.close(60) and client.delivered == (1 if pid == 0 else 2)
if pid == 0:
    os._exit(0 if done else 1)
sys.exit(0 if done and os.waitpid(pid, 0)[1] == 0 else 1)
"""


def test_both_sides_of_a_fork_deliver_their_own(path):
    with FakeSidecar(path, answers()) as sidecar:
        done = subprocess.run([sys.executable, "-c", FORKING, str(path)], capture_output=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        jobs = [sidecar.job_ids(i) for i in range(len(sidecar.received))]
        assert sorted(jobs) == [["before", "parent"], ["child"]]


def test_warnings_of_a_kind_come_once_a_minute(caplog):
    now = [0.0]
    complaints = Complaints(logging.getLogger("sidecar.client.feedback_client"), lambda: now[0])
    for now[0], kind in [(0, "a"), (1, "a"), (2, "b"), (59.9, "a"), (60, "a"), (61, "b"), (119, "a"), (500, "a")]:
        complaints.warn(kind, "%s at %g", kind, now[0])
    assert messages(caplog) == [
        "a at 0",
        "b at 2",
        "a at 60 (and 2 more like this since the last such line)",
        "a at 500 (and 1 more like this since the last such line)",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
