"""The verb that serves a bundle over HTTP. Needs no torch."""

from __future__ import annotations

import ipaddress
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rrmsdk.errors import FieldError, MissingExtraError
from rrmsdk.opening import opened
from rrmsdk.schema.bundle import Bundle

if TYPE_CHECKING:
    from rrmsdk.runtime.service import Service

_PACKAGES = ("starlette", "uvicorn", "httptools", "prometheus_client", "orjson", "PIL")


def serve(
    model: str | Path | Bundle | None = None,
    *,
    models: str | Path | None = None,
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: str | Path | None = None,
    admin_token_file: str | Path | None = None,
    insecure: bool = False,
    provider: str = "cpu",
    threads: int | None = None,
    max_batch: int = 64,
    max_queue: int = 1024,
    timeout: float = 10.0,
    max_body: int | None = None,
    drain: float = 2.0,
    quiet: bool = False,
) -> None:
    """Answer over HTTP until SIGTERM or Ctrl-C: Open Inference Protocol v2, POST /predict, /metrics and a page at `/`.

    The bundle needs `onnx/model.onnx`, as `rrmsdk.export` leaves it. It is checked and tried before anything is
    answered: hashes, the signature where RRMSDK_TRUST names keys, the graph's operators, the same logits at any batch.

    Args:
        model: a bundle or a reference to one; None: one of `models` answers.
        models: a folder of versions to change between while it runs, each a bundle: `DIR/VERSION/`.
        name: of the model in addresses; None: that in its card.
        port: 0: a free one, which the first line of the log tells.
        token_file: tokens, one a line, one of which clients have to show. The file may change meanwhile.
        admin_token_file: the same for those who may change which version answers; None: nobody may.
        insecure: listen beyond this machine without tokens.
        provider: cpu, cuda or tensorrt.
        threads: that work on one batch; None: as many as there are cores.
        max_batch, max_queue: images; a request has at most `max_batch`, and is answered 503 where the queue is full.
        timeout: seconds after which a request is answered 504.
        max_body: bytes of an infer request; None: what `max_batch` images take as JSON, at most 32 MB.
        drain: seconds between telling 'not ready' and refusing connections, once it is to stop.
        quiet: no line for each request.

    Raises:
        FieldError: an option that cannot be, a port that cannot be had, a public host without tokens.
        DataError: no bundle, or one that was never exported.
        IntegrityError: it is damaged, unsigned, or not what was checked when it was exported.
        MissingExtraError, and as `pull`.
    """
    _needs_server()
    from rrmsdk.runtime import server

    with server.logs(quiet):
        service = prepared(
            model, models=models, name=name, host=host, token_file=token_file, admin_token_file=admin_token_file,
            insecure=insecure, provider=provider, threads=threads, max_batch=max_batch, max_queue=max_queue,
            timeout=timeout, max_body=max_body,
        )  # fmt: skip
        if drain < 0:
            raise FieldError(f"drain = {drain}: seconds, 0 or more")
        server.until_stopped(service, server.listening(host, port), drain)


def prepared(
    model: str | Path | Bundle | None,
    *,
    models: str | Path | None = None,
    name: str | None = None,
    host: str = "127.0.0.1",
    token_file: str | Path | None = None,
    admin_token_file: str | Path | None = None,
    insecure: bool = False,
    provider: str = "cpu",
    threads: int | None = None,
    max_batch: int = 64,
    max_queue: int = 1024,
    timeout: float = 10.0,
    max_body: int | None = None,
) -> Service:
    """What `serve` serves, loaded and tried. Arguments and errors are those of `serve`."""
    import rrmsdk
    from rrmsdk.runtime.access import Access, open_tokens
    from rrmsdk.runtime.served import Opening
    from rrmsdk.runtime.service import Limits, Service
    from rrmsdk.runtime.store import Store

    for option, given in (("max_batch", max_batch), ("max_queue", max_queue), ("timeout", timeout)):
        if not given > 0:
            raise FieldError(f"{option} = {given}: above 0")
    for option, given in (("threads", threads), ("max_body", max_body)):
        if given is not None and given < 1:
            raise FieldError(f"{option} = {given}: at least 1")
    if model is None and models is None:
        raise FieldError("name what to serve: a bundle (rrmsdk serve runs/r50), a folder of versions (--models DIR)")
    if name is not None and not re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII):
        raise FieldError(f"name = '{name}': 1 to 64 letters, digits, '.', '_' and '-'")
    tokens, admin = (None if at is None else open_tokens(Path(at)) for at in (token_file, admin_token_file))
    if tokens is None and not insecure and not _loopback(host):
        raise FieldError(
            f"host {host} is open to others, and no token is asked for. Give --token-file FILE "
            "(made by: openssl rand -hex 16 > FILE), or --insecure where something else keeps them out"
        )
    first = None if model is None else opened(model).path
    store = Store(first, None if models is None else Path(models), Opening(_provider(provider), threads, max_batch))
    served = store.begin()
    called = name or re.sub(r"[^A-Za-z0-9_.-]", "-", served.bundle.card.name)[:64]
    return Service(
        called, rrmsdk.__version__, store, Access(tokens, admin), Limits(max_batch, max_queue, timeout, max_body)
    )


def _provider(text: str):
    if text not in ("cpu", "cuda", "tensorrt"):
        raise FieldError(f"unknown provider '{text}'. Known: cpu, cuda, tensorrt")
    return text


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _needs_server() -> None:
    if any(find_spec(package) is None for package in _PACKAGES):
        raise MissingExtraError("serve", "rrmsdk.serve")
