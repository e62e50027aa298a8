"""The HTTP server beside the training: one thread for all connections, since the training wants the interpreter too.

A second one waits for the disk, for those answers that need it: the probes are answered meanwhile.
"""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

from sidecar.network.address import parse_address
from sidecar.network.conversation import Bounds
from sidecar.network.http import BOUNDS, HttpConversation, LookUp, Page, Read
from sidecar.network.loop import Loop

MOST_READS = 32
"""So many answers may wait for the disk."""


def start_http(address: str, look_up: LookUp, bounds: Bounds = BOUNDS) -> HttpServer:
    """Answer GET and HEAD with what `look_up` gives, on a thread of its own, until `close()`.

    address: see `parse_address`. Raises ValueError for a bad address, and OSError that names the address where nobody can
    listen on it.
    """
    return HttpServer(_listen(address), look_up, bounds)


class HttpServer:
    """What `start_http` returns. address: where it listens, with the port that a port 0 became."""

    def __init__(self, listener: socket.socket, look_up: LookUp, bounds: Bounds) -> None:
        host, port = listener.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._listener, self._closing = listener, False
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="http-disk")
        self._reads: set[Future[Page]] = set()
        self._loop = Loop(listener, lambda: HttpConversation(look_up, self._read, time.time), bounds)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Open connections."""
        return len(self._loop)

    def close(self) -> None:
        """Stop listening and drop the open connections. May be called again."""
        self._closing = True
        self._loop.wake()
        self._thread.join()
        self._reader.shutdown(cancel_futures=True)

    def _read(self, read: Read) -> Future[Page] | None:
        if len(self._reads) >= MOST_READS:
            return None
        made = self._reader.submit(read)
        self._reads.add(made)
        made.add_done_callback(self._reads.discard)
        return made

    def _run(self) -> None:
        while not self._closing:
            self._loop.turn(60.0)
        self._loop.close()


def _listen(address: str) -> socket.socket:
    host, port = parse_address(address)
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128, dualstack_ipv6=both)
    except OSError as error:
        why = str(error.strerror or error).partition(" (while attempting")[0]
        raise OSError(error.errno, f"HTTP address {address}: cannot listen: {why}") from error
