"""The exporter of `OTEL_TRACES_EXPORTER=agent_tracker`: agents are seen in the spans that a provider exports.

The entry point is in `pyproject.toml`. It sees what the sampler lets through, and only when it has ended; where the
same spans are watched in the process itself, it stands back.
"""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_agent_tracker.agents import is_seen_in_process
from otel_agent_tracker.config import resolve
from otel_agent_tracker.log import Log
from otel_agent_tracker.pipeline import acquire

__all__ = ["AgentTrackerSpanExporter"]

_logger = Log(__name__)


class AgentTrackerSpanExporter(SpanExporter):
    """Reports the turns that exported spans show to the tracker that the environment names; exports nothing else.

    A turn is told when the root of its trace has come, or when nothing more of it came for a while. `export` never
    raises and never waits. After `shutdown` spans are refused; what was handed in before is told.
    """

    def __init__(self) -> None:
        self._pipeline = acquire(resolve({}), delivers_what_was_left=False)
        self._gathered = self._pipeline.gather()
        self._is_shut_down = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Take note of each span."""
        if self._is_shut_down:
            return SpanExportResult.FAILURE
        if not is_seen_in_process():
            try:
                for span in spans:
                    self._gathered.add(span)
                self._gathered.tick()
            except Exception as error:  # noqa: BLE001 - it would end the host's export of all spans
                _logger.warn_once("spans could not be read: %r", error)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Report what waits and let go of the pipeline, which flushes for a moment with its last holder. Idempotent."""
        if not self._is_shut_down:
            self._is_shut_down = True
            self._gathered.release()
            self._pipeline.release()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Report what waits, as it is, and deliver it; False if that takes longer than `timeout_millis`."""
        self._gathered.release()
        return self._pipeline.flush(timeout_millis / 1000)
