"""A model server on 127.0.0.1 that speaks the Open Inference Protocol v2 (REST, JSON), a real onnxruntime behind it.

It stands for Triton or KServe, which tests cannot start, with the troubles that networks and servers have.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

from tests import loopback

# What may go wrong with one request: a status, or what the names say.
Trouble = int | Literal["close", "cut", "stall", "html", "shape", "nan", "words", "swap", "repeat", "no http"]


class OipServer(ThreadingHTTPServer):
    """Use as a context manager; `url` is the address of its one model, `digits`.

    token: what a client must show; None: nothing.
    trouble: asked for each request (its number from 0, its path); None: none.
    elsewhere: where redirects lead.
    about: put over the metadata.
    requests: (path, authorization) of every request so far; `images` how many each inference held; `clients` from
        which connections they came.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, onnx: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
        self.token: str | None = None
        self.trouble: Callable[[int, str], Trouble | None] = lambda number, path: None
        self.elsewhere = ""
        self.about: dict[str, Any] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.images: list[int] = []
        self.clients: set[tuple[str, int]] = set()
        self.stopping = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v2/models/digits"

    __enter__, __exit__ = loopback.begin, loopback.end


class _Handler(BaseHTTPRequestHandler):
    server: OipServer
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet: otherwise the client waits 40 ms for the second

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve(self._metadata)

    def do_POST(self) -> None:
        self._serve(self._inferred)

    def _serve(self, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        server, shown = self.server, self.headers.get("Authorization")
        number = len(server.requests)
        server.requests.append((self.path, shown))
        server.clients.add(self.client_address)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        self.trouble = server.trouble(number, self.path)
        if self.trouble == "stall":
            server.stopping.wait()
        if self.trouble in ("stall", "close"):
            self.close_connection = True
        elif self.trouble == "no http":
            self.wfile.write(f"HELLO {shown}\r\n".encode())
            self.close_connection = True
        elif self.trouble == "repeat":
            self._send(400, {"error": f"I do not like\n{shown}"})
        elif isinstance(self.trouble, int):
            self._send(self.trouble, {"error": f"trouble {self.trouble}"})
        elif server.token is not None and shown != f"Bearer {server.token}":
            self._send(401, {"error": f"bad token {shown}"})
        elif not self.path.startswith("/v2/models/digits"):
            self._send(404, {"error": f"no model at {self.path}"})
        else:
            self._send(200, answer(body))

    def _send(self, status: int, told: dict[str, Any]) -> None:
        content = b"<html>please log in</html>" if self.trouble == "html" else json.dumps(told).encode()
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", self.server.elsewhere)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.trouble == "cut" else content)
        self.close_connection = self.trouble == "cut"

    def _metadata(self, body: dict[str, Any]) -> dict[str, Any]:
        (given,), (asked,) = self.server.session.get_inputs(), self.server.session.get_outputs()
        inputs = [{"name": given.name, "datatype": "FP32", "shape": [-1, *given.shape[1:]]}]
        outputs = [{"name": asked.name, "datatype": "FP32", "shape": [-1, *asked.shape[1:]]}]
        told = {"name": "digits", "versions": ["3"], "platform": "onnxruntime", "inputs": inputs, "outputs": outputs}
        return told | self.server.about

    def _inferred(self, body: dict[str, Any]) -> dict[str, Any]:
        (given,), (asked,) = body["inputs"], body["outputs"]
        pixels = np.array(given["data"], np.float32).reshape(given["shape"])
        self.server.images.append(len(pixels))
        (logits,) = self.server.session.run([asked["name"]], {given["name"]: pixels})
        if self.trouble == "nan":
            logits[0, 0] = np.nan
        if self.trouble == "shape":
            logits = logits[:, :-1]
        data = ["many"] * logits.size if self.trouble == "words" else logits.ravel().astype(float).tolist()
        output = {"name": asked["name"], "datatype": "FP32", "shape": list(logits.shape), "data": data}
        version = "4" if self.trouble == "swap" else "3"
        return {"model_name": "digits", "model_version": version, "outputs": [output]}
