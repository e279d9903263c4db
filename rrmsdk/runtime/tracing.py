"""A span for each request, for an OpenTelemetry collector. Nothing is imported unless the environment names one."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
LOG = logging.getLogger("rrmsdk.serve")


@dataclass(frozen=True)
class Spans:
    """Where finished requests are told; they are sent from a thread of the SDK's own."""

    provider: Any
    tracer: Any

    def tell(self, name: str, headers: Mapping[str, str], status: int, seconds: float, about: Mapping[str, Any]) -> str:
        """Tell of a request that has just ended, as part of the trace that its client began; gives the trace's id.

        Args:
            headers: of HTTP, or the metadata of gRPC.
            status: of HTTP, also of what was asked over gRPC.
            about: what is known, by its name in OpenTelemetry.
        """
        from opentelemetry.trace import SpanKind, StatusCode, format_trace_id
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        end = time.time_ns()
        begun_by = TraceContextTextMapPropagator().extract(headers)
        span = self.tracer.start_span(name, begun_by, SpanKind.SERVER, about, start_time=end - int(seconds * 1e9))
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end(end)
        return format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        """Send what waits."""
        self.provider.shutdown()


def about_answer(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a span says of images that were answered: `found["answer"]`, a version and its answer, if there is one.

    `queue` and `network` are seconds.
    """
    if "answer" not in found:
        return {}
    version, answer = found["answer"]
    return {
        "rrmsdk.version": version,
        "rrmsdk.images": len(answer.logits),
        "rrmsdk.batch": answer.batch,
        "rrmsdk.queue": answer.waited,
        "rrmsdk.network": answer.took,
    }


def opened(release: str) -> Spans | None:
    """None unless OTEL_EXPORTER_OTLP_ENDPOINT, or that of traces, names a collector; else as the other variables of
    OpenTelemetry say (sampler, headers, service name, ...). The log tells where that cannot be.
    """
    if not _asked():
        return None
    if any(os.environ.get(name, "http/protobuf") != "http/protobuf" for name in PROTOCOLS):
        LOG.warning("no traces", extra={"fields": {"reason": f"{' or '.join(PROTOCOLS)} is not http/protobuf"}})
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        reason = "sending traces needs the extra 'otel': pip install 'rrmsdk[otel]'"
        LOG.warning("no traces", extra={"fields": {"reason": reason}})
        return None
    ours = Resource({"service.name": "rrmsdk", "service.version": release})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Spans(provider, provider.get_tracer("rrmsdk", release))


def _asked() -> bool:
    said = os.environ.get
    wanted = said("OTEL_TRACES_EXPORTER", "otlp") == "otlp" and said("OTEL_SDK_DISABLED", "").lower() != "true"
    return wanted and any(said(name) for name in ENDPOINTS)
