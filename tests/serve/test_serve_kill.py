"""Killed at random moments and started again, a sidecar ends where one that was never killed would have ended, byte for byte.

Each test kills three times, and 12 times among the slow ones; `KILLS=500 python -m pytest tests/serve/test_serve_kill.py` is
the longer run.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.checkpoints.directory import checkpoints, tenant_directory
from sidecar.journal.segments import read_journal
from tests.conftest import run
from tests.running import PATIENCE_S, Sidecar, journalled, published

KILLS = os.environ.get("KILLS")
PAIRS_A_LIFE = 90
BUSY = {"snapshot_interval": 0.05, "checkpoint_interval": 0, "min_samples": 16, "keep_checkpoints": 1000}
"""A checkpoint and a snapshot are nearly always being written, once onnxruntime is there."""


@pytest.fixture(params=[int(KILLS)] if KILLS else [3, pytest.param(12, marks=pytest.mark.slow)])
def kills(request) -> int:
    return request.param


@pytest.fixture
def stream(lines, kills) -> list[bytes]:
    """Real pairs, as many as all the lives take, each under a job_id and in a group of its own time."""
    count, pairs = PAIRS_A_LIFE * (kills + 1), []
    for number in range(count):
        line, again = lines[number % len(lines)], number // len(lines)
        pairs.append(line.replace(b'"job_id": "', b'"job_id": "%d-' % again).replace(b'"group": "', b'"group": "%d-' % again))
    return pairs


class Connection:
    """Sends its part of the stream, again from the first pair that was not answered."""

    def __init__(self, lines: list[bytes]) -> None:
        self.lines, self.answered = lines, 0
        self.socket: socket.socket | None = None

    def open(self, path: Path) -> None:
        self.close()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(str(path))

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()

    def send(self, count: int) -> None:
        """Send so many pairs, and take their answers."""
        lines = self.lines[self.answered : self.answered + count]
        self.socket.sendall(b"".join(line + b"\n" for line in lines))
        received = b""
        while received.count(b"\n") < len(lines):
            data = self.socket.recv(1 << 16)
            assert data
            received += data
        for line in received.splitlines():
            assert json.loads(line)["ok"] is True, line
        self.answered += len(lines)

    def begin_to_send(self, chance: random.Random) -> None:
        """Some bytes are on their way, perhaps in mid-line, and no answer is waited for."""
        lines = self.lines[self.answered : self.answered + 3]
        data = b"".join(line + b"\n" for line in lines)
        self.socket.sendall(data[: chance.randrange(len(data) + 1)])


class Watch:
    """Looks at a checkpoint directory after each kill: no model without its digest and JSON, no version twice."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen: dict[int, str] = {}

    def look(self) -> None:
        found = {}
        for checkpoint in checkpoints(self._directory):
            digest = hashlib.sha256(checkpoint.model.read_bytes()).hexdigest()
            assert checkpoint.digest.read_text() == f"{digest}\n"
            about = json.loads(checkpoint.description.read_text())
            assert (about["sha256"], about["version"]) == (digest, checkpoint.version)
            found[checkpoint.version] = digest
        newest = max(self._seen, default=0)
        for version, digest in found.items():
            assert self._seen.get(version, digest) == digest
            assert version in self._seen or version > newest
        self._seen |= found


LIVES = {"busy": 63, "at leisure": 27, "starting": 10}
"""What a sidecar is at when it dies, the first three lives one of each, and how likely each is after them."""


