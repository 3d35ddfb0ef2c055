"""Spans, with the SDK's own exporter in memory."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from app import tracing
from app.main import create_app
from app.settings import Settings
from app.tracing import Tracer
from tests.app.fakes import FakeEngine
from tests.pictures import plain

GREEN = plain((16, 200, 40))
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_request_and_its_stages_are_spans_below_the_callers(engine: FakeEngine) -> None:
    exporter = InMemorySpanExporter()
    with TestClient(create_app(Settings(), engine, Tracer(exporter))) as client:
        answer = client.post("/caption", content=GREEN, headers={"traceparent": CALLER})
        many = client.post("/captions", files=[("images", GREEN)] * 2)
        assert client.get("/nowhere").status_code == 404
    spans = exporter.get_finished_spans()
    first, second, third = (span for span in spans if span.parent is None or span.name.startswith(("POST", "GET")))
    assert (first.name, second.name, third.name) == ("POST /caption", "POST /captions", "GET other")
    assert answer.headers["traceparent"] == f"00-4bf92f3577b34da6a3ce929d0e0e4736-{first.context.span_id:016x}-01"
    assert many.headers["traceparent"].split("-")[1] == f"{second.context.trace_id:032x}"
    assert first.parent is not None
    assert first.parent.span_id == 0x00F067AA0BA902B7
    assert first.attributes is not None
    assert first.attributes["http.response.status_code"] == 200
    stages = below(first, spans)
    assert [span.name for span in stages] == ["decode", "queue", "encode", "generate"]
    assert {span.context.trace_id for span in stages} == {first.context.trace_id}
    for before, after in itertools.pairwise(stages):
        assert before.start_time is not None
        assert before.start_time <= (before.end_time or 0) == after.start_time
    assert sorted(span.name for span in below(second, spans)) == sorted(["decode", "queue", "encode", "generate"] * 2)
    assert first.resource.attributes["service.name"] == "caption-service"


def below(parent: ReadableSpan, spans: tuple[ReadableSpan, ...]) -> list[ReadableSpan]:
    return [span for span in spans if span.parent and span.parent.span_id == parent.context.span_id]


def test_a_tracer_is_made_where_an_endpoint_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracing.from_environment() is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracer = tracing.from_environment()
    assert tracer is not None
    tracer.stop()  # nothing to send
    monkeypatch.setattr(tracing, "PACKAGES", ("opentelemetry.nothing", "nothing.at.all"))
    assert tracing.from_environment() is None
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracing.from_environment() is None


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:  # FastAPI imports the API itself
    code = (
        "import sys\nfrom app.main import create_app\nfrom tests.app.fakes import FakeEngine\n"
        "create_app(engine=FakeEngine())\n"
        "print([m for m in sys.modules if m.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
