"""The charts as Helm's own engine renders them (helm-python-sdk), and what is in a pod of theirs."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

helm = pytest.importorskip("helm_python", reason="Helm's engine is not here: pip install helm-python-sdk")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
yaml = pytest.importorskip("yaml", reason="pip install pyyaml")

CHART = ROOT / "deploy" / "helm" / "vmafx-sidecar"
DOCS = (ROOT / "docs" / "helm.md").read_text()
VERSIONS = ["1.28", "1.29", "1.31", kubernetes_validate.latest_version().rpartition(".")[0]]
CUSTOM = {"PodMonitor", "PrometheusRule"}
"""Kinds of the Prometheus operator, of which kubernetes-validate has no schema."""


def documented(name: str) -> str:
    """The code of an example of docs/helm.md."""
    return re.search(rf"<!-- example: {name} -->\n```\w+\n(.*?)```", DOCS, flags=re.DOTALL)[1]


def over(values: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Values with others laid over them, as Helm does."""
    merged = dict(values)
    for key, value in other.items():
        merged[key] = over(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
    return merged


def render(values: dict[str, Any], version: str = "1.31", chart: Path = CHART) -> dict[str, str]:
    """The texts of a release named training in the namespace vmafx, by file name."""
    kube_version = f"v{version}" if version.count(".") > 1 else f"v{version}.0"
    options = {"name": "training", "namespace": "vmafx", "kube_version": kube_version}
    with helm.Chart.load(chart) as loaded:
        # Chart.render does not hand on the version of Kubernetes; the call below it does.
        answer = helm._native.call_string("helm_render", loaded._raw(), json.dumps(values), json.dumps(options))
    return {name.rpartition("/")[2]: text for name, text in json.loads(answer).items()}


def manifests(values: dict[str, Any], version: str = "1.31", chart: Path = CHART) -> list[dict[str, Any]]:
    texts = render(values, version, chart)
    return [one for name, text in texts.items() if name != "NOTES.txt" for one in yaml.safe_load_all(text) if one]


def only(found: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    (one,) = (each for each in found if each["kind"] == kind and name in each["metadata"]["name"])
    return one


def pod_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    return only(found, "StatefulSet")["spec"]["template"]["spec"]


def sidecar_of(pod: dict[str, Any]) -> dict[str, Any]:
    (one,) = (each for each in pod.get("initContainers", []) + pod["containers"] if each["name"] == "vmafx-sidecar")
    return one


def environment_of(container: dict[str, Any], pod_name: str) -> dict[str, str]:
    """What Kubernetes makes of an env block: $(NAME) becomes that variable's value, $$ becomes $."""
    environment: dict[str, str] = {}
    for each in container["env"]:
        if "valueFrom" in each:
            assert each["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
            environment[each["name"]] = pod_name
        else:
            assert isinstance(each["value"], str)
            environment[each["name"]] = re.sub(
                r"\$(?:\$|\((\w+)\))", lambda match: environment[match[1]] if match[1] else "$", each["value"]
            )
    return environment


def faults_of(pod: dict[str, Any]) -> list[str]:
    """What Kubernetes would refuse, or never start, of a pod's volumes and mounts."""
    volumes = [each["name"] for each in pod["volumes"]]
    claims = [each["persistentVolumeClaim"] for each in pod["volumes"] if "persistentVolumeClaim" in each]
    faults = [f"two volumes {name}" for name in twice(volumes)]
    # The kubelet mounts the second one never: https://github.com/kubernetes/kubernetes/issues/132921
    faults += [f"two volumes of claim {name}" for name in twice(claim["claimName"] for claim in claims)]
    faults += [f"claim {claim['claimName']} is read-only for all" for claim in claims if claim.get("readOnly")]
    for container in pod.get("initContainers", []) + pod["containers"]:
        mounts = container["volumeMounts"]
        faults += [f"{container['name']}: two mounts at {path}" for path in twice(each["mountPath"] for each in mounts)]
        faults += [f"{container['name']}: no volume {each['name']}" for each in mounts if each["name"] not in volumes]
    return faults


def twice(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
