"""What is wrong at the moment: which rules hold, since when, and the lines in the log when one begins and when it ends."""

from __future__ import annotations

import logging

from sidecar.log import event
from sidecar.monitoring.status import Finding, Status, one_line
from sidecar.monitoring.verdict.expressions import Past
from sidecar.monitoring.verdict.rules import RULES, SEVERITIES, SIX_INTERVALS, Rule
from sidecar.settings import Settings

_log = logging.getLogger(__name__)
_DETAIL_CHARACTERS = 200


class Findings:
    """Looks at one status after another. What it has found is in the log, too, once it has lasted as long as its rule says."""

    def __init__(self, settings: Settings) -> None:
        self._past = Past(settings, SIX_INTERVALS.of(settings))
        self._found: dict[str, Finding] = {}
        self._began: dict[str, float] = {}

    def look(self, status: Status, clock: float, wall: float) -> tuple[Finding, ...]:
        """What is wrong, the worst first; what has not lasted long enough comes last.

        clock: `time.monotonic()`; wall: seconds since the epoch.
        """
        self._past.take(status, clock)
        before, self._found = self._found, {}
        for rule in RULES:
            value = rule.when.value(self._past)
            if value is None:
                self._began.pop(rule.name, None)
            else:
                lasted = clock - self._began.setdefault(rule.name, clock)
                since = before[rule.name].since if rule.name in before else wall
                self._found[rule.name] = _finding(rule, status, value, since, lasted >= rule.lasting)
        self._tell(before, wall)
        return tuple(sorted(self._found.values(), key=lambda each: (not each.firing, SEVERITIES.index(each.severity))))

    def _tell(self, before: dict[str, Finding], wall: float) -> None:
        for name, finding in self._found.items():
            if finding.firing and not (name in before and before[name].firing):
                level = logging.INFO if finding.severity == "info" else logging.WARNING
                event(_log, finding.what, level, alert=finding.alert, detail=finding.detail, do=finding.do)
        for name, finding in before.items():
            if finding.firing and name not in self._found:
                event(_log, f"no longer: {finding.what}", alert=finding.alert, seconds=round(wall - finding.since))


def _finding(rule: Rule, status: Status, value: float, since: float, firing: bool) -> Finding:
    what = rule.what.format(value=_in_words(rule, value))
    detail = one_line(rule.detail(status))[:_DETAIL_CHARACTERS]
    return Finding(rule.alert, rule.figure, rule.severity, what, detail, rule.do, since, since + rule.lasting, firing)


def _in_words(rule: Rule, value: float) -> str:
    """As Prometheus writes it in the alert."""
    return f"{100 * value:.4g}%" if rule.unit == "share" else f"{value:.0f}" if rule.unit == "count" else f"{value:.1f}"
