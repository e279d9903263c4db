"""Spans, as a collector gets them over OTLP/HTTP."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from rrmsdk.runtime import tracing
from rrmsdk.schema.serving import Serving
from rrmsdk.serving import prepared
from tests import loopback
from tests.runtime import grpc_served
from tests.runtime.http_served import ask, plain, serving
from tests.served import make_served, some_digits

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
INFER = "/v2/models/b/infer"


class Collector(ThreadingHTTPServer):
    """Keeps what is posted to /v1/traces."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.stopping = threading.Event()
        self.got: list[ExportTraceServiceRequest] = []

    __enter__, __exit__ = loopback.begin, loopback.end

    def spans(self) -> list[Any]:
        return [
            span for got in self.got for one in got.resource_spans for scope in one.scope_spans for span in scope.spans
        ]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        assert self.path == "/v1/traces"
        self.server.got.append(ExportTraceServiceRequest.FromString(content))  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{made.server_port}")
        yield made


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_a_request_is_a_span_of_its_clients_trace_with_its_times(
    collector: Collector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rrmsdk.serve")
    before = time.time_ns()
    with serving(make_served(tmp_path / "b")) as served:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "r-1"}
        assert ask(served, "POST", INFER, plain(some_digits(3)), headers)[0] == 200
        version = served.service.version
    after = time.time_ns()  # leaving the server sends what waits
    (span,) = collector.spans()
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.name) == (TRACE, PARENT, "infer")
    assert span.kind == span.SPAN_KIND_SERVER
    assert before < span.start_time_unix_nano < span.end_time_unix_nano < after
    told = attributes(span)
    took = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert 0 <= told.pop("rrmsdk.queue") < took
    assert 0 < told.pop("rrmsdk.network") < took
    assert told == {
        "http.request.method": "POST", "http.response.status_code": 200, "url.path": INFER, "rrmsdk.request": "r-1",
        "rrmsdk.version": version, "rrmsdk.images": 3, "rrmsdk.batch": 3,
    }  # fmt: skip
    (logged,) = [one.__dict__["fields"] for one in caplog.records if one.message == "request"]
    assert logged["trace"] == TRACE


def test_a_call_over_grpc_is_a_span_too(collector: Collector, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rrmsdk.serve")
    service = prepared(make_served(tmp_path / "b"), Serving(threads=1, name="digits"))
    with grpc_served.serving(service) as served:
        metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "r-2"))
        stub = served.stub()
        stub.ModelInfer(grpc_served.plain(some_digits(3)), metadata=metadata)
        grpc_served.refused(stub.ModelInfer, grpc_served.plain(some_digits(1) + 1))
        stub.ServerReady(grpc_served.service_pb2.ServerReadyRequest())  # a probe is none
    answered, refused = collector.spans()
    assert (answered.trace_id.hex(), answered.parent_span_id.hex()) == (TRACE, PARENT)
    assert answered.name == refused.name == "inference.GRPCInferenceService/ModelInfer"
    told = attributes(answered)
    assert 0 < told.pop("rrmsdk.network") < (answered.end_time_unix_nano - answered.start_time_unix_nano) / 1e9
    assert told.pop("rrmsdk.queue") >= 0
    assert told == {
        "rpc.system": "grpc", "rpc.service": "inference.GRPCInferenceService", "rpc.method": "ModelInfer",
        "rpc.grpc.status_code": 0, "rrmsdk.request": "r-2", "rrmsdk.version": service.version, "rrmsdk.images": 3,
        "rrmsdk.batch": 3,
    }  # fmt: skip
    assert attributes(refused)["rpc.grpc.status_code"] == 3  # INVALID_ARGUMENT
    logged = [one.__dict__["fields"]["trace"] for one in caplog.records if one.message == "request"]
    assert logged == [TRACE, refused.trace_id.hex()]


def test_a_request_without_a_trace_begins_one_and_a_refused_one_is_told_too(
    collector: Collector, tmp_path: Path
) -> None:
    with serving(make_served(tmp_path / "b")) as served:
        for headers in ({}, {"traceparent": "nonsense"}):
            assert ask(served, "POST", INFER, b"no JSON", headers)[0] == 400
    spans = collector.spans()
    assert len({span.trace_id for span in spans}) == 2
    assert [(span.parent_span_id, attributes(span)["http.response.status_code"]) for span in spans] == [(b"", 400)] * 2


def test_probes_and_scrapes_are_no_spans(collector: Collector, tmp_path: Path) -> None:
    with serving(make_served(tmp_path / "b")) as served:
        for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/v2"):
            assert ask(served, "GET", path)[0] == 200
    assert [span.name for span in collector.spans()] == ["server_metadata"]


@pytest.mark.parametrize(("named", "wanted"), [(None, "rrmsdk"), ("shop", "shop")])
def test_the_service_is_called_as_the_environment_says(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None, wanted: str
) -> None:
    if named:
        monkeypatch.setenv("OTEL_SERVICE_NAME", named)
    with serving(make_served(tmp_path / "b")) as served:
        ask(served, "GET", "/v2")
    (got,) = collector.got
    about = {one.key: one.value.string_value for one in got.resource_spans[0].resource.attributes}
    assert about["service.name"] == wanted


def test_a_collector_that_is_not_there_stops_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Collector() as gone:
        port = gone.server_port
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with serving(make_served(tmp_path / "b")) as served:
        assert ask(served, "POST", INFER, plain(some_digits(1)))[0] == 200
    assert any(record.name.startswith("opentelemetry") for record in caplog.records)


@pytest.mark.parametrize(
    "also",
    [
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
    ],
)
def test_it_is_off_where_the_environment_says_so(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, also: dict[str, str]
) -> None:
    for name, text in also.items():
        monkeypatch.setenv(name, text)
    assert tracing.opened("1") is None


def test_a_protocol_that_is_not_spoken_is_told(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert tracing.opened("1") is None
    (logged,) = [record.__dict__["fields"] for record in caplog.records]
    assert logged["reason"].endswith("OTEL_EXPORTER_OTLP_PROTOCOL is not http/protobuf")


def test_nothing_is_imported_where_nobody_asks_and_a_missing_extra_is_told_where_somebody_does() -> None:
    code = (
        "import json, logging, sys\n"
        "logging.basicConfig(level=logging.WARNING, format='%(fields)s')\n"
        "from rrmsdk.runtime import app, tracing\n"
        "told = [tracing.opened('1'), [name for name in sys.modules if name.startswith('opentelemetry')]]\n"
        "import os\n"
        "os.environ['OTEL_EXPORTER_OTLP_ENDPOINT'] = 'http://127.0.0.1:1'\n"
        "sys.modules['opentelemetry'] = None\n"
        "print(json.dumps([*told, tracing.opened('1')]))\n"
    )
    env = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [None, [], None]
    assert "sending traces needs the extra 'otel': pip install 'rrmsdk[otel]'" in done.stderr
