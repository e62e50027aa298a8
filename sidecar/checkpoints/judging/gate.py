"""The stability gate: may a checkpoint replace the stable one?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from onnx_builder.network import Array
from sidecar.learning.metrics import plcc, rmse, winsorized_rmse

MINIMUM_PAIRS = 30
PLCC_WITHOUT_REFERENCE = 0.9
RMSE_WITHOUT_REFERENCE = 0.5
"""As a share of the standard deviation of the true scores."""
WINSORIZED_SLACK = 1.15
"""The ratio of winsorized RMSE to the reference's may be so many times what that of RMSE may be: 1.265 by default.

A few wrong scores among the pairs hide in the RMSE whether a model is better or worse. Measured in `benchmarks/gate.py`: of
186 checkpoints of 24 streams without wrong scores, 10 were unstable for their winsorized RMSE alone, eight of them in a row.
"""

Verdict = Literal["stable", "unstable", "unverified", "incompatible"]


class Gate(NamedTuple):
    """A verdict and, in words with the figures, why."""

    verdict: Verdict
    reason: str


class Limit(NamedTuple):
    """What a figure must reach: a value, and how it comes about, in words with the name of the model it is from."""

    value: float
    words: str


FIGURES = {"plcc": plcc, "rmse": rmse, "winsorized_rmse": winsorized_rmse}


def limits(
    true: Array, references: Sequence[tuple[str, Array]], *, plcc_delta: float = 0.005, rmse_ratio: float = 1.1
) -> dict[str, Limit]:
    """The least PLCC and the largest errors, by the names in `FIGURES`, with which `judge` says stable."""
    known = [(value, name) for name, scores in references if not math.isnan(value := plcc(scores, true))]
    if known:
        value, name = max(known)
        found = {"plcc": Limit(value - plcc_delta, f"{value:.4f} ({name}) − {plcc_delta:g}")}
    else:
        why = "no PLCC of a reference model" if references else "no reference model"
        found = {"plcc": Limit(PLCC_WITHOUT_REFERENCE, f"{PLCC_WITHOUT_REFERENCE:g} ({why})")}
    if not references:
        deviation = float(np.std(true, dtype=np.float64))
        words = f"{deviation:.3f} (deviation of the true scores, no reference model) × {RMSE_WITHOUT_REFERENCE:g}"
        return found | {"rmse": Limit(deviation * RMSE_WITHOUT_REFERENCE, words)}
    for figure, ratio in (("rmse", rmse_ratio), ("winsorized_rmse", rmse_ratio * WINSORIZED_SLACK)):
        value, name = min((FIGURES[figure](scores, true), name) for name, scores in references)
        found[figure] = Limit(value * ratio, f"{value:.3f} ({name}) × {ratio:g}")
    return found


def judge(
    predicted: Array,
    true: Array,
    references: Sequence[tuple[str, Array]],
    *,
    plcc_delta: float = 0.005,
    rmse_ratio: float = 1.1,
) -> Gate:
    """Judge a checkpoint's predictions (n,) of held-out pairs against their true scores (n,).

    references: (name, predictions (n,)) of the models it has to stand up to. The reference PLCC is the highest of theirs
    and the reference RMSE the lowest. Stable: PLCC at least the reference's less `plcc_delta`, RMSE at most the reference's
    times `rmse_ratio`, and winsorized RMSE at most 1.15 times as much of its reference. Without any reference: PLCC at least
    0.9, and RMSE at most half the standard deviation of the true scores. Unverified: fewer than 30 pairs, or none that vary.
    """
    if len(true) < MINIMUM_PAIRS:
        return Gate("unverified", f"{len(true)} held-out pairs, fewer than {MINIMUM_PAIRS}")
    if np.ptp(true) == 0:
        return Gate("unverified", f"all {len(true)} held-out pairs have score {true[0]:g}")
    own = {name: figure(predicted, true) for name, figure in FIGURES.items()}
    reasons = []
    for name, limit in limits(true, references, plcc_delta=plcc_delta, rmse_ratio=rmse_ratio).items():
        if name == "plcc":
            if not own[name] >= limit.value:
                reasons.append(f"PLCC {own[name]:.4f} is under {limit.words}")
        elif not own[name] <= limit.value:
            reasons.append(f"{name.replace('_', ' ').replace('rmse', 'RMSE')} {own[name]:.3f} is over {limit.words}")
    if reasons:
        return Gate("unstable", f"on {len(true)} held-out pairs, " + "; ".join(reasons))
    return Gate("stable", f"PLCC {own['plcc']:.4f} and RMSE {own['rmse']:.3f} on {len(true)} held-out pairs")


class Evidence(NamedTuple):
    """Pairs that a checkpoint is judged on: features (n, n_features), raw, and their true scores (n,).

    rmse_ratio: the largest ratio of RMSE to the reference's on these, where that is less than what is asked on all. group:
    (n,), what tells their encodes apart, where that is known.
    """

    name: str
    features: Array
    true: Array
    rmse_ratio: float = math.inf
    group: Array | None = None


def judge_on_each(
    predicted: Sequence[Array],
    sets: Sequence[Evidence],
    references: Sequence[tuple[str, Sequence[Array]]],
    *,
    plcc_delta: float = 0.005,
    rmse_ratio: float = 1.1,
) -> tuple[Gate, list[dict[str, Any]]]:
    """Judge a checkpoint on several sets: stable if it is on the first, and unstable on none.

    predicted: its predictions (n,) of each; references: (name, predictions of each) of the models it has to stand up to. The
    first set decides alone whether it can be judged at all; others too small or without variation are passed over.

    Also returns what was compared, as JSON: a row for each model and set, this model's first, with its `verdict` on the set and
    the `limits` of its figures, where there are any. PLCC is null if undefined.
    """
    verdicts, own, others = [], [], []
    for place, (evidence, scores) in enumerate(zip(sets, predicted, strict=True)):
        beside = [(name, each[place]) for name, each in references]
        asked = {"plcc_delta": plcc_delta, "rmse_ratio": min(rmse_ratio, evidence.rmse_ratio)}
        gate = judge(scores, evidence.true, beside, **asked)
        found = {} if gate.verdict == "unverified" else limits(evidence.true, beside, **asked)
        row = _compared("this model", evidence, scores) | {"verdict": gate.verdict}
        own.append(row | ({"limits": {name: limit.value for name, limit in found.items()}} if found else {}))
        others.append([_compared(name, evidence, each) for name, each in beside])
        if gate.verdict == "unstable" and len(sets) > 1:
            gate = Gate(gate.verdict, f"{evidence.name}: {gate.reason}")
        verdicts.append(gate)
    compared = own + [row for rows in zip(*others, strict=True) for row in rows]
    if verdicts[0].verdict == "unverified":
        return verdicts[0], compared
    return next((gate for gate in verdicts if gate.verdict == "unstable"), verdicts[0]), compared


def _compared(name: str, evidence: Evidence, predicted: Array) -> dict[str, Any]:
    values = {each: figure(predicted, evidence.true) for each, figure in FIGURES.items()}
    known = {each: None if math.isnan(value) else value for each, value in values.items()}
    return {"model": name, "on": evidence.name, "pairs": len(evidence.true), **known}
