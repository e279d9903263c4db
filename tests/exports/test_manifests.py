"""The manifests for Triton agree with themselves; tests/test_k8s.py holds them against schemas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "serve" / "k8s"
LOADED = ["--load-model=resnet50-rrm-cifar10"]


def found(name: str) -> dict[str, Any]:
    """The objects of a manifest, by their kind."""
    return {one["kind"]: one for one in yaml.safe_load_all((FOLDER / name).read_text())}


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    return found("triton.yaml")["Deployment"]["spec"]["template"]


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["spec"]["containers"]
    return only


def test_there_is_one_for_kserve_and_one_for_plain_kubernetes() -> None:
    kinds = {name: sorted(found(name)) for name in ("kserve.yaml", "triton.yaml")}
    assert kinds == {"kserve.yaml": ["InferenceService"], "triton.yaml": ["Deployment", "Service"]}


def test_deployment_and_service_find_their_pods(pod: dict[str, Any]) -> None:
    manifest, labels = found("triton.yaml"), pod["metadata"]["labels"]
    assert manifest["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert manifest["Service"]["spec"]["selector"] == labels


def test_probes_and_service_name_a_port_that_the_container_has(container: dict[str, Any]) -> None:
    named = {one["name"] for one in container["ports"]}
    asked = {container[f"{probe}Probe"]["httpGet"]["port"] for probe in ("startup", "readiness", "liveness")}
    asked |= {one["targetPort"] for one in found("triton.yaml")["Service"]["spec"]["ports"]}
    assert asked <= named


def test_a_pod_is_ready_when_its_model_is_and_alive_when_its_server_is(container: dict[str, Any]) -> None:
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/v2/health/ready", "readiness": "/v2/health/ready", "liveness": "/v2/health/live"}


def test_what_is_mounted_is_a_volume_of_the_pod(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["spec"]["volumes"]}


def test_it_runs_as_nobody_on_a_disk_that_it_cannot_write(pod: dict[str, Any], container: dict[str, Any]) -> None:
    inside = container["securityContext"]
    assert (pod["spec"]["securityContext"]["runAsNonRoot"], inside["readOnlyRootFilesystem"]) == (True, True)
    assert (inside["allowPrivilegeEscalation"], inside["capabilities"]) == (False, {"drop": ["ALL"]})


def test_it_stops_later_than_it_leaves_the_service(pod: dict[str, Any], container: dict[str, Any]) -> None:
    _, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert int(seconds) < pod["spec"]["terminationGracePeriodSeconds"]


def test_both_load_one_model_by_its_name(container: dict[str, Any]) -> None:
    model = found("kserve.yaml")["InferenceService"]["spec"]["predictor"]["model"]
    for args in (container["args"], model["args"]):
        assert "--model-control-mode=explicit" in args
        assert [one for one in args if one.startswith("--load-model=")] == LOADED


def test_kserve_takes_a_commit_of_a_hub_repository() -> None:
    model = found("kserve.yaml")["InferenceService"]["spec"]["predictor"]["model"]
    assert re.fullmatch(r"hf://[^/]+/[^/:]+:[0-9a-f]{40}", model["storageUri"])
    assert model["modelFormat"] == {"name": "triton"}
