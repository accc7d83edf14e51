"""What `opentelemetry-instrument` calls in each process that it prepares: agents are seen without a line of code.

It is called after the SDK was configured and before libraries are instrumented. Without a destination it does
nothing. The entry point is in `pyproject.toml`. Everything is imported when it is needed: whoever configures
nothing does not pay for it, and what cannot be imported stops nobody.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING

from otel_agent_tracker.log import Log

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.trace import TracerProvider

    from otel_agent_tracker.config import Config

__all__ = ["begin"]

_logger = Log(__name__)


def begin() -> None:
    """Watch the providers of tracers and loggers there are, and each that is set later, if there is a destination.

    Never raises: whoever is instrumented is started whatever happens here.
    """
    try:
        from otel_agent_tracker.config import resolve

        config = resolve({})
        if config.disabled_because is None:
            _begin(config)
    except Exception as error:  # noqa: BLE001 - the host's process begins here
        _logger.warning("agents are not seen: %r", error)


def _begin(config: Config) -> None:
    from opentelemetry import _logs, trace

    from otel_agent_tracker.hearing import hear
    from otel_agent_tracker.pipeline import acquire

    acquire(config, delivers_what_was_left=False).recognise()
    set_tracer_provider = trace.set_tracer_provider

    @wraps(set_tracer_provider)
    def set_and_follow(tracer_provider: TracerProvider) -> None:
        set_tracer_provider(tracer_provider)
        _follow(tracer_provider)  # also if it came too late to be the global one: it may be used all the same

    set_logger_provider = _logs.set_logger_provider

    @wraps(set_logger_provider)
    def set_and_listen(logger_provider: LoggerProvider) -> None:
        set_logger_provider(logger_provider)
        hear(logger_provider)

    trace.set_tracer_provider = set_and_follow
    _logs.set_logger_provider = set_and_listen
    hear(_logs.get_logger_provider())
    if not _follow(trace.get_tracer_provider()):
        _logger.info(
            "there is no tracer provider of the SDK yet: agents are seen from the moment one is set, "
            "or handed to otel_agent_tracker.install(); `otel-agent-tracker run` sets one"
        )


def _follow(provider: TracerProvider) -> bool:
    """Whether the spans of the provider can be seen."""
    from otel_agent_tracker.agents import watch
    from otel_agent_tracker.sampling import keep_agents_visible

    watch(provider)
    keep_agents_visible(provider)
    return hasattr(provider, "add_span_processor")
