"""The server over real sockets, and those who ask it. The fixtures `versions` and `served` are in conftest."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.http import InferInput

from rrmsdk.runtime import server
from rrmsdk.runtime.service import Service
from rrmsdk.schema.serving import Serving
from rrmsdk.serving import prepared

ADMIN = "admin-token-of-the-tests"
BEARER = {"Authorization": f"Bearer {ADMIN}"}


@dataclass(frozen=True)
class Served:
    service: Service
    url: str

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")


@contextmanager
def serving(model: Any = None, **settings: Any) -> Iterator[Served]:
    service = prepared(model, Serving(**{"threads": 1, "max_batch": 8} | settings))
    with server.running(service, server.listening("127.0.0.1", 0)) as url:
        yield Served(service, url)


def ask(
    served: Served, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, Any, dict[str, str]]:
    """Status, body (read as JSON where it is some) and headers of one request."""
    connection = http.client.HTTPConnection(served.host, timeout=30)
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    with closing(connection):
        connection.request(method, path, content, headers or {})
        answer = connection.getresponse()
        told = answer.read()
        about = {name.lower(): text for name, text in answer.getheaders()}
        return answer.status, json.loads(told) if "json" in about["content-type"] else told, about


def connected(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(served.host.split(":")[1])), timeout=30)


def plain(pixels: np.ndarray) -> dict[str, Any]:
    data = pixels.astype(np.float64).ravel().tolist()
    return {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": list(pixels.shape), "data": data}]}


def given(pixels: np.ndarray, binary: bool, datatype: str = "FP32") -> list[InferInput]:
    one = InferInput("pixels", list(pixels.shape), datatype)
    one.set_data_from_numpy(pixels, binary_data=binary)
    return [one]


def expected(served: Served, pixels: np.ndarray) -> np.ndarray:
    return served.service.store.find(None).session.predict(pixels)


def counted(served: Served, name: str, **labels: str) -> float:
    text = ask(served, "GET", "/metrics")[1].decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())
