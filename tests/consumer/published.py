"""Published checkpoints for tests, and a server that gives them out as a sidecar does, or otherwise."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onnx_builder import Clip, Dense, Elementwise, Network
from onnx_builder.write import to_bytes
from sidecar.checkpoints.directory import Checkpoint, publish
from sidecar.monitoring.history import History
from sidecar.monitoring.pages import Pages
from sidecar.monitoring.status import Status
from sidecar.network.http import BOUNDS
from sidecar.network.http_server import start_http

WIDTH = 3
VERSION = "X-Vmafx-Model-Version"
ROW = np.array([0.5, -0.25, 1.0], dtype=np.float32)


def constant(score: float, width: int = WIDTH) -> Network:
    """A network that gives every row about this score, and a little more for larger features."""
    weight = np.full((1, width), 0.01, dtype=np.float32)
    bias = np.array([score], dtype=np.float32)
    return Network(width, (Elementwise("Sub", np.zeros(width, dtype=np.float32)), Dense(weight, bias), Clip(0, 100)))


def score_of(score: float, row: np.ndarray = ROW) -> float:
    """What `constant(score)` gives a row."""
    return float(constant(score, row.size).forward(row[None])[0])


def publish_model(directory: Path, network: Network, *, stable: bool = True, keep: int = 0, **about: Any) -> Checkpoint:
    """Publish a network as the next version, with the JSON that belongs to it."""
    ours = {"n_features": network.n_features, "onnx_has_scaler": True, "settings": {"score_min": 0, "score_max": 100}}
    return publish(directory, to_bytes(network), {**ours, **about}, stable=stable, keep=keep)


def point_stable_at(directory: Path, version: int) -> None:
    """Move the link to the stable model, whatever it then leads to."""
    link = directory / "moved"
    link.symlink_to(f"model_v{version:06d}.onnx")
    link.replace(directory / "stable.onnx")


@contextlib.contextmanager
def served(directory: Path) -> Iterator[str]:
    """The address of a sidecar's own HTTP server with the models of a directory, in which no deadline passes."""
    unhurried = dataclasses.replace(BOUNDS, patience_s=3600.0, request_s=3600.0, linger_s=3600.0, awaits_s=3600.0)
    server = start_http("127.0.0.1:0", Pages(Status, History, directory, {}, models=True).look_up, unhurried)
    try:
        yield server.address
    finally:
        server.close()


Answer = tuple[int, dict[str, str], bytes]


class ModelServer:
    """A server of a checkpoint directory. url: its address; asked: the targets of all requests, with what it answered.

    change: makes another answer of the right one, for a target.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked: list[tuple[str, int]] = []
        self.change: Callable[[str, Answer], Answer] = lambda target, answer: answer
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = outer.answer(self.path, self.headers.get("If-None-Match", ""))
                with contextlib.suppress(OSError):  # the client may have gone
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(body)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, target: str, if_none_match: str) -> Answer:
        status, headers, body = self.change(target, self._found(target))
        if status == 200 and if_none_match == headers.get("ETag"):
            status, headers, body = 304, {name: headers[name] for name in ("ETag", VERSION) if name in headers}, b""
        self.asked.append((target, status))
        return status, headers, body

    def _found(self, target: str) -> Answer:
        name = target.removeprefix("/models/")
        model = name.removesuffix(".sha256").removesuffix(".onnx").removesuffix(".json") + ".onnx"
        path = Path(os.path.realpath(self.directory / model))
        ending = name[len(model) - len(".onnx") :]
        try:
            body = path.with_name(path.stem + ending).read_bytes()
        except OSError:
            return 404, {}, b"Not Found\n"
        digest = hashlib.sha256(body)
        return (
            200,
            {
                "ETag": f'"{digest.hexdigest()}"',
                "Repr-Digest": f"sha-256=:{base64.b64encode(digest.digest()).decode()}:",
                VERSION: path.stem,
            },
            body,
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[ModelServer]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()
