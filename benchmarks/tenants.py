"""A head for each tenant, beside one model for all and a model for each; and what many tenants cost.

    python benchmarks/tenants.py quality FILE [--seeds N]   # recorded pairs with `group`, `codec` and `source`
    python benchmarks/tenants.py lies FILE
    python benchmarks/tenants.py capacity FILE
    python benchmarks/tenants.py step FILE

quality: the base model is trained offline on half of the sources; the encodes of the others come in several passes, each in
another order. Made tenants: each encode belongs to another one in each pass, and scores are 3 points more, 3 less, to the power
of 1.15, or from 10 to 90. Real ones: each codec, each source. A fifth of the encodes judge, with their tenant's scores. The
figures are the means over tenants and seeds of the RMSE, in score points, of each tenant's model after so many of its pairs.
`published` is the head where it is in use, else the shared model that it stands on.

lies: each codec is a tenant; one of them sends each of its pairs ten times, with a random score, or with the true one and 8
points more or less. capacity: 256 tenants. step: CPU time of a pair with tenants, beside one without, in turn; scores are 3
points more for every third tenant, and 3 less for every other third.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import gc
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onnx_builder.network import Array, Network
from sidecar.checkpoints.publishing import Terms
from sidecar.journal.run import Run
from sidecar.learning.metrics import rmse
from sidecar.learning.online.trainer import Trainer
from sidecar.learning.recipe import Recipe, fit
from sidecar.learning.tenants.tenants import Tenants
from sidecar.learning.training_settings import TrainingSettings
from sidecar.online.learner import Learner
from sidecar.online.publication import publication
from sidecar.pairs.pair import PairBlock
from sidecar.pairs.recorded import read_pairs

MARKS = (50, 100, 500, 2000)
RANKS = (0, 1, 2, 4, 8)
MADE = {
    "3 more": lambda scores: scores + 3,
    "3 less": lambda scores: scores - 3,
    "^1.15": lambda scores: 100 * (scores / 100) ** 1.15,
    "10 to 90": lambda scores: 10 + 0.8 * scores,
}
SETTINGS = TrainingSettings(tenants=("*",), tenant_share=1.0)


class Stream(NamedTuple):
    """rows: of the pairs, in their order; names: whose they are; scores: as these tenants have them; tests: rows and scores of
    each tenant."""

    rows: Array
    names: list[str]
    scores: Array
    tests: dict[str, tuple[Array, Array]]


class Data(NamedTuple):
    """The recorded pairs, with the names of their encodes, codecs and sources."""

    features: Array
    scores: Array
    groups: Array
    codecs: Array
    sources: Array


def in_passes(groups: Array, chosen: Array, passes: int, seed: int) -> Iterator[tuple[int, int]]:
    """Each pass's number and a row, encode by encode."""
    generator, order = np.random.default_rng(seed), list(dict.fromkeys(groups[chosen]))
    rows = {group: np.flatnonzero(chosen & (groups == group)) for group in order}
    for number in range(passes):
        for group in order:
            yield from ((number, row) for row in rows[group])
        generator.shuffle(order)


