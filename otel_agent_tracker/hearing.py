"""`hear`: hears evaluators on the host's logger provider."""

from __future__ import annotations

from opentelemetry import _logs

from otel_agent_tracker.log import Log

__all__ = ["hear"]

_logger = Log(__name__)


def hear(provider: _logs.LoggerProvider | None = None) -> None:
    """Put one `EvaluationLogRecordProcessor` on `provider` (the global one, if None) if it is the SDK's; idempotent.

    A provider that raises is left alone, and the log says so once.
    """
    try:
        _hear(provider or _logs.get_logger_provider())
    except Exception as error:  # noqa: BLE001 - the host's own code runs here, and its mistakes stay there
        _logger.warn_once("the host's logger provider takes no processor: %r", error)


def _hear(provider: _logs.LoggerProvider) -> None:
    add = getattr(provider, "add_log_record_processor", None)
    if add is None or getattr(provider, _MARK, False):
        return
    from otel_agent_tracker.evaluators import EvaluationLogRecordProcessor  # brings the SDK's logs

    setattr(provider, _MARK, True)
    add(EvaluationLogRecordProcessor())


_MARK = "_otel_agent_tracker_hears"
