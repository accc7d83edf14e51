"""Spans of agents stay visible under the host's sampler: what it drops is recorded, and nobody exports that.

A sampler is not told whose span it decides about, and most spans of agents show nothing of that at their start; a
tracer knows its scope. So it is the tracers of a provider that get another sampler, those that there are and those
to come, but for the tracers of libraries that are known to show no agents.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Tracer, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util import types

from otel_agent_tracker.log import Log
from otel_agent_tracker.recognition import is_left_to_sampler
from otel_agent_tracker.sdk_private import scope_of, tracers_of

__all__ = ["RecordDropped", "keep_agents_visible"]

_logger = Log(__name__)


class RecordDropped(Sampler):
    """The host's sampler, whose DROP becomes RECORD_ONLY: processors see the span, exporters do not."""

    def __init__(self, host: Sampler) -> None:
        self.host = host

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: types.Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """What the host's sampler decides, with all that it adds."""
        result = self.host.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        if result.decision is not Decision.DROP:
            return result
        return SamplingResult(Decision.RECORD_ONLY, attributes, result.trace_state)

    def get_description(self) -> str:
        """The host's."""
        return self.host.get_description()


def keep_agents_visible(provider: trace.TracerProvider) -> None:
    """Have the tracers of `provider` record what its sampler drops, now and later; idempotent.

    Nothing happens to one that is not the SDK's; one that cannot be changed is left alone, and the log says so once.
    """
    try:
        _keep_agents_visible(provider)
    except Exception as error:  # noqa: BLE001 - a subclass of the host's runs here, and its mistakes stay there
        _logger.warn_once("agents that the host's sampler drops stay unseen: %r", error)


def _keep_agents_visible(provider: trace.TracerProvider) -> None:
    if not isinstance(provider, TracerProvider):
        provider = getattr(provider, "provider", provider)  # logfire's hands everything on to one of the SDK
    if not isinstance(provider, TracerProvider) or getattr(provider, _MARK, False):
        return
    setattr(provider, _MARK, True)
    get_tracer = vars(provider).get("get_tracer") or partial(_get_tracer_of, weakref.ref(provider))

    def get_visible_tracer(*arguments: Any, **options: Any) -> trace.Tracer:
        return _made_visible(get_tracer(*arguments, **options))

    setattr(provider, "get_tracer", get_visible_tracer)  # noqa: B010 - a method, as far as type checkers know
    for tracer in tracers_of(provider):
        _made_visible(tracer)


def _get_tracer_of(reference: weakref.ref[TracerProvider], *arguments: Any, **options: Any) -> trace.Tracer:
    """What the provider's class does; held weakly, the provider goes when its host lets go of it."""
    provider = reference()
    return (
        trace.NoOpTracer() if provider is None else type(provider).get_tracer(provider, *arguments, **options)
    )


def _made_visible(tracer: trace.Tracer) -> trace.Tracer:
    if not isinstance(tracer, Tracer) or isinstance(tracer.sampler, RecordDropped):
        return tracer
    if not is_left_to_sampler(scope_of(tracer)):
        tracer.sampler = RecordDropped(tracer.sampler)
    return tracer


_MARK = "_otel_agent_tracker_visible"
