"""The addresses of the Open Inference Protocol v2, and of Triton's extensions that clients use: /v2/..."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rrmsdk.runtime import body, tensors, v2
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.served import Served, warn_of
from rrmsdk.runtime.service import SMALL, Service

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")
LOG = logging.getLogger("rrmsdk.serve")
PLATFORM = "onnxruntime_onnx"


def routes() -> list[Route]:
    places = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    found = [Route(f"{place}/infer", infer, methods=["POST"]) for place in places]  # first: they are looked for in turn
    found += [
        Route("/v2", server_metadata, methods=["GET"]),
        Route("/v2/", server_metadata, methods=["GET"]),
        Route("/v2/health/live", live, methods=["GET"]),
        Route("/v2/health/ready", ready, methods=["GET"]),
        Route("/v2/models/stats", statistics, methods=["GET"]),
        Route("/v2/repository/index", index, methods=["POST"]),
        Route("/v2/repository/models/{model}/load", load, methods=["POST"]),
        Route("/v2/repository/models/{model}/rollback", rollback, methods=["POST"]),
        Route("/v2/repository/models/{model}/unload", unload, methods=["POST"]),
    ]
    for place in places:
        found += [
            Route(place, metadata, methods=["GET"]),
            Route(f"{place}/ready", model_ready, methods=["GET"]),
            Route(f"{place}/config", config, methods=["GET"]),
            Route(f"{place}/stats", statistics, methods=["GET"]),
            Route(f"{place}/drift", drift, methods=["GET"]),
        ]
    return found


def service_of(request: Request) -> Service:
    return request.app.service


def as_json(told: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(told), status, headers, "application/json")


async def live(request: Request) -> Response:
    return as_json({"live": True})


async def ready(request: Request) -> Response:
    fit = service_of(request).ready
    return as_json({"ready": fit}, 200 if fit else 503)


async def server_metadata(request: Request) -> Response:
    return as_json(told_server(service_of(request)))


async def model_ready(request: Request) -> Response:
    served = _served(request)
    return as_json({"name": service_of(request).name, "version": served.version, "ready": True})


async def metadata(request: Request) -> Response:
    return as_json(told_metadata(service_of(request), _served(request)))


async def config(request: Request) -> Response:
    return as_json(told_config(service_of(request), _served(request)))


async def statistics(request: Request) -> Response:
    named = request.path_params
    return as_json(told_statistics(service_of(request), named.get("model"), named.get("version")))


async def drift(request: Request) -> Response:
    """See `rrmsdk.schema.drift.Drift`."""
    service, served = service_of(request), _served(request)
    if served.windows is None:
        raise Refused(404, served.lacks or "")
    return as_json(served.windows.told(service.name, served.version).model_dump(mode="json"))


async def infer(request: Request) -> Response:
    service, served = service_of(request), _served(request)
    most, seconds = service.most_bytes(served), service.limits.timeout
    content = await body.read(request.receive, request.headers, service.bodies, most, seconds)
    try:
        asked = v2.read(content, request.headers.get(v2.LENGTH), served.session, service.limits.batch)
    except tensors.BadPixels:
        service.metrics.bad.inc()
        raise
    named = request.path_params.get("version")  # all versions take the same pixels
    served = service.choose(service.name, named, asked.id or request.scope["request_id"])
    answer = await service.infer(served, asked.pixels, request.receive, asked.timeout)
    request.scope["answer"] = served.version, answer
    tensor = tensors.answered(asked, answer.logits, served.session.ends[1], served.labels)
    told, length = v2.write(asked, tensor, service.name, served.version)
    if length is None:
        return Response(told, media_type="application/json")
    return Response(told, headers={v2.LENGTH: str(length)}, media_type="application/octet-stream")


async def index(request: Request) -> Response:
    service = administered_by(request)
    asked = await _object(request)
    return as_json(told_index(service, bool(asked.get("ready"))))


async def load(request: Request) -> Response:
    service = administered_by(request)
    parameters = await parameters_of(request)
    return as_json(await loaded(service, parameters))


async def rollback(request: Request) -> Response:
    service = administered_by(request)
    parameters = await parameters_of(request)
    return as_json(await swapped(service, service.store.roll_back(_pin(parameters), version_in(parameters))))


async def unload(request: Request) -> Response:
    service = administered_by(request)
    await unloaded(service, await parameters_of(request))
    return as_json({"name": service.name})


# What both protocols tell.


def told_server(service: Service) -> dict[str, Any]:
    return {"name": "rrmsdk", "version": service.release, "extensions": EXTENSIONS}


def told_metadata(service: Service, served: Served) -> dict[str, Any]:
    (given, asked), session = served.session.ends, served.session
    return {
        "name": service.name,
        "versions": [one.version for one in service.store.named],
        "platform": PLATFORM,
        "inputs": [{"name": given, "datatype": session.datatype, "shape": [-1, *session.sizes]}],
        "outputs": [{"name": asked, "datatype": "FP32", "shape": [-1, session.classes]}],
    }


def told_config(service: Service, served: Served) -> dict[str, Any]:
    """As Triton's, whose dims leave the batch out."""
    (given, asked), session = served.session.ends, served.session
    return {
        "name": service.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": service.limits.batch,
        "input": [{"name": given, "data_type": f"TYPE_{session.datatype}", "dims": session.sizes}],
        "output": [{"name": asked, "data_type": "TYPE_FP32", "dims": [session.classes]}],
        "dynamic_batching": {"default_queue_policy": {"max_queue_size": service.limits.queue}},
        "parameters": {"sha256": {"string_value": served.sha256}},
    }


