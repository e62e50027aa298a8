"""Pairs in, better scores out: a node, a sidecar, and nobody who restarts anything."""

from __future__ import annotations

import numpy as np
import prometheus_client

from sidecar import FeedbackClient, LiveModel
from sidecar.checkpoints.directory import LATEST, STABLE, linked
from tests.running import free_address, wait_until

CHUNK = 416


def newest(running, link):
    found = linked(running.checkpoint_dir, link)
    return found.version if found else 0


def test_the_error_of_what_a_node_serves_falls_while_it_runs(serve, base_path, example):
    address, registry = free_address(), prometheus_client.CollectorRegistry()
    settings = {"checkpoint_interval": 0, "min_samples": 200, "holdout_fraction": 0.2, "http": address, "http_models": 1}
    running = serve(base_model=base_path, **settings).connect()
    follow = {"base": base_path, "poll_s": 0.05, "registry": registry}
    order = np.random.default_rng(0).permutation(len(example.true_score) // 12)
    rows = (order[:, None] * 12 + np.arange(12)).ravel()  # encode after encode, of all sources in turn
    rmse, versions = [], []
    with (
        LiveModel(running.checkpoint_dir, **follow) as model,
        LiveModel(f"http://{address}", **follow) as remote,
        FeedbackClient(running.socket_path, capacity=4096, registry=registry) as client,
    ):
        for start in range(0, len(rows) - CHUNK + 1, CHUNK):
            chunk = rows[start : start + CHUNK]
            scores, version = model.predict_with_version(example.features[chunk])
            rmse.append(float(np.sqrt(np.mean((scores - example.true_score[chunk]) ** 2))))
            versions.append(version)
            assert (remote.predict(example.features[chunk]) == scores).all()
            published = newest(running, LATEST)
            for row in chunk:
                client.send(example.features[row], float(example.true_score[row]), job_id=f"j{row}", group=f"g{row // 12}")
            wait_until(lambda: client.delivered == start + CHUNK)  # noqa: B023
            wait_until(lambda: newest(running, LATEST) > published)  # noqa: B023
            wait_until(lambda: model.version == remote.version == f"model_v{newest(running, STABLE):06d}")
        assert client.dropped == 0
    assert versions[0] == "base"
    assert len({*versions}) > 2
    assert rmse[-1] < 0.25 * rmse[0]
    assert running.stop() == 0
