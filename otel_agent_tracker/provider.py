"""Our own `TracerProvider`: event spans that nothing of the host can sample away, cut, scrub or drop.

It has the user's resource, a sampler that records everything, no limits, an id generator that makes the ids
an event asks for, and no processor but ours. It is made at the first event, when the host's provider has had
its chance to be set.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any, Required, TypedDict, Unpack

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.util import types

from otel_agent_tracker import sdk_private, session_id
from otel_agent_tracker.log import Log, SparingLog
from otel_agent_tracker.semconv import SERVICE_INSTANCE_ID, VERSION

__all__ = ["EventProvider", "this_instance"]

SCOPE = "otel_agent_tracker"
_logger = Log(__name__)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_EMPTY = Context()
_RECORDED = SamplingResult(Decision.RECORD_AND_SAMPLE)
_UNNAMED = Resource({SERVICE_NAME: "unknown_service"})


class Placed(TypedDict, total=False):
    """Where a span stands: times are Unix microseconds, `error` describes a failed status."""

    trace_id: Required[int]
    start_us: Required[int]
    end_us: Required[int]
    span_id: int | None
    parent_span_id: int | None
    error: str | None


class EventProvider:
    """Makes finished event spans and hands them to `processors`, in order, on the calling thread.

    `resource` None means that of the global SDK provider at the first event, else `Resource.create()`. One without
    an instance, as of older SDKs, gets `this_instance`.
    """

    def __init__(
        self,
        processors: Sequence[SpanProcessor],
        *,
        resource: Resource | None = None,
        failed: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._processors = processors
        self._failed = failed
        self._log = SparingLog(_logger)
        self._resource = resource
        self._names_process = False
        self._ids = _Ids()
        self._tracer: trace.Tracer | None = None

    def emit(self, name: str, attributes: Mapping[str, Any], **placed: Unpack[Placed]) -> None:
        """Start and end the span `name`.

        Here the host's thread enters the SDK: whatever fails is told by `tell_failure`, and never raised.
        """
        try:
            self._emit(name, attributes, **placed)
        except Exception:  # noqa: BLE001 - the host's own processors may be in it, and it must not notice ours
            self.tell_failure(name)

    def tell_failure(self, name: str) -> None:
        """The exception being handled cost an event: tell `failed`, and the log at most once a minute."""
        self._failed(name)
        self._log.error(time.monotonic(), "an event could not be made: %s", name, exc_info=sys.exception())

    def _emit(
        self,
        name: str,
        attributes: Mapping[str, Any],
        *,
        trace_id: int,
        start_us: int,
        end_us: int,
        span_id: int | None = None,
        parent_span_id: int | None = None,
        error: str | None = None,
    ) -> None:
        tracer, ids = self._tracer or self._make_tracer(), self._ids
        before, ids.of_next = ids.of_next, (trace_id, span_id or session_id.mint_span_id())
        try:
            span = tracer.start_span(
                name,
                _parent(trace_id, parent_span_id),
                links=_ambient_link(),
                start_time=start_us * 1000,
            )
        finally:
            ids.of_next = before  # this may have interrupted the start of another
        sdk_private.set_clean_attributes(span, attributes)
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(end_us * 1000)

    def after_fork_in_child(self) -> None:
        """Replace a resource that names the parent."""
        if self._names_process:
            self._tracer = None

    def shutdown(self) -> None:
        """Shut the processors down; spans made later reach processors that refuse them."""
        for processor in self._processors:
            processor.shutdown()

    def _make_tracer(self) -> trace.Tracer:
        """Who comes meanwhile makes one too, over the same processors: nobody waits, whomever it has interrupted."""
        self._tracer = tracer = self._provider().get_tracer(SCOPE, VERSION)
        return tracer

    def _provider(self) -> TracerProvider:
        resource = self._resource or _host_resource()
        self._names_process = not resource.attributes.get(SERVICE_INSTANCE_ID)
        if self._names_process:
            resource = resource.merge(Resource({SERVICE_INSTANCE_ID: this_instance()}))
        provider = TracerProvider(
            sampler=_RecordAll(),
            resource=resource,
            shutdown_on_exit=False,
            id_generator=self._ids,
            span_limits=_unlimited(),
            **_no_metrics(),
        )
        sdk_private.enable(provider)
        for processor in self._processors:
            provider.add_span_processor(processor)
        return provider


def this_instance() -> str:
    """What tells this process from others of its service, where its resource does not."""
    return f"{socket.gethostname()}-{os.getpid()}"


class _Ids(threading.local, IdGenerator):
    """Answers with the ids that the calling thread has set, for as long as its span starts."""

    of_next = (1, 1)

    def generate_trace_id(self) -> int:
        return self.of_next[0]

    def generate_span_id(self) -> int:
        return self.of_next[1]


class _RecordAll(Sampler):
    """ALWAYS_ON, but for what that one spends on every span to look at its parent."""

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: trace.SpanKind | None = None,
        attributes: types.Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: trace.TraceState | None = None,
    ) -> SamplingResult:
        return _RECORDED

    def get_description(self) -> str:
        return "AlwaysOnSampler"


def _parent(trace_id: int, span_id: int | None) -> Context:
    """A Context of nothing but the parent: the ambient one must not reach an event span."""
    if span_id is None:
        return _EMPTY
    parent = SpanContext(trace_id, span_id, is_remote=False, trace_flags=_SAMPLED)
    return trace.set_span_in_context(NonRecordingSpan(parent), _EMPTY)


def _ambient_link() -> Sequence[Link]:
    ambient = trace.get_current_span()
    if ambient is trace.INVALID_SPAN:
        return ()
    span_context = ambient.get_span_context()
    return (Link(span_context),) if span_context.is_valid else ()


def _host_resource() -> Resource:
    resource = getattr(trace.get_tracer_provider(), "resource", None)
    if isinstance(resource, Resource):
        return resource
    try:
        return Resource.create()
    except Exception:  # noqa: BLE001 - its detectors are other people's, and at exit none of its threads starts
        return _UNNAMED.merge(OTELResourceDetector().detect())


def _no_metrics() -> dict[str, Any]:
    """What keeps event spans out of the SDK's own metrics; before 1.40 it took no meter provider and had none."""
    takes_meters = "meter_provider" in signature(TracerProvider).parameters
    return {"meter_provider": NoOpMeterProvider()} if takes_meters else {}


def _unlimited() -> SpanLimits:
    unset = SpanLimits.UNSET
    return SpanLimits(
        max_attributes=unset,
        max_events=unset,
        max_links=unset,
        max_span_attributes=unset,
        max_event_attributes=unset,
        max_link_attributes=unset,
        max_attribute_length=unset,
        max_span_attribute_length=unset,
    )
