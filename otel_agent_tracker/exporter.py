"""`TrackerSpanExporter`: event spans in, journal entries out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_agent_tracker import mapping
from otel_agent_tracker.entry import Entry

__all__ = ["TrackerSpanExporter"]


class TrackerSpanExporter(SpanExporter):
    """Maps finished and expired event spans onto the tracker's requests and hands them to `accept`.

    `accept` keeps an entry and returns at once, False if it does not; `encode_otlp`, if given, adds the encoded
    span, for an OTLP endpoint as the destination. After `shutdown` spans are refused.
    """

    def __init__(
        self,
        accept: Callable[[Entry], bool | None],
        *,
        encode_otlp: Callable[[ReadableSpan], bytes] | None = None,
    ) -> None:
        self._accept = accept
        self._encode_otlp = encode_otlp
        self._shut_down = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Accept every event span of `spans`; others are passed over. A failure if any is not kept."""
        if self._shut_down:
            return SpanExportResult.FAILURE
        result = SpanExportResult.SUCCESS
        for span in spans:
            if (entry := mapping.to_request(span)) is not None and self._accept(
                entry._replace(otlp=self._encode_otlp(span)) if self._encode_otlp else entry
            ) is False:
                result = SpanExportResult.FAILURE
        return result

    def shutdown(self) -> None:
        """Refuse whatever comes from now on; what was accepted is its keeper's."""
        self._shut_down = True

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """True: a span is accepted when `export` returns."""
        return True
