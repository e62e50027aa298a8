"""A status as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sidecar.monitoring.status import Phase, Status
from sidecar.monitoring.status_document import DAMAGED, FOLLOWED, GATES, REFITS, RESULTS, STAGES, counts, finite


def metric_families(status: Status, tenant_labels: bool = False) -> list[Metric]:
    """A status as Prometheus metrics: all labels from the start, but no metric that has no value yet.

    tenant_labels: with metrics of each tenant, of which there are at most 256.
    """
    tenants = {tenant.name: tenant for tenant in status.tenants or () if tenant_labels}
    phases = {phase: int(phase == status.phase) for phase in get_args(Phase)}
    families = [
        _counter("pairs", "Pairs answered by this process, by result.", counts(RESULTS, status.pairs), "result"),
        _counter("steps", "Gradient steps behind the current weights.", status.step),
        _gauge("loss", "Mean squared error of the last batch before its first step, in score points squared.", status.loss),
        _gauge(
            "prequential_rmse",
            "Root mean squared error on the last 1000 pairs, each predicted before it was trained on, in score points.",
            status.prequential_rmse,
        ),
        _gauge(
            "prequential_winsorized_rmse",
            "The same with each error counted as at most twenty times the median error: a few wrong scores do not change it.",
            status.prequential_winsorized_rmse,
        ),
        _gauge(
            "prequential_constant_rmse",
            "The same of the best constant prediction: the standard deviation of the true scores of these pairs.",
            status.prequential_constant_rmse,
        ),
        _gauge(
            "prequential_plcc",
            "Pearson's correlation on the last 1000 pairs, each predicted before it was trained on.",
            status.prequential_plcc,
        ),
        _gauge(
            "feature_drift",
            "How far the mean of a feature has moved, in standard deviations; the largest of all features.",
            status.feature_drift,
        ),
        _gauge(
            "feature_distance",
            "Kolmogorov-Smirnov distance between the latest and the first values of a feature; the largest of all features.",
            status.feature_distance,
        ),
        _gauge("shifted_features", "Features whose distance is more than chance allows.", status.shifted_features),
        _counter(
            "outliers",
            "Pairs of the current state that were left out of training, unlike all others.",
            status.outliers,
        ),
        _counter("divergences", "Times that the weights had diverged and went back to earlier ones.", status.divergences),
        _gauge(
            "learning_rate_share", "What the learning rate is multiplied by; less than 1 after a divergence.", status.rate_share
        ),
        _counter("shifts", "Times that earlier pairs were given up for replay, because scores had shifted.", status.shifts),
        _counter(
            "refits",
            "Fits to the pairs in the replay buffer behind the current weights, by whether they took the average's place.",
            counts(REFITS, status.refits),
            "result",
        ),
        _gauge("tenants", "Tenants, by whether their heads are in use.", status.heads, "head"),
        _counter(
            "tenant_pairs",
            "Pairs of tenants: those that trained a head, those of them beyond the tenant's share, and those without a head.",
            status.tenant_pairs,
            "result",
        ),
        _counter(
            "tenant_head_pairs",
            "Pairs of each tenant that trained its head.",
            {name: tenant.pairs for name, tenant in tenants.items()},
            "tenant",
        ),
        _gauge(
            "tenant_head_used",
            "1 if the tenant's head is in use.",
            {name: int(tenant.used) for name, tenant in tenants.items()},
            "tenant",
        ),
        _gauge(
            "tenant_shared_rmse",
            "Root mean squared error of the shared weights on some of the tenant's newest pairs, in score points.",
            {name: tenant.rmse_of_shared for name, tenant in tenants.items()},
            "tenant",
        ),
        _gauge(
            "tenant_head_rmse",
            "The same of the tenant's head, each pair being predicted by both before it was trained on.",
            {name: tenant.rmse for name, tenant in tenants.items()},
            "tenant",
        ),
        _gauge("phase", "1 for the current phase, 0 for the others.", phases, "phase"),
        _gauge("replay_size", "Pairs in the replay buffer.", status.replay_size),
        _counter("replay_evictions", "Pairs that have left the replay buffer.", status.replay_evictions),
        _counter("checkpoints", "Published checkpoints, by verdict of the gate.", counts(GATES, status.checkpoints), "gate"),
        _counter("rollbacks", "Stable checkpoints that were taken back, their predecessor being better.", status.rollbacks),
        _counter(
            "checkpoint_failures",
            "Checkpoints that were not published, by the stage that failed.",
            counts(STAGES, status.checkpoint_failures),
            "stage",
        ),
        _gauge("checkpoint_version", "Version of the sidecar's last checkpoint.", status.version),
        _gauge("checkpoint_timestamp_seconds", "Unix time of the sidecar's last checkpoint.", status.checkpoint_time),
        _counter(
            "checkpoint_directory_lost",
            "Times that the checkpoint directory was found removed or replaced.",
            status.checkpoint_directory_lost,
        ),
        _gauge(
            "step_seconds",
            "Mean time of a gradient step in the last batch, including all work on its pairs.",
            status.step_seconds,
        ),
        _gauge("journal_bytes", "Size of the journal of accepted pairs.", status.journal_bytes),
        _counter("journal_errors", "Writes and fsyncs of the journal that failed.", status.journal_errors),
        _counter(
            "state_damage",
            "Damage found in the state directory, by kind of file.",
            counts(DAMAGED, status.damage),
            "file",
        ),
        _gauge(
            "degraded_files",
            "Files of the state directory that were found damaged and still lie in damaged/.",
            status.degraded_files,
        ),
        _gauge("base_model_refused", "1 while the base model that is there is not followed.", status.base_model_refused),
        _counter(
            "base_models",
            "Base models that took the place of another one while it ran, by whether they were followed.",
            counts(FOLLOWED, status.base_models),
            "result",
        ),
        _counter("log_lines_dropped", "Log lines dropped because nobody reads standard error.", status.log_dropped),
        _gauge("connections", "Open connections on the Unix socket.", status.connections),
    ]
    return [family for family in families if family.samples]


def _counter(name: str, help_text: str, value: int | Mapping[str, int], label: str = "") -> Metric:
    """A counter; `_total` is added to its name in the output."""
    return _with_samples(CounterMetricFamily(f"vmafx_training_{name}", help_text, labels=[label] if label else []), value)


def _gauge(name: str, help_text: str, value: float | Mapping[str, float] | None, label: str = "") -> Metric:
    return _with_samples(GaugeMetricFamily(f"vmafx_training_{name}", help_text, labels=[label] if label else []), value)


def _with_samples(
    family: CounterMetricFamily | GaugeMetricFamily, value: float | Mapping[str, float] | None
) -> CounterMetricFamily | GaugeMetricFamily:
    """The family with a sample for each label, or one without a label; without samples if there is no finite value."""
    if isinstance(value, Mapping):
        for label, count in value.items():
            family.add_metric([label], count)
    elif (known := finite(value)) is not None:
        family.add_metric([], known)
    return family
