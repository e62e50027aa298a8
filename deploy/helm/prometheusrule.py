"""Prints the chart's alerts from the program's own rules:
`python deploy/helm/prometheusrule.py > deploy/helm/vmafx-sidecar/templates/prometheusrule.yaml`.
"""

from __future__ import annotations

import textwrap

from sidecar.monitoring.verdict.rules import RULES, Rule

HEAD = """\
{{- /* Written by deploy/helm/prometheusrule.py from sidecar/monitoring/verdict/rules.py. */}}
{{- if and .Values.sidecar.trainer.enabled .Values.monitoring.prometheusRule.enabled }}
{{- /* The job label of the metrics that this release's PodMonitor collects. */}}
{{- $job := printf `job="%s/%s"` .Release.Namespace (include "vmafx-sidecar.fullname" .) }}
{{- $restarts := printf `namespace="%s", container="vmafx-sidecar"` .Release.Namespace }}
{{- /* For the texts. Prometheus fills these in, not Helm. */}}
{{- $pod := "{{ $labels.namespace }}/{{ $labels.pod }}" }}
{{- $stage := "{{ $labels.stage }}" }}
{{- $number := `{{ $value | printf "%.1f" }}` }}
{{- $count := `{{ $value | printf "%.0f" }}` }}
{{- $share := "{{ $value | humanizePercentage }}" }}
{{- $maxBytes := include "vmafx-sidecar.number" (list . "journalMaxBytes") }}
{{- $scoreMin := include "vmafx-sidecar.setting" (list . "scoreMin") }}
{{- $scoreMax := include "vmafx-sidecar.setting" (list . "scoreMax") }}
{{- $window := max 7200 (mul 6 (include "vmafx-sidecar.number" (list . "checkpointIntervalSeconds"))) }}
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: {{ include "vmafx-sidecar.fullname" . }}
  labels:
    {{- include "vmafx-sidecar.labels" . | nindent 4 }}
    {{- with .Values.monitoring.prometheusRule.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  groups:
    - name: vmafx-training
      rules:
"""
FOOT = "{{- end }}\n"
_WIDTH = 110


def _folded(text: str, indent: int) -> str:
    return textwrap.indent(textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False), " " * indent)


def _alert(rule: Rule) -> str:
    detail = f" ({{{{ ${rule.label} }}}})" if rule.label else ""
    lines = [
        *([textwrap.indent(textwrap.fill(rule.why, _WIDTH), " " * 8 + "# ")] if rule.why else []),
        f"        - alert: {rule.alert}",
        "          expr: |-",
        textwrap.indent(rule.when.promql(), " " * 12),
        *([f"          for: {rule.lasting}s"] if rule.lasting else []),
        f"          labels: {{severity: {rule.severity}}}",
        "          annotations:",
        "            summary: >-",
        _folded("{{ $pod }}: " + rule.what.replace("{value}", f"{{{{ ${rule.unit} }}}}") + detail, 14),
        "            description: >-",
        _folded(rule.do, 14),
    ]
    text = "\n".join(lines) + "\n"
    return f"        {{{{- if {rule.only_if} }}}}\n{text}        {{{{- end }}}}\n" if rule.only_if else text


if __name__ == "__main__":
    print(HEAD + "\n".join(map(_alert, RULES)) + FOOT, end="")
