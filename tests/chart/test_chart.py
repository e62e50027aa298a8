"""The Helm chart: what it renders, what it refuses, and that a pod of it keeps the contract.

Charts are rendered by Helm's own engine (helm-python-sdk), manifests checked against the schemas of Kubernetes
(kubernetes-validate), alerts and queries by promtool (Debian's package prometheus).
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import pytest

from sidecar import __version__
from sidecar.checkpoints.directory import checkpoints
from sidecar.client.feedback_client import FeedbackClient
from sidecar.journal.segments import read_journal
from sidecar.log import DRAIN_S
from sidecar.monitoring.verdict.rules import RULES
from sidecar.network.address import parse_address
from sidecar.serve.process import END_S
from sidecar.settings import PATH, Settings, read_settings
from tests.chart.pod import Pod, until
from tests.chart.rendering import (
    CHART,
    CUSTOM,
    DOCS,
    VERSIONS,
    documented,
    environment_of,
    faults_of,
    helm,
    kubernetes_validate,
    manifests,
    only,
    over,
    pod_of,
    render,
    sidecar_of,
    yaml,
)
from tests.conftest import EXAMPLE, ROOT, run

jsonschema = pytest.importorskip("jsonschema", reason="it comes with kubernetes-validate")

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
TRAINER = SCHEMA["properties"]["sidecar"]["properties"]["trainer"]["properties"]
SETTINGS = {each.metadata["helm"]: each for each in fields(Settings) if each.metadata["helm"]}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not here: apt-get install prometheus")


SEED = yaml.safe_load(documented("values"))
EVERYTHING = over(
    SEED,
    {
        "sidecar": {"trainer": {key: TRAINER[key]["default"] for key in SETTINGS if "default" in TRAINER[key]}},
        "node": {
            "command": ["/node", "--measure"],
            "env": [{"name": "A", "value": "b"}],
            "resources": {"limits": {"cpu": "4"}},
            "image": {"tag": "1.2.3", "pullPolicy": "Always"},
        },
        "fleet": {
            "enabled": True,
            "scheduler": "tls://scheduler:8786",
            "tlsSecret": "fleet-tls",
            "args": ["--sample", "500000"],
            "image": {"repository": "registry.example/vmafx-sidecar-dask", "tag": "1"},
        },
        "persistence": {"models": {"storageClass": "fast", "accessModes": ["ReadWriteMany"]}},
        "podSpec": {"nodeSelector": {"gpu": "no"}, "tolerations": [{"operator": "Exists"}]},
        "operator": {"trainingName": "live"},
        "networkPolicy": {"nodeIngress": [{"ports": [{"port": 8080}]}]},
        "monitoring": {
            "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboard": {"enabled": True},
        },
    },
)
CASES = {
    "off": {},
    "seed": SEED,
    "everything": EVERYTHING,
    "native always": over(SEED, {"sidecar": {"trainer": {"nativeSidecar": "always"}}}),
    "native never": over(SEED, {"sidecar": {"trainer": {"nativeSidecar": "never"}}}),
    "existing claim": over(SEED, {"persistence": {"models": {"existingClaim": "models"}}}),
    "three replicas": over(SEED, {"replicas": 3}),
    "nothing kept": over(SEED, {"persistence": {"models": {"enabled": False}}}),
    "pods of another chart": over(SEED, {"node": {"enabled": False}}),
}


def trainer_environment(**trainer: Any) -> dict[str, str]:
    found = manifests({"sidecar": {"trainer": {"enabled": True, **trainer}}})
    return environment_of(sidecar_of(pod_of(found)), "training-0")


# What is rendered


@pytest.mark.parametrize("case", CASES)
def test_helm_finds_nothing_to_say(case):
    for version in VERSIONS:
        report = helm.lint(CHART, CASES[case], strict=True, kube_version=f"v{version}.0")
        assert report["errors"] == []
        assert [each["error"] for each in report["messages"]] in ([], ["icon is recommended"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_every_manifest_is_strictly_valid(case, version):
    for manifest in manifests(CASES[case], version):
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_a_wrong_manifest_would_be_found():
    manifest = only(manifests(SEED), "StatefulSet")
    manifest["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(manifest, "1.31", strict=True)


def test_the_version_of_the_chart_is_the_programs():
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__
    assert sidecar_of(pod_of(manifests({"sidecar": {"trainer": {"enabled": True}}})))["image"].endswith(f":{__version__}")


@pytest.mark.parametrize("case", [case for case in CASES if case != "pods of another chart"])
def test_each_mount_of_a_pod_has_a_volume_and_a_path_of_its_own(case):
    assert faults_of(pod_of(manifests(CASES[case]))) == []


def test_off_is_the_node_alone():
    found = manifests({})
    assert {each["kind"] for each in found} == {"StatefulSet", "Service", "PersistentVolumeClaim"}
    pod = pod_of(found)
    assert [each["name"] for each in pod["containers"]] == ["node"]
    assert "initContainers" not in pod
    assert "VMAFX_SIDECAR" not in json.dumps(found)
    assert manifests({"node": {"enabled": False}}) == []


@pytest.mark.parametrize(
    ("choice", "version", "native"),
    [
        ("auto", "1.28", False),
        ("auto", "1.29", True),
        ("auto", VERSIONS[-1], True),
        ("auto", "1.28.9-eks-036c24b", False),
        ("auto", "1.29.4-gke.1043002", True),
        ("always", "1.28", True),
        ("never", "1.31", False),
    ],
)
def test_where_the_sidecar_stands(choice, version, native):
    pod = pod_of(manifests(over(SEED, {"sidecar": {"trainer": {"nativeSidecar": choice}}}), version))
    names = [[each["name"] for each in pod.get(part, [])] for part in ("initContainers", "containers")]
    assert names == ([["vmafx-sidecar"], ["node"]] if native else [[], ["node", "vmafx-sidecar"]])
    assert sidecar_of(pod).get("restartPolicy") == ("Always" if native else None)
    assert sidecar_of(pod)["startupProbe"]["httpGet"]["path"] == "/readyz"


@pytest.mark.parametrize("case", [case for case in CASES if case != "pods of another chart"])
def test_pod_security_is_restricted_and_no_token_is_mounted(case):
    pod = pod_of(manifests(CASES[case]))
    assert pod["automountServiceAccountToken"] is False
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    for container in pod.get("initContainers", []) + pod["containers"]:
        context = container["securityContext"]
        assert (context["runAsUser"], context["runAsNonRoot"], context["readOnlyRootFilesystem"]) == (65532, True, True)
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert all(volume.keys() & {"emptyDir", "persistentVolumeClaim"} for volume in pod["volumes"])


def test_the_sidecar_has_its_time_to_end_after_the_nodes():
    seconds = [pod_of(manifests(values))["terminationGracePeriodSeconds"] for values in ({}, SEED)]
    assert seconds == [30, 35]
    assert END_S + DRAIN_S < 35 - 30


def test_they_share_tmp_and_only_the_sidecar_writes_models():
    pod = pod_of(manifests(SEED))
    node, sidecar = ({each["mountPath"]: each for each in c["volumeMounts"]} for c in (pod["containers"][0], sidecar_of(pod)))
    assert node["/tmp"] == sidecar["/tmp"]
    assert (pod["volumes"][0]["name"], pod["volumes"][0]["emptyDir"]) == (node["/tmp"]["name"], {})
    assert node["/mnt/vmafx-models"] == {**sidecar["/mnt/vmafx-models"], "readOnly": True}
    assert Settings().socket.parent == Path("/tmp")


def test_the_parts_find_each_other():
    found = manifests(EVERYTHING)
    workload = only(found, "StatefulSet")["spec"]
    labels = workload["template"]["metadata"]["labels"].items()
    headless = only(found, "Service", workload["serviceName"])
    status = only(found, "Service", "vmafx-trainer-live")
    (port,) = sidecar_of(workload["template"]["spec"])["ports"]
    assert headless["spec"]["clusterIP"] == "None"
    assert (status["spec"]["ports"][0]["port"], status["spec"]["ports"][0]["targetPort"]) == (9091, port["containerPort"])
    monitor, policy = only(found, "PodMonitor")["spec"], only(found, "NetworkPolicy")["spec"]
    assert [each["port"] for each in monitor["podMetricsEndpoints"]] == [port["name"]]
    assert policy["ingress"] == [
        {"ports": [{"port": port["containerPort"]}], "from": [{"namespaceSelector": {}}]},
        {"ports": [{"port": 8080}]},
    ]
    for selector in (
        workload["selector"]["matchLabels"], headless["spec"]["selector"], status["spec"]["selector"],
        monitor["selector"]["matchLabels"], policy["podSelector"]["matchLabels"],
    ):  # fmt: skip
        assert selector
        assert selector.items() <= labels


def test_another_port_is_one_everywhere():
    found = manifests(over(SEED, {"sidecar": {"trainer": {"http": "[::]:9100"}}}))
    (port,) = sidecar_of(pod_of(found))["ports"]
    assert port["containerPort"] == 9100
    assert only(found, "Service", "vmafx-trainer-training")["spec"]["ports"] == [
        {"name": "http", "port": 9091, "targetPort": 9100}
    ]
    assert only(found, "NetworkPolicy")["spec"]["ingress"][0]["ports"] == [{"port": 9100}]


def test_an_existing_claim_is_used_and_none_is_made():
    found = manifests(CASES["existing claim"])
    assert "PersistentVolumeClaim" not in {each["kind"] for each in found}
    assert {"name": "vmafx-models", "persistentVolumeClaim": {"claimName": "models"}} in pod_of(found)["volumes"]
    made = only(manifests(SEED), "PersistentVolumeClaim")
    assert made["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_names_fit_where_they_are_used():
    long = "a" * 53  # Helm allows no longer one
    with helm.Chart.load(CHART) as chart:
        texts = chart.render(EVERYTHING | {"operator": {"trainingName": ""}}, name=long, namespace="vmafx")
    for text in texts.values():
        for manifest in yaml.safe_load_all(text) if "NOTES" not in text and "kind:" in text else []:
            room = 52 if manifest["kind"] == "StatefulSet" else 63
            assert len(manifest["metadata"]["name"]) <= room
            for value in manifest["metadata"]["labels"].values():
                assert len(value) <= 63


def test_the_notes_say_what_comes_next():
    notes = render(SEED)["NOTES.txt"]
    assert "http://vmafx-trainer-training.vmafx.svc:9091/status" in notes
    assert "kubectl -n vmafx port-forward statefulset/training-vmafx-sidecar 9091" in notes
    assert "/mnt/vmafx-models/base/fr_regressor_v3.onnx" in notes
    assert "WARNING" not in notes
    assert "3 replicas share a volume of access mode ReadWriteOnce" in render(CASES["three replicas"])["NOTES.txt"]
    assert "end with their pod" in render(CASES["nothing kept"])["NOTES.txt"]
    assert "enabled is false" in render({})["NOTES.txt"]


@pytest.mark.parametrize(
    ("model", "given", "takes"), [("fr_regressor_v3", 80, 24), ("fr_regressor_v2", 24, 20), ("vmaf_tiny_v2", 80, 6)]
)
def test_the_notes_warn_of_another_number_of_features_than_a_published_base_model_takes(model, given, takes):
    def notes(n_features):
        trainer = {"baseModelPath": f"/mnt/vmafx-models/base/{model}.onnx", "nFeatures": n_features}
        return render(over(SEED, {"sidecar": {"trainer": trainer}}))["NOTES.txt"]

    assert f"WARNING: nFeatures is {given}, but {model} takes {takes} features" in notes(given)
    assert f"Leave nFeatures out, or set it to {takes}." in notes(given)
    assert "WARNING" not in notes(takes)


# The settings


def test_the_schema_has_the_settings_and_their_defaults():
    others = {"enabled", "image", "nativeSidecar", "resources"}
    assert TRAINER.keys() == SETTINGS.keys() | others
    for key, setting in SETTINGS.items():
        if key == "http":
            continue  # the chart's own: all interfaces
        assert TRAINER[key]["description"] == setting.metadata["help"], key
        if setting.default is None:
            assert "default" not in TRAINER[key], key
        else:
            assert setting.metadata["kind"].parse(str(TRAINER[key]["default"])) == setting.default, key


SAMPLES = [
    *(
        -1,
        -0.5,
        0,
        0.5,
        0.999,
        1,
        1.5,
        2,
        2.5,
        1024,
        1025,
        65536,
        65537,
        10_000_000,
        10_000_001,
        2**53 - 1,
        1e-7,
        10**12,
        3e38,
        -3e38,
        4e38,
        -4e38,
    ),
    *("none", "json", "canonical", "base", "relu", "leaky_relu", "tanh", "gelu", "sigmoid", "sgd", "adam", "SGD"),
    *("always", "everysec", "never", "text", "debug", "info", "warning", "error", "", "fast"),
    *("0600", "600", "0", "7777", "888", "1777", "/a/b c", "relative", "/", "/a\0b", True, False),
    *("127.0.0.1:9091", "0.0.0.0:9091", ":9091", "[::]:1", "0.0.0.0:0", "0.0.0.0:65535", "0.0.0.0:65536", "0.0.0.0"),
    *("600", "0.0", "10m", "0s", "0.5h", "0.00d", "90d", "90D", "10 m", "1h30m", "m", "-1s", ".5h", "1e3s"),
    *("512MiB", "10GiB", "10Gi", "10GB", "1.5G", "1.5", "1B", "10gib", "10MiBs", "10GiBB", "1.5B", "-1GiB", "KiB", "2Pi"),
]


@pytest.mark.parametrize("key", SETTINGS)
def test_the_schema_allows_what_the_program_allows(key):
    setting, schema = SETTINGS[key], TRAINER[key]
    wants_text = schema.get("type") == "string" or isinstance(schema.get("enum", [0])[0], str)
    wants_either = "anyOf" in schema
    for sample in SAMPLES:
        allowed = jsonschema.Draft7Validator(schema).is_valid(sample)
        is_text = isinstance(sample, str)
        if is_text == wants_text or wants_either:
            assert allowed == works_in_a_pod(setting, sample if is_text else json.dumps(sample)), sample
        else:
            assert not allowed, sample


def works_in_a_pod(setting: Field[Any], text: str) -> bool:
    """Whether the program takes it, and it makes sense in a pod: paths are absolute, HTTP can be reached from outside."""
    if not text or (setting.metadata["kind"] is PATH and not text.startswith("/")):
        return False
    variable = setting.metadata["env"]
    try:
        # Beside the widest scores: that scoreMin is under scoreMax is checked elsewhere.
        read_settings({"score_min": "-3.4e38"} if setting.name == "score_max" else {"score_max": "3.4e38"}, {variable: text})
        if setting.name == "http":
            host, port = parse_address(text)
            return host in ("", "0.0.0.0", "::") and port > 0
    except ValueError:
        return False
    return True


def test_values_yaml_shows_every_setting_with_its_default():
    shown = re.findall(r"^    # (\w+):(?: (\S+))?  # (.*)$", (CHART / "values.yaml").read_text(), flags=re.MULTILINE)
    assert [key for key, _, _ in shown] == [key for key in SETTINGS if key != "http"]
    for key, default, meaning in shown:
        assert yaml.safe_load(default or "null") == TRAINER[key].get("default"), key
        assert meaning == SETTINGS[key].metadata["help"]


def test_unset_keys_render_no_variable():
    assert trainer_environment() == {
        "POD_NAME": "training-0",
        "VMAFX_SIDECAR_HTTP": "0.0.0.0:9091",
        "VMAFX_SIDECAR_STATE_DIR": f"{Settings().state}/training-0",
    }


@pytest.mark.parametrize("key", SETTINGS)
def test_a_key_reaches_its_variable(key):
    value = TRAINER[key].get("default", {"nFeatures": 81, "tenants": "a,b"}.get(key, "/mnt/vmafx-models/s"))
    variable, kind = SETTINGS[key].metadata["env"], SETTINGS[key].metadata["kind"]
    environment = trainer_environment(**{key: value})
    assert kind.parse(environment[variable]) == kind.parse(f"{value}/training-0" if key == "stateDir" else str(value))
    assert environment.keys() == trainer_environment().keys() | {variable}


ODD = "/mnt/vmafx-models/$(POD_NAME) $$ ${A} `b` {{ .Values }} \"c\" 'd' # e: \\ \t é ü 🙂\n f%20"


@pytest.mark.parametrize(
    ("key", "written", "text"),
    [
        ("journalMaxBytes", "10737418240", "10737418240"),
        ("seed", "9007199254740991", "9007199254740991"),
        ("seed", "1e3", "1000"),
        ("learningRate", "0.0001", "0.0001"),
        ("learningRate", "1e-5", "0.00001"),
        ("weightDecay", "0", "0"),
        ("scoreMax", "100.0", "100"),
        ("scoreMin", "-1.5", "-1.5"),
        ("socketMode", '"0600"', "0600"),
        ("emaWarmup", "false", "false"),
        ("baseModelPath", json.dumps(ODD, ensure_ascii=False), ODD),
        ("checkpointDir", json.dumps(ODD, ensure_ascii=False), ODD),
    ],
)
def test_values_reach_the_program_exactly(key, written, text):
    values = helm.values_from_yaml(f"{key}: {written}")
    environment = trainer_environment(**values)
    assert environment[SETTINGS[key].metadata["env"]] == text
    read_settings({}, environment)
    if key == "checkpointDir":
        assert environment["VMAFX_SIDECAR_STATE_DIR"] == f"{ODD}/state/training-0"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"learningRat": 1}, "'learningRat' not allowed"),
        ({"learningRate": 0}, "/sidecar/trainer/learningRate': exclusiveMinimum"),
        ({"learningRate": "0.1"}, "/sidecar/trainer/learningRate': got string, want number"),
        ({"socketMode": 384}, "/sidecar/trainer/socketMode': got number, want string"),
        ({"optimizer": "SGD"}, "value must be one of 'sgd', 'adam'"),
        ({"cuda": 1}, "sidecar.trainer.cuda is 1: expected nvidia.com/gpu among sidecar.trainer.resources.limits"),
        ({"http": "127.0.0.1:9091"}, "/sidecar/trainer/http"),
        ({"http": None}, "missing property 'http'"),
        ({"nativeSidecar": "yes"}, "value must be one of 'auto', 'always', 'never'"),
        ({"scoreMin": 200}, "sidecar.trainer.scoreMin is 200: expected a number under scoreMax, which is 100"),
        ({"scoreMax": -0.5}, "sidecar.trainer.scoreMin is 0: expected a number under scoreMax, which is -0.5"),
        (
            {"checkpointDir": "/mnt/vmafx-model/a"},
            "sidecar.trainer.checkpointDir is /mnt/vmafx-model/a: expected a path under",
        ),
        (
            {"stateDir": "/var/x"},
            "sidecar.trainer.stateDir is /var/x: expected a path under persistence.models.mountPath",
        ),
    ],
)
def test_a_bad_value_is_refused_by_name(values, said):
    with pytest.raises(helm.HelmError) as refused:
        render({"sidecar": {"trainer": {"enabled": True, **values}}})
    assert said in str(refused.value)


def test_a_gpu_comes_with_its_limit_and_a_place_for_compiled_kernels():
    pod = pod_of(manifests(yaml.safe_load(documented("gpu"))))
    trainer = sidecar_of(pod)
    environment = {each["name"]: each.get("value") for each in trainer["env"]}
    assert (environment["VMAFX_SIDECAR_CUDA"], environment["CUPY_CACHE_DIR"]) == ("1", "/tmp/cupy")
    assert trainer["image"] == "registry.example/vmafx-sidecar:0.1.0-cuda"
    assert trainer["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["runtimeClassName"] == "nvidia"


@pytest.mark.parametrize(
    "values",
    [
        {"sidecars": {}},
        {"sidecar": {"x": {}}},
        {"persistence": {"models": {"x": 1}}},
        {"node": {"x": 1}},
        {"podSpec": {"hostNetwork": True}},
        {"operator": {"trainingName": "A_b"}},
        {"networkPolicy": {"x": 1}},
        {"monitoring": {"x": {}}},
    ],
)
def test_unknown_keys_are_refused_elsewhere_too(values):
    with pytest.raises(helm.HelmValuesError):
        render(values)


def leaves(schema: dict[str, Any], path: str = "") -> dict[str, dict[str, Any]]:
    if "properties" not in schema:
        return {path: schema}
    return {
        name: leaf
        for key, each in schema["properties"].items()
        for name, leaf in leaves(each, f"{path}.{key}" if path else key).items()
    }


def test_the_documented_values_are_the_schemas_with_the_charts_defaults():
    table = dict(re.findall(r"^\| `([\w.]+)` \| (.*?) \|", DOCS, flags=re.MULTILINE))
    settings = {f"sidecar.trainer.{key}" for key in SETTINGS if key != "http"}
    assert table.keys() == leaves(SCHEMA).keys() - settings - {"global"}
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    for name, stated in table.items():
        default = defaults
        for key in name.split("."):
            default = default[key]
        if match := re.fullmatch("`(.*)`", stated):
            assert yaml.safe_load(match[1]) == default, name
        elif stated == "–":
            assert not default, name
        else:
            assert default, name  # told in words


# Alerts and the dashboard


def promtool(*arguments: str, cwd: Path) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def alerts(**trainer: Any) -> list[dict[str, Any]]:
    rule = only(manifests(over(EVERYTHING, {"sidecar": {"trainer": trainer}})), "PrometheusRule")
    return rule["spec"]["groups"][0]["rules"]


def dashboard() -> dict[str, Any]:
    found = only(manifests(EVERYTHING), "ConfigMap")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    (text,) = found["data"].values()
    return json.loads(text)


def queries() -> list[str]:
    """The queries of the dashboard, as Grafana sends them."""
    wanted = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return [query.replace("$__rate_interval", "5m") for query in wanted]


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then(tmp_path):
    rules = alerts()
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump({"groups": [{"name": "a", "rules": rules}]}))
    tests = (ROOT / "tests" / "chart" / "alerts.test.yaml").read_text()
    (tmp_path / "alerts.test.yaml").write_text(tests)
    promtool("check", "rules", "alerts.yaml", cwd=tmp_path)
    promtool("test", "rules", "alerts.test.yaml", cwd=tmp_path)
    assert all(rule["alert"] in tests for rule in rules)
    assert all(rule["annotations"].keys() == {"summary", "description"} for rule in rules)


def test_alerts_are_written_from_the_programs_rules():
    made = subprocess.run(
        [sys.executable, "deploy/helm/prometheusrule.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (CHART / "templates" / "prometheusrule.yaml").read_text() == made.stdout
    written = {rule["alert"]: rule for rule in alerts()}
    assert list(written) == [rule.alert for rule in RULES]
    for rule in RULES:
        about = written[rule.alert]
        assert about["labels"] == {"severity": rule.severity}
        assert about.get("for", "0s") == f"{rule.lasting}s"
        assert about["annotations"]["description"] == rule.do


def test_alerts_follow_the_settings():
    def expression(alert: str, **trainer: Any) -> list[str]:
        return [rule["expr"] for rule in alerts(**trainer) if rule["alert"] == alert]

    assert expression("VmafxTrainingJournalNearLimit")[0].endswith("> 0.9 * 10737418240")
    assert expression("VmafxTrainingJournalNearLimit", journalMaxBytes=1e12)[0].endswith("> 0.9 * 1000000000000")
    assert expression("VmafxTrainingJournalNearLimit", journalMaxBytes=0) == []
    assert expression("VmafxTrainingJournalNearLimit", journalMaxBytes="1.5GiB")[0].endswith("> 0.9 * 1610612736")
    assert expression("VmafxTrainingJournalNearLimit", journalMaxBytes="20GB")[0].endswith("> 0.9 * 20000000000")
    assert expression("VmafxTrainingJournalNearLimit", journalMaxBytes="0B") == []
    assert expression("VmafxTrainingUnstable", checkpointIntervalSeconds="1h")[0].count("[21600s]") == 2
    assert expression("VmafxTrainingUnstable")[0].count("[7200s]") == 2
    assert expression("VmafxTrainingUnstable", checkpointIntervalSeconds=1800.5)[0].count("[10806s]") == 2


def test_alerts_know_the_program_by_the_job_of_the_podmonitor():
    found = manifests(EVERYTHING)
    job = f'job="vmafx/{only(found, "PodMonitor")["metadata"]["name"]}"'
    for rule in only(found, "PrometheusRule")["spec"]["groups"][0]["rules"]:
        for metric, selector in re.findall(r"(\w+)\{([^}]*)\}", rule["expr"]):
            assert selector.startswith('namespace="vmafx"' if metric.startswith("kube_") else job), rule["alert"]


def test_defaults_that_the_chart_knows_are_the_programs():
    text = (CHART / "templates" / "_helpers.tpl").read_text()
    stated = yaml.safe_load(re.search(r'define "vmafx-sidecar.defaults" -\}\}\n(.*?)\{\{- end', text, flags=re.DOTALL)[1])
    for key, default in stated.items():
        assert SETTINGS[key].metadata["kind"].parse(default) == SETTINGS[key].default, key


@needs_promtool
def test_the_dashboards_queries_are_queries(tmp_path):
    rules = [{"record": f"r{number}", "expr": query} for number, query in enumerate(queries())]
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "a", "rules": rules}]}))
    promtool("check", "rules", "queries.yaml", cwd=tmp_path)


def test_each_panel_says_what_it_means_and_has_a_place_of_its_own():
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        assert panel["description"].endswith("."), panel["title"]
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


# A pod, without Kubernetes


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """A models volume with a base model on it."""
    directory = tmp_path_factory.mktemp("volume")
    assert run("train-offline", EXAMPLE, "--epochs", 5, "--output", directory / "made").returncode == 0
    (directory / "models" / "base").mkdir(parents=True)
    shutil.copyfile(directory / "made" / "model_v000001.onnx", directory / "models" / "base" / "fr_regressor_v3.onnx")
    return directory


@pytest.fixture
def start_pod(volume, tmp_path):
    started = []

    def start(name: str, values: dict[str, Any]) -> Pod:
        pod = Pod(tmp_path, name, sidecar_of(pod_of(manifests(values))), {"/mnt/vmafx-models": volume / "models"})
        started.append(pod)
        pod.start()
        return pod

    yield start
    for pod in started:
        if pod.process is not None and pod.process.poll() is None:
            pod.process.kill()
            pod.process.wait()


def test_a_pod_keeps_the_contract_and_the_program_exports_what_is_looked_at(start_pod, volume, example):
    pod = start_pod("training-0", over(SEED, {"sidecar": {"trainer": {"holdoutFraction": 0.2}}}))
    assert pod.probe("readinessProbe")
    assert pod.probe("livenessProbe")
    assert json.loads(pod.get("/status"))["phase"] == "running"
    rows = enumerate(zip(example.features, example.true_score, strict=True))
    with FeedbackClient(pod.socket) as node:

        def send(count: int) -> int:
            for number, (features, score) in itertools.islice(rows, count):
                node.send(features, score, job_id=f"j{number}", group=f"g{number // 12}")
            return number + 1

        send(300)
        until(lambda: node.delivered >= 100, pod)
        assert pod.stop(signal.SIGKILL) == -signal.SIGKILL  # the node and its /tmp are still there
        pod.start()
        sent = send(300)
        until(lambda: node.delivered == sent, pod)
        while "vmafx_training_step_seconds" not in pod.get("/metrics"):  # a group's, if nothing else needs its steps to be run
            sent = send(40)
            until(lambda sent=sent: node.delivered == sent, pod)
        assert node.dropped == 0

    pod.process.send_signal(signal.SIGUSR1)
    until(lambda: "last_checkpoint_time" in json.loads(pod.get("/status")), pod)
    exported = set(re.findall(r"^(\w+)[{ ]", pod.get("/metrics"), flags=re.MULTILINE))
    looked_at = " ".join([*queries(), *(rule["expr"] for rule in alerts())])
    named = set(re.findall(r"([a-z_]\w*)\{", looked_at))
    assert len(named) > 15
    assert named - exported == {
        "up", "kube_pod_container_status_restarts_total", "kube_pod_init_container_status_restarts_total",
    }  # fmt: skip
    assert named >= set(re.findall(r"vmafx_\w+", looked_at))  # each with a selector, so that none was overlooked

    assert pod.stop(signal.SIGTERM) == 0
    assert pod.state == volume / "models" / "online" / "state" / "training-0"
    journalled = [json.loads(entry.line)["job_id"] for entry in read_journal(pod.state) if entry.run is None]
    assert sorted(journalled, key=lambda name: int(name[1:])) == [f"j{number}" for number in range(sent)]
    assert checkpoints(volume / "models" / "online")
    assert list(pod.tmp.iterdir()) == []


def test_replicas_on_one_volume_do_not_collide(start_pod, volume, example):
    pods = [start_pod(f"training-{number}", CASES["three replicas"]) for number in (1, 2)]
    before = len(checkpoints(volume / "models" / "online"))
    for number, pod in enumerate(pods):
        with FeedbackClient(pod.socket) as node:
            for features, score in zip(example.features[: 50 + number], example.true_score[: 50 + number], strict=True):
                node.send(features, score)
            until(lambda node=node, number=number: node.delivered == 50 + number, pod)
    assert [pod.stop(signal.SIGTERM) for pod in pods] == [0, 0]
    for number, pod in enumerate(pods):
        assert len([entry for entry in read_journal(pod.state) if entry.run is None]) == 50 + number
    assert len(checkpoints(volume / "models" / "online")) == before + 2


def test_a_base_model_of_another_width_does_not_hold_up_the_node(start_pod):
    pod = start_pod("training-3", over(SEED, {"sidecar": {"trainer": {"nFeatures": 81}}}))
    assert pod.probe("readinessProbe")
    status = json.loads(pod.get("/status"))
    assert status["phase"] == "failed"
    assert "takes 80 features, not 81" in status["reason"]
    with FeedbackClient(pod.socket) as node:
        node.send([0.5] * 81, 50.0)
        until(lambda: node.delivered == 1, pod)
    assert pod.stop(signal.SIGTERM) == 0
