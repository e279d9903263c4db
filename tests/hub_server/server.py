"""The server itself: connections, troubles, and which route a request takes."""

from __future__ import annotations

import json
import secrets
import struct
import threading
from collections.abc import Callable
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SO_LINGER, SOL_SOCKET
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests import loopback
from tests.hub_server.routes import find
from tests.hub_server.storage import LFS_ENDINGS, Blob, Commit, Repo
from tests.hub_server.wire import Answer, Ask, Cut, Refuse, Refused, Trickle, Trouble


class HubServer(ThreadingHTTPServer):
    """Use as a context manager; `endpoint` is its address, `elsewhere` the same under another host name.

    token: what a client must show to write, and to read what is private. `readers` may read but not write.
    trouble: asked for each request (method, raw path); None: none.
    served: bytes sent in place of the true ones, by file name; names and hashes stay as promised.
    before_commit: called when a commit arrives, before it is looked at.
    store: where LFS files go and come from, `endpoint` or `elsewhere`; None: uploads as `endpoint`, downloads direct.
    part: LFS files larger than so many bytes are uploaded in parts of that size; None: never.
    page: so many rows of a list at once; None: all.
    etag: what every file's ETag says in place of the true one; None: the true one.
    sizes: whether the list of a repository's files says how large they are.
    requests: (method, raw path, authorization) of every request so far; `heads` their headers, in the same order.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.storage: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.token = "hf_writer"
        self.readers = {"hf_reader"}
        self.trouble: Callable[[str, str], Trouble | None] = lambda method, path: None
        self.served: dict[str, bytes] = {}
        self.before_commit: Callable[[], None] = lambda: None
        self.etag: str | None = None
        self.sizes = True
        self.store: str | None = None
        self.part: int | None = None
        self.page: int | None = None
        self.secret = secrets.token_bytes(16)
        self.requests: list[tuple[str, str, str | None]] = []
        self.heads: list[Message] = []
        self.lock = threading.RLock()
        self.stopping = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def elsewhere(self) -> str:
        return f"http://localhost:{self.server_port}"

    def put(self, repo: str, files: dict[str, bytes], *, kind: str = "models", private: bool = False) -> Commit:
        """A commit on `main`, without a client."""
        found = self.repos.setdefault(f"{kind}/{repo}", Repo(repo, private))
        blobs = {name: Blob(content, name.endswith(LFS_ENDINGS)) for name, content in files.items()}
        self.storage.update({blob.sha256: blob.content for blob in blobs.values() if blob.lfs})
        return found.add("main", "put", blobs)

    def asked(self, part: str, method: str | None = None) -> int:
        """How many requests had `part` in their path."""
        return sum(part in path and method in (None, said) for said, path, _ in self.requests)

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # without the polite end of the base class, which would hide a reset

    __enter__, __exit__ = loopback.begin, loopback.end


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet: otherwise the client waits 40 ms for the second

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        server, authorization = self.server, self.headers.get("Authorization")
        with server.lock:
            server.requests.append((self.command, self.path, authorization))
            server.heads.append(self.headers)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        trouble = server.trouble(self.command, self.path)
        if trouble == "stall":
            server.stopping.wait()
        if trouble in ("stall", "unheard"):
            self.close_connection = True
            return
        answer = _in_place_of_an_answer(trouble) or self._answer(body, (authorization or "").removeprefix("Bearer "))
        if trouble == "lost":
            self.close_connection = True
            return
        try:
            self._send(answer, trouble)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # a client that was killed

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _answer(self, body: bytes, who: str) -> Answer:
        split = urlsplit(self.path)
        ask = Ask(self.server, self.command, split.path, parse_qs(split.query), self.headers, body, who)
        try:
            with self.server.lock:
                route, found = find(self.command, split.path)
                return route(ask, **found)
        except Refused as refused:
            return refused.answer

    def _send(self, answer: Answer, trouble: Trouble | None) -> None:
        raw = isinstance(answer.body, bytes)
        content = answer.body if raw else json.dumps(answer.body).encode() if answer.body is not None else b""
        headers = {"Content-Type": "application/octet-stream" if raw else "application/json"} | dict(answer.headers)
        headers.setdefault("Content-Length", str(len(content)))
        self.send_response(answer.status)
        for name, said in headers.items():
            self.send_header(name, said)
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(content, trouble)

    def _send_body(self, content: bytes, trouble: Trouble | None) -> None:
        if isinstance(trouble, Trickle):
            size = max(1, -(-len(content) // trouble.pieces))
            for start in range(0, len(content), size):
                self.wfile.write(content[start : start + size])
                self.wfile.flush()
                self.server.stopping.wait(trouble.pause)
        elif trouble in ("cut", "reset") or isinstance(trouble, Cut):
            self.wfile.write(content[: trouble.after if isinstance(trouble, Cut) else len(content) // 2])
            self.wfile.flush()
            if trouble == "reset":
                self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        else:
            self.wfile.write(content)


def _in_place_of_an_answer(trouble: Trouble | None) -> Answer | None:
    if isinstance(trouble, int):
        trouble = Refuse(trouble)
    if isinstance(trouble, Refuse):
        return Refused(trouble.status, f"trouble {trouble.status}", **trouble.headers).answer
    if trouble == "list":
        return Answer(b'["in maintenance"]')
    return Answer(b"<html>please log in to the wireless network</html>") if trouble == "html" else None
