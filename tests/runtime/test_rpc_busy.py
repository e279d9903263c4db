"""Calls by gRPC while the network is busy: a full queue, patience, clients that leave, the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tritonclient.grpc import (
    service_pb2,
)  # fmt: skip

from rrmsdk.schema.serving import Serving
from rrmsdk.serving import prepared
from tests.runtime.grpc_served import Served, plain, refused, serving
from tests.runtime.test_app_busy import GatedEngine
from tests.served import make_served, some_digits


@dataclass
class Busy:
    served: Served
    gate: GatedEngine
    first: grpc.Future

    def wait_for(self, images: int) -> None:
        stub = self.served.stub()
        while self.served.service.batcher.images != images:
            stub.ServerLive(service_pb2.ServerLiveRequest())  # a round through the server's loop


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Busy]:
    """A server whose network has one request and does not finish it before `gate.go`."""
    service = prepared(make_served(tmp_path / "b"), Serving(name="digits", threads=1, max_batch=4, max_queue=4))
    one = service.store.find(None)
    gate = GatedEngine(one.session.engine)
    service.store.loaded = (replace(one, session=replace(one.session, engine=gate)),)
    try:
        with serving(service) as served:
            first = served.stub().ModelInfer.future(plain(some_digits(1)))
            assert gate.started.acquire(timeout=30)
            yield Busy(served, gate, first)
            gate.go.set()
    finally:
        gate.go.set()


def test_a_full_queue_is_resource_exhausted_and_says_when_to_come_again(busy: Busy) -> None:
    waits = busy.served.stub().ModelInfer.future(plain(some_digits(4)))
    busy.wait_for(4)
    with pytest.raises(grpc.RpcError) as caught:
        busy.served.stub().ModelInfer(plain(some_digits(1)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == "4 images wait already; this server is overloaded"
    status = rpc_status.from_call(caught.value)
    info = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert info.retry_delay.seconds == 1
    assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
    busy.gate.go.set()
    assert waits.result(30).model_name == "digits"


def test_patience_of_the_client_that_ends_is_deadline_exceeded(busy: Busy) -> None:
    asked = plain(some_digits(1))
    assert refused(busy.served.stub().ModelInfer, asked, timeout=0.05)[0] == "DEADLINE_EXCEEDED"
    asked.parameters["timeout"].int64_param = 10_000
    assert refused(busy.served.stub().ModelInfer, asked) == ("DEADLINE_EXCEEDED", "no answer within 0.01 s")
    busy.wait_for(0)


def test_a_client_that_cancels_leaves_the_queue(busy: Busy) -> None:
    leaves = busy.served.stub().ModelInfer.future(plain(some_digits(3)))
    busy.wait_for(3)
    leaves.cancel()
    busy.wait_for(0)


def test_stopping_says_not_ready_and_what_is_under_way_is_answered(busy: Busy) -> None:
    busy.served.service.stopping = True
    assert not busy.served.stub().ServerReady(service_pb2.ServerReadyRequest()).ready
    threading.Timer(0.3, busy.gate.go.set).start()
    assert busy.first.result(30).model_name == "digits"


def test_what_is_under_way_is_answered_when_the_server_ends(tmp_path: Path) -> None:
    service = prepared(make_served(tmp_path / "b"), Serving(name="digits", threads=1))
    one = service.store.find(None)
    gate = GatedEngine(one.session.engine)
    service.store.loaded = (replace(one, session=replace(one.session, engine=gate)),)
    with serving(service) as served:
        under_way = served.stub().ModelInfer.future(plain(some_digits(1)))
        assert gate.started.acquire(timeout=30)
        threading.Timer(0.3, gate.go.set).start()  # while the server is ending
    assert under_way.result(30).model_name == "digits"
