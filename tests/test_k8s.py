"""The Kubernetes manifests fit Kubernetes' schema, KServe's fields and our command line. No cluster has seen them."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from rrmsdk.cli import app

FOLDER = Path(__file__).parents[1] / "serve" / "k8s"
KSERVE = json.loads((Path(__file__).parent / "kserve_fields.json").read_text())["types"]
MANIFESTS = {path.name: list(yaml.safe_load_all(path.read_text())) for path in sorted(FOLDER.glob("*.yaml"))}
OBJECTS = [(name, one) for name, found in MANIFESTS.items() for one in found]
NAMES = [f"{name}-{one['kind']}" for name, one in OBJECTS]
OURS = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}  # KServe's
PLAIN = {"bool": bool, "int": int, "str": str}


def check(one: dict[str, Any], version: str = "1.37") -> None:
    """Raises ValidationError: an unknown field, or one of another kind."""
    if one["kind"] in OURS:
        check_kserve(one, OURS[one["kind"]], one["kind"])
    else:
        kubernetes_validate.validate(one, version, strict=True)


def check_kserve(given: Any, kind: str, place: str) -> None:
    """KServe's own types by its fields; those of Kubernetes in it by Kubernetes' schema, in a pod made for that."""
    if kind.startswith("list["):
        assert isinstance(given, list), f"{place} is no list"
        for at, one in enumerate(given):
            check_kserve(one, kind[5:-1], f"{place}[{at}]")
    elif kind in PLAIN:
        assert type(given) is PLAIN[kind], f"{place} is {given!r}, no {kind}"
    elif kind == "dict(str, str)":
        assert all(type(one) is str for pair in given.items() for one in pair), f"{place} is {given!r}"
    elif kind in KSERVE:
        for name, one in given.items():
            assert name in KSERVE[kind], f"{place} has no field {name}"
            check_kserve(one, KSERVE[kind][name], f"{place}.{name}")
    else:
        kubernetes_validate.validate(pod_with(given, kind), "1.37", strict=True)


def pod_with(given: Any, kind: str) -> dict[str, Any]:
    container: dict[str, Any] = {"name": "x", "image": "x"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [container]}}
    match kind:
        case "V1ObjectMeta":
            pod["metadata"] = given
        case "V1Container":
            pod["spec"]["containers"] = [given]
        case "V1Volume":
            pod["spec"]["volumes"] = [given]
        case "V1ResourceRequirements":
            container["resources"] = given
        case _:
            raise AssertionError(f"no place in a pod is known for {kind}")
    return pod


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize(("name", "one"), OBJECTS, ids=NAMES)
def test_each_object_fits_its_schema(name: str, one: dict[str, Any], version: str) -> None:
    check(one, version)


@pytest.mark.parametrize(("name", "one"), OBJECTS, ids=NAMES)
def test_a_misspelt_field_would_be_seen_at_any_depth(name: str, one: dict[str, Any]) -> None:
    """The check itself can fail: some fields, from the outermost to the innermost, are given another name."""
    places = sorted(fields(one), key=len)
    for place in {places[len(places) // 2], places[len(places) * 3 // 4], places[-1]}:
        broken = copy.deepcopy(one)
        at = broken
        for step in place[:-1]:
            at = at[step]
        at[f"{place[-1]}x"] = at.pop(place[-1])
        with pytest.raises((kubernetes_validate.ValidationError, AssertionError, KeyError)):
            check(broken)


def fields(given: Any, place: tuple[Any, ...] = ()) -> Any:
    """The way to each field that has a name of Kubernetes' and not one of ours."""
    free = {"annotations", "labels", "matchLabels", "requests", "limits", "selector"}
    if isinstance(given, dict):
        for name, one in given.items():
            yield (*place, name)
            if name not in free or (name == "selector" and "matchLabels" in one):
                yield from fields(one, (*place, name))
    elif isinstance(given, list):
        for at, one in enumerate(given):
            yield from fields(one, (*place, at))


# What runs `rrmsdk serve`.

RUN = ("kserve-rrmsdk.yaml", "rrmsdk.yaml")
SERVE = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]


def pod_of(name: str) -> dict[str, Any]:
    """The containers and volumes of a manifest, with what else is said of its pods."""
    first, *_ = MANIFESTS[name]
    if first["kind"] == "ServingRuntime":
        return first["spec"] | MANIFESTS[name][1]["spec"]["predictor"]
    return first["spec"]["template"]["spec"]


def container_of(name: str) -> dict[str, Any]:
    (only,) = pod_of(name)["containers"]
    return only


