"""The server as an ASGI application: who may come in, what every answer carries, what is told of errors."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import numpy as np
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, Router

from rrmsdk.runtime import body, images, openapi, page, protocol, tracing, trials
from rrmsdk.runtime.metrics import LOW_MARGIN
from rrmsdk.runtime.protocol import as_json, service_of
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.service import LARGEST_FILE, Service
from rrmsdk.runtime.statistics import margins, softmax

OPEN = ("/", "/v2/health/live", "/v2/health/ready")  # to everybody: they tell nothing of the model
MOST_DISCARDED, LINGER = 64 << 20, 2.0  # bytes and seconds of a refused body that are waited for
SHOWN = 10  # classes in the answer of /predict
CLOSED = 499  # what logs call a request whose client left
LOG = logging.getLogger("rrmsdk.serve")
_IDS = random.Random()  # they are told apart, and no secret: the system's own random numbers cost a call each
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


class App:
    """The routes behind the door: tokens, request ids, errors, logs and counts."""

    def __init__(self, service: Service, beside: AbstractAsyncContextManager[None]) -> None:
        """beside: entered in the server's event loop, and left when that ends."""
        self.service, self._beside = service, beside
        service.spans = tracing.opened(service.release)
        own = [
            Route("/", home, methods=["GET"]),
            Route("/card", card, methods=["GET"]),
            Route("/predict", predict, methods=["POST"]),
            Route("/metrics", metrics, methods=["GET"]),
            Route("/openapi.json", described, methods=["GET"]),
        ]
        self.router = Router(
            [*protocol.routes(), *trials.routes(), *own], redirect_slashes=False, lifespan=self._lifespan
        )

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        async with self.service.running(), self._beside:
            yield
        if self.service.spans is not None:
            await asyncio.to_thread(self.service.spans.close)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.router(scope, receive, send)
            return
        scope["app"] = self
        began, headers, status = time.perf_counter(), Headers(scope=scope), CLOSED
        scope["request_id"] = request_id(headers.get("x-request-id", ""))

        async def answering(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._seal(MutableHeaders(raw=message["headers"]), scope["request_id"])
            await send(message)

        try:
            await self._admitted(scope, headers, receive, answering)
        except body.Left:
            status = CLOSED
        finally:
            self._tell(scope, headers, status, time.perf_counter() - began)

    async def _admitted(self, scope: Any, headers: Headers, receive: Any, send: Any) -> None:
        try:
            if scope["path"] not in OPEN and not self.service.access.may_ask(headers.get("authorization")):
                raise Refused(401, "this server wants a token: Authorization: Bearer TOKEN")
            await self.router(scope, receive, send)
        except body.Left:
            raise
        except Refused as exc:
            await _refuse(exc, scope, receive, send)
        except HTTPException as exc:
            said = {404: "there is nothing at this address", 405: "this address takes another method"}
            await as_json({"error": said.get(exc.status_code, "refused")}, exc.status_code)(scope, receive, send)
        except Exception:
            LOG.exception("failed", extra={"fields": {"request": scope["request_id"], "path": scope["path"]}})
            told = f"the server failed; its log says how, under request {scope['request_id']}"
            await as_json({"error": told}, 500)(scope, receive, send)

    def _seal(self, headers: MutableHeaders, request_id: str) -> None:
        headers["x-request-id"] = request_id
        headers["x-content-type-options"] = "nosniff"
        headers.setdefault("cache-control", "no-store")
        if self.service.stopping:
            headers["connection"] = "close"

    def _tell(self, scope: Any, headers: Headers, status: int, seconds: float) -> None:
        route = getattr(scope.get("endpoint"), "__name__", "none")
        self.service.metrics.requests.labels(route, str(status)).inc()
        self.service.metrics.seconds.labels(route).observe(seconds)
        if status == 200 and route in ("live", "ready", "metrics"):
            return
        trace = {}
        if self.service.spans is not None:
            trace = {"trace": self.service.spans.tell(route, headers, status, seconds, _about(scope, status))}
        LOG.log(logging.INFO if status < 500 else logging.WARNING, "request", extra={"fields": {
            "request": scope["request_id"], "method": scope["method"], "path": scope["path"], "status": status,
            "ms": round(1000 * seconds, 3), "client": (scope.get("client") or ("",))[0], **trace,
        }})  # fmt: skip


def request_id(wished: str) -> str:
    """The client's own, where it can stand in a log."""
    return wished if _REQUEST_ID.fullmatch(wished) else f"{_IDS.getrandbits(128):032x}"


def _about(scope: Any, status: int) -> dict[str, Any]:
    """What a span says of a request."""
    return {
        "http.request.method": scope["method"],
        "http.response.status_code": status,
        "url.path": scope["path"],
        "rrmsdk.request": scope["request_id"],
        **tracing.about_answer(scope),
    }


async def _refuse(exc: Refused, scope: Any, receive: Any, send: Any) -> None:
    headers = {} if exc.retry_after is None else {"retry-after": str(exc.retry_after)}
    if exc.status == 401:
        headers["www-authenticate"] = "Bearer"
    response = as_json({"error": exc.says}, exc.status, headers)
    if not exc.unread:
        await response(scope, receive, send)
        return
    response.headers["connection"] = "close"
    await send({"type": "http.response.start", "status": exc.status, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    await body.discard(receive, MOST_DISCARDED, LINGER)
    await send({"type": "http.response.body", "body": b""})


async def home(request: Request) -> Response:
    return HTMLResponse(page.HTML, headers={"content-security-policy": page.POLICY})


async def card(request: Request) -> Response:
    """What is known of the version that answers: the card, and what attacking it found."""
    service = service_of(request)
    served = service.store.find(None)
    about = served.bundle.card.model_dump(mode="json", exclude={"files"})
    report = served.report.model_dump(mode="json", exclude={"outcomes"}) if served.report else None
    warning = served.report.warning() if served.report else ""
    return as_json({
        "model": service.name, "version": served.version, "sha256": served.sha256, "card": about, "report": report,
        "warning": warning, "golden": served.golden, "lacks": served.lacks,
    })  # fmt: skip


async def predict(request: Request) -> Response:
    """The classes of one PNG or JPEG file, sent as it is."""
    service = service_of(request)
    served = service.store.find(None)
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise Refused(415, "send the file itself, not a form: curl --data-binary @image.png", unread=True)
    encoded = await body.read(request.receive, request.headers, service.bodies, LARGEST_FILE, service.limits.timeout)
    with service.bodies.keeping(len(encoded)):
        await service.turn()
        try:
            pixels, size = await asyncio.to_thread(images.pixels, encoded, served.session.input_shape)
        finally:
            service.decoding.release()
    served = service.choose(service.name, None, request.scope["request_id"])
    answer = await service.infer(served, served.session.from_bytes(pixels), request.receive, None)
    request.scope["answer"] = served.version, answer
    probabilities = softmax(answer.logits.astype(np.float64))
    (margin,), (shares,) = margins(probabilities), probabilities
    order = np.argsort(-shares, kind="stable")[:SHOWN]
    return as_json({
        "model_name": service.name, "model_version": served.version, "id": request.scope["request_id"],
        "label": served.labels[order[0]], "confidence": float(shares[order[0]]), "margin": float(margin),
        "low_margin": bool(margin < LOW_MARGIN), "size": size,
        "classes": [{"label": served.labels[at], "probability": float(shares[at])} for at in order],
    })  # fmt: skip


async def metrics(request: Request) -> Response:
    service = service_of(request)
    service.metrics.drifted(service.store.named)
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def described(request: Request) -> Response:
    return as_json(openapi.page(service_of(request)))
