"""The addresses of versions on trial: a canary answers a share of the requests, a shadow none of them."""

from __future__ import annotations

import logging
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rrmsdk.runtime.protocol import administered_by, as_json, parameters_of, swapped, version_in
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.service import Service

LOG = logging.getLogger("rrmsdk.serve")


def routes() -> list[Route]:
    return [
        Route("/v2/repository/models/{model}/canary", canary, methods=["GET"]),
        Route("/v2/repository/models/{model}/canary", change_canary, methods=["POST"]),
        Route("/v2/repository/models/{model}/shadow", shadow, methods=["GET"]),
        Route("/v2/repository/models/{model}/shadow", change_shadow, methods=["POST"]),
    ]


async def canary(request: Request) -> Response:
    return as_json(_canary_of(administered_by(request)))


async def change_canary(request: Request) -> Response:
    """Start one (version, percent), give it another share (percent), end it (stop), let it answer all (promote)."""
    service = administered_by(request)
    parameters = await parameters_of(request, "version", "percent", "stop", "promote")
    if _only(parameters, "promote"):
        return as_json(await swapped(service, service.store.promote()))
    if _only(parameters, "stop"):
        service.store.end("canary")
        service.changed()
    else:
        now, percent = service.canary, _percent(parameters)
        version = version_in(parameters) or (now.served.version if now else None)
        if version is None:
            raise Refused(400, "name the version that is to be the canary")
        same = now is not None and now.served.version == version
        served = now.served if now and same else await service.store.bring("canary", version)
        service.try_canary(served, percent)
    return _told("canary", _canary_of(service))


async def shadow(request: Request) -> Response:
    return as_json(_shadow_of(administered_by(request)))


async def change_shadow(request: Request) -> Response:
    """Start one (version), or end it (stop)."""
    service = administered_by(request)
    parameters = await parameters_of(request, "version", "stop")
    if _only(parameters, "stop"):
        service.store.end("shadow")
        service.changed()
    else:
        version = version_in(parameters)
        if version is None:
            raise Refused(400, "name the version that is to be the shadow")
        service.try_shadow(await service.store.bring("shadow", version))
    return _told("shadow", _shadow_of(service))


def _canary_of(service: Service) -> dict[str, Any]:
    now = service.canary
    told = now and {"version": now.served.version, "percent": now.percent, "since": now.since}
    compared = now.compared(service.metrics.versions, service.version) if now else []
    return {"name": service.name, "canary": told, "compared": compared}


def _shadow_of(service: Service) -> dict[str, Any]:
    return {"name": service.name, "version": service.version, "shadow": service.shadow and service.shadow.told()}


def _told(role: str, told: dict[str, Any]) -> Response:
    LOG.info(role, extra={"fields": {"now": told[role]}})
    return as_json(told)


def _percent(parameters: dict[str, Any]) -> float:
    percent = parameters.get("percent")
    if not isinstance(percent, int | float) or isinstance(percent, bool) or not 0 < percent <= 100:
        raise Refused(400, "'percent' must be a number above 0, at most 100; 'stop' = true ends the canary")
    return float(percent)


def _only(parameters: dict[str, Any], name: str) -> bool:
    """Whether it is asked for; nothing else may be then."""
    if name in parameters and parameters != {name: True}:
        raise Refused(400, f"'{name}' must be true, and the only parameter")
    return name in parameters