def options_of(name: str) -> dict[str, Any]:
    """What the command line makes of a container's arguments. Raises click's errors for those that it does not know."""
    verb, *arguments = container_of(name)["args"]
    assert verb == "serve"
    return SERVE.make_context(verb, arguments).params


@pytest.mark.parametrize("name", RUN)
def test_the_command_line_knows_each_argument(name: str) -> None:
    options = options_of(name)
    assert (options["host"], options["insecure"]) == ("0.0.0.0", False)


@pytest.mark.parametrize("name", RUN)
def test_it_listens_at_the_port_that_is_probed_and_named(name: str) -> None:
    container, port = container_of(name), options_of(name)["port"]
    assert [one["containerPort"] for one in container["ports"]] == [port]
    named = {one["name"] for one in container["ports"]} | {port}
    assert {container[f"{probe}Probe"]["httpGet"]["port"] for probe in ("startup", "readiness", "liveness")} <= named
    for one in MANIFESTS[name]:
        if one["kind"] == "Service":
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= named
    scraped = [value for text, value in annotations(MANIFESTS[name][0]).items() if text.endswith("/port")]
    assert scraped == [str(port)]


def annotations(one: dict[str, Any]) -> dict[str, str]:
    spec = one["spec"]
    return spec["annotations"] if "annotations" in spec else spec["template"]["metadata"]["annotations"]


@pytest.mark.parametrize("name", RUN)
def test_it_is_ready_when_its_model_is_and_alive_when_its_server_is(name: str) -> None:
    container = container_of(name)
    paths = [container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")]
    assert paths == ["/v2/health/ready", "/v2/health/ready", "/v2/health/live"]


@pytest.mark.parametrize("name", RUN)
def test_the_model_and_the_tokens_lie_on_what_is_mounted(name: str) -> None:
    options, container = options_of(name), container_of(name)
    mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
    volumes = {one["name"]: one for one in pod_of(name)["volumes"]}
    assert {one["name"] for one in mounts.values()} == set(volumes)
    at = mounts[str(options["token_file"].parent)]
    assert (at["readOnly"], "secret" in volumes[at["name"]]) == (True, True)
    places = ["/mnt/models"] if name.startswith("kserve") else list(mounts)  # KServe mounts that itself
    assert any(options["model"] == place or options["model"].startswith(f"{place}/") for place in places)


@pytest.mark.parametrize("name", RUN)
def test_it_runs_as_nobody_with_no_rights_on_a_disk_that_it_cannot_write(name: str) -> None:
    container = container_of(name)
    inside = pod_of(name).get("securityContext", {}) | container["securityContext"]
    assert (inside["runAsNonRoot"], inside["runAsUser"] > 0) == (True, True)
    assert (inside["readOnlyRootFilesystem"], inside["allowPrivilegeEscalation"]) == (True, False)
    assert (inside["capabilities"], inside["seccompProfile"]) == ({"drop": ["ALL"]}, {"type": "RuntimeDefault"})
    assert pod_of(name)["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", RUN)
def test_it_has_time_to_drain_and_to_answer_what_is_under_way(name: str) -> None:
    options, probe = options_of(name), container_of(name)["readinessProbe"]
    assert pod_of(name)["terminationGracePeriodSeconds"] > options["drain"] + options["timeout"] + 5
    assert probe["periodSeconds"] * probe["failureThreshold"] < options["drain"]


@pytest.mark.parametrize("name", RUN)
def test_it_works_with_as_many_threads_as_it_asks_cpus(name: str) -> None:
    assert options_of(name)["threads"] == int(container_of(name)["resources"]["requests"]["cpu"])


@pytest.mark.parametrize("name", RUN)
def test_the_image_is_of_this_release(name: str) -> None:
    import rrmsdk

    assert container_of(name)["image"] == f"rrmsdk-serve:{rrmsdk.__version__}"


def test_what_belongs_to_the_deployment_finds_it() -> None:
    found = {one["kind"]: one for one in MANIFESTS["rrmsdk.yaml"]}
    assert set(found) == {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
    deployment = found["Deployment"]
    labels, target = deployment["spec"]["template"]["metadata"]["labels"], found["HorizontalPodAutoscaler"]["spec"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert target["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"], "kind": "Deployment", "name": deployment["metadata"]["name"]
    }  # fmt: skip
    assert "replicas" not in deployment["spec"]  # two would have the say


def test_kserve_gives_a_model_of_ours_to_the_runtime_in_the_protocol_that_it_speaks() -> None:
    runtime, service = MANIFESTS["kserve-rrmsdk.yaml"]
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in [one["name"] for one in runtime["spec"]["supportedModelFormats"]]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert re.fullmatch(r"hf://[^/]+/[^/:]+:[0-9a-f]{40}", model["storageUri"])
