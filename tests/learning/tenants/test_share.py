"""No tenant drives more than its share of the trunk's steps."""

from __future__ import annotations

from dataclasses import replace

from sidecar.learning.tenants.share import Share
from sidecar.learning.training_settings import TrainingSettings

SETTINGS = TrainingSettings(batch_size=8, steps_per_batch=100, tenant_share=0.25)  # 4 new pairs in 100 steps: a window of 40


def test_a_tenant_has_at_most_its_share_of_any_thousand_steps():
    share, let = Share(SETTINGS), []
    for number in range(400):
        tenant = f"t{number // 8 % 4}" if number % 8 == 0 else "flood"
        if share.admits(tenant):
            let.append(tenant)
    assert all(let[at : at + 40].count("flood") <= 10 for at in range(len(let)))
    assert len(let) - let.count("flood") == 50  # the others are few, and have not had their share
    assert share.passed == 400 - len(let)


def test_pairs_of_no_tenant_are_not_limited():
    share = Share(replace(SETTINGS, tenant_share=0.0))
    assert all(share.admits("") for _ in range(100))
    assert not share.admits("a")


def test_a_smaller_window_continues_with_the_newest():
    share, smaller = Share(SETTINGS), Share(replace(SETTINGS, steps_per_batch=500))  # of 8
    for tenant in "aaaaaaaa" + "bbbbbbbb":
        share.admits(tenant)
    smaller.restore(share.recent, share.passed)
    assert smaller.admits("a")
    assert not smaller.admits("b")
