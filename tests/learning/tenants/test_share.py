"""No tenant drives more than its share of the trunk's steps."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from sidecar.learning.tenants.share import Share
from sidecar.learning.training_settings import TrainingSettings

SETTINGS = TrainingSettings(batch_size=8, steps_per_batch=100, tenant_share=0.25)  # 4 new pairs in 100 steps: a window of 40


def let(share, tenants, at_once=1):
    """Those of these whose pairs train the trunk."""
    numbers, trained = np.array([["", *"abcd", "flood"].index(tenant) - 1 for tenant in tenants]), []
    for start in range(0, len(tenants), at_once):
        stop = start + at_once
        share.note(numbers[start:stop])
        trained += itertools.compress(tenants[start:stop], share.admit(numbers[start:stop]))
    return trained


@pytest.mark.parametrize("at_once", [1, 2, 16, 25, 100])
def test_a_tenant_has_at_most_its_share_of_any_thousand_steps(at_once):
    share, came = Share(SETTINGS), ["abcd"[number // 8 % 4] if number % 8 == 0 else "flood" for number in range(400)]
    trained = let(share, came, at_once)
    assert all(trained[at : at + 40].count("flood") <= 10 for at in range(len(trained)))
    assert len(trained) - trained.count("flood") == 50  # the others are few, and have not had their share
    assert share.passed == 400 - len(trained)


def test_pairs_of_no_tenant_are_not_limited():
    share = Share(replace(SETTINGS, tenant_share=0.0))
    assert let(share, [""] * 100) == [""] * 100
    assert not let(share, ["a"])


def test_a_tenant_is_not_limited_while_it_is_alone():
    share = Share(SETTINGS)
    assert len(let(share, ["a"] * 200)) == 200
    assert len(let(share, ["b"] + ["a"] * 30)) == 1 + 10  # of 40 pairs; what it trained alone does not count
    assert not let(share, ["a"] * 9)
    assert len(let(share, ["a"] * 100)) == 100  # none of the last 40 was another's
    assert let(share, [""] + ["a"] * 39) == [""]
    assert share.passed == 20 + 9 + 39


def test_a_smaller_window_continues_with_the_newest():
    share, smaller = Share(SETTINGS), Share(replace(SETTINGS, steps_per_batch=500))  # of 8
    let(share, "aaaaaaaa" + "bbbbbbbb")
    smaller.restore(share.recent, share.passed, share.run)
    assert let(smaller, "ab") == ["a"]
