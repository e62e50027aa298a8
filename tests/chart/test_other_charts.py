"""The sidecar in the pods of another chart: of one made of the lines of docs/helm.md, and of `platform/`, which has volumes, a
schema, a user and policies of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from sidecar import __version__
from tests.chart.pod import Pod
from tests.chart.rendering import (
    CHART,
    VERSIONS,
    documented,
    environment_of,
    faults_of,
    helm,
    kubernetes_validate,
    manifests,
    only,
    over,
    render,
    sidecar_of,
    yaml,
)
from tests.running import PATIENCE_S

PLATFORM = Path(__file__).parent / "platform"


def pod_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    pod = only(found, "Deployment")["spec"]["template"]["spec"]
    return {**pod, "initContainers": pod["initContainers"] or []}


@pytest.fixture
def parent(tmp_path):
    """A chart that includes the sidecar in its Deployment with the lines of docs/helm.md, and its values there."""
    chart = tmp_path / "platform"
    (chart / "templates").mkdir(parents=True)
    dependency = {"name": "vmafx-sidecar", "version": "0.1.0"}
    about = {"apiVersion": "v2", "name": "platform", "version": "9.9.9", "appVersion": "9.9.9", "dependencies": [dependency]}
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about))
    (chart / "values.yaml").write_text(documented("parent-values"))
    (chart / "templates" / "deployment.yaml").write_text(documented("deployment"))
    shutil.copytree(CHART, chart / "charts" / "vmafx-sidecar")
    return chart


@pytest.mark.parametrize("version", VERSIONS)
def test_the_documented_lines_put_the_sidecar_into_another_charts_deployment(parent, version):
    found = manifests({}, version, parent)
    assert sorted(each["kind"] for each in found) == ["Deployment", "Service", "Service"]
    for manifest in found:
        kubernetes_validate.validate(manifest, version, strict=True)
    pod = pod_of(found)
    assert bool(pod["initContainers"]) == (version != "1.28")
    assert faults_of(pod) == []
    sidecar = sidecar_of(pod)
    assert sidecar["image"] == f"ghcr.io/vmafx/vmafx-sidecar:{__version__}"
    mounts = {each["mountPath"]: each["name"] for each in sidecar["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert environment_of(sidecar, "a-b-c")["VMAFX_SIDECAR_STATE_DIR"] == "/var/lib/vmafx-sidecar/a-b-c"
    assert volumes[mounts["/var/lib/vmafx-sidecar"]] == {"name": "vmafx-state", "emptyDir": {}}
    assert volumes[mounts["/mnt/vmafx-models"]]["persistentVolumeClaim"] == {"claimName": "models"}
    labels = only(found, "Deployment")["spec"]["template"]["metadata"]["labels"]
    services = [each["spec"] for each in found if each["kind"] == "Service"]
    assert all(each["selector"].items() <= labels.items() for each in services)
    assert sorted(each.get("clusterIP", "") for each in services) == ["", "None"]


def test_its_own_state_directory_is_kept_there_too(parent):
    values = {"vmafx-sidecar": {"sidecar": {"trainer": {"stateDir": "/mnt/vmafx-models/state"}}}}
    pod = pod_of(manifests(values, chart=parent))
    assert environment_of(sidecar_of(pod), "a")["VMAFX_SIDECAR_STATE_DIR"] == "/mnt/vmafx-models/state/a"
    assert "vmafx-state" not in {each["name"] for each in pod["volumes"]}


def test_there_is_nothing_of_it_there_where_it_is_off(parent):
    (deployment,) = manifests({"vmafx-sidecar": {"sidecar": {"trainer": {"enabled": False}}}}, chart=parent)
    kubernetes_validate.validate(deployment, "1.31", strict=True)
    assert "vmafx-" not in json.dumps(deployment)


def test_its_values_are_checked_there_too(parent):
    with pytest.raises(helm.HelmValuesError, match="sidecar/trainer/learningRate"):
        render({"vmafx-sidecar": {"sidecar": {"trainer": {"learningRate": 0}}}}, chart=parent)


# A chart that has its own of everything


@pytest.fixture
def platform(tmp_path):
    """`platform/` with its dependency in it, as `helm dependency build` leaves it."""
    chart = tmp_path / "platform"
    shutil.copytree(PLATFORM, chart)
    (dependency,) = yaml.safe_load((chart / "Chart.yaml").read_text())["dependencies"]
    source = PLATFORM / dependency["repository"].removeprefix("file://")
    shutil.copytree(source, chart / "charts" / dependency["name"])
    return chart


def settings(**values: Any) -> dict[str, Any]:
    return {"vmafx-sidecar": values}


@pytest.mark.parametrize("trainer", [{}, {"nativeSidecar": "never"}, {"enabled": False}])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_platforms_own_chart_is_valid_and_mounts_nothing_twice(platform, version, trainer):
    values = settings(sidecar={"trainer": trainer})
    report = helm.lint(platform, values, strict=True, kube_version=f"v{version}.0")
    assert report["errors"] == []
    assert [each["error"] for each in report["messages"]] in ([], ["icon is recommended"])
    found = manifests(values, version, platform)
    for manifest in found:
        kubernetes_validate.validate(manifest, version, strict=True)
    assert faults_of(pod_of(found)) == []


def test_the_sidecar_uses_the_volumes_that_are_there(platform):
    found = manifests({}, chart=platform)
    pod = pod_of(found)
    node, sidecar = (
        {each["mountPath"]: each for each in one["volumeMounts"]} for one in (pod["containers"][0], sidecar_of(pod))
    )
    assert [each["name"] for each in pod["volumes"]] == ["scratch", "weights", "config"]
    assert node["/tmp"] == sidecar["/tmp"] == {"name": "scratch", "mountPath": "/tmp"}
    assert node["/models"] == {**sidecar["/models"], "readOnly": True}
    environment = environment_of(sidecar_of(pod), "a")
    assert environment["VMAFX_SIDECAR_HTTP_MODELS"] == "1"
    assert (environment["VMAFX_BASE_MODEL_PATH"], environment["VMAFX_SIDECAR_CHECKPOINT_DIR"]) == (
        "/models/base/stable.onnx", "/models/online",
    )  # fmt: skip
    assert environment["VMAFX_SIDECAR_STATE_DIR"] == "/models/state/a"
    assert [each["metadata"]["name"] for each in found if each["kind"] == "PersistentVolumeClaim"] == ["platform-weights"]
    job = only(found, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert job["containers"][0]["args"][1:4] == ["/models/state/*", "--output", "/models/base"]
    assert {"name": "vmafx-models", "persistentVolumeClaim": {"claimName": "platform-weights"}} in job["volumes"]
    assert faults_of(job) == []


def test_faults_would_be_found(platform):
    twice = settings(
        node={"existingVolumes": {"tmp": "", "models": ""}}, persistence={"models": {"existingClaim": "platform-weights"}}
    )
    assert faults_of(pod_of(manifests(twice, chart=platform))) == [
        "two volumes of claim platform-weights", "node: two mounts at /tmp", "node: two mounts at /models",
    ]  # fmt: skip
    pod = pod_of(manifests(settings(node={"existingVolumes": {"tmp": "elsewhere"}}), chart=platform))
    pod["volumes"].append(pod["volumes"][0])
    pod["volumes"][1]["persistentVolumeClaim"]["readOnly"] = True
    assert faults_of(pod) == [
        "two volumes scratch", "claim platform-weights is read-only for all", "vmafx-sidecar: no volume elsewhere",
    ]  # fmt: skip


def test_a_strict_schema_must_know_the_dependency(platform):
    schema = json.loads((platform / "values.schema.json").read_text())
    added = json.loads("{" + documented("schema") + "}")
    assert schema["additionalProperties"] is False
    for name, property_ in added.items():
        assert schema["properties"].pop(name) == property_
    (platform / "values.schema.json").write_text(json.dumps(schema))
    with pytest.raises(helm.HelmValuesError, match="additional properties 'vmafx-sidecar' not allowed"):
        render({}, chart=platform)


def test_it_has_what_is_documented(platform):
    values = yaml.safe_load((platform / "values.yaml").read_text())
    for name in ("existing-volumes", "who-reads"):
        assert over(values, yaml.safe_load(documented(name))) == values
    assert (platform / "templates" / "sidecar-networkpolicies.yaml").read_text() == documented("policies")
    assert documented("root-node").strip() in (platform / "templates" / "node.yaml").read_text()


def test_existing_volumes_are_for_other_charts_pods():
    for values in ({}, {"sidecar": {"trainer": {"enabled": True}}}):
        with pytest.raises(helm.HelmError, match=r"node\.existingVolumes\.models is weights: expected it to be empty"):
            render(over(values, {"node": {"existingVolumes": {"models": "weights"}}}))


# Where nothing may be reached that no policy allows


def test_only_who_should_reaches_the_sidecar(platform):
    found = manifests({}, chart=platform)
    policies = [each["spec"] for each in found if each["kind"] == "NetworkPolicy"]
    node = ("vmafx", only(found, "Deployment")["spec"]["template"]["metadata"]["labels"])
    prometheus = ("monitoring", {"app.kubernetes.io/name": "prometheus"})
    reader, controller, other = (
        ("vmafx", labels) for labels in ({"reads-vmafx": "true"}, {"app": "controller"}, {"app": "other"})
    )
    dns = ("kube-system", {"k8s-app": "kube-dns"})

    def enters(pod, port):
        return [each for each in (prometheus, reader, controller, other, dns) if allows(policies, "ingress", pod, each, port)]

    def leaves(pod, port):
        return [
            each for each in (prometheus, reader, controller, other, dns, node) if allows(policies, "egress", pod, each, port)
        ]

    assert enters(node, 9091) == [prometheus, reader]
    assert enters(node, 8080) == enters(reader, 9091) == []
    assert leaves(reader, 9091) == [node]
    assert leaves(reader, 53) == leaves(node, 53) == [dns]
    assert leaves(node, 443) == leaves(node, 9091) == leaves(reader, 443) == []
    assert leaves(node, 50051) == [controller]


def allows(policies, direction, pod, peer, port) -> bool:
    """Whether NetworkPolicies of the namespace vmafx let a pod's traffic through. Pods are (namespace, labels)."""
    mine = [
        each for each in policies
        if direction.capitalize() in each["policyTypes"] and pod[0] == "vmafx" and matches(each["podSelector"], pod[1])
    ]  # fmt: skip
    rules = [rule for each in mine for rule in each.get(direction, [])]
    return not mine or any(
        port in {each["port"] for each in rule["ports"]}
        and any(is_peer(each, peer) for each in rule["from" if direction == "ingress" else "to"])
        for rule in rules
    )


