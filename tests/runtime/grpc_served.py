"""The server by gRPC over real sockets, and those who ask it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import (
    service_pb2,
    service_pb2_grpc,
)  # fmt: skip

from rrmsdk.runtime import server
from rrmsdk.runtime.service import Service

ADMIN = {"authorization": "Bearer admin-token-of-the-tests"}


@dataclass(frozen=True)
class Served:
    service: Service
    url: str
    address: str

    def stub(self, *options: tuple[str, Any]) -> service_pb2_grpc.GRPCInferenceServiceStub:
        return service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(self.address, options))

    def expected(self, pixels: np.ndarray) -> np.ndarray:
        return self.service.store.find(None).session.predict(pixels)


@contextmanager
def serving(service: Service) -> Iterator[Served]:
    sock = server.listening("127.0.0.1", 0)
    address = server.address(sock)
    with server.running(service, server.listening("127.0.0.1", 0), grpc=sock) as url:
        yield Served(service, url, address)


def plain(pixels: np.ndarray, **changes: Any) -> service_pb2.ModelInferRequest:
    """A request whose numbers are in the message itself; `changes` are made to its input."""
    uint8 = pixels.dtype == np.uint8
    contents = {"uint_contents" if uint8 else "fp32_contents": pixels.ravel().tolist()}
    told = {"name": "pixels", "datatype": "UINT8" if uint8 else "FP32", "shape": pixels.shape, "contents": contents}
    return service_pb2.ModelInferRequest(model_name="digits", inputs=[told | changes])


def refused(call: Any, *args: Any, **named: Any) -> tuple[str, str]:
    """Code and words."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **named)
    return caught.value.code().name, caught.value.details()
