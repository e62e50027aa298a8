"""The sample: the same whatever way the pairs came, and fair to what is rare."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.fleet import sample as module
from sidecar.fleet.sample import Limits, Sample, Sampled, keys


def pairs(count: int, seed: int = 0, n_strata: int = 3, n_groups: int = 5) -> Sampled:
    rng = np.random.default_rng(seed)
    features = rng.integers(0, 6, size=(count, 2)).astype(np.float32)  # some pairs are equal
    scores = rng.integers(0, 4, size=count).astype(np.float32)
    group = rng.integers(0, n_groups, size=count).astype(np.uint64)
    stratum = rng.choice(n_strata, size=count, p=np.array([8.0, 2.0, 1.0])[:n_strata] / 11).astype(np.int64)
    return Sampled(features, scores, keys(features, scores, group), group, stratum, np.zeros(count, np.int32))


def some(rows: Sampled, chosen) -> Sampled:
    return Sampled(*(column[chosen] for column in rows))


def sample_of(parts, limits: Limits) -> Sampled:
    found = Sample(2, limits)
    for part in parts:
        found.add(part)
    return Sampled(*(column.copy() for column in found.rows()))


def as_bytes(rows: Sampled) -> list[bytes]:
    return [column.tobytes() for column in rows]


def by_definition(rows: Sampled, limits: Limits) -> Sampled:
    """What the module says, for a few pairs."""
    eligible, order = [], sorted(range(len(rows.key)), key=lambda n: (rows.stratum[n], rows.group[n], rows.key[n]))
    for _, cell in itertools.groupby(order, lambda n: (rows.stratum[n], rows.group[n])):
        eligible += [*cell][: limits.per_group]
    ranked = []
    eligible.sort(key=lambda n: (rows.stratum[n], rows.key[n]))
    for _, stratum in itertools.groupby(eligible, lambda n: rows.stratum[n]):
        ranked += [(rank, rows.key[n], rows.stratum[n], n) for rank, n in enumerate(stratum)]
    chosen = [n for *_, n in sorted(ranked)[: limits.most]]
    return some(rows, sorted(chosen, key=lambda n: (rows.key[n], rows.stratum[n])))


@pytest.fixture(autouse=True)
def _reduced_often(monkeypatch):
    monkeypatch.setattr(module, "_SLACK", 3)


@given(
    st.integers(0, 120), st.integers(0, 1000), st.integers(1, 60), st.integers(1, 9), st.lists(st.integers(0, 120), max_size=6),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_the_same_pairs_give_the_same_bytes_however_they_are_divided_and_merged(count, seed, most, per_group, cuts, random):
    module._SLACK = 3
    rows, limits = pairs(count, seed), Limits(most, per_group)
    expected = as_bytes(by_definition(rows, limits))
    assert as_bytes(sample_of([rows], limits)) == expected
    shuffled = [*range(count)]
    random.shuffle(shuffled)
    parts = [some(rows, np.array(part, dtype=np.intp)) for part in np.split(np.array(shuffled, dtype=np.intp), sorted(cuts))]
    assert as_bytes(sample_of(parts, limits)) == expected
    whole = Sample(2, limits)
    for part in parts:  # each sampled by somebody who knows what has no place any more
        some_of_it = Sample(2, limits, whole.bounds)
        some_of_it.add(part)
        whole.add(some_of_it.rows())
    assert as_bytes(whole.rows()) == expected
    samples = [sample_of([part], limits) for part in parts]
    while len(samples) > 1:  # in the form of any tree
        one, other = (samples.pop(random.randrange(len(samples))) for _ in range(2))
        samples.append(sample_of([one, other], limits))
    assert as_bytes(samples[0]) == expected


def test_all_pairs_are_kept_while_there_is_room():
    rows = pairs(500)
    found = sample_of([rows], Limits(500, 500))
    assert sorted(found.key.tolist()) == sorted(rows.key.tolist())
    assert len({*rows.key.tolist()}) < 500  # equal pairs are kept, all of them


def test_strata_share_the_sample_evenly_and_a_small_one_leaves_the_rest_to_the_others():
    found = sample_of([pairs(1000, n_groups=1000)], Limits(300, 1000))
    kept, there = (np.bincount(each.stratum) for each in (found, pairs(1000, n_groups=1000)))
    assert there.min() < 100 < there.max() / 4
    assert kept[2] == there[2]
    assert kept.sum() == 300
    assert abs(int(kept[0]) - int(kept[1])) <= 1


def test_of_strata_that_nobody_has_seen_only_what_may_have_a_place_is_handed_on():
    rows, limits = pairs(1000, n_groups=1000), Limits(90, 1000)
    whole = Sample(2, limits)
    whole.add(rows)
    whole.rows()
    part = Sample(2, limits, whole.bounds)
    part.add(rows._replace(stratum=rows.stratum + 3))
    assert np.bincount(part.rows().stratum).tolist() == [0, 0, 0, 30, 30, 30]  # as many as others have of theirs
    whole.add(part.rows())
    assert np.bincount(whole.rows().stratum).tolist() == [15] * 6


def test_a_group_with_many_pairs_has_no_more_than_its_share():
    rows = pairs(1000)._replace(group=np.array([1] * 990 + [2] * 10, dtype=np.uint64), stratum=np.zeros(1000, np.int64))
    found = sample_of([rows], Limits(500, 20))
    assert np.bincount(found.group.astype(int)).tolist() == [0, 20, 10]


def test_keys_depend_on_group_features_and_score_alone():
    features, scores, group = np.ones((5, 3), np.float32), np.ones(5, np.float32), np.ones(5, np.uint64)
    features[1, 2], scores[2], group[3] = 2, 2, 2
    found = keys(features, scores, group)
    assert len({*found.tolist()}) == 4
    assert found[0] == found[4]
    assert keys(features[3:], scores[3:], group[3:]).tolist() == found[3:].tolist()
