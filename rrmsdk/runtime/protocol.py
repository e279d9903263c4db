"""The addresses of the Open Inference Protocol v2, and of Triton's extensions that clients use: /v2/..."""

from __future__ import annotations

import logging
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rrmsdk.runtime import body, v2
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.served import Served
from rrmsdk.runtime.service import SMALL, Service

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
LOG = logging.getLogger("rrmsdk.serve")
PLATFORM = "onnxruntime_onnx"
_DATATYPES = {"float": "FP32", "uint8": "UINT8"}


def routes() -> list[Route]:
    found = [
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
    for place in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        found += [
            Route(f"{place}/infer", infer, methods=["POST"]),
            Route(place, metadata, methods=["GET"]),
            Route(f"{place}/ready", model_ready, methods=["GET"]),
            Route(f"{place}/config", config, methods=["GET"]),
            Route(f"{place}/stats", statistics, methods=["GET"]),
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
    return as_json({"name": "rrmsdk", "version": service_of(request).release, "extensions": EXTENSIONS})


async def model_ready(request: Request) -> Response:
    served = _served(request)
    return as_json({"name": service_of(request).name, "version": served.version, "ready": True})


async def metadata(request: Request) -> Response:
    service, served = service_of(request), _served(request)
    (given, asked), session = served.session.ends, served.session
    return as_json({
        "name": service.name,
        "versions": [one.version for one in service.store.loaded],
        "platform": PLATFORM,
        "inputs": [{"name": given, "datatype": _DATATYPES[session.input], "shape": [-1, *session.sizes]}],
        "outputs": [{"name": asked, "datatype": "FP32", "shape": [-1, session.classes]}],
    })  # fmt: skip


async def config(request: Request) -> Response:
    """As Triton's, whose dims leave the batch out."""
    service, served = service_of(request), _served(request)
    (given, asked), session = served.session.ends, served.session
    return as_json({
        "name": service.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": service.limits.batch,
        "input": [{"name": given, "data_type": f"TYPE_{_DATATYPES[session.input]}", "dims": session.sizes}],
        "output": [{"name": asked, "data_type": "TYPE_FP32", "dims": [session.classes]}],
        "dynamic_batching": {"default_queue_policy": {"max_queue_size": service.limits.queue}},
        "parameters": {"sha256": {"string_value": served.sha256}},
    })  # fmt: skip


async def statistics(request: Request) -> Response:
    service = service_of(request)
    named = "model" in request.path_params
    served = (_served(request),) if "version" in request.path_params else service.store.loaded
    if named:
        _served(request)  # 404 for another model
    told = [service.metrics.of(one.version).told(service.name, one.version) for one in served]
    return as_json({"model_stats": told})


async def infer(request: Request) -> Response:
    service, served = service_of(request), _served(request)
    content = await body.read(request.receive, request.headers, service.most_bytes(served), service.limits.timeout)
    try:
        asked = v2.read(content, request.headers.get(v2.LENGTH), served.session, service.limits.batch)
    except v2.BadPixels:
        service.metrics.bad.inc()
        raise
    answer = await service.infer(served, asked.pixels, request.receive, asked.timeout)
    told, length = v2.write(asked, answer.logits, service.name, served.version, served.session.ends[1])
    if length is None:
        return Response(told, media_type="application/json")
    return Response(told, headers={v2.LENGTH: str(length)}, media_type="application/octet-stream")


async def index(request: Request) -> Response:
    service = _administered(request)
    asked = await _object(request)
    told = [
        {"name": service.name, "version": version, "state": "READY" if loaded else "UNAVAILABLE", "reason": reason}
        for version, loaded, reason in service.store.index()
        if loaded or not asked.get("ready")
    ]
    return as_json(told)


async def load(request: Request) -> Response:
    service = _administered(request)
    parameters = await _parameters(request)
    return await _swapped(service, service.store.load(_version(parameters), _pin(parameters)))


async def rollback(request: Request) -> Response:
    service = _administered(request)
    parameters = await _parameters(request)
    return await _swapped(service, service.store.roll_back(_pin(parameters)))


async def unload(request: Request) -> Response:
    service = _administered(request)
    await service.store.unload(_version(await _parameters(request)))
    service.metrics.now_serving(service.version)
    return as_json({"name": service.name})


async def _swapped(service: Service, swap: Any) -> Response:
    try:
        served = await swap
    except Refused as exc:
        service.metrics.swaps.labels("refused").inc()
        LOG.warning("no swap", extra={"fields": {"reason": str(exc.__cause__ or exc)}})  # with the places, for us alone
        raise
    service.metrics.swaps.labels("done").inc()
    LOG.info("swapped", extra={"fields": {"version": served.version, "sha256": served.sha256}})
    service.metrics.now_serving(service.version)
    return as_json({"name": service.name, "version": served.version, "sha256": served.sha256})


def _served(request: Request) -> Served:
    return service_of(request).find(request.path_params["model"], request.path_params.get("version"))


def _administered(request: Request) -> Service:
    """Raises Refused: 403, 404."""
    service = service_of(request)
    if service.access.admin is None:
        raise Refused(403, "this server was started without an admin token, so its versions stay as they are")
    if not service.access.may_change(request.headers.get("authorization")):
        raise Refused(403, "that takes the admin token")
    if request.path_params.get("model", service.name) != service.name:
        raise Refused(404, f"there is no such model; this server has '{service.name}'")
    return service


async def _object(request: Request) -> dict[str, Any]:
    """The body of a repository call; none at all is an empty one."""
    content = await body.read(request.receive, request.headers, SMALL, service_of(request).limits.timeout)
    try:
        asked = orjson.loads(content or b"{}")
    except orjson.JSONDecodeError:
        raise Refused(400, "the request is no JSON") from None
    if not isinstance(asked, dict):
        raise Refused(400, "the request must be a JSON object")
    return asked


async def _parameters(request: Request) -> dict[str, Any]:
    """Of a load, rollback or unload. Files and configurations of a client's are never taken."""
    parameters = (await _object(request)).get("parameters") or {}
    known = {"version", "pin", "unload_dependents"}
    if not isinstance(parameters, dict) or parameters.keys() - known:
        raise Refused(400, "the parameters are version and pin; models are put into the folder of versions, not sent")
    return parameters


def _version(parameters: dict[str, Any]) -> str | None:
    version = parameters.get("version")
    if version is not None and not isinstance(version, str):
        raise Refused(400, "'version' must be a text")
    return version


def _pin(parameters: dict[str, Any]) -> bool | None:
    pin = parameters.get("pin")
    if pin is not None and not isinstance(pin, bool):
        raise Refused(400, "'pin' must be true or false")
    return pin
