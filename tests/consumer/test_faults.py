"""Many publications, most of them broken in some way, under threads that predict: each score is that of the model it names.

Each version gives a score of its own. A version that is never whole is odd; no score may come from it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import threading
import time
from pathlib import Path

import numpy as np
import prometheus_client
import pytest

from onnx_builder.write import to_bytes
from sidecar import LiveModel
from tests.consumer.published import ROW, WIDTH, ModelServer, constant, score_of
from tests.running import wait_until

READERS = 8
FAULTS = ("half a model", "another model", "wrong digest", "other JSON", "no JSON", "not a model", "wrong width", "not finite")
LIES = ("other version", "cut off", "other bytes", "error", "slow", "redirect")


def points(version):
    return 0.004 * version


class Publisher:
    """Writes checkpoints into a directory as fast as it can, whole or not."""

    def __init__(self, directory: Path, seed: int = 0) -> None:
        self.directory, self.version, self.draw = directory, 0, random.Random(seed)
        directory.mkdir()

    def publish(self, fault: str = "") -> int:
        """A version that is whole and even, or odd and not."""
        self.version += 1 + (self.version % 2 == bool(fault))
        version = self.version
        data = to_bytes(constant(points(version), width=WIDTH + (fault == "wrong width")))
        if fault == "not a model":
            data = data[:40] + bytes(20) + data[60:]
        if fault == "not finite":
            data = data.replace(np.float32(0.01).tobytes(), np.float32(np.nan).tobytes())
        digest = hashlib.sha256(data).hexdigest()
        about = {"version": version, "sha256": digest, "onnx_has_scaler": True, "settings": {"score_min": 0, "score_max": 100}}
        if fault == "half a model":
            data = data[: len(data) // 2]
        if fault == "another model":
            data = to_bytes(constant(points(version) + 50))
        if fault == "wrong digest":
            digest = hashlib.sha256(b"").hexdigest()
        if fault == "other JSON":
            about["version"] = version - 1
        self.write(version, data, digest, b"" if fault == "no JSON" else json.dumps(about).encode())
        self.link(version)
        return version

    def write(self, version: int, data: bytes, digest: str, about: bytes) -> None:
        stem = self.directory / f"model_v{version:06d}"
        stem.with_suffix(".json").write_bytes(about)
        stem.with_suffix(".onnx.sha256").write_text(f"{digest}\n")
        stem.with_suffix(".onnx").write_bytes(data)
        old = self.directory / f"model_v{version - 40:06d}"
        for ending in (".onnx", ".onnx.sha256", ".json"):
            old.with_suffix(ending).unlink(missing_ok=True)

    def link(self, version: int) -> None:
        """Links are moved as by rename, as the sidecar does."""
        temporary = self.directory / ".tmp-stable.onnx"
        temporary.symlink_to(f"model_v{version:06d}.onnx")
        temporary.replace(self.directory / "stable.onnx")

    def write_in_place(self) -> int:
        """A whole version, but its link is there first, and its files come in pieces."""
        version = self.publish()
        model = self.directory / f"model_v{version:06d}.onnx"
        data = model.read_bytes()
        model.write_bytes(b"")
        with model.open("ab", buffering=0) as file:
            for start in range(0, len(data), 100):
                file.write(data[start : start + 100])
                time.sleep(0)
        return version

    def vanish(self) -> None:
        elsewhere = self.directory.with_name("elsewhere")
        self.directory.rename(elsewhere)
        time.sleep(0.005)
        elsewhere.rename(self.directory)


class Liar:
    """Changes answers of a server while `on`."""

    def __init__(self, seed: int = 0) -> None:
        self.on, self.draw = False, random.Random(seed)

    def __call__(self, target, answer):
        lie = self.draw.choice((*LIES, "")) if self.on else ""
        status, headers, body = answer
        if lie == "other version":
            headers = {**headers, "X-Vmafx-Model-Version": "model_v000001"}
        if lie == "cut off":
            headers = {**headers, "Content-Length": str(len(body) + 7)}
        if lie == "other bytes":
            other = to_bytes(constant(99))
            whole = base64.b64encode(hashlib.sha256(other).digest()).decode()
            headers, body = {**headers, "Repr-Digest": f"sha-256=:{whole}:", "ETag": '"other"'}, other
        if lie == "slow":
            time.sleep(0.01)
        return {"error": 503, "redirect": 302}.get(lie, status), headers, body


@pytest.mark.parametrize("publications", [100, pytest.param(3_000, marks=pytest.mark.slow)])
def test_every_score_is_that_of_a_whole_model_and_of_the_one_it_names(tmp_path, publications):
    publisher, liar = Publisher(tmp_path / "checkpoints"), Liar()
    publisher.publish()
    wrong: list[str] = []
    done = threading.Event()
    read: set[str] = set()

    def reader(model):
        while not done.is_set():
            scores, name = model.predict_with_version(ROW)
            version = int(name.removeprefix("model_v"))
            if version % 2 or abs(scores[0] - score_of(points(version))) > 1e-3:
                wrong.append(f"{name}: {scores[0]}")
            read.add(name)
            time.sleep(0.001)

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ModelServer(publisher.directory).running())
        server.change = liar
        models = [
            stack.enter_context(LiveModel(source, poll_s=0.001, registry=prometheus_client.CollectorRegistry()))
            for source in (publisher.directory, server.url)
        ]
        threads = [threading.Thread(target=reader, args=(models[place % 2],)) for place in range(READERS)]
        for thread in threads:
            thread.start()
        stack.callback(lambda: [thread.join() for thread in threads])
        stack.callback(done.set)
        descriptors = len(os.listdir("/proc/self/fd"))
        good = [publisher.version]
        for place in range(publications):
            match publisher.draw.randrange(6):
                case 0 | 1:
                    good.append(publisher.publish())
                case 2:
                    good.append(publisher.write_in_place())
                case 3:
                    publisher.link(publisher.draw.choice(good[-8:]))
                case 4:
                    publisher.vanish()
                case 5:
                    for fault in (publisher.draw.choice(FAULTS), publisher.draw.choice(FAULTS)):
                        publisher.publish(fault)
            liar.on = place % 4 != 0
            time.sleep(0.001)
            if place % 20 == 19:  # whatever has been, the next good model takes over
                liar.on = False
                good.append(publisher.publish())
                name = f"model_v{good[-1]:06d}"
                wait_until(lambda name=name: all(model.version == name for model in models))
        assert not wrong
        assert len(read) > publications // 20
        for model in models:
            assert model.swaps["refused"] > 0
            assert model.swaps["failed"] > 0
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors + 4)
