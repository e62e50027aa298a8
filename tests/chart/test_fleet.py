"""The chart's CronJob: what it is given is what the program takes, and the pods follow what it publishes."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from tests.chart.rendering import environment_of, faults_of, helm, manifests, only, over, pod_of, render, sidecar_of, yaml
from tests.conftest import EXAMPLE, ROOT, run
from tests.journals import write_journal

FLEET = (ROOT / "docs" / "fleet.md").read_text()
VALUES = yaml.safe_load(FLEET.partition("<!-- example: fleet -->\n```yaml\n")[2].partition("```")[0])


def job_of(values):
    return only(manifests(over(VALUES, values)), "CronJob")["spec"]["jobTemplate"]["spec"]["template"]


def test_the_job_makes_the_model_that_the_pods_follow(tmp_path):
    found = manifests(over(VALUES, {"persistence": {"models": {"mountPath": str(tmp_path)}},
                                    "sidecar": {"trainer": {"baseModelPath": f"{tmp_path}/base/stable.onnx",
                                                            "checkpointDir": f"{tmp_path}/online"}},
                                    "fleet": {"args": ["--epochs", "3"]}}))  # fmt: skip
    environment = environment_of(sidecar_of(pod_of(found)), "training-vmafx-sidecar-0")
    lines = gzip.decompress(EXAMPLE.read_bytes()).splitlines()
    write_journal(Path(environment["VMAFX_SIDECAR_STATE_DIR"]), {"000000000000.jsonl": lines})
    pod = only(found, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    done = run(*pod["containers"][0]["args"])
    assert "read by 2 processes" in done.stdout, done.stderr
    assert environment["VMAFX_SIDECAR_FOLLOW_BASE"] == "1"
    made = Path(environment["VMAFX_BASE_MODEL_PATH"])
    assert made.parent.joinpath("latest.onnx").is_file()
    assert os.path.lexists(made) == (done.returncode == 0)


def test_the_job_is_no_node_and_has_its_pods_security():
    template = job_of({"fleet": {"scheduler": "tls://dask:8786", "tlsSecret": "fleet-tls"}})
    pods = only(manifests(VALUES), "StatefulSet")["spec"]["selector"]["matchLabels"]
    assert not pods.items() <= template["metadata"]["labels"].items()
    pod = template["spec"]
    (container,) = pod["containers"]
    assert container["args"][4:6] == ["--scheduler", "tls://dask:8786"]
    assert "--workers" not in container["args"]
    assert faults_of(pod) == []
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["automountServiceAccountToken"] is False


def test_settings_that_all_must_share_reach_the_job():
    trainer = {"holdoutFraction": 0.2, "scoreMin": 1, "scoreMax": 5}
    arguments = job_of({"sidecar": {"trainer": trainer}})["spec"]["containers"][0]["args"]
    given = dict(zip(arguments[4::2], arguments[5::2], strict=True))
    assert given == {"--workers": "2", "--holdout": "0.2", "--score-min": "1", "--score-max": "5"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"persistence": {"models": {"enabled": False}}}, "expected persistence.models.enabled to be true"),
        ({"node": {"enabled": False}}, "expected sidecar.trainer.stateDir to be a directory on the models volume"),
        ({"fleet": {"scheduler": "tcp://dask:8786"}}, "fleet.scheduler is tcp://dask:8786: expected tls://HOST:PORT"),
    ],
)
def test_what_cannot_work_is_refused(values, said):
    with pytest.raises(helm.HelmError) as refused:
        render(over(VALUES, values))
    assert said in str(refused.value)


def test_without_sidecars_there_is_no_job():
    found = manifests(over(VALUES, {"sidecar": {"trainer": {"enabled": False}}}))
    assert "CronJob" not in {each["kind"] for each in found}


def test_the_notes_say_if_no_pod_takes_the_model_up():
    assert "the pods do not take it up" not in render(VALUES)["NOTES.txt"]
    assert "the pods do not take it up" in render(over(VALUES, {"sidecar": {"trainer": {"followBase": 0}}}))["NOTES.txt"]
