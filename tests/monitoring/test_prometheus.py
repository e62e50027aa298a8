"""The metrics that a sidecar exports."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.monitoring.history import History
from sidecar.monitoring.pages import Pages
from sidecar.monitoring.prometheus import metric_families
from sidecar.monitoring.status import Status
from tests.monitoring.statuses import FULL, UNKNOWN_AT_FIRST

METRICS = {
    'vmafx_training_pairs_total{result="accepted"}': 117000,
    'vmafx_training_pairs_total{result="held_out"}': 6456,
    'vmafx_training_pairs_total{result="duplicate"}': 3,
    'vmafx_training_pairs_total{result="rejected"}': 1,
    "vmafx_training_steps_total": 30000,
    "vmafx_training_loss": 3.25,
    "vmafx_training_prequential_rmse": 1.5,
    "vmafx_training_prequential_winsorized_rmse": 1.25,
    "vmafx_training_prequential_constant_rmse": 20.5,
    "vmafx_training_prequential_plcc": 0.998,
    "vmafx_training_feature_drift": 0.25,
    "vmafx_training_feature_distance": 0.125,
    "vmafx_training_shifted_features": 0,
    'vmafx_training_phase{phase="initializing"}': 0,
    'vmafx_training_phase{phase="running"}': 1,
    'vmafx_training_phase{phase="paused"}': 0,
    'vmafx_training_phase{phase="failed"}': 0,
    "vmafx_training_replay_size": 9000,
    "vmafx_training_replay_evictions_total": 7,
    'vmafx_training_checkpoints_total{gate="stable"}': 40,
    'vmafx_training_checkpoints_total{gate="unstable"}': 2,
    'vmafx_training_checkpoints_total{gate="unverified"}': 0,
    'vmafx_training_checkpoints_total{gate="incompatible"}': 0,
    'vmafx_training_checkpoint_failures_total{stage="build"}': 0,
    'vmafx_training_checkpoint_failures_total{stage="parity"}': 1,
    'vmafx_training_checkpoint_failures_total{stage="write"}': 0,
    'vmafx_training_checkpoint_failures_total{stage="lock"}': 0,
    "vmafx_training_rollbacks_total": 9,
    "vmafx_training_outliers_total": 7,
    "vmafx_training_divergences_total": 2,
    "vmafx_training_learning_rate_share": 0.25,
    "vmafx_training_shifts_total": 3,
    'vmafx_training_tenants{head="used"}': 2,
    'vmafx_training_tenants{head="unused"}': 1,
    'vmafx_training_tenant_pairs_total{result="head"}': 4000,
    'vmafx_training_tenant_pairs_total{result="over_share"}': 30,
    'vmafx_training_tenant_pairs_total{result="refused"}': 20,
    'vmafx_training_refits_total{result="adopted"}': 7,
    'vmafx_training_refits_total{result="rejected"}': 1,
    'vmafx_training_state_damage_total{file="journal"}': 0,
    'vmafx_training_state_damage_total{file="snapshot"}': 1,
    'vmafx_training_state_damage_total{file="base"}': 0,
    'vmafx_training_state_damage_total{file="anchor"}': 0,
    'vmafx_training_state_damage_total{file="published"}': 0,
    'vmafx_training_state_damage_total{file="history"}': 0,
    "vmafx_training_degraded_files": 1,
    "vmafx_training_base_model_refused": 1,
    'vmafx_training_base_models_total{result="followed"}': 2,
    'vmafx_training_base_models_total{result="refused"}': 1,
    "vmafx_training_log_lines_dropped_total": 6,
    "vmafx_training_checkpoint_directory_lost_total": 8,
    "vmafx_training_checkpoint_version": 42,
    "vmafx_training_checkpoint_timestamp_seconds": 1767225599.9,
    "vmafx_training_step_seconds": 29e-6,
    "vmafx_training_journal_bytes": 12_345_678,
    "vmafx_training_journal_errors_total": 4,
    "vmafx_training_connections": 2,
}
ABSENT_AT_FIRST = {
    *(f"vmafx_training_{name}" for name in UNKNOWN_AT_FIRST),
    *(name for name in METRICS if "tenant" in name),
    "vmafx_training_checkpoint_version",
    "vmafx_training_checkpoint_timestamp_seconds",
}


@pytest.fixture
def scrape(tmp_path):
    """Gives the samples of a status by name and labels, and the families that they came in."""

    def scrape_one(status):
        page = Pages(lambda: status, History, tmp_path, {}).look_up("/metrics", {})
        assert page.status == 200
        assert page.content_type.startswith("text/plain; version=")
        families = list(text_string_to_metric_families(page.body.decode()))
        samples = {}
        for sample in (sample for family in families for sample in family.samples):
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return samples, families

    return scrape_one


def test_metrics_are_exactly_those_that_are_promised(scrape):
    samples, families = scrape(FULL)
    assert samples == METRICS
    for family in families:
        assert re.fullmatch(r"[A-Z1][^.]*\.", family.documentation), "one sentence"
        assert family.type == ("counter" if family.samples[0].name.endswith("_total") else "gauge")


def test_metrics_of_a_fresh_sidecar_have_all_labels_and_nothing_that_has_no_value(scrape):
    samples, _ = scrape(Status())
    one_at_first = ("initializing", "rate_share")
    assert samples == {name: int(any(each in name for each in one_at_first)) for name in METRICS if name not in ABSENT_AT_FIRST}


def test_metrics_of_each_tenant_are_there_where_they_are_wanted(tmp_path):
    pages = Pages(lambda: FULL, History, tmp_path, {}, tenant_labels=True)
    text = pages.look_up("/metrics", {}).body.decode()
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples if "tenant" in each.labels]
    assert {(each.name.removeprefix("vmafx_training_tenant_"), each.labels["tenant"]): each.value for each in samples} == {
        ("head_pairs_total", "a"): 3000, ("head_used", "a"): 1, ("shared_rmse", "a"): 2.5, ("head_rmse", "a"): 0.5,
        ("head_pairs_total", "b"): 900, ("head_used", "b"): 1, ("shared_rmse", "b"): 1.5, ("head_rmse", "b"): 1.25,
        ("head_pairs_total", "c"): 100, ("head_used", "c"): 0, ("shared_rmse", "c"): 1, ("head_rmse", "c"): 1,
    }  # fmt: skip


def test_label_values_that_are_not_foreseen_are_told_too(scrape):
    _, families = scrape(dataclasses.replace(FULL, checkpoint_failures={'a "new"\nstage\\': 2}))
    failures = next(family for family in families if family.name == "vmafx_training_checkpoint_failures")
    assert {sample.labels["stage"]: sample.value for sample in failures.samples} == {
        "build": 0,
        "parity": 0,
        "write": 0,
        "lock": 0,
        'a "new"\nstage\\': 2,
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_absent(value):
    status = dataclasses.replace(FULL, **dict.fromkeys(UNKNOWN_AT_FIRST, value))
    assert not {f"vmafx_training_{name}" for name in UNKNOWN_AT_FIRST} & {family.name for family in metric_families(status)}