def is_peer(selector: dict[str, Any], peer: tuple[str, dict[str, str]]) -> bool:
    namespaces = selector.get("namespaceSelector", {"matchLabels": {"kubernetes.io/metadata.name": "vmafx"}})
    return matches(namespaces, {"kubernetes.io/metadata.name": peer[0]}) and matches(selector.get("podSelector", {}), peer[1])


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


# A node that runs as root

CLIENT = """
import socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    client.sendall(sys.stdin.buffer.read())
    print(client.makefile().readline(), end="")
"""


@pytest.fixture
def open_path():
    """A directory that other users can reach, which they cannot with pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root: processes of several users")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not here: apt-get install util-linux")
@pytest.mark.parametrize("mode", ["0600", "0660"])
def test_a_root_node_without_capabilities_needs_the_socket_of_its_group(platform, open_path, lines, mode):
    rendered = pod_of(manifests(settings(sidecar={"trainer": {"socketMode": mode}}), chart=platform))
    sidecar, node = sidecar_of(rendered), rendered["containers"][0]["securityContext"]
    user, group = (sidecar["securityContext"][each] for each in ("runAsUser", "runAsGroup"))
    shared = rendered["securityContext"]["fsGroup"]
    assert (node["runAsUser"], node["capabilities"]) == (0, {"drop": ["ALL"]})
    assert user != 0
    assert shared not in (0, group)

    # A sidecar in a container reads its own image; this one may read the checkout, wherever it is.
    reads = ["--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override", "--bounding-set=-all,+dac_override"]
    as_sidecar = ["setpriv", f"--reuid={user}", f"--regid={group}", f"--groups={shared}", *reads, "--no-new-privs"]
    volumes = {"/models": open_path / "models"}
    pod = Pod(open_path, "a", sidecar, volumes, as_sidecar)
    for directory in pod.volumes.values():  # as Kubernetes prepares volumes for an fsGroup
        directory.mkdir(exist_ok=True)
        os.chown(directory, 0, shared)
        directory.chmod(0o2777)

    def send(*options: str) -> str:
        command = ["setpriv", f"--reuid={node['runAsUser']}", *options, sys.executable, "-c", CLIENT, str(pod.socket)]
        done = subprocess.run(command, input=lines[0] + b"\n", capture_output=True, timeout=PATIENCE_S, check=False)
        return done.stdout.decode() or done.stderr.decode().splitlines()[-1]

    pod.start()
    try:
        about = pod.socket.stat()
        assert (about.st_uid, about.st_gid, about.st_mode & 0o777) == (user, shared, int(mode, 8))
        without = ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
        refused = "PermissionError: [Errno 13] Permission denied"
        assert send("--clear-groups", *without) == refused
        answer = send(f"--groups={shared}", *without)
        if mode == "0600":
            assert answer == refused
            answer = send("--clear-groups")  # with CAP_DAC_OVERRIDE no mode keeps root out
        assert json.loads(answer)["ok"] is True
    finally:
        pod.process.kill()
        pod.process.wait()
