"""What `opentelemetry-instrument` calls in each process that it prepares: agents are seen without a line of code.

It is called after the SDK was configured and before libraries are instrumented. Without a destination it does
nothing. The entry point is in `pyproject.toml`. Everything is imported when it is needed: whoever configures
nothing does not pay for it, and what cannot be imported stops nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_agent_tracker.log import Log

if TYPE_CHECKING:
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
    from otel_agent_tracker.following import follow_global
    from otel_agent_tracker.pipeline import acquire

    acquire(config, delivers_what_was_left=False).recognise()
    if not follow_global():
        _logger.info(
            "there is no tracer provider of the SDK yet: agents are seen from the moment one is set, "
            "or handed to otel_agent_tracker.install(); `otel-agent-tracker run` sets one"
        )
