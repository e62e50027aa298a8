"""How long a polite client waits for its answers while many others flood the socket.

    python benchmarks/flood.py PAIRS [--connections 1000]

PAIRS are recorded pairs (JSON lines). Each flooding connection sends lines as fast as they are taken; those that the sidecar
closes are opened again. The polite client, which connects before them, sends a pair each 50 ms, or after its answer if that
takes longer.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import selectors
import socket
import statistics
import sys
import tempfile
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from onnx_builder.write import to_bytes
from sidecar.learning.recipe import Recipe, fit
from sidecar.pairs.recorded import read_pairs

sys.path.insert(0, str(Path(__file__).parent))
from serve import Lines, connect, in_a_process, percentiles, sidecar

PAUSE_S = 0.05
GATHER_S = 15.0
"""How long the flooding connections have to be all there, before the polite client begins."""
_REFUSED = [b"{}\n"] * 50_000


def flood(path: Path, lines: list[bytes], connections: int, reads: bool, gathered: Event) -> None:
    """Keep so many connections open and send the lines on each again and again, until killed. reads: take the answers."""
    data, room = memoryview(b"".join(lines)), bytearray(1 << 16)
    starts = itertools.cycle(range(0, len(data), len(lines[0]) * len(lines) // connections))
    selector, places = selectors.DefaultSelector(), dict[socket.socket, int]()

    def begin() -> None:
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        try:
            client.connect(str(path))
        except OSError:  # the queue of those that wait to be accepted is full
            client.close()
            return
        places[client] = next(starts)
        selector.register(client, selectors.EVENT_WRITE | (selectors.EVENT_READ if reads else 0))

    while True:
        for _ in range(min(50, connections - len(places))):
            begin()
        if len(places) == connections:
            gathered.set()
        for key, events in selector.select(0.01):
            client = key.fileobj
            assert isinstance(client, socket.socket)
            try:
                if events & selectors.EVENT_READ and not client.recv_into(room):
                    raise ConnectionResetError
                if events & selectors.EVENT_WRITE:
                    place = places[client]
                    places[client] = (place + client.send(data[place : place + (1 << 16)])) % len(data)
            except BlockingIOError:
                pass
            except OSError:
                selector.unregister(client)
                del places[client]
                client.close()


def polite(path: Path, lines: list[bytes], gathered: Event) -> tuple[list[float], int]:
    """Milliseconds from each pair to its answer, and how often the connection was lost."""
    client, latencies, lost = connect(path), list[float](), 0
    gathered.wait(GATHER_S)
    for line in lines:
        sent, answer = time.perf_counter(), b""
        while not answer.endswith(b"\n"):
            with contextlib.suppress(OSError):
                if not answer:
                    client.sendall(line)
                if data := client.recv(1 << 16):
                    answer += data
                    continue
            lost, answer = lost + 1, b""
            client.close()
            client = connect(path)
        seconds = time.perf_counter() - sent
        latencies.append(1e3 * seconds)
        time.sleep(max(0.0, PAUSE_S - seconds))
    client.close()
    return latencies, lost


def flooded(base: Path, sent: list[bytes], own: list[bytes], connections: int, reads: bool) -> tuple[list[float], int, float]:
    """What `polite` gives with its own lines while others send theirs, and the sidecar's resident megabytes."""
    gathered = multiprocessing.Event()
    with sidecar(base) as running:
        flooder = multiprocessing.Process(target=flood, args=(running.socket_path, sent, connections, reads, gathered))
        threading.Timer(0.5, flooder.start).start()  # the polite client is there before it
        try:
            latencies, lost = in_a_process(polite, running.socket_path, own, gathered)
            return latencies, lost, running.resident_mb
        finally:
            flooder.kill()
            flooder.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--count", type=int, default=400, help="of the polite client, for each kind of flood")
    options = parser.parse_args()
    multiprocessing.set_start_method("fork")
    lines = Lines(options.pairs)
    with tempfile.TemporaryDirectory() as directory:
        base, pairs = Path(directory) / "base.onnx", read_pairs([options.pairs])
        base.write_bytes(to_bytes(fit(pairs.features, pairs.true_score, np.arange(100), Recipe(epochs=20)).ema.network()))
        for what, sent in (("pairs", lines.take(20_000)), ("lines that are refused", _REFUSED)):
            for reads in (True, False):
                latencies, lost, resident = flooded(base, sent, lines.take(options.count), options.connections, reads)
                print(f"{options.connections} connections flood it with {what}, answers {'taken' if reads else 'left'}:")
                late = statistics.mean(each > 500 for each in latencies)
                print(f"  {percentiles(latencies)}; {late:.1%} over 500 ms; connection lost {lost} times; {resident:.0f} MB")


if __name__ == "__main__":
    main()
