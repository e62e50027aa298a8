"""The running sidecar: throughput, latency, start, memory and export, one server process and one client process.

    python benchmarks/serve.py PAIRS [--memory]

PAIRS are recorded pairs (JSON lines), sent again and again under new job_ids; the base model is fitted to a hundred of them.
The journal is on, fsync every second. One at a time is measured in turn with a bare asyncio echo of the same bytes, round after
round: the machine's speed drifts, a ratio within a round does not. So are answers beside HTTP requests, with as many requests
to another sidecar, which take as much of the processors. `--memory` sends a million pairs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_builder.write import to_bytes
from sidecar.client.replay import read_requests
from sidecar.learning.recipe import Recipe, fit
from sidecar.monitoring.history import COLUMNS, TIERS, History, write_history
from sidecar.network.address import parse_address
from sidecar.pairs.recorded import read_pairs

WITHOUT_PAUSE = {"checkpoint_interval": 0, "min_samples": 1}


class Sidecar:
    """A `serve` process in a directory of its own. start_s: from its start to a socket that accepts."""

    def __init__(self, directory: Path, base: Path, history: History | None = None, **settings: object) -> None:
        self.directory, self.socket_path, self.log = directory, directory / "s.sock", directory / "log"
        options = {
            "socket": self.socket_path, "checkpoint_dir": directory / "online", "base_model": base, "http": "127.0.0.1:0",
            "log_format": "json", **settings,
        }  # fmt: skip
        arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        state = directory / "online" / "state"
        state.mkdir(parents=True)
        write_history(state, history or History())
        started = time.perf_counter()
        self.process = subprocess.Popen([sys.executable, "-m", "sidecar", "serve", *arguments], stderr=self.log.open("wb"))
        connect(self.socket_path).close()
        self.start_s = time.perf_counter() - started

    @property
    def resident_mb(self) -> float:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1e3

    def events(self, message: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.log.read_text().splitlines()) if line["message"] == message]


@contextlib.contextmanager
def sidecar(base: Path, **settings: Any) -> Iterator[Sidecar]:
    with tempfile.TemporaryDirectory() as directory:
        running = Sidecar(Path(directory), base, **settings)
        try:
            yield running
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(60) == 0, running.log.read_text()
        finally:
            running.process.kill()


def connect(path: Path) -> socket.socket:
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(str(path))
        except OSError:
            client.close()
            time.sleep(0.002)
        else:
            return client


class Lines:
    """Request lines under job_ids that never come again."""

    def __init__(self, pairs: Path) -> None:
        self._lines = itertools.cycle([request.line for request in read_requests([pairs])])
        self._numbers = itertools.count()

    def take(self, count: int) -> list[bytes]:
        lines = zip(itertools.islice(self._lines, count), self._numbers, strict=False)
        return [line.replace(b'"job_id":"', b'"job_id":"%d-' % number, 1) + b"\n" for line, number in lines]


# What the client process does: each takes the socket and gives what it measured.


def pipelined(path: Path, lines: list[bytes]) -> float:
    """Pairs a second: all are sent without waiting."""
    client, data, left = connect(path), b"".join(lines), len(lines)
    started = time.perf_counter()
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    while left:
        received = client.recv(1 << 20)
        assert received, "the sidecar closed the connection"
        left -= received.count(b"\n")
    seconds = time.perf_counter() - started
    sender.join()
    client.close()
    return len(lines) / seconds


def one_at_a_time(path: Path, lines: list[bytes]) -> float:
    """Pairs a second: each is sent once the one before was answered."""
    client = connect(path)
    started = time.perf_counter()
    for line in lines:
        client.sendall(line)
        while not client.recv(1 << 16).endswith(b"\n"):
            pass
    seconds = time.perf_counter() - started
    client.close()
    return len(lines) / seconds


def at_a_rate(path: Path, lines: list[bytes], rate: float = 1000.0) -> list[float]:
    """Milliseconds from the moment that each pair was due to its answer."""
    client, latencies = connect(path), []
    started = time.perf_counter()
    for number, line in enumerate(lines):
        due = started + number / rate
        while (ahead := due - time.perf_counter()) > 0:
            time.sleep(ahead)
        client.sendall(line)
        while not client.recv(1 << 16).endswith(b"\n"):
            pass
        latencies.append(1e3 * (time.perf_counter() - due))
    client.close()
    return latencies


def full_history() -> History:
    """As many rows as are kept, up to now, of numbers with all their digits."""
    random, now = np.random.default_rng(0), int(time.time())
    numbers = (",".join(f"{value:.6g}" for value in random.uniform(1, 1000, len(COLUMNS) - 1)) for _ in itertools.count())
    ages = [0, *(age for age, _ in TIERS)]
    moments = [
        now - age
        for (newest, oldest), (_, every) in zip(itertools.pairwise(ages), TIERS, strict=True)
        for age in range(newest, oldest, every)
    ]
    return History(tuple((moment, f"[{moment},{next(numbers)}]".encode()) for moment in sorted(moments)))


@dataclass
class Asked:
    """What `asking` measured. latencies: milliseconds from the moment that each request was due to its answer's end."""

    latencies: list[float]
    refused: int
    megabytes: float
    seconds: float

    def __str__(self) -> str:
        reached = f"{len(self.latencies) / self.seconds:,.0f} requests a second answered, {self.refused} not"
        return f"{reached}, {self.megabytes / self.seconds:.0f} MB a second; {percentiles(self.latencies)}"


