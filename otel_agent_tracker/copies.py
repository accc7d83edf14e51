"""Copies of event spans for another OpenTelemetry backend, marked so that none is taken for an event."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Status

from otel_agent_tracker import sdk_private, semconv
from otel_agent_tracker.config import Config

__all__ = ["CopyExporter", "CopyProcessor", "copying_processor"]

FREE_TEXT = frozenset(
    (
        semconv.METADATA,
        semconv.FEEDBACK,
        semconv.ERROR_MESSAGE,
        semconv.FEEDBACK_TEXT,
        semconv.AGENT_DETAILS,
    )
)


class CopyExporter(SpanExporter):
    """Exports a marked copy of each span through `exporter`; without free text unless `content`."""

    def __init__(self, exporter: SpanExporter, *, content: bool) -> None:
        self._exporter = exporter
        self._content = content

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export copies; what the exporter answers."""
        return self._exporter.export([self._copy(span) for span in spans])

    def shutdown(self) -> None:
        """Shut the exporter down."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the exporter."""
        return self._exporter.force_flush(timeout_millis)

    def _copy(self, span: ReadableSpan) -> ReadableSpan:
        attributes = {
            key: value
            for key, value in (span.attributes or {}).items()
            if self._content or key not in FREE_TEXT
        }
        attributes[semconv.COPY] = True
        return ReadableSpan(
            name=span.name,
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=attributes,
            links=span.links,
            kind=span.kind,
            status=span.status if self._content else Status(span.status.status_code),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )


class CopyProcessor(BatchSpanProcessor):
    """Batches copies; on shutdown a backend that hangs or is gone holds the host for `exit_seconds` at most."""

    def __init__(self, exporter: CopyExporter, *, exit_seconds: float) -> None:
        super().__init__(exporter)
        self._exit_seconds = exit_seconds

    def shutdown(self) -> None:
        """Export what waits, as far as the time allows."""
        if not sdk_private.shut_down(self, self._exit_seconds):
            super().shutdown()  # type: ignore[no-untyped-call]  # the SDK's has no types


def copying_processor(config: Config) -> SpanProcessor:
    """Copies go to the OTLP endpoint that OpenTelemetry's variables name, through the SDK's own exporter."""
    exporter = OTLPSpanExporter(endpoint=config.otlp_endpoint, headers=dict(config.otlp_headers))
    return CopyProcessor(
        CopyExporter(exporter, content=config.otlp_content), exit_seconds=config.flush_timeout_seconds / 2
    )
