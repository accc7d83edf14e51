"""The host's providers are followed, of spans and of logs: the global ones there are, and each that is set later."""

from __future__ import annotations

import threading
from functools import wraps

from opentelemetry import _logs, trace

from otel_agent_tracker.agents import watch
from otel_agent_tracker.hearing import hear
from otel_agent_tracker.log import Log
from otel_agent_tracker.sampling import keep_agents_visible
from otel_agent_tracker.sdk_private import after_each_tracer_provider

__all__ = ["follow", "follow_global"]

_logger = Log(__name__)


def follow(provider: trace.TracerProvider) -> bool:
    """See agents in the spans of `provider`, whatever its sampler decides; False if it is not the SDK's. Idempotent.

    It is called where the host sets a provider, and never raises.
    """
    try:
        watch(provider)
        keep_agents_visible(provider)
        return hasattr(provider, "add_span_processor")
    except Exception as error:  # noqa: BLE001 - the host's own code runs here, and its mistakes stay there
        _logger.warn_once("the host's tracer provider is not followed: %r", error)
        return False


def follow_global() -> bool:
    """Follow the global providers, and each that is set from now on; False if none makes spans yet. Idempotent."""
    global _follows
    with _lock:
        if not _follows:
            _follows = True
            after_each_tracer_provider(follow)
            _hear_those_to_come()
    hear()
    return follow(trace.get_tracer_provider())


def _hear_those_to_come() -> None:
    set_logger_provider = _logs.set_logger_provider

    @wraps(set_logger_provider)
    def set_and_hear(logger_provider: _logs.LoggerProvider) -> None:
        set_logger_provider(logger_provider)
        hear(logger_provider)

    _logs.set_logger_provider = set_and_hear


_follows = False
_lock = threading.RLock()  # a signal handler may come in between
