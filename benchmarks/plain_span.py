"""The yardstick: one span of the plain SDK, four attributes at its start and three set, sent as OTLP/HTTP.

The environments of other tools import this too, so it knows the OpenTelemetry SDK alone.
"""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Tracer

__all__ = ["PlainSpan", "make_provider"]

_EMPTY = Resource({"service.name": "benchmark"})


def make_provider(sink_url: str, *, queue_size: int = 2048) -> TracerProvider:
    """A provider with a BatchSpanProcessor before the OTLP/HTTP exporter; defaults but for the queue."""
    provider = TracerProvider(resource=_EMPTY, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{sink_url}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=queue_size))
    return provider


class PlainSpan:
    """Start and end of one span."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer: Tracer = provider.get_tracer("benchmark")

    def call(self) -> None:
        """Make the span."""
        span = self._tracer.start_span(
            "conversation",
            attributes={
                "session.id": "support-bot_1674123456_a1b2c3d4e5f60718",
                "gen_ai.agent.id": "support-bot",
                "user.id": "user-000000000000001",
                "gen_ai.operation.name": "invoke_agent",
            },
        )
        span.set_attribute("agent_tracker.outcome", "completed")
        span.set_attribute("agent_tracker.quality.score", 4)
        span.set_attribute("agent_tracker.message_count", 6)
        span.end()

    def settle(self) -> None:
        """Wait until all spans are exported."""
        self._provider.force_flush()