def live_and_die(
    kills: int,
    start: Callable[[int], Sidecar],
    parts: list[list[bytes]],
    chance: random.Random,
    after_kill: Callable[[int], object] = lambda kill: None,
    lives: dict[str, int] = LIVES,
) -> None:
    """Run sidecars one after the other over all pairs, and kill all but the last with SIGKILL.

    start: gives the sidecar of a life, by its number; parts: what each connection sends.
    """
    connections = [Connection(part) for part in parts]
    total = sum(len(part) for part in parts)
    watch = None
    for kill in range(kills):
        sidecar = start(kill)
        life = [*lives][kill] if kill < len(lives) else chance.choices([*lives], [*lives.values()])[0]
        watch = watch or Watch(sidecar.checkpoint_dir)
        if life == "starting":
            time.sleep(chance.random() * 0.4)
        else:
            sidecar.connect()
            for connection in connections:
                connection.open(sidecar.socket_path)
            goal = total * (kill + 1) // (kills + 1)
            while sum(connection.answered for connection in connections) < goal:
                connection = chance.choice(connections)
                connection.send(chance.randrange(1, 40))
                if life == "at leisure":
                    time.sleep(chance.random() * 0.4)
            for connection in connections:
                connection.begin_to_send(chance)
            time.sleep(chance.random() * 0.15)
        assert sidecar.stop(signal.SIGKILL) == -signal.SIGKILL, sidecar.log.read_text()
        watch.look()
        after_kill(kill)
    sidecar = start(kills).connect()
    for connection in connections:
        connection.open(sidecar.socket_path)
        connection.send(len(connection.lines))
        connection.close()
    assert sidecar.stop() == 0, sidecar.log.read_text()
    watch.look()


def run_of(start: Callable[..., Sidecar], directory: Path, settings: dict, lines: list[bytes]) -> Sidecar:
    """A life without a kill over some pairs."""
    sidecar = start(directory, **settings).connect()
    for at in range(0, len(lines), 500):
        assert all(answer["ok"] for answer in sidecar.send(lines[at : at + 500]))
    assert sidecar.stop() == 0
    return sidecar


def check_that_checkpoints_can_be_made_again(directory: Path, tmp_path: Path, count: int = 3) -> None:
    state = directory / "checkpoints" / "state"
    newest = checkpoints(directory / "checkpoints")[-count:]
    assert newest
    for checkpoint in newest:
        last = json.loads(checkpoint.description.read_text())["journal"]["last"]
        again = run("train-offline", "--stream", state, "--until", last, "--output", tmp_path / "again", "--json")
        assert Path(json.loads(again.stdout)["checkpoint"]).read_bytes() == checkpoint.model.read_bytes()
    assert run("verify", directory / "checkpoints").returncode == 0


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    return tmp_path / "killed"


@pytest.mark.parametrize("with_base", [True, False])
def test_killed_at_random_moments_it_ends_where_it_would_have_ended(
    serve, base_path, stream, tmp_path, killed, kills, with_base
):
    settings = {"base_model": base_path if with_base else tmp_path / "none.onnx", **BUSY}
    run_of(serve, tmp_path / "whole", settings, stream)
    live_and_die(kills, lambda life: serve(killed, **settings), [stream], random.Random(5))
    assert journalled(killed) == stream
    assert published(killed)[-1] == published(tmp_path / "whole")[-1]
    check_that_checkpoints_can_be_made_again(killed, tmp_path)


def test_pairs_over_four_connections_are_trained_on_in_the_order_of_the_journal(
    serve, base_path, stream, tmp_path, killed, kills
):
    settings = {"base_model": base_path, **BUSY}
    live_and_die(kills, lambda life: serve(killed, **settings), [stream[part::4] for part in range(4)], random.Random(6))
    order = journalled(killed)
    assert order != stream
    assert sorted(order) == sorted(stream)
    run_of(serve, tmp_path / "whole", settings, order)
    assert published(killed)[-1] == published(tmp_path / "whole")[-1]
    check_that_checkpoints_can_be_made_again(killed, tmp_path)


