"""How soon a change of the features is told, and how often one that is none: this test beside river's detectors.

    python benchmarks/drift.py [--seeds 4] [--detector NAME]

The stream is of real pairs (examples/), each encode once a pass, the encodes in random order. For each seed and each kind of
change: 1,000 encodes without a change, then 500 with one. A detector that alarms before has given a false alarm.

- two samples: `sidecar/learning/drift/two_samples.py`, which gets all twelve pairs of each encode; an encode counts once. "By
  rows": each pair counts.
- river's detectors get one pair of each encode, another one in each pass.
- ADWIN, KSWIN, PageHinkley: river's, one for each feature. Their own defaults; and "corrected", with the chance of a false
  alarm divided by the features and by as many looks as a thousand encodes have.
- on the error: the same with their defaults on the absolute error of a model that was trained on all of these pairs, which is
  what they are usually used on. Page's test: `sidecar/learning/replay/shift.py`, by which earlier pairs are given up; it gets
  the median error of each encode.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from river import drift

from sidecar.learning.drift.two_samples import TwoSamples
from sidecar.learning.recipe import Recipe, fit
from sidecar.learning.replay.shift import ShiftDetector
from sidecar.pairs.recorded import read_pairs

BEFORE, AFTER, PER_ENCODE = 1000, 500, 12
PAIRS = Path(__file__).parent.parent / "examples" / "recorded-80.jsonl.gz"


def encodes(chosen: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Rows of so many encodes: passes over the chosen ones in random order, each time with another of their pairs."""
    passes = [
        PER_ENCODE * rng.permutation(chosen) + rng.integers(PER_ENCODE, size=len(chosen))
        for _ in range(count // len(chosen) + 1)
    ]
    return np.concatenate(passes)[:count]


def two_samples(pairs_of_a_group: int) -> Callable[..., int | None]:
    def detect(features: np.ndarray, errors: np.ndarray) -> int | None:
        samples = TwoSamples(features.shape[1])
        for row in range(len(features)):
            samples.add(features[row : row + 1], [row // pairs_of_a_group / 1e6])
            if samples.comparison is not None and samples.comparison.over:
                return row
        return None

    return detect


def on_features(make: Callable[[], drift.base.DriftDetector]) -> Callable[..., int | None]:
    def detect(features: np.ndarray, errors: np.ndarray) -> int | None:
        detectors = [make() for _ in range(features.shape[1])]
        for row, values in enumerate(features.tolist()):
            for detector, value in zip(detectors, values, strict=True):
                detector.update(value)
            if any(detector.drift_detected for detector in detectors):
                return row
        return None

    return detect


def on_the_error(make: Callable[[], drift.base.DriftDetector]) -> Callable[..., int | None]:
    def detect(features: np.ndarray, errors: np.ndarray) -> int | None:
        detector = make()
        for row, error in enumerate(errors.tolist()):
            detector.update(error)
            if detector.drift_detected:
                return row
        return None

    return detect


def pages_test(features: np.ndarray, errors: np.ndarray) -> int | None:
    detector = ShiftDetector(0.1)
    for encode, error in enumerate(np.median(errors.reshape(-1, PER_ENCODE), axis=1).tolist()):
        if detector.add(error, PER_ENCODE):
            return encode * PER_ENCODE
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--detector", default="", help="only those with this in their names; KSWIN takes minutes")
    seeds, wanted = (arguments := parser.parse_args()).seeds, arguments.detector
    pairs = read_pairs([PAIRS], group_by="group")
    names = [str(pairs.group_names[place]) for place in pairs.group[::PER_ENCODE]]  # as echo-5-libx264-42
    model = fit(
        pairs.features, pairs.true_score, np.arange(len(pairs.features)), Recipe(epochs=60, score_min=0, score_max=100)
    ).ema
    everything = np.arange(len(names))
    scale = pairs.features.std(axis=0)

    def reversed_order(rows: np.ndarray) -> np.ndarray:
        return rows[:, ::-1]

    def broken(rows: np.ndarray) -> np.ndarray:
        return np.where(np.arange(rows.shape[1]) == 4, 0, rows)

    def other_unit(rows: np.ndarray) -> np.ndarray:
        return np.where(np.arange(rows.shape[1]) == 4, rows + scale, rows)

    def having(part: str) -> np.ndarray:
        return np.array([place for place, name in enumerate(names) if part in name])

    kinds = {
        "reversed order": (everything, everything, reversed_order),
        "one feature broken": (everything, everything, broken),
        "one a deviation off": (everything, everything, other_unit),
        "another codec": (having("-libx264-"), having("-libsvtav1-"), None),
        "other content": (np.setdiff1d(everything, having("echo-")), having("echo-"), None),
    }
    looks = 80 * BEFORE
    detectors: dict[str, tuple[Callable[..., int | None], int]] = {
        "two samples": (two_samples(PER_ENCODE), PER_ENCODE),
        "two samples, by rows": (two_samples(1), PER_ENCODE),
        "ADWIN": (on_features(drift.ADWIN), 1),
        "ADWIN, corrected": (on_features(lambda: drift.ADWIN(delta=0.05 / looks)), 1),
        "KSWIN": (on_features(lambda: drift.KSWIN(seed=0)), 1),
        "KSWIN, corrected": (on_features(lambda: drift.KSWIN(alpha=0.05 / looks, window_size=192, stat_size=64, seed=0)), 1),
        "PageHinkley": (on_features(drift.PageHinkley), 1),
        "Page's test on the error": (pages_test, PER_ENCODE),
        "ADWIN on the error": (on_the_error(drift.ADWIN), 1),
        "KSWIN on the error": (on_the_error(lambda: drift.KSWIN(seed=0)), 1),
        "PageHinkley on the error": (on_the_error(drift.PageHinkley), 1),
    }
    print(f"{'false alarms in 1,000 encodes, of ' + str(seeds):26} | " + " | ".join(f"{kind:20}" for kind in kinds))
    for name, (detect, per_encode) in detectors.items():
        if wanted not in name:
            continue
        cells = []
        for before, after, change in kinds.values():
            alarms, delays = 0, []
            for seed in range(seeds):
                rng = np.random.default_rng(seed)
                chosen = np.concatenate([encodes(before, rng, BEFORE), encodes(after, rng, AFTER)])
                if per_encode > 1:  # all pairs of each, one after the other, and each for itself
                    chosen = (chosen[:, None] // per_encode * per_encode + np.arange(per_encode)).ravel()[
                        : (BEFORE + AFTER) * per_encode
                    ]
                rows, start = pairs.features[chosen], BEFORE * per_encode
                if change is not None:
                    rows = np.concatenate([rows[:start], change(rows[start:]).astype(np.float32)])
                errors = np.abs(model.predict(rows) - pairs.true_score[chosen])
                found = detect(rows, errors)
                alarms += found is not None and found < start
                if found is not None and found >= start:
                    delays.append((found - start) / per_encode)
            delay = f"{np.median(delays):.0f} ({len(delays)})" if delays else "–"
            cells.append(f"{alarms}; {delay}")
        print(f"{name:26} | " + " | ".join(f"{cell:20}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
