"""The same service over gRPC: the same batcher, tokens, limits, counts and logs as over HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from rrmsdk.runtime import app, messages, protocol, tensors, tracing
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.service import Service
from rrmsdk.runtime.tls import Tls

OPEN = ("ServerLive", "ServerReady")  # to everybody, as over HTTP
CALLS = 1024  # at a time; more are answered RESOURCE_EXHAUSTED
IDLE = 300  # seconds after which a connection without calls is closed; clients open it again by themselves
LOG = logging.getLogger("rrmsdk.serve")
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT, 401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND, 409: grpc.StatusCode.FAILED_PRECONDITION, 500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.RESOURCE_EXHAUSTED, 504: grpc.StatusCode.DEADLINE_EXCEEDED,
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """What comes beside a request. patience: seconds that the client still waits; None: it has not said.

    found: what was found out on the way, for the span.
    """

    authorization: str | None
    request_id: str
    patience: float | None
    found: dict[str, Any] = field(default_factory=dict)


@asynccontextmanager
async def answering(service: Service, address: str, tls: Tls | None) -> AsyncIterator[None]:
    """The service answers at `address` too, in this event loop; at the end what is being answered is finished."""
    timeout = service.limits.timeout
    server = grpc.aio.server(
        maximum_concurrent_rpcs=CALLS,
        options=[
            ("grpc.max_receive_message_length", service.most_bytes(service.store.find(None))),
            ("grpc.server_handshake_timeout_ms", int(1000 * timeout)),
            ("grpc.max_connection_idle_ms", 1000 * IDLE),
            ("grpc.so_reuseport", 0),  # otherwise another process could share the port
        ],
    )
    server.add_generic_rpc_handlers((_handler(service),))
    if tls is None:
        server.add_insecure_port(address)
    else:
        pair = (tls.key.read_bytes(), tls.cert.read_bytes())
        server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    await server.start()
    try:
        yield
    finally:
        await server.stop(timeout + 1)


def _handler(service: Service) -> grpc.GenericRpcHandler:
    """Of bytes: a request that is none is refused in words, and counted."""
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(
            partial(_answer, service, method.name, method.input_type.full_name)
        )
        for method in messages.SERVICE.methods
    }
    return grpc.method_handlers_generic_handler(messages.SERVICE.full_name, handlers)


async def _answer(service: Service, name: str, takes: str, content: bytes, context: grpc.aio.ServicerContext) -> bytes:
    began, status = time.perf_counter(), app.CLOSED
    about = {key: str(text) for key, text in context.invocation_metadata() or ()}
    request_id = app.request_id(about.get("x-request-id", ""))
    call = Call(about.get("authorization"), request_id, context.time_remaining())
    try:
        outcome = await tried(service, name, takes, content, call)
        status = outcome.status if isinstance(outcome, Refused) else 200
    finally:
        _tell(service, name, call, about, status, time.perf_counter() - began, context.peer())
    about_answer = (("x-request-id", call.request_id),)
    if isinstance(outcome, Refused):
        await context.abort(_CODES[outcome.status], outcome.says, about_answer + _retry(outcome))
    context.set_trailing_metadata(about_answer)
    return outcome


async def tried(service: Service, name: str, takes: str, content: bytes, call: Call) -> bytes | Refused:
    """The answer to the bytes of a `takes`, sent to the call `name`; 500 and a line in the log where that failed."""
    try:
        if name not in OPEN and not service.access.may_ask(call.authorization):
            raise Refused(401, "this server wants a token: the metadata authorization: Bearer TOKEN")
        asked = messages.parsed(takes, content)
        told = await _CALLS[name](service, asked, call)
        return told.SerializeToString()
    except Refused as exc:
        return exc
    except Exception:
        LOG.exception("failed", extra={"fields": {"request": call.request_id, "path": name}})
        return Refused(500, f"the server failed; its log says how, under request {call.request_id}")


def _retry(refused: Refused) -> tuple[tuple[str, str | bytes], ...]:
    """When to ask again: for clients that retry by themselves, and for those that read google.rpc.RetryInfo."""
    if refused.retry_after is None:
        return ()
    status = messages.refusal(_CODES[refused.status].value[0], refused.says, refused.retry_after)
    return ("grpc-retry-pushback-ms", str(1000 * refused.retry_after)), ("grpc-status-details-bin", status)


def _tell(
    service: Service, name: str, call: Call, metadata: Mapping[str, str], status: int, seconds: float, peer: str
) -> None:
    """As over HTTP, whose statuses stand for gRPC's: one alert then watches both."""
    service.metrics.requests.labels(name, str(status)).inc()
    service.metrics.seconds.labels(name).observe(seconds)
    if status == 200 and name in OPEN:
        return
    path, trace = f"{messages.SERVICE.full_name}/{name}", {}
    if service.spans is not None:
        code = {200: grpc.StatusCode.OK, app.CLOSED: grpc.StatusCode.CANCELLED} | _CODES
        told = {
            "rpc.system": "grpc", "rpc.service": messages.SERVICE.full_name, "rpc.method": name,
            "rpc.grpc.status_code": code[status].value[0], "rrmsdk.request": call.request_id,
            **tracing.about_answer(call.found),
        }  # fmt: skip
        trace = {"trace": service.spans.tell(path, metadata, status, seconds, told)}
    LOG.log(logging.INFO if status < 500 else logging.WARNING, "request", extra={"fields": {
        "request": call.request_id, "method": "gRPC", "path": f"/{path}", "status": status,
        "ms": round(1000 * seconds, 3), "client": _host(peer), **trace,
    }})  # fmt: skip