def asking(address: str, seconds: float, rate: float = 1000.0) -> Asked:
    """Requests for the live page and its figures in turn, on a connection each, whether or not the one before is answered."""
    host, port = parse_address(address)
    asked = Asked([], 0, 0.0, 0.0)
    paths = itertools.cycle(("/", "/api/history", "/status", f"/api/history?since={int(time.time()) - 60}", "/api/checkpoints"))

    async def ask(path: str, due: float) -> None:
        try:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
            answer = await reader.read(-1)
            writer.close()
        except OSError:
            answer = b""
        if answer.startswith(b"HTTP/1.1 200 "):
            asked.latencies.append(1e3 * (time.perf_counter() - due))
            asked.megabytes += len(answer) / 1e6
        else:
            asked.refused += 1

    async def run() -> None:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(int(seconds * rate)):
                due = started + number / rate
                while (ahead := due - time.perf_counter()) > 0:
                    await asyncio.sleep(ahead)
                tasks.create_task(ask(next(paths), due))
        asked.seconds = time.perf_counter() - started

    asyncio.run(run())
    return asked


@contextlib.contextmanager
def asked(address: str, seconds: float) -> Iterator[Callable[[], Asked]]:
    """A thousand requests a second from another process; gives what `asking` measured, once it is done."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=lambda: sender.send(asking(address, seconds)))
    process.start()
    yield receiver.recv
    process.join()


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def in_a_process(work: Callable[..., Any], *arguments: Any) -> Any:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=lambda: sender.send(work(*arguments)))
    process.start()
    result = receiver.recv()
    process.join()
    return result


def echo_server(path: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    async def run() -> None:
        async with await asyncio.start_unix_server(handle, str(path)) as server:
            await server.serve_forever()

    asyncio.run(run())


def percentiles(latencies: list[float]) -> str:
    p50, p99, most = np.percentile(latencies, [50, 99, 100])
    return f"{p50:.2f} ms median, {p99:.2f} ms 99 %, {most:.1f} ms longest"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=100_000, help="pairs of a pipelined round")
    parser.add_argument("--memory", action="store_true", help="also send a million pairs and look at the memory")
    options = parser.parse_args()
    multiprocessing.set_start_method("fork")
    lines, rounds = Lines(options.pairs), range(options.rounds)

    def median(values: list[float]) -> str:
        return f"{statistics.median(values):10,.0f}   ({min(values):,.0f} to {max(values):,.0f})"

    with tempfile.TemporaryDirectory() as directory:
        base, echo_path = Path(directory) / "base.onnx", Path(directory) / "echo.sock"
        pairs = read_pairs([options.pairs])
        base.write_bytes(to_bytes(fit(pairs.features, pairs.true_score, np.arange(100), Recipe(epochs=20)).ema.network()))

        starts = []
        for _ in rounds:
            with sidecar(base) as running:
                starts.append(running.start_s)
        print(f"start to an accepting socket: {statistics.median(starts):.2f} s ({min(starts):.2f} to {max(starts):.2f})")

        print(f"pipelined, pairs a second, median of {options.rounds} rounds of {options.count:,}:")
        for name, settings in (
            ("4 steps a batch", {}),
            ("1 step a batch", {"steps_per_batch": 1}),
            ("4 steps, exports without a pause", WITHOUT_PAUSE),
            ("1 step, exports without a pause", {"steps_per_batch": 1, **WITHOUT_PAUSE}),
        ):
            with sidecar(base, **settings) as running:
                rates = [in_a_process(pipelined, running.socket_path, lines.take(options.count)) for _ in rounds]
                exports = [event["seconds"] for event in running.events("checkpoint published")]
            print(f"  {name:34} {median(rates)}")
            if exports:
                print(f"  {'':34} {len(exports)} exports, median {1e3 * statistics.median(exports):.0f} ms each")

        echo = multiprocessing.Process(target=echo_server, args=(echo_path,), daemon=True)
        echo.start()
        with sidecar(base) as running:
            both = []
            for _ in range(4 * options.rounds):
                batch = lines.take(5000)
                both.append([in_a_process(one_at_a_time, path, batch) for path in (running.socket_path, echo_path)])
        echo.kill()
        print("one at a time, pairs a second:")
        print(f"  {'sidecar':34} {median([ours for ours, _ in both])}")
        print(f"  {'asyncio echo of the same bytes':34} {median([theirs for _, theirs in both])}")
        print(f"  {statistics.median(ours / theirs for ours, theirs in both):.0%} of the echo, median of the rounds' ratios")

        print("at 1,000 pairs a second, 20 s each:")
        for name, settings in (("", {}), (" while checkpoints are exported", WITHOUT_PAUSE)):
            with sidecar(base, **settings) as running:
                in_a_process(pipelined, running.socket_path, lines.take(2000))
                latencies = in_a_process(at_a_rate, running.socket_path, lines.take(20_000))
                exports = [event["seconds"] for event in running.events("checkpoint published")]
            print(f"  answer time{name}: {percentiles(latencies)}")
            if exports:
                print(f"  {len(exports)} exports with parity and gate: {percentiles([1e3 * each for each in exports])}")

        print("the same, in turn: alone; beside 1,000 requests a second for its live page; beside as many to another sidecar:")
        for name, settings in (("", {}), (" while checkpoints are exported", WITHOUT_PAUSE)):
            here, elsewhere = free_address(), free_address()
            measured: dict[str, list[list[float]]] = {"alone": [], "beside requests": [], "beside another's": []}
            requests = []
            with (
                sidecar(base, history=full_history(), http=here, **settings) as running,
                sidecar(base, history=full_history(), http=elsewhere),
            ):
                in_a_process(pipelined, running.socket_path, lines.take(2000))
                for _ in rounds:
                    for label, address in zip(measured, (None, here, elsewhere), strict=True):
                        with asked(address, 6.0) if address else contextlib.nullcontext(lambda: None) as answers:
                            measured[label].append(in_a_process(at_a_rate, running.socket_path, lines.take(5000)))
                            answered = answers()
                        if address == here:
                            requests.append(answered)
            for label, latencies in measured.items():
                best = min(float(np.percentile(each, 99)) for each in latencies)
                of_all = percentiles(list(itertools.chain(*latencies)))
                print(f"  answer time{name}, {label}: {of_all}; {best:.2f} ms 99 % in the best round")
            for each in requests:
                print(f"    {each}")

        if options.memory:
            with sidecar(base, checkpoint_interval=5) as running:
                for sent in range(50_000, 1_000_001, 50_000):
                    in_a_process(pipelined, running.socket_path, lines.take(50_000))
                    if sent in (100_000, 200_000, 400_000, 700_000, 1_000_000):
                        print(f"resident after {sent:,} pairs: {running.resident_mb:.0f} MB")


if __name__ == "__main__":
    main()
