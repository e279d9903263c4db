"""What the benchmarks of the server share: networks to serve, the server as a process, and clients that ask it."""

from __future__ import annotations

import asyncio
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rrmsdk import models
from rrmsdk.exports import export_onnx
from rrmsdk.runtime.session import Session
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.card import Card
from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.model import ModelConfig
from rrmsdk.schema.threat import ThreatModel

ROOT = Path(__file__).resolve().parents[1]
CLIENTS, BATCH = 32, 32
INFER = "/v2/models/net/infer"
LABELS = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def made(folder: Path, arch: str, width: float) -> Bundle:
    """An exported network that was never trained: speed does not ask for that."""
    config = ModelConfig(arch=arch, classes=10, input_size=32, width_mult=width)
    torch.manual_seed(int(folder.name))
    model = models.build_from(config).eval()
    data = DataInfo(
        name="cifar10", labels=LABELS, size=32, channels=3, train=1, validation=0, test=1, fingerprint="0",
        encoding="raw",
    )  # fmt: skip
    value.write(config, folder / bundles.CONFIG)
    models.save(model, folder / bundles.WEIGHTS)
    card = Card(
        name="net", model=config, data=data, threat=ThreatModel.parse("linf:8/255"), method={"name": "natural"},
        rrmsdk_version="0", date="2026-01-01",
    )  # fmt: skip
    images = torch.rand(64, 3, 32, 32)
    return export_onnx(bundles.seal(folder, card), model, images, images)


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    port: int

    @property
    def megabytes(self) -> float:
        """Resident, now."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> tuple[int, str]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as line:
            line.request(method, path, body, headers or {})
            got = line.getresponse()
            return got.status, got.read().decode(errors="replace")


@contextmanager
def serving(threads: int, *options: object) -> Iterator[Server]:
    command = [sys.executable, "-m", "rrmsdk", "serve", "--port", "0", "--threads", str(threads), "--max-batch", "32"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*command, *map(str, options)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        told = json.loads(process.stderr.readline())
        reader = subprocess.Popen(["cat"], stdin=process.stderr, stdout=log)  # the log is written, and nobody waits
        try:
            yield Server(process, int(told["url"].rpartition(":")[2]))
        finally:
            process.kill()
            process.wait()
            reader.wait()


def binary(session: Session, seed: int = 0) -> bytes:
    """A request of one image, its pixels as bytes."""
    pixels = np.random.default_rng(seed).random((1, *session.input_shape), dtype=np.float32)
    head = json.dumps({
        "inputs": [{"name": "pixels", "datatype": "FP32", "shape": list(pixels.shape),
                    "parameters": {"binary_data_size": pixels.nbytes}}],
        "parameters": {"binary_data_output": True},
    }).encode()  # fmt: skip
    return post(INFER, head + pixels.tobytes(), f"Inference-Header-Content-Length: {len(head)}\r\n")


def plain(session: Session, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).random((1, *session.input_shape), dtype=np.float32)
    data = [float(text) for text in pixels.ravel().astype(str)]  # the shortest text of each float32
    tensor = {"name": "pixels", "datatype": "FP32", "shape": list(pixels.shape), "data": data}
    return post(INFER, json.dumps({"inputs": [tensor]}).encode(), "Content-Type: application/json\r\n")


def post(path: str, body: bytes, headers: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass
class Client(asyncio.Protocol):
    """Sends its request again as soon as it is answered."""

    request: bytes
    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    asking: bool = True
    _got: bytes = b""
    _sent: float = 0.0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.done = asyncio.get_running_loop().create_future()
        self._ask()

    def _ask(self) -> None:
        self._got, self._sent = b"", time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, found, body = self._got.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]):
            return
        self.seconds.append(time.perf_counter() - self._sent)
        self.failed += not head.startswith(b"HTTP/1.1 200 ")
        if self.asking and b"connection: close" not in head.lower():
            self._ask()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.failed += exc is not None
        if not self.done.done():
            self.done.set_result(None)


@dataclass(frozen=True)
class Load:
    rate: float
    latencies: list[float]
    failed: int


async def loaded(port: int, clients: int, request: bytes, during: Callable[[], object]) -> Load:
    """What so many clients got while `during` ran in a thread."""
    loop = asyncio.get_running_loop()
    each = [Client(request) for _ in range(clients)]
    began = time.perf_counter()
    for client in each:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)
    await asyncio.to_thread(during)
    took = time.perf_counter() - began
    for client in each:
        client.asking = False
    await asyncio.wait([client.done for client in each], timeout=30)
    latencies = [seconds for client in each for seconds in client.seconds]
    return Load(len(latencies) / took, latencies, sum(client.failed for client in each))


def under_load(port: int, clients: int, request: bytes, seconds: float) -> Load:
    return asyncio.run(loaded(port, clients, request, lambda: time.sleep(seconds)))


def alone(session: Session, seconds: float) -> float:
    pixels = np.random.default_rng(0).random((BATCH, *session.input_shape), dtype=np.float32)
    began, images = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        session.engine.run(["logits"], {"pixels": pixels})
        images += BATCH
    return images / (time.perf_counter() - began)


def quantile(load: Load, share: float) -> float:
    """In milliseconds."""
    return 1000 * float(np.quantile(load.latencies, share))


def spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
