"""One model from many pods: what it is worth to each pod, whether it matters which pairs are kept, and how fast they are read.

    python benchmarks/fleet.py loop FILE       # recorded pairs with `group` and `source`
    python benchmarks/fleet.py sample FILE     # and `codec`
    python benchmarks/fleet.py read DIRECTORY --pairs N --pods N

loop: a pod for each source but the first, whose pairs the base model was made from. Each learns from the first half of its
encodes; one model is trained from all their journals; then each takes its second half, once going on as it was and once from
the new base. The figures are RMSE in score points: of models on what each pod holds out, and of the pods' predictions of pairs
before they train on them.

sample: one codec and the lowest scores are made rare, a twentieth of what they were in half of the sources, which are trained
on. The other sources judge. The sample by strata is beside a uniform one of the same size.

read: pairs are made from those in `examples/` with noise, written as journals, and read by one process and by two.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import dataclasses
import gzip
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnx_builder.network import Array, Network
from sidecar.fleet.reading import Read, Sampling
from sidecar.fleet.sample import Limits
from sidecar.fleet.workers import processes
from sidecar.journal.blocks import encode_blocks
from sidecar.journal.run import Run
from sidecar.journal.segments import write_gzipped
from sidecar.learning.metrics import rmse
from sidecar.learning.recipe import Recipe, fit
from sidecar.learning.training_settings import TrainingSettings
from sidecar.online.learner import Learner
from sidecar.pairs.pair import PairBlock
from sidecar.pairs.recorded import RecordedPairs, read_pairs
from sidecar.pairs.tables.choice import Columns

HOLDOUT = 0.2
EXAMPLE = Path(__file__).parent.parent / "examples" / "recorded-80.jsonl.gz"
SEGMENT_PAIRS = 85_000


def read(paths: Sequence[str | Path], workers: int, limits: Limits) -> Read:
    with processes(workers) as opened:
        return Sampling(opened, limits).read(paths, Columns(), score_min=0, score_max=100, skip_bad=False)


def write_journal(state: Path, lines: Sequence[bytes]) -> None:
    """All segments but the last are gzipped, as a sidecar leaves them."""
    (state / "journal").mkdir(parents=True)
    for at in range(0, len(lines), SEGMENT_PAIRS):
        name = state / "journal" / f"{at:012d}.jsonl"
        blocks = encode_blocks(at, lines[at : at + SEGMENT_PAIRS])
        if at + SEGMENT_PAIRS < len(lines):
            with open(f"{name}.gz", "wb") as stream:
                write_gzipped(stream, [blocks])
        else:
            name.write_bytes(blocks)


def error(network: Network, pairs: RecordedPairs, rows: Array) -> float:
    return rmse(np.clip(network.forward(pairs.features[rows]), 0, 100), pairs.true_score[rows])


class Pod:
    """A learner, and the errors of its predictions before it trained on the pairs."""

    def __init__(self, pairs: RecordedPairs, base: Network) -> None:
        self._pairs = pairs
        self.learner = Learner(Run(pairs.features.shape[1], TrainingSettings(), HOLDOUT, "base"), base)

    def take(self, rows: Array) -> float:
        """RMSE of what it predicted of the pairs that it has trained on."""
        before = len(self.learner.trainer.prequential.rows())
        pairs = self._pairs
        self.learner.take(PairBlock(pairs.features[rows], pairs.true_score[rows], pairs.position[rows].tolist()))
        seen = self.learner.trainer.prequential.rows()[before:]
        return rmse(seen[:, 0], seen[:, 1])

    def network(self) -> Network:
        trainer = self.learner.trainer
        assert trainer.ema is not None
        return trainer.network(trainer.ema)


def loop(file: str) -> None:
    pairs = read_pairs([file], group_by="source")
    groups = read_pairs([file], group_by="group").group
    assert pairs.group is not None
    assert groups is not None
    with gzip.open(file) as stream:
        lines = stream.read().splitlines()
    held_out = pairs.position < HOLDOUT
    base = fit(pairs.features, pairs.true_score, np.flatnonzero(pairs.group == 0), Recipe()).ema.network()
    half = np.random.default_rng(0).random(groups.max() + 1)[groups] < 0.5
    rows = {name: np.flatnonzero(pairs.group == number) for number, name in enumerate(pairs.group_names) if number}
    pods: dict[str, Pod] = {}
    before: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, own in rows.items():
            pods[name] = Pod(pairs, base)
            before[name] = pods[name].take(own[half[own]])
            write_journal(Path(directory) / name, [lines[row] for row in own[half[own]]])
        found = read([f"{directory}/*"], 2, Limits(2_000_000, 1000)).pairs
    fleet = fit(found.features, found.true_score, np.flatnonzero(found.position >= HOLDOUT), Recipe()).ema.network()
    print(f"{'':14} {'held out: base':>15} {'own':>7} {'fleet':>7}   {'before':>7} {'goes on':>8} {'follows':>8}")
    table = []
    for name, own in rows.items():
        pod, judged, rest = pods[name], own[held_out[own]], own[~half[own]]
        figures = [error(network, pairs, judged) for network in (base, pod.network(), fleet)]
        follows = Pod(pairs, base)
        follows.learner = Learner.from_state(pod.learner.state())
        follows.learner.begin(dataclasses.replace(pod.learner.run, base="fleet"), fleet)
        table.append([*figures, before[name], pod.take(rest), follows.take(rest)])
        show(name, table[-1])
    show("mean", np.mean(table, axis=0))


def show(name: str, figures: Sequence[float]) -> None:
    base, own, fleet, before, goes_on, follows = figures
    print(f"{name[:14]:14} {base:15.3f} {own:7.3f} {fleet:7.3f}   {before:7.3f} {goes_on:8.3f} {follows:8.3f}")


def sample(file: str, seeds: int) -> None:
    with gzip.open(file) as stream:
        lines = stream.read().splitlines()
    codec, pairs = read_pairs([file], group_by="codec"), read_pairs([file], group_by="source")
    assert codec.group is not None
    assert pairs.group is not None
    rare = (codec.group == 0) | (pairs.true_score < 30)
    table: dict[tuple[str, float], list[list[float]]] = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        known = np.isin(pairs.group, rng.permutation(len(pairs.group_names))[: len(pairs.group_names) // 2])
        there = np.flatnonzero(known & (~rare | (rng.random(len(pairs)) < 0.05)))
        judged = [np.flatnonzero(~known & part) for part in (rare, ~rare)]
        with tempfile.TemporaryDirectory() as directory:
            write_journal(Path(directory) / "pod", [lines[row] for row in there])
            for share in (0.01, 0.1, 1.0):
                most = max(1, round(share * len(there)))
                found = read([f"{directory}/pod"], 1, Limits(most, 1000)).pairs
                uniform = rng.permutation(there)[:most]
                for name, features, scores in (
                    ("by strata", found.features, found.true_score),
                    ("uniform", pairs.features[uniform], pairs.true_score[uniform]),
                ):
                    network = fit(features, scores, np.arange(most), Recipe()).ema.network()
                    table.setdefault((name, share), []).append([most, *(error(network, pairs, rows) for rows in judged)])
    print(f"{'sample':10} {'share':>6} {'pairs':>7} {'RMSE, rare':>11} {'others':>7}")
    for (name, share), found in table.items():
        most, of_rare, others = np.mean(found, axis=0)
        print(f"{name:10} {share:6.0%} {most:7.0f} {of_rare:11.3f} {others:7.3f}")


def speed(directory: Path, n_pairs: int, n_pods: int) -> None:
    example, each = read_pairs([EXAMPLE]), n_pairs // n_pods
    for pod in range(n_pods):
        rng = np.random.default_rng(pod)
        rows = rng.integers(0, len(example), each)
        features = example.features[rows] * (1 + 0.02 * rng.normal(size=(each, 80)))
        scores = np.clip(example.true_score[rows] + rng.normal(size=each), 0, 100)
        write_journal(directory / f"pod-{pod}", [
            json.dumps({"group": f"{pod}-{row // 600}", "features": [float(f"{x:.7g}") for x in values], "true_score": score})
            .encode() for row, (values, score) in enumerate(zip(features.tolist(), scores.tolist(), strict=True))
        ])  # fmt: skip
    for workers in (1, 2):
        before, started = cpu_seconds(), time.perf_counter()
        found = read([f"{directory}/pod-*"], workers, Limits(2_000_000, 1000))
        seconds, count = time.perf_counter() - started, sum(found.read)
        while multiprocessing.active_children():
            time.sleep(0.1)
        here, there = (now - then for now, then in zip(cpu_seconds(), before, strict=True))
        memory = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        print(
            f"{workers} workers: {count:,} pairs in {seconds:.1f} s, {count / seconds:,.0f} a second; seconds of CPU: "
            f"{there:.1f} in workers, {here:.1f} in the main process; memory: {memory[1]:.0f} and {memory[0]:.0f} MB at most"
        )


def cpu_seconds() -> tuple[float, float]:
    """Of this process, and of those that it has started and that have ended."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return found[0].ru_utime + found[0].ru_stime, found[1].ru_utime + found[1].ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["loop", "sample", "read"])
    parser.add_argument("path")
    parser.add_argument("--pairs", type=int, default=2_000_000)
    parser.add_argument("--pods", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    if asked.what == "loop":
        loop(asked.path)
    elif asked.what == "sample":
        sample(asked.path, asked.seeds)
    else:
        speed(Path(asked.path), asked.pairs, asked.pods)


if __name__ == "__main__":
    main()
