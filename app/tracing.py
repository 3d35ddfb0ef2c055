"""OpenTelemetry spans of requests and of their pictures' stages, where its packages and an endpoint are given.

The variables are OpenTelemetry's own: `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` switch it
on, the others (`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, ...) mean what they always do. Without an endpoint nothing
of it is imported.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from app import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

logger = logging.getLogger("app.tracing")

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


current: ContextVar[Span | None] = ContextVar("span", default=None)  # the request's, while it is answered


class Tracer:
    """Makes spans, below the caller's where a request names one (`traceparent`), and sends them in the background."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import propagation
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter()
        about = {"service.version": __version__}
        if "OTEL_SERVICE_NAME" not in os.environ:
            about["service.name"] = "caption-service"
        self.provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self.provider.get_tracer("app", __version__)
        self._propagator, self._below = TraceContextTextMapPropagator(), propagation.set_span_in_context

    def request(self, headers: Mapping[str, str]) -> Span:
        """The span of a request, which has begun."""
        from opentelemetry.trace import SpanKind

        return self._tracer.start_span("request", self._propagator.extract(headers), SpanKind.SERVER)

    def ended(self, span: Span, method: str, route: str, status: int) -> None:
        """End it, by OpenTelemetry's conventions for HTTP."""
        from opentelemetry.trace import StatusCode

        span.update_name(f"{method} {route}")
        span.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end()

    def stages(self, parent: Span, seconds: Mapping[str, float], attributes: Mapping[str, Any]) -> None:
        """The stages of a picture, one after the other, the last of which ends now."""
        end = time.time_ns()
        begin = end - round(1e9 * sum(seconds.values()))
        for name, took in seconds.items():
            span = self._tracer.start_span(name, self._below(parent), attributes=dict(attributes), start_time=begin)
            begin += round(1e9 * took)
            span.end(begin)

    def stop(self) -> None:
        """Send what is left; blocks for as long as the exporter may."""
        self.provider.shutdown()


def trace(span: Span) -> dict[str, str]:
    """What the log and the answer say of a span, as `app.serving.middleware` has it."""
    context = span.get_span_context()
    trace_id, span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    made = {"trace_id": trace_id, "span_id": span_id}
    if parent := getattr(span, "parent", None):
        made["parent_id"] = f"{parent.span_id:016x}"
    return {**made, "traceparent": f"00-{trace_id}-{span_id}-{int(context.trace_flags):02x}"}


def from_environment() -> Tracer | None:
    """The tracer that the environment asks for; None where it asks for none, or it cannot be had."""
    if not any(os.environ.get(name) for name in ENDPOINTS) or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    for package in PACKAGES:
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            logger.warning("no spans are sent: %s is not installed; pip install 'caption-service[otel]'", package)
            return None
    return Tracer()