def _host(peer: str) -> str:
    """Of "ipv4:127.0.0.1:5" or "ipv6:%5B::1%5D:5"."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


# The calls: a message of the service's, and one back.


async def _server_live(service: Service, asked: Any, call: Call) -> Any:
    return messages.made("inference.ServerLiveResponse", {"live": True})


async def _server_ready(service: Service, asked: Any, call: Call) -> Any:
    return messages.made("inference.ServerReadyResponse", {"ready": service.ready})


async def _model_ready(service: Service, asked: Any, call: Call) -> Any:
    try:
        service.find(asked.name, asked.version or None)
    except Refused:
        return messages.made("inference.ModelReadyResponse", {"ready": False})
    return messages.made("inference.ModelReadyResponse", {"ready": True})


async def _server_metadata(service: Service, asked: Any, call: Call) -> Any:
    return messages.made("inference.ServerMetadataResponse", protocol.told_server(service))


async def _model_metadata(service: Service, asked: Any, call: Call) -> Any:
    served = service.find(asked.name, asked.version or None)
    return messages.made("inference.ModelMetadataResponse", protocol.told_metadata(service, served))


async def _model_config(service: Service, asked: Any, call: Call) -> Any:
    served = service.find(asked.name, asked.version or None)
    return messages.made("inference.ModelConfigResponse", {"config": protocol.told_config(service, served)})


async def _model_statistics(service: Service, asked: Any, call: Call) -> Any:
    told = protocol.told_statistics(service, asked.name or None, asked.version or None)
    return messages.made("inference.ModelStatisticsResponse", told)


async def _model_infer(service: Service, asked: Any, call: Call) -> Any:
    served = service.find(asked.model_name, asked.model_version or None)
    try:
        wanted = messages.read(asked, served.session, service.limits.batch)
    except tensors.BadPixels:
        service.metrics.bad.inc()
        raise
    patience = min((one for one in (wanted.timeout, call.patience) if one is not None), default=None)
    served = service.choose(asked.model_name, asked.model_version or None, wanted.id or call.request_id)
    answer = await service.infer(served, wanted.pixels, _never, patience)
    call.found["answer"] = served.version, answer
    tensor = tensors.answered(wanted, answer.logits, served.session.ends[1], served.labels)
    return messages.write(wanted, tensor, service.name, served.version)


async def _never() -> Any:
    """gRPC cancels the call of a client that leaves: there is no message of it to wait for."""
    await asyncio.get_running_loop().create_future()


async def _repository_index(service: Service, asked: Any, call: Call) -> Any:
    protocol.administered(service, call.authorization, service.name)
    return messages.made("inference.RepositoryIndexResponse", {"models": protocol.told_index(service, asked.ready)})


async def _repository_load(service: Service, asked: Any, call: Call) -> Any:
    protocol.administered(service, call.authorization, asked.model_name)
    await protocol.loaded(service, protocol.checked_parameters(messages.plain(asked.parameters)))
    return messages.made("inference.RepositoryModelLoadResponse", {})


async def _repository_unload(service: Service, asked: Any, call: Call) -> Any:
    protocol.administered(service, call.authorization, asked.model_name)
    await protocol.unloaded(service, protocol.checked_parameters(messages.plain(asked.parameters)))
    return messages.made("inference.RepositoryModelUnloadResponse", {})


_CALLS: dict[str, Callable[[Service, Any, Call], Coroutine[Any, Any, Any]]] = {
    "ServerLive": _server_live,
    "ServerReady": _server_ready,
    "ModelReady": _model_ready,
    "ServerMetadata": _server_metadata,
    "ModelMetadata": _model_metadata,
    "ModelInfer": _model_infer,
    "ModelConfig": _model_config,
    "ModelStatistics": _model_statistics,
    "RepositoryIndex": _repository_index,
    "RepositoryModelLoad": _repository_load,
    "RepositoryModelUnload": _repository_unload,
}