def told_statistics(service: Service, model: str | None, version: str | None) -> dict[str, Any]:
    """Of one version; None: of all that are loaded. Raises Refused (404)."""
    served = (service.find(model or service.name, version),) if version else service.store.named
    if model:
        service.find(model, None)
    return {"model_stats": [service.metrics.of(one.version).told(service.name, one.version) for one in served]}


def told_index(service: Service, ready: bool) -> list[dict[str, str]]:
    """ready: of those that are loaded alone."""
    return [
        {"name": service.name, "version": version, "state": "READY" if loaded else "UNAVAILABLE", "reason": reason}
        for version, loaded, reason in service.store.index()
        if loaded or not ready
    ]


# What both protocols do to versions.


def administered(service: Service, authorization: str | None, model: str) -> None:
    """Raises Refused: 403, 404."""
    if service.access.admin is None:
        raise Refused(403, "this server was started without an admin token, so its versions stay as they are")
    if not service.access.may_change(authorization):
        raise Refused(403, "that takes the admin token")
    if model != service.name:
        raise Refused(404, f"there is no such model; this server has '{service.name}'")


def checked_parameters(parameters: Any, *known: str) -> dict[str, Any]:
    """Of a repository call. Files and configurations of a client's are never taken."""
    known = known or ("version", "pin")
    if not isinstance(parameters, dict) or parameters.keys() - {*known, "unload_dependents"}:
        told = f"{', '.join(known[:-1])} and {known[-1]}"
        raise Refused(400, f"the parameters are {told}; models are put into the folder of versions, not sent")
    return parameters


async def loaded(service: Service, parameters: dict[str, Any]) -> dict[str, str]:
    return await swapped(service, service.store.load(version_in(parameters), _pin(parameters)))


async def unloaded(service: Service, parameters: dict[str, Any]) -> None:
    await service.store.unload(version_in(parameters))
    service.changed()


async def swapped(service: Service, swap: Coroutine[Any, Any, Served]) -> dict[str, str]:
    try:
        served = await swap
    except Refused as exc:
        service.metrics.swaps.labels("refused").inc()
        LOG.warning("no swap", extra={"fields": {"reason": str(exc.__cause__ or exc)}})  # with the places, for us alone
        raise
    service.metrics.swaps.labels("done").inc()
    LOG.info("swapped", extra={"fields": {"version": served.version, "sha256": served.sha256}})
    warn_of(served)
    service.changed()
    return {"name": service.name, "version": served.version, "sha256": served.sha256}


def _served(request: Request) -> Served:
    return service_of(request).find(request.path_params["model"], request.path_params.get("version"))


def administered_by(request: Request) -> Service:
    """Raises Refused: 403, 404."""
    service = service_of(request)
    administered(service, request.headers.get("authorization"), request.path_params.get("model", service.name))
    return service


async def _object(request: Request) -> dict[str, Any]:
    """The body of a repository call; none at all is an empty one."""
    service = service_of(request)
    content = await body.read(request.receive, request.headers, service.bodies, SMALL, service.limits.timeout)
    try:
        asked = orjson.loads(content or b"{}")
    except orjson.JSONDecodeError:
        raise Refused(400, "the request is no JSON") from None
    if not isinstance(asked, dict):
        raise Refused(400, "the request must be a JSON object")
    return asked


async def parameters_of(request: Request, *known: str) -> dict[str, Any]:
    return checked_parameters((await _object(request)).get("parameters") or {}, *known)


def version_in(parameters: dict[str, Any]) -> str | None:
    version = parameters.get("version")
    if version is not None and not isinstance(version, str):
        raise Refused(400, "'version' must be a text")
    return version


def _pin(parameters: dict[str, Any]) -> bool | None:
    pin = parameters.get("pin")
    if pin is not None and not isinstance(pin, bool):
        raise Refused(400, "'pin' must be true or false")
    return pin
