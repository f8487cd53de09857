"""Tests of the sample manifest: that clusters accept it, and that its parts fit each other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import tomli
import yaml

HOUSE = Path(__file__).parents[2]
MANIFEST = (HOUSE / "etc" / "openshift.yaml").read_text(encoding="utf-8")
DOCUMENTS = {
    (each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(MANIFEST)
}
KEDA = {key: each for key, each in DOCUMENTS.items() if each["apiVersion"] == "keda.sh/v1alpha1"}
DEPLOYMENT = DOCUMENTS["Deployment", "fmconsume-topics"]["spec"]
OBJECT = DOCUMENTS["ScaledObject", "fmconsume-topics"]["spec"]
JOB = DOCUMENTS["ScaledJob", "fmconsume-reports"]["spec"]
CONFIGURATIONS = DOCUMENTS["ConfigMap", "fmconsume"]["data"]
PODS = {
    "topics": DEPLOYMENT["template"]["spec"],
    "reports": JOB["jobTargetRef"]["template"]["spec"],
}
VERSIONS = kubernetes_validate.utils.all_versions()

#: Of KEDA's scaler for RabbitMQ (https://keda.sh/docs/latest/scalers/rabbitmq-queue/); its schema
#: lets a trigger have any metadata.
TRIGGER = {"protocol": "amqp", "mode": "QueueLength"}


def container(name: str) -> dict[str, Any]:
    """Give the one container of a pod."""
    (only,) = PODS[name]["containers"]
    return only


def configuration(name: str) -> dict[str, Any]:
    """Give the configuration of a pod."""
    return tomli.loads(CONFIGURATIONS[f"{name}.toml"])


# -- what clusters accept


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
@pytest.mark.parametrize("key", sorted(DOCUMENTS.keys() - KEDA.keys()), ids=" ".join)
def test_kubernetes_schema(key: tuple[str, str], version: str) -> None:
    """Old and new Kubernetes know every field."""
    kubernetes_validate.validate(DOCUMENTS[key], version, strict=True)


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
def test_job_schema(version: str) -> None:
    """What KEDA makes a Job of is one."""
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
    kubernetes_validate.validate({**job, "spec": JOB["jobTargetRef"]}, version, strict=True)


@pytest.mark.skipif(sys.version_info < (3, 10), reason="KEDA's schemas want Python 3.10")
@pytest.mark.parametrize("key", KEDA, ids=" ".join)
def test_keda_schema(key: tuple[str, str]) -> None:
    """KEDA knows every field."""
    from cloudcoil.models.keda import v1alpha1

    # What the schema does not know is not in the model.
    model = getattr(v1alpha1, key[0]).model_validate(KEDA[key])
    assert model.model_dump(mode="json", by_alias=True, exclude_unset=True) == KEDA[key]


# -- what fits together


@pytest.mark.parametrize(("name", "spec"), [("topics", OBJECT), ("reports", JOB)])
def test_trigger(name: str, spec: dict[str, Any]) -> None:
    """KEDA looks at the queue from which the pods consume, with the URL that they use."""
    (trigger,) = spec["triggers"]
    (queue,) = configuration(name)["queues"]
    value = trigger["metadata"]["value"]
    assert trigger["type"] == "rabbitmq"
    assert trigger["metadata"] == {**TRIGGER, "queueName": queue, "value": value}
    assert int(value) > configuration(name).get("qos", {}).get("prefetch_count", 10)
    authentication = DOCUMENTS["TriggerAuthentication", trigger["authenticationRef"]["name"]]
    (reference,) = authentication["spec"]["secretTargetRef"]
    assert reference["parameter"] == "host"
    assert reference["key"] in DOCUMENTS["Secret", reference["name"]]["stringData"]


def test_scale_target() -> None:
    """The ScaledObject scales the Deployment, which does not say how many pods there are."""
    assert ("Deployment", OBJECT["scaleTargetRef"]["name"]) in DOCUMENTS
    assert "replicas" not in DEPLOYMENT
    labels = DEPLOYMENT["template"]["metadata"]["labels"]
    assert DEPLOYMENT["selector"]["matchLabels"] == labels


@pytest.mark.parametrize("name", PODS)
def test_volumes(name: str) -> None:
    """What is mounted is there, and each path that the consumer is given is mounted."""
    volumes = {each.pop("name"): each for each in map(dict, PODS[name]["volumes"])}
    mounts = {each["mountPath"]: each["name"] for each in container(name)["volumeMounts"]}
    assert set(mounts.values()) == set(volumes)
    assert ("ConfigMap", volumes["config"]["configMap"]["name"]) in DOCUMENTS
    secret = DOCUMENTS["Secret", volumes["amqp"]["secret"]["secretName"]]["stringData"]
    (variable,) = container(name)["env"]
    folder, _, file = variable["value"].rpartition("/")
    assert (variable["name"], mounts[folder]) == ("FMCONSUME_AMQP_URL_FILE", "amqp")
    assert file in secret
    config = Path(container(name)["args"][1])
    assert mounts[str(config.parent)] == "config"
    assert config.name in CONFIGURATIONS
    assert configuration(name).get("state", "/tmp") in mounts


@pytest.mark.parametrize("name", PODS)
def test_probes(name: str) -> None:
    """The probes ask where the consumer answers, and every interface is one of them."""
    monitoring = configuration(name)["monitoring"]
    (port,) = container(name)["ports"]
    assert monitoring == {"address": "", "port": port["containerPort"]}
    paths = {"livenessProbe": "/live", "readinessProbe": "/ready"}
    if name == "reports":  # Nobody waits for a job to be ready.
        del paths["readinessProbe"]
    found = {key: each["httpGet"] for key, each in container(name).items() if key.endswith("Probe")}
    assert found == {key: {"path": path, "port": port["name"]} for key, path in paths.items()}


@pytest.mark.parametrize("name", PODS)
def test_confinement(name: str) -> None:
    """OpenShift chooses the user, who may write to no more than the volumes."""
    assert PODS[name]["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert set(container(name)["resources"]) == {"requests", "limits"}


@pytest.mark.parametrize("name", PODS)
def test_stop(name: str) -> None:
    """Kubernetes waits as long for callbacks as systemd does."""
    unit = (HOUSE / "etc" / "fm-consumer@.service").read_text(encoding="utf-8")
    assert "TimeoutStopSec=15min" in unit
    assert PODS[name]["terminationGracePeriodSeconds"] == 15 * 60


def test_job_ends() -> None:
    """The job ends when its queue is empty, and is not started again in its pod."""
    assert "--drain" in container("reports")["args"]
    assert PODS["reports"]["restartPolicy"] == "Never"
