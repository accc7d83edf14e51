"""Event spans for tests: made by the library and kept, or as another sender makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import SpanContext, Status, TraceFlags

from otel_agent_tracker import semconv

__all__ = ["END_US", "RESOURCE", "SPAN_ID", "START_US", "TRACE_ID", "Kept", "foreign_span"]

TRACE_ID, SPAN_ID = 0xA1B2 << 96, 0xC3D4 << 32
START_US, END_US = 1_705_681_056_000_001, 1_705_681_058_500_001
RESOURCE = Resource({"service.name": "shop", "service.version": "2", "service.instance.id": "shop-1"})


class Kept(SpanProcessor):
    """Keeps the spans that end."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def foreign_span(
    event: str | None,
    attributes: Mapping[str, Any] | None = None,
    *,
    status: Status | None = None,
    resource: Resource = RESOURCE,
) -> ReadableSpan:
    """A span of a sender without our library, which knows the event, the session and little else."""
    marks = {} if event is None else {semconv.EVENT: event}
    return ReadableSpan(
        name="whatever",
        context=SpanContext(TRACE_ID, SPAN_ID, is_remote=False, trace_flags=TraceFlags(1)),
        resource=resource,
        attributes={**marks, **(attributes or {})},
        status=status or Status(),
        start_time=START_US * 1000 + 999,
        end_time=END_US * 1000 + 999,
    )
