"""What counts as wrong, in which words, and what to do about it: for the log, the live page, `status` and the chart's alerts.

`deploy/helm/prometheusrule.py` writes the chart's alerts from these rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from sidecar.monitoring.status import Status
from sidecar.monitoring.verdict.expressions import (
    Combined,
    Compare,
    Expression,
    FromOutside,
    Gauge,
    Increase,
    Number,
    Ratio,
    number,
)
from sidecar.settings import Settings

Severity = Literal["critical", "warning", "info"]
"""critical: pairs are being lost, or may be, so look now. warning: training or publishing does not do what it should."""
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "info")
SIX_INTERVALS = Number("{{ $window }}", lambda settings: max(7200.0, 6 * settings.checkpoint_interval))
_FIVE_MINUTES, _TEN_MINUTES, _HALF_AN_HOUR, _HOUR = number(300), number(600), number(1800), number(3600)
_NONE = number(0)


@dataclass(frozen=True)
class Rule:
    """What may be wrong, and how it is seen.

    what: in words, a clause; `{value}` in it is that of `when`, in the form `unit`. do: what it means and what to do. lasting:
    how many seconds it has to hold before there is an alert. detail: what only the sidecar itself knows, or empty; label: the
    alert's label that has the same, if one does. why: why this limit. only_if: when the chart has this alert.
    """

    name: str
    severity: Severity
    when: Expression
    what: str
    do: str
    lasting: int = 0
    unit: Literal["share", "number", "count"] = "number"
    detail: Callable[[Status], str] = lambda status: ""
    label: str = ""
    why: str = ""
    only_if: str = ""

    @property
    def alert(self) -> str:
        return f"VmafxTraining{self.name}"

    @property
    def figure(self) -> str:
        """The field of a `Status` that it is about, empty if it is none."""
        return _figure(self.when)


def _grown(counts: Mapping[str, int]) -> str:
    """The labels of a counter, most frequent first."""
    return ", ".join(sorted((label for label, count in counts.items() if count), key=lambda label: -counts[label]))


RULES = (
    Rule(
        "Paused",
        "critical",
        Compare(Gauge("phase", "paused"), "==", number(1)),
        "pairs are refused, because the journal cannot be written",
        "The client is told to send them again later, and drops pairs once its own queue is full. `reason` in /status says "
        "why. Usually the models volume is full: make room, or lower journalMaxBytes. The sidecar then continues by "
        "itself, unless `reason` asks for a restart.",
        lasting=60,
        detail=lambda status: status.reason,
    ),
    Rule(
        "JournalErrors",
        "critical",
        Compare(Increase("journal_errors", _FIVE_MINUTES), ">", _NONE),
        "the journal could not be written or brought to disk",
        "Pairs that were answered but are not on disk yet will be written again; until that succeeds, a power cut would lose "
        "them. Look at the log, and at the health and free space of the models volume.",
        why="Phase paused does not show a fault that passes between two scrapes, or one in phase failed.",
    ),
    Rule(
        "Down",
        "critical",
        FromOutside("up{ {{- $job }}} == 0"),
        "the sidecar does not answer",
        "It is not running or cannot be reached. The node continues, and drops pairs once its queue is full. "
        "`kubectl logs --previous -c vmafx-sidecar` shows why it ended.",
        lasting=600,
    ),
    Rule(
        "Restarts",
        "warning",
        FromOutside(
            "increase(kube_pod_container_status_restarts_total{ {{- $restarts }}}[1h]) > 2\n"
            "or increase(kube_pod_init_container_status_restarts_total{ {{- $restarts }}}[1h]) > 2"
        ),
        "the sidecar restarted {value} times within an hour",
        "No answered pair is lost, but each restart breaks the connection. `kubectl describe pod` shows whether memory ran"
        " out or a probe failed; `kubectl logs --previous -c vmafx-sidecar` shows the last messages.",
        unit="count",
        why="kube-state-metrics counts the restarts, because the program does not export its start time. A native sidecar "
        "counts as an init container.",
    ),
    Rule(
        "Failed",
        "warning",
        Compare(Gauge("phase", "failed"), "==", number(1)),
        "pairs are recorded, and none is trained on, because the base model cannot be used",
        "`reason` in /status says what is wrong with it, and `vmafx-sidecar inspect MODEL` whether a model can be used. Put a "
        "good one in its place and restart: the sidecar then trains on everything it recorded.",
        lasting=300,
        detail=lambda status: status.reason,
    ),
    Rule(
        "Degraded",
        "warning",
        Compare(Gauge("degraded_files"), ">", _NONE),
        "{value} files of the state directory were damaged",
        "They were moved to `damaged/` there, and the sidecar goes on from what is whole; the log says what was lost. Look "
        "at the health of the volume, and at what `vmafx-sidecar verify` says of the directory. Then empty `damaged/` and "
        "restart.",
        unit="count",
        detail=lambda status: ", ".join(status.degraded),
        why="A counter would not show it: most damage is found at the start, before the first scrape.",
    ),
    Rule(
        "BaseModelRefused",
        "warning",
        Compare(Gauge("base_model_refused"), ">", _NONE),
        "the base model was replaced by one that is not followed",
        "Training goes on from the one before. `base_model_refused` in /status says why. Mend or remove the file before the "
        "next restart, which would end in phase failed.",
        detail=lambda status: status.base_refused,
    ),
    Rule(
        "NoPairs",
        "warning",
        Compare(Increase("pairs", _FIVE_MINUTES, "result", ("accepted", "held_out")), "==", _NONE),
        "no pairs arrive",
        "The node sends none, or is not connected. Look at the number of connections, at the rejected pairs, and at the "
        "node's log.",
        lasting=3300,
        detail=lambda status: f"connections: {status.connections}",
        why="5 minutes without a pair, for another 55 minutes.",
    ),
    Rule(
        "PairsRejected",
        "warning",
        Compare(
            Ratio(Increase("pairs", _TEN_MINUTES, "result", ("rejected",)), Increase("pairs", _TEN_MINUTES)), ">", number(0.01)
        ),
        "{value} of the pairs are rejected",
        "The answer to each names the field and what was expected. Usually the node sends another number of features than the "
        "model takes, or scores outside scoreMin to scoreMax.",
        lasting=600,
        unit="share",
        detail=lambda status: _grown(status.rejected),
    ),
    Rule(
        "CheckpointsFailing",
        "warning",
        Compare(Increase("checkpoint_failures", _TEN_MINUTES, by="stage"), ">", _NONE),
        "checkpoints cannot be published",
        "Training continues, and the last published model stays. write: the volume is full or not writable. lock: another "
        "process holds the lock of the directory; the log names it. parity: the ONNX graph gives other scores than the "
        "trainer. build: a bug in the program. The log has the message.",
        lasting=900,
        detail=lambda status: _grown(status.checkpoint_failures),
        label="stage",
        why="A failed attempt is repeated within a minute, so 10 minutes without a failure mean that the fault is gone.",
    ),
    Rule(
        "Unstable",
        "warning",
        Combined(
            Compare(Increase("checkpoints", SIX_INTERVALS, "gate", ("unstable", "incompatible")), ">", number(2.5)),
            "unless",
            Compare(Increase("checkpoints", SIX_INTERVALS, "gate", ("stable",)), ">", _NONE),
        ),
        "three or more checkpoints failed the gate, and none passed",
        "stable.onnx has not moved, so consumers are safe. unstable: training has gone wrong, by noisy scores, another "
        "order of the features, or a learning rate that is too high. incompatible: the model takes other inputs than the "
        "stable one, or has another score range; only promote moves stable.onnx to it. The JSON file beside a checkpoint "
        "has the reason.",
        detail=lambda status: status.checkpoint_reason,
        why="increase() extrapolates, so 2.5 or more means three. The window is six checkpoint intervals, at least two hours.",
    ),
    Rule(
        "RolledBack",
        "warning",
        Compare(Increase("rollbacks", _HOUR), ">", _NONE),
        "a stable checkpoint was taken back",
        "It had passed the gate, but on the pairs that came after it its predecessor was better, and stable.onnx names "
        "that again. `rolled_back` in /status has the figures. Look for wrong scores among the pairs before that "
        "checkpoint: they may still be trained on.",
        detail=lambda status: status.rolled_back,
    ),
    Rule(
        "FeatureDrift",
        "warning",
        Compare(Gauge("feature_drift"), ">", number(3)),
        "the features do not look like those that the model was trained on: one has moved by {value} standard deviations",
        "This happens if features come in another order or unit; new content moves them much less. Compare what the node "
        "sends with what the base model was made for.",
        lasting=600,
        detail=lambda status: status.drifting_feature,
        why="The pairs of one new clip move it by up to 2 (examples/, each source against the others); another order of "
        "features, by 9.",
    ),
    Rule(
        "FeaturesShifted",
        "warning",
        Compare(Gauge("shifted_features"), ">", _NONE),
        "features are not distributed as they were ({value})",
        "The latest encodes differ from the first ones by more than chance allows. Many features at once: their order, other "
        "content, or another codec. A single one: a broken extractor, or another unit. The live page and /api/drift show each. "
        "If it stays so for 512 encodes, they are what later ones are compared with.",
        lasting=60,
        unit="count",
        detail=lambda status: status.shifted,
    ),
    Rule(
        "Outliers",
        "warning",
        Compare(
            Ratio(Increase("outliers", _HALF_AN_HOUR), Increase("pairs", _HALF_AN_HOUR, "result", ("accepted",))),
            ">",
            number(0.005),
        ),
        "{value} of the pairs are unlike all others, and are left out of training",
        "They are recorded. `unusual_features` in /status names the features. Usually a decoder or an extractor of the "
        "node is broken, or one of several nodes sends another unit.",
        lasting=600,
        unit="share",
        detail=lambda status: status.unusual_features,
    ),
    Rule(
        "Diverged",
        "warning",
        Compare(Increase("divergences", _HOUR), ">", _NONE),
        "the weights had diverged and went back to earlier ones",
        "Training goes on from them, with a lower learning rate for a while. If this happens again, lower learningRate. "
        "The log of the start names settings that are higher than what training is steady with.",
        detail=lambda status: f"the learning rate is {status.rate_share:g} times what is set",
    ),
    Rule(
        "Inaccurate",
        "warning",
        Combined(
            Compare(Ratio(Gauge("prequential_rmse"), Gauge("prequential_constant_rmse")), ">", number(0.5)),
            "and",
            Compare(
                Gauge("prequential_rmse"),
                ">",
                Number(
                    "0.05 * ({{ $scoreMax }} - {{ $scoreMin }})",
                    lambda settings: 0.05 * (settings.score_max - settings.score_min),
                ),
            ),
        ),
        "predictions are far off: their RMSE is {value} of what a constant would have",
        "Compare it with the winsorized RMSE: if only the RMSE is high, some scores are wrong. If both are, look at "
        "feature drift first, then at the scores. stable.onnx does not move to a model that is worse.",
        lasting=600,
        unit="share",
        detail=lambda status: _errors(status),
        why="The gate's own limit for a model without a reference, and a twentieth of the range: content of nearly one "
        "score has a constant that is hard to beat.",
    ),
    Rule(
        "Shifted",
        "info",
        Compare(Increase("shifts", _HOUR), ">", _NONE),
        "the scores have come to mean something else",
        "The usual error has risen and stays high, while predictions still follow the scores. The pairs from before are no"
        " longer trained on. If nobody has changed how scores are measured, compare a few of them with VMAF's own.",
    ),
    Rule(
        "JournalNearLimit",
        "info",
        Compare(
            Gauge("journal_bytes"),
            ">",
            Number("0.9 * {{ $maxBytes }}", lambda settings: 0.9 * settings.journal_max_bytes or math.inf),
        ),
        "the journal is near its limit",
        "Beyond the limit the oldest recorded pairs are deleted. To keep them, copy the closed segments elsewhere, or raise "
        "journalMaxBytes and enlarge the volume.",
        lasting=900,
        why="At the limit the oldest segments are deleted, as intended. This alert is for people who want to keep them.",
        only_if='ne $maxBytes "0"',
    ),
)
DOWN = next(rule for rule in RULES if rule.name == "Down")


def limits(settings: Settings) -> dict[str, float]:
    """Above which values of figures there is an alert, for those that have such a limit. `a/b`: that of a, as a share of b."""
    found = {}
    for rule in RULES:
        condition = rule.when.one if isinstance(rule.when, Combined) else rule.when
        if isinstance(condition, Compare) and condition.sign == ">" and (name := _gauge(condition.quantity)):
            found[name] = condition.limit.of(settings)
    return {name: limit for name, limit in found.items() if math.isfinite(limit)}


def _gauge(quantity: Expression) -> str:
    if isinstance(quantity, Ratio) and (below := _gauge(quantity.below)):
        return f"{_gauge(quantity.above)}/{below}"
    return quantity.field if isinstance(quantity, Gauge) else ""


def _figure(expression: Expression) -> str:
    match expression:
        case Gauge(field):
            return field
        case Increase(counter):
            return counter
        case Combined(part) | Compare(part) | Ratio(part):
            return _figure(part)
    return ""


def _errors(status: Status) -> str:
    figures = (status.prequential_rmse, status.prequential_winsorized_rmse, status.prequential_constant_rmse)
    own, winsorized, constant = ("–" if figure is None else f"{figure:.3g}" for figure in figures)
    return f"RMSE {own}, winsorized {winsorized}, of a constant {constant}"
