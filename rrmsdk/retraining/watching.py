"""`rrmsdk schedule ui`: jobs and their runs over HTTP, as JSON and as a page. It only reads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from socket import socket
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route, Router

from rrmsdk.errors import FieldError, MismatchError, RrmError
from rrmsdk.retraining import page, record, schedule
from rrmsdk.runtime import server
from rrmsdk.runtime.access import Access, loopback
from rrmsdk.runtime.door import door

CONNECTIONS = 64  # at a time
HEAD = 10.0  # seconds in which the head of a request has to be here
LOG = logging.getLogger("rrmsdk.serve")


@dataclass(frozen=True)
class Watched:
    """What is shown, and to whom.

    jobs: a folder of job files; state: of all jobs' states.
    """

    jobs: Path
    state: Path | None
    access: Access


class App:
    """The routes behind the door: hosts, tokens, errors, and what every answer carries."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched
        job = "/api/jobs/{name}"
        routes = {
            "/": home, "/api/jobs": jobs, job: one_job, f"{job}/runs/{{run}}": one_run,
            f"{job}/objects/{{digest}}": one_object, f"{job}/objects/{{digest}}/file": one_file,
        }  # fmt: skip
        self._router = Router([Route(path, answer, methods=["GET"]) for path, answer in routes.items()])

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        scope["app"] = self

        async def answering(message: Any) -> None:
            if message["type"] == "http.response.start":
                _seal(MutableHeaders(raw=message["headers"]))
            await send(message)

        try:
            refused = self._refused(scope["path"], Headers(scope=scope))
            await (refused or self._router)(scope, receive, answering)
        except HTTPException as exc:
            said = {404: "there is nothing at this address", 405: "this server only reads: GET"}
            await _error(exc.status_code, said.get(exc.status_code, "refused"))(scope, receive, answering)
        except RrmError as exc:
            await _error(404 if isinstance(exc, MismatchError) else 503, str(exc))(scope, receive, answering)
        except Exception:
            LOG.exception("failed", extra={"fields": {"path": scope["path"]}})
            await _error(500, "the server failed; its log says how")(scope, receive, answering)

    def _refused(self, path: str, headers: Headers) -> Response | None:
        access = self.watched.access
        # Without tokens, what keeps others out is that only this machine asks. A stranger's page in a browser here
        # could, under a name of its own that leads here.
        if access.tokens is None and not loopback(_host(headers)):
            return _error(403, "without tokens this server answers to localhost alone: give --token-file")
        if path != "/" and not access.may_ask(headers.get("authorization")):
            wants = "this server wants a token: Authorization: Bearer TOKEN"
            return JSONResponse({"error": wants}, 401, {"www-authenticate": "Bearer"})
        return None


def home(request: Request) -> Response:
    return HTMLResponse(page.HTML, headers={"content-security-policy": page.POLICY})


# Functions without `async` run in threads: a slow disk holds up nobody else.


def jobs(request: Request) -> Response:
    watched = _watched(request)
    return JSONResponse(record.overview(watched.jobs, watched.state, datetime.now(UTC)))


def one_job(request: Request) -> Response:
    watched = _watched(request)
    return JSONResponse(record.job(watched.jobs, watched.state, request.path_params["name"], datetime.now(UTC)))


def one_run(request: Request) -> Response:
    watched, given = _watched(request), request.path_params
    return JSONResponse(record.run(watched.jobs, watched.state, given["name"], schedule.number_of(given["run"])))


def one_object(request: Request) -> Response:
    watched, given = _watched(request), request.path_params
    folder = record.folder_of(watched.jobs, watched.state, given["name"])
    return JSONResponse(record.artefact(folder, given["digest"]))


def one_file(request: Request) -> Response:
    watched, given = _watched(request), request.path_params
    folder = record.folder_of(watched.jobs, watched.state, given["name"])
    path = record.file_of(folder, given["digest"], request.query_params.get("name", ""))
    if path is None:
        raise HTTPException(404)
    # Never as a page of ours, whatever is in it.
    name = path.name if path.name != given["digest"] else f"{given['digest'][:16]}.json"
    return FileResponse(path, media_type="application/octet-stream", filename=name)


def watch(
    jobs: Path, *, state: Path | None = None, host: str = "127.0.0.1", port: int = 8081,
    token_file: Path | None = None,
) -> None:  # fmt: skip
    """Show jobs until SIGTERM or Ctrl-C.

    Raises:
        FieldError: a port that cannot be had, a public host without tokens, a file of tokens that holds none.
    """
    from rrmsdk.runtime.access import open_tokens

    tokens = None if token_file is None else open_tokens(token_file)
    if tokens is None and not loopback(host):
        raise FieldError(
            f"host {host} is open to others, and no token is asked for. Give --token-file FILE "
            "(made by: openssl rand -hex 16 > FILE)"
        )
    with server.logs(quiet=False), server.stopping() as stops:
        with showing(Watched(jobs, state, Access(tokens)), server.listening(host, port), stops) as url:
            server.say("showing", url=url, jobs=str(jobs))
            server.stopped(stops)
        server.say("stopped")


@contextmanager
def showing(watched: Watched, sock: socket, ended: Any = None) -> Iterator[str]:
    """The page answers at the address that is given back."""
    config = uvicorn.Config(
        App(watched), http=door(HEAD, CONNECTIONS), ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=server.KEEP_ALIVE, timeout_graceful_shutdown=1,
    )  # fmt: skip
    with server.answering(config, sock, ended) as url:
        yield url


def _host(headers: Headers) -> str:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:  # an address in brackets that is none
        return ""


def _watched(request: Request) -> Watched:
    return request.app.watched


def _error(status: int, says: str) -> Response:
    return JSONResponse({"error": says}, status)


def _seal(headers: MutableHeaders) -> None:
    headers["x-content-type-options"] = "nosniff"
    headers["referrer-policy"] = "no-referrer"
    headers["cache-control"] = "no-store"
    headers.setdefault("content-security-policy", "default-src 'none'; frame-ancestors 'none'")
