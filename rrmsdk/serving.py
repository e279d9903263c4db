"""The verb that serves a bundle over HTTP and gRPC. Needs no torch."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrmsdk.errors import DataError, FieldError, MissingExtraError, RrmError
from rrmsdk.opening import opened
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.ref import Ref
from rrmsdk.schema.serving import Serving
from rrmsdk.schema.value import parse

if TYPE_CHECKING:
    from rrmsdk.runtime.served import Served
    from rrmsdk.runtime.service import Service
    from rrmsdk.runtime.source import Source
    from rrmsdk.runtime.store import Store

_PACKAGES = ("starlette", "uvicorn", "httptools", "prometheus_client", "orjson", "PIL")


def serve(model: str | Path | Bundle | None = None, **options: Any) -> None:
    """Answer over HTTP until SIGTERM or Ctrl-C: Open Inference Protocol v2, POST /predict, /metrics and a page at `/`.

    With `grpc_port` the protocol is spoken over gRPC too.

    The bundle needs the graph of that precision and input, as `rrmsdk.export` leaves it. It is checked and tried before
    anything is answered: hashes, the signature where RRMSDK_TRUST names keys, the graph's operators, the same logits in
    any batch and row, and on a GPU those of the CPU.

    Args:
        model: a bundle or a reference to one; None: one of `models` answers.
        options: the fields of `rrmsdk.Serving`, which says what each means: models, host, port, token_file, ...

    Raises:
        FieldError: an option that cannot be, a port that cannot be had, a public host without tokens, a certificate
            that does not fit its key.
        DataError: no bundle, or one that was never exported.
        IntegrityError: it is damaged, unsigned, or not what was checked when it was exported.
        MissingExtraError, and as `pull`.
    """
    _needs(_PACKAGES, "serve", "rrmsdk.serve")
    from rrmsdk.runtime import server
    from rrmsdk.runtime.tls import open_tls

    wanted = parse(Serving, options, "serve")
    if wanted.grpc_port is not None:
        _needs(("google", "google.protobuf", "grpc"), "grpc", "serving over gRPC (grpc_port)")
    tls = open_tls(wanted.tls_cert, wanted.tls_key)
    with server.logs(wanted.quiet):
        service = prepared(model, wanted)
        sock = server.listening(wanted.host, wanted.port)
        grpc = None if wanted.grpc_port is None else server.listening(wanted.host, wanted.grpc_port)
        server.until_stopped(service, sock, wanted.drain, tls, grpc)


def prepared(model: str | Path | Bundle | None, wanted: Serving) -> Service:
    """What `serve` serves, loaded and tried. Errors are those of `serve`."""
    import rrmsdk
    from rrmsdk.runtime.access import Access, loopback, open_tokens
    from rrmsdk.runtime.served import Opening
    from rrmsdk.runtime.service import Limits, Service
    from rrmsdk.runtime.store import Store
    from rrmsdk.runtime.watch import Watch

    models = _models(wanted)
    if model is None and models is None:
        raise FieldError("name what to serve: a bundle (rrmsdk serve runs/r50), a folder of versions (--models DIR)")
    tokens, admin = (None if at is None else open_tokens(at) for at in (wanted.token_file, wanted.admin_token_file))
    if tokens is None and not wanted.insecure and not loopback(wanted.host):
        raise FieldError(
            f"host {wanted.host} is open to others, and no token is asked for. Give --token-file FILE "
            "(made by: openssl rand -hex 16 > FILE), or --insecure where something else keeps them out"
        )
    first = None if model is None else opened(model).path
    opening = Opening(wanted.provider, wanted.threads, wanted.max_batch, wanted.window, wanted.precision, wanted.input)
    store = Store(first, models, opening)
    source = None if wanted.watch is None or models is None else _source(wanted, store, models)
    served = store.begin() if source is None or model is not None else _begun(store, source)
    called = wanted.name or re.sub(r"[^A-Za-z0-9_.-]", "-", served.bundle.card.name)[:64]
    limits = Limits(wanted.max_batch, wanted.max_queue, wanted.timeout, wanted.max_body)
    service = Service(called, rrmsdk.__version__, store, Access(tokens, admin), limits)
    service.watch = None if source is None else Watch(source, wanted.every)
    _begin_trials(service, wanted)
    return service


def _models(wanted: Serving) -> Path | None:
    """The folder of versions. Raises FieldError."""
    if wanted.watch is None:
        return wanted.models
    if not _on_hub(wanted.watch):
        folder = Path(str(wanted.watch).removeprefix("path:")).expanduser()
        if wanted.models is not None and wanted.models.expanduser().resolve() != folder.resolve():
            raise FieldError(f"the folder of versions is {wanted.models} or {folder}, not both. Leave --models out")
        return folder
    if wanted.models is None:
        raise FieldError(f"give a folder for the versions that come from {wanted.watch}: --models DIR")
    return wanted.models


def _on_hub(watch: str | Path) -> bool:
    return isinstance(watch, str) and watch.startswith("hub:")


def _source(wanted: Serving, store: Store, models: Path) -> Source:
    """Where new versions come from. Raises RefError, MismatchError, SaveError."""
    from rrmsdk.runtime.source import Folder

    if wanted.watch is None or not _on_hub(wanted.watch):
        return Folder(store, models)
    from huggingface_hub.utils import disable_progress_bars

    from rrmsdk.hub.following import follow

    disable_progress_bars()  # what is logged are lines of JSON
    return follow(Ref.parse(str(wanted.watch)), models, keep=wanted.keep)


def _begun(store: Store, source: Source) -> Served:
    """The best version that can be served, so that a server comes back though the last one is bad or the Hub is away.

    Raises:
        As the version that failed last; what is pinned has to be there.
    """
    if store.pinned is not None:
        return store.begin()
    failed: RrmError | None = None
    for version in source.at_first():
        try:
            return store.begin(version)
        except RrmError as exc:
            told = {"version": version, "reason": str(exc)}
            logging.getLogger("rrmsdk.serve").warning("not served", extra={"fields": told})
            failed = exc
    if failed is not None:
        raise failed
    return store.begin()  # which says that there is none


def _begin_trials(service: Service, wanted: Serving) -> None:
    """Raises DataError, FieldError: there is no such version, or it cannot be served."""
    from rrmsdk.runtime.refused import Refused

    try:
        if wanted.canary is not None:
            version, percent = _canary(wanted.canary)
            service.try_canary(service.store.begin_beside("canary", version), percent)
        if wanted.shadow is not None:
            service.try_shadow(service.store.begin_beside("shadow", wanted.shadow))
    except Refused as exc:
        raise DataError(f"no trial: {exc.__cause__ or exc.says}") from exc


def _canary(text: str) -> tuple[str, float]:
    """Raises FieldError."""
    version, _, percent = text.rpartition("=")
    try:
        share = float(percent)
    except ValueError:
        share = 0.0
    if not version or not 0 < share <= 100:
        raise FieldError(f"canary = '{text}': VERSION=PERCENT is wanted, such as 8=5 for 5 % of the requests")
    return version, share


def _needs(packages: Sequence[str], extra: str, what: str) -> None:
    """Packages in an order in which each may be inside one before it."""
    if any(find_spec(package) is None for package in packages):
        raise MissingExtraError(extra, what)
