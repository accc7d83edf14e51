"""`EvaluationLogRecordProcessor`: on the host's logger provider it hears what evaluators say of answers."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk._logs import LogRecordProcessor

from otel_agent_tracker import evaluation, semconv
from otel_agent_tracker.agents import current_reporter
from otel_agent_tracker.log import Log

__all__ = ["EvaluationLogRecordProcessor"]

_logger = Log(__name__)


class EvaluationLogRecordProcessor(LogRecordProcessor):
    """Makes log events `gen_ai.evaluation.result` feedback of the turn that was evaluated.

    For the turns of the last ten minutes that the pipeline which `install` named last has reported, found by the
    response's id or the event's span; an event that comes before the end of its turn waits for it. `install` and the
    hook put one on the global logger provider; on another one, put it yourself. It starts nothing, raises never, and
    a record that is no evaluation costs a comparison.
    """

    def on_emit(self, log_record: Any) -> None:
        """Take in a record, if it is an evaluation."""
        try:
            _take_in(log_record.log_record)
        except Exception as error:  # noqa: BLE001 - called by the host's own threads, which must not notice
            _logger.warn_once("a log record could not be read: %r", error)

    def enabled(self, *, event_name: str | None = None, **_: Any) -> bool:
        """Whether a record of that name would be looked at; of an older SDK nobody asks."""
        return event_name is None or event_name == semconv.EVALUATION_RESULT

    def shutdown(self) -> None:
        """Nothing is open."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing waits here."""
        return True


def _take_in(record: Any) -> None:
    reporter = current_reporter()
    attributes = record.attributes
    if reporter is None or not attributes:
        return
    name = record.event_name or attributes.get(_EVENT_NAME)
    if name != semconv.EVALUATION_RESULT:
        return
    found = evaluation.read(
        attributes, trace_id=record.trace_id or 0, span_id=record.span_id or 0, reader=reporter.reader
    )
    if found is not None:
        reporter.evaluate(found)


_EVENT_NAME = "event.name"  # an attribute, before log records had names
