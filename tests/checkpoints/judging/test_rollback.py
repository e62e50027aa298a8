"""Whether a model on trial is worse than its predecessor, on errors of which the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from sidecar.checkpoints.judging.rollback import LEVEL, compare

GROUP = np.repeat(np.arange(30.0), 7)


def compared(error, before, group=GROUP):
    true = np.full(len(group), 50.0)
    return compare(group, true, (true + error).astype(np.float32), (true + before).astype(np.float32), 0.05, 100.0)


@pytest.fixture
def errors():
    """Those of two equally good models: each group has its own size, over three orders of magnitude."""
    rng = np.random.default_rng(0)
    size = np.exp(rng.normal(0, 1.5, 30))[GROUP.astype(int)]
    return rng.normal(size=len(GROUP)) * size, rng.normal(size=len(GROUP)) * size


def test_a_model_is_not_worse_than_itself(errors):
    found = compared(errors[0], errors[0])
    assert (found.worse, found.worse_in, found.chance) == (False, 0, 1.0)
    assert (found.pairs, found.groups) == (210, 30)
    assert found.error == found.predecessor_error


def test_equally_good_models_are_not_told_apart(errors):
    assert not compared(*errors).worse
    assert not compared(*reversed(errors)).worse


@pytest.mark.parametrize(("times", "worse"), [(1.04, False), (1.06, True), (2.0, True)])
def test_what_is_worse_everywhere_is_worse_beyond_the_threshold(errors, times, worse):
    found = compared(errors[0] * times, errors[0])
    assert found.worse is worse
    assert found.error == pytest.approx(times * found.predecessor_error, rel=1e-3)


def test_a_shift_is_seen_where_the_predecessor_errs_too(errors):
    assert compared(errors[0] + 10, errors[1]).worse


def test_a_few_groups_decide_nothing_however_far_they_are_off(errors):
    far_off = errors[0] + np.where(GROUP < 5, 90, 0)
    assert not compared(far_off, errors[1]).worse
    assert not compared(far_off, errors[0]).worse  # as good everywhere else
    assert compared(errors[0] + np.where(GROUP < 15, 20, 0), errors[0]).worse


def test_wrong_scores_in_half_of_the_groups_hide_nothing(errors):
    wrong = np.where((np.arange(len(GROUP)) % 7 < 2) & (GROUP % 2 == 0), 40, 0)
    found, without = compared(1.5 * errors[0] + wrong, errors[0] + wrong), compared(1.5 * errors[0], errors[0])
    assert found.worse
    assert found.error < 2 * without.error
    assert not compared(errors[0] + wrong, errors[1] + wrong).worse


@pytest.mark.parametrize("pairs", [1, 2, 3, 4])
def test_the_error_of_a_group_is_the_median_of_its_pairs(pairs):
    error = np.random.default_rng(0).normal(size=30 * pairs).astype(np.float32)
    group = np.random.default_rng(1).permutation(np.repeat(np.arange(30), pairs))
    found = compare(group, np.zeros(30 * pairs), error, 2 * error, 0.05, 100.0)
    assert found.error == pytest.approx(np.mean([np.median(np.abs(error[group == each])) for each in range(30)]))
    assert found.predecessor_error == pytest.approx(2 * found.error)


def test_one_group_that_is_far_better_hides_nothing(errors):
    assert compared(np.where(GROUP == 0, 0, errors[1] * 3), np.where(GROUP == 0, 90, errors[1])).worse


def test_a_group_of_many_pairs_counts_as_any_other(errors):
    group = np.concatenate([GROUP, np.zeros(5000)])
    error = np.concatenate([errors[0], np.full(5000, 40.0)])
    found = compared(error, np.concatenate([errors[1], np.zeros(5000)]), group)
    assert (found.groups, found.worse) == (30, False)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf, 1e30])
def test_scores_that_are_no_scores_are_as_bad_as_can_be(errors, broken):
    found = compared(np.full(len(GROUP), broken), errors[0])
    assert (found.worse, found.error) == (True, 100.0)


def test_chance_takes_back_no_more_than_the_level_says_whatever_the_errors_are():
    rng, taken_back = np.random.default_rng(0), 0
    group, true = np.arange(30.0), np.zeros(30)
    for round_ in range(3000):
        size = [np.ones(30), np.abs(rng.standard_cauchy(30)), np.exp(rng.normal(0, 3, 30))][round_ % 3]
        first = rng.random(30) < 0.5
        one, other = np.where(first, size, 0), np.where(first, 0, size)
        taken_back += compare(group, true, one, other, 0.0, np.inf).worse
    assert taken_back <= 3000 * LEVEL
