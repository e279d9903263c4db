"""A socket, the application behind it in a thread of its own, and an orderly end."""

from __future__ import annotations

import gc
import logging
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from math import inf
from types import FrameType

import orjson
import uvicorn

from rrmsdk.errors import FieldError, RrmError
from rrmsdk.runtime.app import App
from rrmsdk.runtime.door import door
from rrmsdk.runtime.served import warn_of
from rrmsdk.runtime.service import Service
from rrmsdk.runtime.tls import Tls

try:
    import resource
except ImportError:  # Windows
    resource = None

CONNECTIONS = 1 << 14  # at a time, where the system lets a process have as many
FILES = 128  # descriptors that are left to everything else
BACKLOG = 1024  # connections that wait to be taken
KEEP_ALIVE = 30  # seconds that an idle connection is kept


def listening(host: str, port: int) -> socket.socket:
    """A socket that connections can wait at. Raises FieldError: the port or the host cannot be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind)
    except (OSError, UnicodeError) as exc:
        raise FieldError(f"host '{host}' is none of this machine's: {exc}") from exc
    try:
        if sys.platform != "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except (OSError, OverflowError) as exc:
        sock.close()
        why = getattr(exc, "strerror", None) or exc
        raise FieldError(
            f"port {port} on {host} cannot be had: {why}. Take another: --port 0 finds a free one"
        ) from exc
    return sock


@contextmanager
def running(
    service: Service,
    sock: socket.socket,
    ended: queue.SimpleQueue[int] | None = None,
    *,
    tls: Tls | None = None,
    grpc: socket.socket | None = None,
) -> Iterator[str]:
    """The service answers at the address that is given back; at the end what is being answered is finished.

    Args:
        ended: is told 0 when the server ends for a reason of its own.
        tls: None: in the clear.
        grpc: a socket of the address at which it answers over gRPC too; None: nowhere.
    """
    beside = nullcontext() if grpc is None else _over_grpc(service, grpc, tls)
    cert, key = (None, None) if tls is None else (tls.cert, tls.key)
    config = uvicorn.Config(
        App(service, beside), http=door(service.limits.timeout, _connections()), ws="none", lifespan="on",
        log_config=None, access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE,
        backlog=BACKLOG, timeout_graceful_shutdown=int(service.limits.timeout) + 1, ssl_certfile=cert,
        ssl_keyfile=key,
    )  # fmt: skip
    with answering(config, sock, ended) as url:
        yield url


def _connections() -> int:
    files = -1 if resource is None else resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return CONNECTIONS if files < 0 else min(CONNECTIONS, max(files - FILES, files // 2))  # -1: no limit


def _more_files() -> None:
    """As many descriptors as the system lets this process have; most systems begin with 1,024."""
    if resource is not None:
        now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = CONNECTIONS + FILES if most < 0 else min(most, CONNECTIONS + FILES)
        if 0 <= now < wanted:
            with suppress(ValueError, OSError):  # macOS promises more than it gives
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


@contextmanager
def answering(
    config: uvicorn.Config, sock: socket.socket, ended: queue.SimpleQueue[int] | None = None
) -> Iterator[str]:
    """An application answers at the address that is given back. `ended`: as for `running`."""
    server = uvicorn.Server(config)

    def run() -> None:
        try:
            server.run([sock])
        finally:
            if ended is not None:
                ended.put(0)

    thread = threading.Thread(target=run, name="rrmsdk-server")
    thread.start()
    try:
        while not server.started:  # uvicorn has no other sign
            thread.join(0.01)
            if not thread.is_alive():
                raise FieldError("the server could not begin; its log says why")
        yield f"{'https' if config.is_ssl else 'http'}://{address(sock)}"
    finally:
        server.should_exit = True
        thread.join()
        sock.close()


def _over_grpc(service: Service, sock: socket.socket, tls: Tls | None) -> AbstractAsyncContextManager[None]:
    from rrmsdk.runtime import rpc

    at = address(sock)
    sock.close()  # gRPC opens its own sockets; this one has shown that the port can be had
    return rpc.answering(service, at, tls)


def address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def until_stopped(
    service: Service, sock: socket.socket, drain: float, tls: Tls | None = None, grpc: socket.socket | None = None
) -> None:
    """Serve until SIGTERM or SIGINT; then say 'not ready' for `drain` seconds, finish, end. A second one hurries.

    Raises:
        RrmError: it ended by itself.
    """
    _more_files()
    with stopping() as stops:
        at = {} if grpc is None else {"grpc": address(grpc)}
        with running(service, sock, stops, tls=tls, grpc=grpc) as url:
            gc.collect()
            gc.freeze()  # what was loaded stays; to look it through again and again would hold requests up
            say("serving", url=url, **at, model=service.name, version=service.version)
            for served in service.store.loaded:
                warn_of(served)
            asked = stopped(stops)
            if asked:
                service.stopping = True
                say("stopping", drain=drain)
                stopped(stops, drain)
        if not asked:  # whoever starts it again where it failed, sees that it did
            raise RrmError("the server ended though nobody stopped it; its log says why")
        say("stopped")


def stopped(stops: queue.SimpleQueue[int], seconds: float = inf) -> int | None:
    """The next that is put there; None: nothing was, for so many seconds.

    Looks up every second: a signal that arrives in the moment before the main thread falls asleep does not wake it, and
    Python's handler runs in that thread alone.
    """
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        with suppress(queue.Empty):
            return stops.get(timeout=min(1.0, left))
    return None


@contextmanager
def stopping() -> Iterator[queue.SimpleQueue[int]]:
    """Where SIGTERM and SIGINT are put meanwhile."""
    stops: queue.SimpleQueue[int] = queue.SimpleQueue()  # the one queue that a signal handler may put into

    def stop(number: int, _: FrameType | None) -> None:
        stops.put(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(what: str, **fields: object) -> None:
    logging.getLogger("rrmsdk.serve").info(what, extra={"fields": fields})


class _Lines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            told["trace"] = self.formatException(record.exc_info)
        return orjson.dumps(told, default=str).decode()


@contextmanager
def logs(quiet: bool) -> Iterator[None]:
    """On stderr, as JSON. quiet: warnings and errors alone."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    loggers = [logging.getLogger(name) for name in ("rrmsdk.serve", "uvicorn.error", "opentelemetry")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
    if not quiet:
        loggers[0].setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
            logger.propagate = True
