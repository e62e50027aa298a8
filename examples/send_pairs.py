"""Sends recorded pairs to a running sidecar, as a node written in Python would send what it measures.

python examples/send_pairs.py examples/recorded-80.jsonl.gz /tmp/vmafx-sidecar.sock
"""

from __future__ import annotations

import sys

from sidecar import FeedbackClient, read_pairs


def main(pairs_path: str, socket_path: str) -> None:
    pairs = read_pairs([pairs_path])
    with FeedbackClient(socket_path, capacity=len(pairs)) as client:
        for number, (features, score) in enumerate(zip(pairs.features, pairs.true_score, strict=True)):
            client.send(features, float(score), job_id=f"example-{number}")  # never waits, never raises
    print(f"{client.delivered} pairs delivered, {client.dropped} dropped")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