def test_settings_changed_between_lives_count_from_the_pair_where_they_changed(
    serve, base_path, stream, tmp_path, killed, kills
):
    changes = [
        {},
        {"learning_rate": 3e-4, "steps_per_batch": 2},
        {"batch_size": 16, "replay_mix": 0.75, "seed": 7},
        {"optimizer": "adam", "learning_rate": 1e-5, "holdout_fraction": 0.2},
    ]

    def settings(number: int) -> dict:
        return {"base_model": base_path, **BUSY, **changes[number]}

    def number_of(life: int) -> int:
        return len(changes) * life // (kills + 1)

    # A life that dies as it starts may not have written down its settings, which some other of the same settings then does.
    lives = LIVES if kills > 20 else {"busy": 2, "at leisure": 1}

    live_and_die(kills, lambda life: serve(killed, **settings(number_of(life))), [stream], random.Random(7), lives=lives)
    assert journalled(killed) == stream
    runs = [(entry.position, entry.run["settings"]) for entry in read_journal(killed / "checkpoints" / "state") if entry.run]
    at = [position for (position, run), (_, before) in zip(runs[1:], runs, strict=False) if run != before]
    assert len(at) == len(changes) - 1
    for number, (start, stop) in enumerate(zip([0, *at], [*at, len(stream)], strict=True)):
        run_of(serve, tmp_path / "whole", settings(number), stream[start:stop])
    assert published(killed)[-1] == published(tmp_path / "whole")[-1]
    check_that_checkpoints_can_be_made_again(killed, tmp_path)


def test_what_is_forgotten_between_lives_was_never_there(serve, base_path, stream, tmp_path, killed, kills):
    settings = {"base_model": base_path, **BUSY}
    forgotten: set[str] = set()
    chance = random.Random(8)

    def forget(kill: int) -> None:
        if kill % 8 == min(5, kills - 2):
            names = {json.loads(line)["group"] for line in journalled(killed) if line is not None}
            group = chance.choice(sorted(names))
            done = run("forget", group, "--checkpoint-dir", killed / "checkpoints", "--json")
            assert json.loads(done.stdout)["pairs"][group] > 0
            forgotten.add(group)

    live_and_die(kills, lambda life: serve(killed, **settings), [stream], random.Random(9), forget)
    assert forgotten
    again = [line for line in journalled(killed) if line is not None]
    assert len(set(again)) == len(again)
    kept = [line for line in stream if json.loads(line)["group"] not in forgotten]
    assert [line for line in again if json.loads(line)["group"] not in forgotten] == kept
    run_of(serve, tmp_path / "whole", settings, again)
    assert published(killed)[-1] == published(tmp_path / "whole")[-1]
    check_that_checkpoints_can_be_made_again(killed, tmp_path, count=1)


def test_heads_of_tenants_end_where_they_would_have_ended(serve, base_path, stream, tmp_path, killed, kills):
    """Three tenants, of which one is not allowed, and pairs of none; their encodes come in turn."""
    pairs = [json.loads(line) for line in stream]
    for number, pair in enumerate(pairs):
        if tenant := ["a", "b", "", "c"][number // 5 % 4]:
            pair["tenant"] = tenant
        pair["true_score"] = max(0.0, pair["true_score"] - (5 if tenant == "b" else 0))
    tenants = [json.dumps(pair).encode() for pair in pairs]
    settings = {"base_model": base_path, **BUSY, "tenants": "a,b", "tenant_rank": 1, "tenant_share": 0.3}
    whole = run_of(serve, tmp_path / "whole", settings, tenants)
    live_and_die(kills, lambda life: serve(killed, **settings), [tenants], random.Random(11))
    assert journalled(killed) == tenants
    assert published(killed)[-1] == published(tmp_path / "whole")[-1]
    for name in "ab":
        both = [tenant_directory(each / "checkpoints", name) for each in (killed, whole.directory)]
        ends = [checkpoints(each)[-1].model.read_bytes() for each in both]
        assert ends[0] == ends[1]
    assert not tenant_directory(killed / "checkpoints", "c").exists()
    check_that_checkpoints_can_be_made_again(killed, tmp_path, count=1)
