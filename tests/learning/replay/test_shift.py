"""Shifts of scores: when one is found, when not, and that a state goes on."""

from __future__ import annotations

import numpy as np
import pytest

from sidecar.learning.replay.shift import LEAST_PAIRS, ShiftDetector

GROUP = 16


def found(detector, errors):
    """Where shifts were found, each with how many pairs ago it began."""
    results = [(place, detector.add(error, GROUP)) for place, error in enumerate(errors)]
    return [(place, since) for place, since in results if since]


def steady(groups, seed=0):
    """Errors of groups as they are on the recorded pairs, where most are small and some encodes are hard: mean 0.3."""
    return np.random.default_rng(seed).lognormal(-1.7, 1.0, groups)


@pytest.mark.parametrize("seed", range(5))
def test_steady_and_falling_errors_are_no_shift(seed):
    assert found(ShiftDetector(0.1), steady(3000, seed)) == []
    assert found(ShiftDetector(0.1), steady(3000, seed) * np.geomspace(10, 1, 3000)) == []


@pytest.mark.parametrize("share", [1, 3])
def test_errors_that_rise_and_stay_are_found_with_their_beginning(share):
    before, after = steady(500), steady(200, seed=1)
    after[::share] += 3
    (place, since), *more = found(ShiftDetector(0.1), [*before, *after])
    assert 500 <= place < 500 + 15 * share
    assert since == pytest.approx((place - 500 + 1) * GROUP, abs=10 * GROUP)
    assert more == []  # the errors that it found are the usual ones from then on


def test_a_few_wild_groups_are_no_shift():
    errors = steady(1000)
    errors[[300, 302, 500, 501, 502, 700]] = 60
    assert found(ShiftDetector(0.1), errors) == []


def test_nothing_is_found_before_the_usual_error_is_known_nor_among_errors_too_small_to_matter():
    assert found(ShiftDetector(0.1), [0.1] * 10 + [5] * (LEAST_PAIRS // GROUP - 10)) == []
    assert found(ShiftDetector(0.1), [0.01] * 200 + [0.19] * 200) == []


def test_a_state_goes_on():
    errors = [*steady(200), *(steady(100) + 3)]
    detector, again = ShiftDetector(0.1), ShiftDetector(0.1)
    found(detector, errors[:203])
    again.load(detector.state())
    assert found(again, errors[203:]) == found(detector, errors[203:]) != []
    assert np.array_equal(again.state(), detector.state())
