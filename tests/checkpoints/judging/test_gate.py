"""The stability gate on vectors whose verdict is known."""

from __future__ import annotations

import numpy as np
import pytest

from sidecar.checkpoints.judging.gate import Evidence, judge, judge_on_each

TRUE = np.random.default_rng(0).uniform(0, 100, 200)
NOISE = np.random.default_rng(1).normal(size=200)


@pytest.mark.parametrize(
    ("predicted", "references", "verdict", "reason"),
    [
        (TRUE + NOISE, [], "stable", "PLCC 0.99"),
        (TRUE + 40 * NOISE, [], "unstable", "is under 0.9 (no reference model)"),
        (TRUE + 22, [], "unstable", "RMSE 22.000 is over 30.1"),
        (0.5 * TRUE + 10, [], "unstable", "(deviation of the true scores, no reference model) × 0.5"),
        (TRUE + 5, [], "stable", "PLCC 1.0000 and RMSE 5.000"),
        (TRUE + NOISE, [("model_v000001", TRUE + 1.05 * NOISE)], "stable", "200 held-out pairs"),
        (TRUE + 2 * NOISE, [("model_v000001", TRUE + NOISE)], "unstable", "is over 0.9"),
        (TRUE + 5, [("model_v000001", TRUE + NOISE)], "unstable", "RMSE 5.000 is over"),
        (TRUE + NOISE, [("old", TRUE + 9 * NOISE), ("base", TRUE + 0.5 * NOISE)], "unstable", "(base) × 1.1"),
        (TRUE * 0, [("old", TRUE * 0 + 3)], "unstable", "PLCC nan is under 0.9 (no PLCC of a reference model)"),
    ],
)
def test_verdicts(predicted, references, verdict, reason):
    gate = judge(predicted, TRUE, references)
    assert gate.verdict == verdict
    assert reason in gate.reason


def test_wrong_scores_do_not_hide_that_a_model_is_worse():
    rng = np.random.default_rng(2)
    wrong = np.where(rng.random(200) < 0.05, rng.uniform(0, 100, 200), TRUE)
    better, worse = TRUE + 0.5 * NOISE, TRUE + NOISE
    gate = judge(worse, wrong, [("model_v000001", better)])
    assert gate.verdict == "unstable"
    assert gate.reason.startswith("on 200 held-out pairs, winsorized RMSE ")
    assert gate.reason.endswith(" (model_v000001) × 1.265")
    assert judge(better, wrong, [("model_v000001", worse)]).verdict == "stable"
    assert judge(worse, wrong, [("model_v000001", better)], rmse_ratio=2).verdict == "stable"


def test_nothing_is_taken_off_what_is_asked_where_there_is_no_reference():
    noise = NOISE - NOISE.mean() - (TRUE - TRUE.mean()) * np.cov(NOISE, TRUE)[0, 1] / np.var(TRUE, ddof=1)  # uncorrelated

    def with_plcc(wanted):
        return (
            TRUE.mean() + wanted**2 * (TRUE - TRUE.mean()) + wanted * np.sqrt(1 - wanted**2) * noise * TRUE.std() / noise.std()
        )

    assert judge(with_plcc(0.901), TRUE, [], plcc_delta=0.005).verdict == "stable"
    gate = judge(with_plcc(0.899), TRUE, [], plcc_delta=0.005, rmse_ratio=9)
    assert gate == ("unstable", "on 200 held-out pairs, PLCC 0.8990 is under 0.9 (no reference model)")
    deviation = float(TRUE.std())
    assert judge(TRUE + 0.499 * deviation, TRUE, [], rmse_ratio=9).verdict == "stable"
    assert judge(TRUE + 0.501 * deviation, TRUE, [], rmse_ratio=9).verdict == "unstable"


def test_too_few_pairs_or_none_that_vary_are_unverified():
    assert judge(TRUE[:29], TRUE[:29], []).verdict == "unverified"
    assert judge(TRUE[:30], TRUE[:30], []).verdict == "stable"
    assert judge(TRUE, np.full(200, 97.5), []) == ("unverified", "all 200 held-out pairs have score 97.5")


def test_too_few_held_out_pairs_are_unverified_whatever_the_anchor_says():
    features = np.zeros((200, 1))
    sets = [Evidence("held-out pairs", features[:20], TRUE[:20]), Evidence("anchor", features, TRUE)]
    gate, compared = judge_on_each([np.zeros(20), np.zeros(200)], sets, [])
    assert gate.verdict == "unverified"
    assert [(row["on"], row["verdict"], "limits" in row) for row in compared] == [
        ("held-out pairs", "unverified", False),
        ("anchor", "unstable", True),
    ]
    assert judge_on_each([np.zeros(200)], sets[1:], [])[0].verdict == "unstable"


def test_what_was_compared_has_each_model_on_each_set_and_the_limits_that_decided():
    features = np.zeros((200, 1))
    sets = [Evidence("held-out pairs", features, TRUE), Evidence("anchor", features, TRUE, rmse_ratio=1.0)]
    references = [("base model", [TRUE + 2, TRUE + 1]), ("model_v000001", [TRUE + 3, TRUE + 4])]
    gate, compared = judge_on_each([TRUE + 2.1, TRUE + 1.05], sets, references)
    assert [(row["model"], row["on"]) for row in compared] == [
        (name, each.name) for name in ("this model", "base model", "model_v000001") for each in sets
    ]
    assert [row["verdict"] for row in compared[:2]] == ["stable", "unstable"]
    assert gate.verdict == "unstable"
    for row, reference, ratio in zip(compared, compared[2:4], (1.1, 1.0), strict=False):
        assert row["limits"]["rmse"] == pytest.approx(reference["rmse"] * ratio)
        assert row["limits"]["winsorized_rmse"] == pytest.approx(reference["winsorized_rmse"] * ratio * 1.15)
        assert row["limits"]["plcc"] == pytest.approx(1 - 0.005)
    assert "limits" not in compared[2]
