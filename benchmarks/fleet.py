"""One model from many pods: what it is worth to each pod, whether it matters which pairs are kept, and how fast they are read.

    python benchmarks/fleet.py loop FILE       # recorded pairs with `group`, `source` and `codec`
    python benchmarks/fleet.py sample FILE
    python benchmarks/fleet.py make DIRECTORY --pairs N --pods N
    python benchmarks/fleet.py read PATH --workers N --sample N

loop: the base model is made from the pairs of the first source. Of the others ten pods are made, of a source and a codec each,
which together have all sources and codecs. Each learns from one half of its encodes; one model is trained from all their
journals; then each takes the other half, once going on as it was and once from the new base. The figures are RMSE in score
points: of models on what each pod holds out, and of the pods' predictions of pairs before they train on them.

sample: one codec and the lowest scores are made rare, a twentieth of what they were in half of the sources, which are trained
on. The other sources judge. The sample by strata is beside a uniform one of the same size.

make: pairs are made from those in `examples/` with noise, and written as journals of pods, each of 256 encodes. There are ten
kinds of pods; those of a kind differ in the names of their encodes.

read: pairs that were made, or a file of others, are read by so many processes and trained on for one epoch; speed is that of
the reading.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import dataclasses
import gzip
import hashlib
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
from sidecar.learning.recipe import Progress, Recipe, fit
from sidecar.learning.training_settings import TrainingSettings
from sidecar.offline.training import train_offline
from sidecar.online.learner import Learner
from sidecar.pairs.pair import PairBlock
from sidecar.pairs.recorded import RecordedPairs, read_pairs
from sidecar.pairs.tables.choice import Columns

HOLDOUT = 0.2
EXAMPLE = Path(__file__).parent.parent / "examples" / "recorded-80.jsonl.gz"
SEGMENT_PAIRS = 85_000
PODS = 10
KINDS, ENCODES, CODECS = 10, 256, ("libx264", "libx265", "libsvtav1")


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
    pairs, codecs, encodes = (read_pairs([file], group_by=each) for each in ("source", "codec", "group"))
    assert pairs.group is not None
    assert codecs.group is not None
    assert encodes.group is not None
    with gzip.open(file) as stream:
        lines = stream.read().splitlines()
    held_out = pairs.position < HOLDOUT
    base = fit(pairs.features, pairs.true_score, np.flatnonzero(pairs.group == 0), Recipe()).ema.network()
    half = np.random.default_rng(0).random(len(encodes.group_names))[encodes.group] < 0.5
    rows = {
        f"{source} {codec}": np.flatnonzero((pairs.group == number) & (codecs.group == place))
        for number, source in enumerate(pairs.group_names)
        for place, codec in enumerate(codecs.group_names)
        if number
    }
    names = [name for name, own in rows.items() if held_out[own].any()]
    rows = {names[place]: rows[names[place]] for place in np.linspace(0, len(names) - 1, PODS).round().astype(int)}
    pods: dict[str, Pod] = {}
    before: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, own in rows.items():
            pods[name] = Pod(pairs, base)
            before[name] = pods[name].take(own[half[own]])
            write_journal(Path(directory) / name, [lines[row] for row in own[half[own]]])
        found = read([f"{directory}/*"], 2, Limits(2_000_000, 1000)).pairs
    fleet = fit(found.features, found.true_score, np.flatnonzero(found.position >= HOLDOUT), Recipe()).ema.network()
    print(f"{'':18} {'held out: base':>15} {'own':>7} {'fleet':>7}   {'before':>7} {'goes on':>8} {'follows':>8}")
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
    print(f"{name[:18]:18} {base:15.3f} {own:7.3f} {fleet:7.3f}   {before:7.3f} {goes_on:8.3f} {follows:8.3f}")


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


def make(directory: Path, n_pairs: int, n_pods: int) -> None:
    example, each = read_pairs([EXAMPLE]), n_pairs // n_pods
    form = '-%d", "codec": "%s", "features": [' + ", ".join(["%.7g"] * 80) + '], "true_score": %.4f}'
    for kind in range(min(KINDS, n_pods)):
        rng = np.random.default_rng(kind)
        rows = rng.integers(0, len(example), each)
        features = example.features[rows] * (1 + 0.02 * rng.normal(size=(each, 80)))
        scores = np.clip(example.true_score[rows] + rng.normal(size=each), 0, 100)
        encode = np.arange(each) * ENCODES // each
        ends = [
            (form % (number, CODECS[number % len(CODECS)], *values, score)).encode()
            for number, values, score in zip(encode.tolist(), features, scores.tolist(), strict=True)
        ]
        for pod in range(kind, n_pods, KINDS):
            start = b'{"group": "%d' % pod
            write_journal(directory / f"pod-{pod}", [start + end for end in ends])


def speed(path: Path, count: int, limits: Limits) -> None:
    before, peaks = cpu_seconds(), [0.0, 0.0]
    here = 0.0

    def look(pairs: int = 0, loss: float = 0.0) -> None:
        for place, found in enumerate([[os.getpid()], [each.pid for each in multiprocessing.active_children()]]):
            peaks[place] = max([peaks[place], *map(peak_megabytes, found)])

    def is_read(total: int) -> Progress:
        nonlocal here
        here = cpu_seconds()[0] - before[0]
        look()
        return look

    with tempfile.TemporaryDirectory() as output:
        with processes(count) as workers:
            sampling, paths = Sampling(workers, limits), [f"{path}/pod-*" if path.is_dir() else str(path)]
            done = train_offline(paths, Path(output), Recipe(epochs=1), sampling=sampling, progress=is_read)
            look()
        digest = hashlib.sha256(done.checkpoint.model.read_bytes()).hexdigest()[:16]
    while multiprocessing.active_children():
        time.sleep(0.1)
    assert done.read is not None
    seconds, n_pairs, there = done.read.seconds, sum(done.read.read), cpu_seconds()[1] - before[1]
    print(
        f"{done.read.workers}: {n_pairs:,} pairs in {seconds:.1f} s, {n_pairs / seconds:,.0f} a second; seconds of CPU: "
        f"{there:.1f} in workers, {here:.1f} in the main process, {n_pairs / (here + there):,.0f} pairs a second of both; "
        f"memory with training: {peaks[1]:.0f} and {peaks[0]:.0f} MB at most; {len(done.read.pairs):,} pairs kept; {digest}"
    )


def peak_megabytes(process: int) -> float:
    """The most memory that a process of this machine has had, 0 if it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def cpu_seconds() -> tuple[float, float]:
    """Of this process, and of those that it has started and that have ended."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return found[0].ru_utime + found[0].ru_stime, found[1].ru_utime + found[1].ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["loop", "sample", "make", "read"])
    parser.add_argument("path")
    parser.add_argument("--pairs", type=int, default=2_000_000)
    parser.add_argument("--pods", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sample", type=int, default=2_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    if asked.what == "loop":
        loop(asked.path)
    elif asked.what == "sample":
        sample(asked.path, asked.seeds)
    elif asked.what == "make":
        make(Path(asked.path), asked.pairs, asked.pods)
    else:
        speed(Path(asked.path), asked.workers, Limits(asked.sample, 1000))


if __name__ == "__main__":
    main()
