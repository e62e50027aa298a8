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
    own_plcc, own_rmse = plcc(predicted, true), rmse(predicted, true)
    known = [(value, name) for name, scores in references if not math.isnan(value := plcc(scores, true))]
    reasons = []
    if known:
        reference_plcc, plcc_name = max(known)
        if not own_plcc >= reference_plcc - plcc_delta:
            reasons.append(f"PLCC {own_plcc:.4f} is under {reference_plcc:.4f} ({plcc_name}) − {plcc_delta:g}")
    elif not own_plcc >= PLCC_WITHOUT_REFERENCE:
        why = "no PLCC of a reference model" if references else "no reference model"
        reasons.append(f"PLCC {own_plcc:.4f} is under {PLCC_WITHOUT_REFERENCE:g} ({why})")
    if references:
        for error, figure, ratio in (
            ("RMSE", rmse, rmse_ratio),
            ("winsorized RMSE", winsorized_rmse, rmse_ratio * WINSORIZED_SLACK),
        ):
            own = figure(predicted, true)
            reference, name = min((figure(scores, true), name) for name, scores in references)
            if not own <= reference * ratio:
                reasons.append(f"{error} {own:.3f} is over {reference:.3f} ({name}) × {ratio:g}")
    else:
        deviation = float(np.std(true, dtype=np.float64))
        if not own_rmse <= deviation * RMSE_WITHOUT_REFERENCE:
            limit = f"{deviation:.3f} (deviation of the true scores, no reference model) × {RMSE_WITHOUT_REFERENCE:g}"
            reasons.append(f"RMSE {own_rmse:.3f} is over {limit}")
    if reasons:
        return Gate("unstable", f"on {len(true)} held-out pairs, " + "; ".join(reasons))
    return Gate("stable", f"PLCC {own_plcc:.4f} and RMSE {own_rmse:.3f} on {len(true)} held-out pairs")


class Evidence(NamedTuple):
    """Pairs that a checkpoint is judged on: features (n, n_features), raw, and their true scores (n,).

    rmse_ratio: the largest ratio of RMSE to the reference's on these, where that is less than what is asked on all.
    """

    name: str
    features: Array
    true: Array
    rmse_ratio: float = math.inf


def comparison(
    own: Sequence[Array], sets: Sequence[Evidence], references: Sequence[tuple[str, Sequence[Array]]]
) -> list[dict[str, Any]]:
    """The figures that were compared, as JSON: a row for each model and set, this model's first. PLCC is null if undefined."""
    rows = []
    for name, scores in [("this model", own), *references]:
        for evidence, predicted in zip(sets, scores, strict=True):
            figures = {"plcc": plcc, "rmse": rmse, "winsorized_rmse": winsorized_rmse}
            values = {figure: of(predicted, evidence.true) for figure, of in figures.items()}
            known = {figure: None if math.isnan(value) else value for figure, value in values.items()}
            rows.append({"model": name, "on": evidence.name, "pairs": len(evidence.true), **known})
    return rows


def judge_on_each(
    predicted: Sequence[Array],
    sets: Sequence[Evidence],
    references: Sequence[tuple[str, Sequence[Array]]],
    *,
    plcc_delta: float = 0.005,
    rmse_ratio: float = 1.1,
) -> Gate:
    """Judge a checkpoint on several sets: stable if it is on the first, and unstable on none.

    predicted: its predictions (n,) of each; references: (name, predictions of each) of the models it has to stand up to. The
    first set decides alone whether it can be judged at all; others too small or without variation are passed over.
    """
    verdicts = []
    for place, (evidence, own) in enumerate(zip(sets, predicted, strict=True)):
        others = [(name, scores[place]) for name, scores in references]
        ratio = min(rmse_ratio, evidence.rmse_ratio)
        gate = judge(own, evidence.true, others, plcc_delta=plcc_delta, rmse_ratio=ratio)
        if gate.verdict == "unstable" and len(sets) > 1:
            gate = Gate(gate.verdict, f"{evidence.name}: {gate.reason}")
        verdicts.append(gate)
    if verdicts[0].verdict == "unverified":
        return verdicts[0]
    return next((gate for gate in verdicts if gate.verdict == "unstable"), verdicts[0])