def split(data: Data, seed: int) -> tuple[Network, Array, Array]:
    """A base model of half of the sources, and which rows of the others train and test."""
    generator = np.random.default_rng(seed)
    known = np.isin(data.sources, generator.permutation(np.unique(data.sources))[:4])
    test = np.isin(data.groups, generator.permutation(np.unique(data.groups))[: len(np.unique(data.groups)) // 5]) & ~known
    recipe = Recipe(score_min=0, score_max=100, seed=seed)
    base = fit(data.features, data.scores, np.flatnonzero(known), recipe).ema.network()
    return base, ~known & ~test, test


def load(path: str) -> Data:
    pairs = {by: read_pairs([path], group_by=by) for by in ("group", "codec", "source")}
    any_of = pairs["group"]
    names = (np.array([f"{by} {code}" for code in each.group]) for by, each in pairs.items())
    return Data(any_of.features, any_of.true_score, *names)


def made(data: Data, chosen: Array, test: Array, seed: int) -> Stream:
    number_of = {group: number for number, group in enumerate(dict.fromkeys(data.groups))}
    names, rows = [*MADE], list[int]()
    whose = list[str]()
    for turn, row in in_passes(data.groups, chosen, len(MADE), seed):
        rows.append(row)
        whose.append(names[(number_of[data.groups[row]] + turn) % len(names)])
    scores = [float(np.clip(MADE[name](data.scores[row]), 0, 100)) for row, name in zip(rows, whose, strict=True)]
    tests = {name: (np.flatnonzero(test), np.clip(make(data.scores[test]), 0, 100)) for name, make in MADE.items()}
    return Stream(np.array(rows), whose, np.array(scores), tests)


def real(data: Data, by: Array, chosen: Array, test: Array, seed: int) -> Stream:
    rows = np.array([row for _, row in in_passes(data.groups, chosen, 2, seed)])
    tests = {name: (np.flatnonzero(test & (by == name)), data.scores[test & (by == name)]) for name in np.unique(by[test])}
    return Stream(rows, by[rows].tolist(), data.scores[rows], tests)


def error(network: Network, data: Data, test: tuple[Array, Array]) -> float:
    return rmse(np.clip(network.forward(data.features[test[0]]), 0, 100), test[1])


def with_heads(data: Data, stream: Stream, base: Network, rank: int, seed: int) -> Iterator[tuple[int, float, float]]:
    """Of each tenant at each mark: the mark, the error of its head, and of what is published for it."""
    settings = replace(SETTINGS, tenant_rank=rank, seed=seed)
    trainer, tenants, count = Trainer(80, settings, base), Tenants(80, settings), defaultdict[str, int](int)
    for row, name, score in zip(stream.rows, stream.names, stream.scores, strict=True):
        tenants.add(trainer, data.features[row][None], np.array([score]), [name])
        count[name] += 1
        if count[name] in MARKS and name in stream.tests:
            assert trainer.ema is not None
            shared = own = error(trainer.network(trainer.ema), data, stream.tests[name])
            model = next((each for each in tenants.models(trainer) if each.name == name), None)
            if model is not None:
                own = error(model.network(), data, stream.tests[name])
            yield count[name], own, own if model is not None and model.compared.used else shared


def alone(data: Data, stream: Stream, base: Network, only: str, seed: int) -> Iterator[tuple[int, str, float]]:
    """Of each tenant at each mark: the mark, whose it is, and the error of one model, of all pairs or of one tenant's."""
    trainer, count = Trainer(80, TrainingSettings(seed=seed), base), defaultdict[str, int](int)
    for row, name, score in zip(stream.rows, stream.names, stream.scores, strict=True):
        if only in ("", name):
            trainer.add(data.features[row][None], np.array([score]))
            count[name] += 1
            if count[name] in MARKS and name in stream.tests:
                assert trainer.ema is not None
                yield count[name], name, error(trainer.network(trainer.ema), data, stream.tests[name])


def quality(path: str, seeds: int) -> None:
    data = load(path)
    for kind in ("made", "codecs", "sources"):
        errors: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for seed in range(seeds):
            base, chosen, test = split(data, seed)
            if kind == "made":
                stream = made(data, chosen, test, seed)
            else:
                stream = real(data, data.codecs if kind == "codecs" else data.sources, chosen, test, seed)
            for only in ("", *stream.tests):
                for mark, _, value in alone(data, stream, base, only, seed):
                    errors["one model for each" if only else "one model for all"][mark].append(value)
            for rank in RANKS:
                for mark, own, published in with_heads(data, stream, base, rank, seed):
                    errors[f"head, rank {rank}"][mark].append(own)
                    errors[f"published, rank {rank}"][mark].append(published)
        print(f"{kind}{'':28}" + "".join(f"{mark:>8}" for mark in MARKS))
        for name, of_marks in errors.items():
            print(
                f"  {name:30}" + "".join(f"{np.mean(of_marks[mark]):8.3f}" if of_marks[mark] else f"{'':8}" for mark in MARKS)
            )


def lies(path: str) -> None:
    data = load(path)
    base, chosen, test = split(data, 0)
    stream = real(data, data.codecs, chosen, test, 0)
    liar, *others = stream.tests
    lie = {"is honest": 1, "tells random scores": 10, "is 8 points off": 10}
    for share, how in ((0.5, "is honest"), *((share, how) for how in [*lie][1:] for share in (0.1, 0.5, 1.0))):
        generator, settings = np.random.default_rng(0), replace(SETTINGS, tenant_share=share)
        trainer, tenants = Trainer(80, settings, base), Tenants(80, settings)
        for row, name, score in zip(stream.rows, stream.names, stream.scores, strict=True):
            for _ in range(lie[how] if name == liar else 1):
                told = score
                if name == liar and lie[how] > 1:
                    off = score + 8 * generator.choice([-1, 1])
                    told = 100 * generator.random() if how == "tells random scores" else np.clip(off, 0, 100)
                tenants.add(trainer, data.features[row][None], np.array([told]), [name])
        models = {each.name: each.network() for each in tenants.models(trainer)}
        assert trainer.ema is not None
        shared = trainer.network(trainer.ema)
        heads = np.mean([error(models[name], data, stream.tests[name]) for name in others])
        trunk = np.mean([error(shared, data, stream.tests[name]) for name in others])
        print(f"one of four {how:19}, share {share:g}: heads of the others {heads:.3f}, shared {trunk:.3f}")


def capacity(path: str, count: int = 100_000) -> None:
    data = load(path)
    generator = np.random.default_rng(0)
    rows, numbers = generator.integers(0, len(data.scores), count), generator.integers(0, 256, count)
    base = split(data, 0)[0]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for rank in (None, 0, 4):
        settings = replace(SETTINGS, tenants=None if rank is None else ("*",), tenant_rank=rank or 0)
        learner = Learner(Run(80, settings, 0.05, "base"), base)
        started = time.process_time()
        for at in range(0, count, 128):
            some = rows[at : at + 128]
            names = [f"t{number}" for number in numbers[at : at + 128]]
            learner.take(PairBlock(data.features[some], data.scores[some], generator.random(len(some)).tolist(), names))
        seconds = time.process_time() - started
        with tempfile.TemporaryDirectory() as directory:
            started = time.process_time()
            publication(learner, Terms(Path(directory)), Path(directory))()
            exported = time.process_time() - started
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        told = "no tenants" if rank is None else f"256 tenants, rank {rank}"
        print(
            f"{told}: {count / seconds:,.0f} pairs a second of CPU time, {memory:.0f} MiB more, "
            f"{exported:.1f} s of CPU time to export all",
            flush=True,
        )


def step(path: str, rounds: int = 24, count: int = 3840) -> None:
    data, base = load(path), Recipe(epochs=5)
    network = fit(data.features, data.scores, np.arange(0, len(data.scores), 3), base).ema.network()
    order = np.random.default_rng(0).permutation(len(data.scores))
    kinds = ((0, 0), (4, 0), (4, 4), (64, 0))
    trainers = [
        Trainer(80, replace(SETTINGS, tenants=("*",) if many else None, tenant_rank=rank), network) for many, rank in kinds
    ]
    all_tenants = [Tenants(80, trainer.settings) if many else None for (many, _), trainer in zip(kinds, trainers, strict=True)]
    gc.freeze()  # as `serve` does
    seconds = np.empty((rounds, len(kinds)))
    for round_ in range(-8, rounds):  # the first fill the replay buffers
        for place, ((many, _), trainer, tenants) in enumerate(zip(kinds, trainers, all_tenants, strict=True)):
            some = order[(np.arange(count) + round_ * count) % len(order)].reshape(-1, 64)
            whose = some * 7919 % (many or 1)
            scores = np.clip(data.scores[some] + 3 * (whose % 3 - 1), 0, 100) if many else data.scores[some]
            names = np.char.add("t", whose.astype(str)).tolist()
            started = time.process_time()
            for these, true, those in zip(some, scores, names, strict=True):
                if tenants is None:
                    trainer.add(data.features[these], true)
                else:
                    tenants.add(trainer, data.features[these], true, those)
            seconds[round_, place] = time.process_time() - started
    for (many, rank), times in zip(kinds, seconds.T, strict=True):
        told = f"{many} tenants, rank {rank}" if many else "no tenants"
        low, median, high = np.quantile(times / seconds[:, 0], (0.1, 0.5, 0.9))  # some rounds have a fit to the replay buffer
        print(f"{told:20} {np.median(times) / count * 1e6:6.1f} µs a pair, {median:.2f} times ({low:.2f} to {high:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "lies", "capacity", "step"])
    parser.add_argument("file")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.what == "quality":
        quality(options.file, options.seeds)
    else:
        {"lies": lies, "capacity": capacity, "step": step}[options.what](options.file)


if __name__ == "__main__":
    main()
