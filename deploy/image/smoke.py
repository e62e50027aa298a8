#!/usr/bin/env python3
"""Tries an image: `smoke.py DIRECTORY RUN...`, where RUN followed by a command runs that command in the image.

RUN must mount DIRECTORY at /mnt/vmafx-models, use the host's network, and make all but that directory and /tmp read-only:

    deploy/image/smoke.py /tmp/w docker run --rm --network host --read-only --tmpfs /tmp --entrypoint '' \
        -v /tmp/w:/mnt/vmafx-models vmafx-sidecar
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parents[2] / "examples" / "recorded-80.jsonl.gz"
INSIDE = "/mnt/vmafx-models"
STARTS = 5

# Prints the user, and every directory where a file can be made.
WRITABLE = """
import json, os
found = []
for directory, names, _ in os.walk("/"):
    names[:] = [name for name in names if os.path.join(directory, name) not in ("/dev", "/proc", "/sys")]
    try:
        os.close(os.open(os.path.join(directory, ".probe"), os.O_CREAT | os.O_WRONLY))
    except OSError:
        continue
    os.unlink(os.path.join(directory, ".probe"))
    found.append(directory)
    names.clear()
print(json.dumps([os.getuid(), os.getgid(), sorted(found)]))
"""


def main(directory: Path, run: list[str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o777)  # the image's user differs from ours
    shutil.copy(EXAMPLE, directory)
    pairs = f"{INSIDE}/{EXAMPLE.name}"

    def command(*words: str) -> Any:
        done = subprocess.run([*run, *words], stdout=subprocess.PIPE, text=True, timeout=300)
        if done.returncode:
            sys.exit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}")
        return json.loads(done.stdout)

    uid, gid, writable = command("python3.11", "-c", WRITABLE)
    expect("user", (uid, gid), (65532, 65532))
    expect("writable directories", writable, [INSIDE, "/tmp"])

    trained = command("vmafx-sidecar", "train-offline", pairs, "--output", f"{INSIDE}/offline", "--json")
    expect("gate of train-offline", trained["gate"]["verdict"], "stable")

    http = f"127.0.0.1:{free_port()}"
    options = f"--socket {INSIDE}/s.sock --socket-mode 0666 --checkpoint-dir {INSIDE}/online --http {http} --log-level warning"
    serve = [*run, "vmafx-sidecar", "serve", *options.split(), "--base-model", f"{INSIDE}/offline/latest.onnx"]
    seconds, codes = [], []
    for start in range(STARTS):
        began = time.monotonic()
        server = subprocess.Popen(serve)
        wait_for(directory / "s.sock", server)
        seconds.append(time.monotonic() - began)
        if start == STARTS - 1:
            expect("probe", command("vmafx-sidecar", "probe", "--http", http, "--json")["ready"], True)
            sent = command("vmafx-sidecar", "replay", pairs, "--socket", f"{INSIDE}/s.sock", "--json")
            expect("pairs refused", sent["refused"] + sent["retryable"], 0)
        server.send_signal(signal.SIGTERM)
        codes.append(server.wait(timeout=60))
    expect("exit codes of serve after SIGTERM", codes, [0] * STARTS)
    verified = command("vmafx-sidecar", "verify", f"{INSIDE}/online", "--json")
    expect("its checkpoints", [Path(each["model"]).name for each in verified["models"]], ["model_v000001.onnx"])
    print(f"start to an accepting socket: {statistics.median(seconds):.2f} s (median of {STARTS}; longest {max(seconds):.2f})")


def expect(what: str, got: object, expected: object) -> None:
    if got != expected:
        sys.exit(f"{what}: {got}; expected {expected}")
    print(f"{what}: {got}")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(path: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(path))
            except OSError:
                time.sleep(0.005)
            else:
                return
    server.kill()
    sys.exit(f"{path}: nothing accepts; serve's exit code: {server.poll()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
