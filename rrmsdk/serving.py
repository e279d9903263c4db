"""The verb that serves a bundle over HTTP. Needs no torch."""

from __future__ import annotations

import ipaddress
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrmsdk.errors import FieldError, MissingExtraError
from rrmsdk.opening import opened
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.serving import Serving
from rrmsdk.schema.value import parse

if TYPE_CHECKING:
    from rrmsdk.runtime.service import Service

_PACKAGES = ("starlette", "uvicorn", "httptools", "prometheus_client", "orjson", "PIL")


def serve(model: str | Path | Bundle | None = None, **options: Any) -> None:
    """Answer over HTTP until SIGTERM or Ctrl-C: Open Inference Protocol v2, POST /predict, /metrics and a page at `/`.

    The bundle needs the graph of that precision and input, as `rrmsdk.export` leaves it. It is checked and
    tried before anything is answered: hashes, the signature where RRMSDK_TRUST names keys, the graph's operators, the
    same logits in any batch and row, and on a GPU those of the CPU.

    Args:
        model: a bundle or a reference to one; None: one of `models` answers.
        options: the fields of `rrmsdk.Serving`, which says what each means: models, host, port, token_file, ...

    Raises:
        FieldError: an option that cannot be, a port that cannot be had, a public host without tokens.
        DataError: no bundle, or one that was never exported.
        IntegrityError: it is damaged, unsigned, or not what was checked when it was exported.
        MissingExtraError, and as `pull`.
    """
    _needs_server()
    from rrmsdk.runtime import server

    wanted = parse(Serving, options, "serve")
    with server.logs(wanted.quiet):
        service = prepared(model, wanted)
        server.until_stopped(service, server.listening(wanted.host, wanted.port), wanted.drain)


def prepared(model: str | Path | Bundle | None, wanted: Serving) -> Service:
    """What `serve` serves, loaded and tried. Errors are those of `serve`."""
    import rrmsdk
    from rrmsdk.runtime.access import Access, open_tokens
    from rrmsdk.runtime.served import Opening
    from rrmsdk.runtime.service import Limits, Service
    from rrmsdk.runtime.store import Store

    if model is None and wanted.models is None:
        raise FieldError("name what to serve: a bundle (rrmsdk serve runs/r50), a folder of versions (--models DIR)")
    tokens, admin = (None if at is None else open_tokens(at) for at in (wanted.token_file, wanted.admin_token_file))
    if tokens is None and not wanted.insecure and not _loopback(wanted.host):
        raise FieldError(
            f"host {wanted.host} is open to others, and no token is asked for. Give --token-file FILE "
            "(made by: openssl rand -hex 16 > FILE), or --insecure where something else keeps them out"
        )
    first = None if model is None else opened(model).path
    opening = Opening(wanted.provider, wanted.threads, wanted.max_batch, wanted.precision, wanted.input)
    store = Store(first, wanted.models, opening)
    served = store.begin()
    called = wanted.name or re.sub(r"[^A-Za-z0-9_.-]", "-", served.bundle.card.name)[:64]
    limits = Limits(wanted.max_batch, wanted.max_queue, wanted.timeout, wanted.max_body)
    return Service(called, rrmsdk.__version__, store, Access(tokens, admin), limits)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _needs_server() -> None:
    if any(find_spec(package) is None for package in _PACKAGES):
        raise MissingExtraError("serve", "rrmsdk.serve")
