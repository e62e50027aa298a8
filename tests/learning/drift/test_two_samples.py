"""Two samples: the statistic is scipy's, there is no alarm without a change, and a change is told with its features."""

from __future__ import annotations

import numpy as np
import pytest

from sidecar.learning.drift.two_samples import (
    LATEST_GROUPS,
    REFERENCE_GROUPS,
    STAYED_GROUPS,
    TwoSamples,
    distances,
    limit,
    over_limit,
)


@pytest.fixture(scope="module")
def stream(example):
    """Real pairs as a stream without a change: in each pass one pair of each encode, the encodes in random order."""
    rng = np.random.default_rng(0)
    passes = [12 * rng.permutation(208) + rng.integers(12, size=208) for _ in range(8)]  # an encode is twelve rows
    return example.features[np.concatenate(passes)]


def fed(features, samples=None, first=0, block=64, pairs_of_a_group=1):
    samples = samples or TwoSamples(features.shape[1])
    rows = np.repeat(features, pairs_of_a_group, axis=0)
    keys = np.repeat(np.arange(first, first + len(features)) / 1e6, pairs_of_a_group)
    for start in range(0, len(rows), block):
        samples.add(rows[start : start + block], keys[start : start + block].tolist())
    return samples


def test_the_statistic_is_that_of_kolmogorov_and_smirnov():
    scipy = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    reference, latest = rng.normal(size=(50, 4)).astype(np.float32), rng.normal(0.5, 2, size=(30, 4)).astype(np.float32)
    reference[:, 3], latest[:, 3] = np.round(reference[:, 3]), np.round(latest[:, 3])  # with many ties
    reference.sort(axis=0)
    expected = [scipy.ks_2samp(reference[:, i], latest[:, i]).statistic for i in range(4)]
    assert distances(reference, latest) == pytest.approx(expected)
    assert distances(np.ones((5, 1), np.float32), np.ones((3, 1), np.float32)) == 0
    assert distances(np.zeros((5, 1), np.float32), np.ones((3, 1), np.float32)) == 1


def test_the_limit_is_that_of_the_asymptotic_distribution():
    scipy = pytest.importorskip("scipy.stats")
    effective = REFERENCE_GROUPS * LATEST_GROUPS / (REFERENCE_GROUPS + LATEST_GROUPS)
    assert 80 * scipy.kstwobign.sf(limit(80) * np.sqrt(effective)) == pytest.approx(1e-5, rel=1e-3)


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_what_is_over_the_limit_is_found_as_by_the_distances(decimals):
    rng = np.random.default_rng(decimals)
    shifts = rng.uniform(-3, 3, size=2000)  # so that distances lie on both sides of the limit, and close to it
    reference = np.sort(rng.normal(size=(REFERENCE_GROUPS, 2000)).round(decimals).astype(np.float32), axis=0)
    latest = (shifts + rng.normal(size=(LATEST_GROUPS, 2000))).round(decimals).astype(np.float32)
    expected = distances(reference, latest) > limit(2000)
    assert 400 < expected.sum() < 1600
    assert over_limit(reference, latest).tolist() == expected.tolist()


def test_a_stream_without_a_change_raises_no_alarm(stream):
    comparison = fed(stream).comparison
    assert comparison.over == []
    assert comparison.distance.max() < comparison.limit


@pytest.mark.parametrize("pairs_of_a_group", [1, 12])
def test_a_change_is_told_with_its_features_and_since_when(stream, pairs_of_a_group):
    before, after = stream[:600], stream[600:1100].copy()
    after[:, 17] *= 0
    samples = fed(before, pairs_of_a_group=pairs_of_a_group)
    assert samples.comparison.over == []
    seen = samples.pairs
    fed(after, samples, first=600, pairs_of_a_group=pairs_of_a_group)
    assert samples.comparison.over == [17]
    assert seen < samples.comparison.since[17] < samples.pairs
    reference, latest = (quantiles[17].tolist() for quantiles in samples.comparison.quantiles())
    assert latest == [0] * 5
    assert reference == pytest.approx(np.quantile(before[:REFERENCE_GROUPS, 17], [0.05, 0.25, 0.5, 0.75, 0.95]).tolist())
    fed(before, samples, first=1200, pairs_of_a_group=pairs_of_a_group)
    assert samples.comparison.over == []
    assert samples.comparison.since[17] == -1


def test_pairs_in_another_order_of_features_are_told(stream):
    samples = fed(stream[:600])
    fed(stream[600:1200, ::-1], samples, first=600)
    assert len(samples.comparison.over) > 40


def test_what_has_come_to_stay_is_the_reference_then(stream):
    changed = stream.copy()
    changed[300:, 5] += 100
    samples = fed(changed[:600])
    assert samples.comparison.over == [5]
    fed(changed[600:], samples, first=600)
    fed(changed[600:], samples, first=2000)
    assert samples.groups - 300 > STAYED_GROUPS
    assert samples.comparison.over == []


def test_pairs_of_a_group_count_once_also_if_others_come_in_between(stream):
    samples = TwoSamples(80)
    rows = stream[:300]
    samples.add(np.repeat(rows[:2], 500, axis=0)[::-1], [0.1, 0.2] * 500)
    assert (samples.groups, samples.pairs) == (2, 1000)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_it_is_the_same_however_pairs_come(stream, block):
    one, other = fed(stream, pairs_of_a_group=3), fed(stream, block=block, pairs_of_a_group=3)
    assert one.comparison.distance.tolist() == other.comparison.distance.tolist()
    assert all(np.array_equal(value, other.state()[name]) for name, value in one.state().items())


@pytest.mark.parametrize("groups", [0, 50, 130, 200, 700])
def test_it_goes_on_from_its_state(stream, groups):
    changed = stream.copy()
    changed[400:, 5] += 100
    whole, first = fed(changed), fed(changed[:groups]) if groups else TwoSamples(80)
    again = fed(changed[groups:], TwoSamples.from_state(first.state()), first=groups)
    assert whole.comparison.over == again.comparison.over
    assert whole.comparison.distance.tolist() == TwoSamples.from_state(whole.state()).comparison.distance.tolist()
    assert all(np.array_equal(value, again.state()[name]) for name, value in whole.state().items())


def test_features_in_another_order_are_compared_with_themselves(stream):
    places = np.random.default_rng(1).permutation(80)
    samples = fed(stream[:600])
    before = samples.comparison.distance
    samples.reorder(places)
    assert samples.comparison.distance.tolist() == before[places].tolist()
    fed(stream[600:1200][:, places], samples, first=600)
    assert samples.comparison.over == []
